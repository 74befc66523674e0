"""Caches: hits, other settings, other content, damage, interruption, a disk that fills."""

import json
import os
import pickle
import shutil
import signal
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from training.data import DataError, EmbeddingCache, Manifest, load_quadrants, square_canvas, text_key
from training.data import cache as cache_module

FINGERPRINT = {"encoder": "squares", "dtype": "float32"}


class Encoder:
    """Squares numbers and counts what it was asked for."""

    def __init__(self, fail_after=None):
        self.seen, self.fail_after = [], fail_after

    def __call__(self, numbers):
        if self.fail_after is not None and len(self.seen) >= self.fail_after:
            raise KeyboardInterrupt
        self.seen += numbers
        values = torch.tensor(numbers, dtype=torch.float32)
        return {"square": values**2, "row": values[:, None].expand(-1, 5).to(torch.bfloat16)}


def items(numbers):
    return [(f"key{n}", n) for n in numbers]


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(cache_module, "SHARD_ITEMS", 4)


def build(folder, numbers, encoder=None, fingerprint=FINGERPRINT, batch_size=3):
    encoder = encoder or Encoder()
    return EmbeddingCache(folder, fingerprint).get_or_build(items(numbers), encoder, batch_size), encoder


def shards(cache):
    return sorted(cache.folder.glob("*.safetensors"))


def assert_holds(cache, numbers):
    for n in numbers:
        row = cache[f"key{n}"]
        assert row["square"].item() == n**2
        assert torch.equal(row["row"], torch.full((5,), n, dtype=torch.bfloat16))


def test_items_come_back_by_key(tmp_path, small_shards):
    cache, encoder = build(tmp_path, range(10))
    assert encoder.seen == list(range(10)) and len(shards(cache)) == 3
    assert_holds(cache, [9, 0, 5])
    stacked = cache.stack(["key3", "key1"])
    assert stacked["square"].tolist() == [9, 1] and stacked["row"].shape == (2, 5)
    assert "key3" in cache and "key10" not in cache


def test_a_second_build_computes_nothing(tmp_path, small_shards):
    build(tmp_path, range(10))
    cache, encoder = build(tmp_path, range(10))
    assert encoder.seen == []
    assert_holds(cache, range(10))


def test_only_new_content_is_computed_and_duplicates_once(tmp_path):
    build(tmp_path, range(3))
    cache, encoder = build(tmp_path, [1, 5, 2, 5, 6])
    assert encoder.seen == [5, 6]
    assert_holds(cache, [0, 1, 2, 5, 6])


def test_other_settings_are_another_cache(tmp_path):
    build(tmp_path, range(3))
    _, encoder = build(tmp_path, range(3), fingerprint=FINGERPRINT | {"encoder": "cubes"})
    assert encoder.seen == [0, 1, 2]
    reordered = dict(reversed(FINGERPRINT.items()))
    assert EmbeddingCache(tmp_path, reordered).missing(["key0", "key1", "key2"]) == []


def test_a_shard_from_other_settings_is_refused(tmp_path, caplog):
    other, _ = build(tmp_path, range(3), fingerprint={"encoder": "cubes"})
    cache = EmbeddingCache(tmp_path, FINGERPRINT)
    cache.folder.mkdir()
    stray = shutil.copy(shards(other)[0], cache.folder)
    assert cache.missing(["key0"]) == ["key0"]
    assert "made with other settings" in caplog.text and Path(stray).name in caplog.text


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "delete"])
def test_a_damaged_shard_is_named_and_built_again(tmp_path, small_shards, caplog, damage):
    cache, _ = build(tmp_path, range(10))
    shard, lost = cache._shards["key4"], [4, 5, 6, 7]
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    damaged = {"flip": content, "truncate": content[:-9], "empty": b""}
    shard.write_bytes(damaged[damage]) if damage in damaged else shard.unlink()
    cache, encoder = build(tmp_path, range(10))
    assert encoder.seen == lost
    assert (str(shard) in caplog.text) == (damage != "delete")
    assert_holds(cache, range(10))
    assert build(tmp_path, range(10))[1].seen == []


def test_an_interrupted_build_goes_on(tmp_path, small_shards):
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, range(10), Encoder(fail_after=9))
    cache, encoder = build(tmp_path, range(10))
    assert encoder.seen == [8, 9]
    assert_holds(cache, range(10))


def test_a_killed_build_goes_on(tmp_path, forked, monkeypatch):
    monkeypatch.setattr(cache_module, "SHARD_ITEMS", 2)

    def compute(n):
        if n[0] == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"square": torch.tensor(n, dtype=torch.float32) ** 2}

    def build_until_killed():
        EmbeddingCache(tmp_path, {"e": 1}).get_or_build(items(range(6)), compute, batch_size=2)

    assert forked(build_until_killed) == -signal.SIGKILL
    cache = EmbeddingCache(tmp_path, {"e": 1})
    assert cache.missing(key for key, _ in items(range(6))) == ["key4", "key5"]
    assert cache["key3"]["square"].item() == 9


def test_leftovers_of_a_killed_write_are_removed(tmp_path):
    cache, _ = build(tmp_path, range(2))
    leftover = cache.folder / ".x.safetensors.123.tmp"
    leftover.write_text("half")
    assert build(tmp_path, range(3))[1].seen == [2]
    assert not leftover.exists()


def test_large_items_close_a_shard_early(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module, "SHARD_BYTES", 4000)
    cache = EmbeddingCache(tmp_path, FINGERPRINT)
    cache.get_or_build(items(range(6)), lambda n: {"x": torch.ones(len(n), 500)}, batch_size=6)
    assert len(shards(cache)) == 3


def test_a_view_is_stored_without_the_rest_of_its_storage(tmp_path):
    cache = EmbeddingCache(tmp_path, FINGERPRINT)
    cache.get_or_build(items(range(2)), lambda n: {"x": torch.arange(2_000_000.0).view(2, -1)[:, :4]}, batch_size=2)
    assert shards(cache)[0].stat().st_size < 5000
    assert cache["key1"]["x"].tolist() == [1e6, 1e6 + 1, 1e6 + 2, 1e6 + 3]


def test_rows_of_any_memory_layout_are_stored(tmp_path):
    batch = torch.arange(24.0).view(2, 3, 4).requires_grad_()
    cache = EmbeddingCache(tmp_path, FINGERPRINT)
    cache.get_or_build(items(range(2)), lambda n: {"x": batch.movedim(1, 2)}, batch_size=2)
    assert torch.equal(cache["key1"]["x"], batch[1].T)


def test_reading_one_item_does_not_read_the_shard(tmp_path, forked):
    cache = EmbeddingCache(tmp_path, FINGERPRINT)
    cache.get_or_build(items(range(64)), lambda n: {"x": torch.ones(len(n), 2**18)}, batch_size=8)
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc")

    def resident():
        (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssFile"))
        return int(line.split()[1])

    def read():
        cache = EmbeddingCache(tmp_path, FINGERPRINT)
        last = cache["key63"]["x"][0].item()  # the libraries' own pages
        before = resident()
        assert sum(cache[f"key{i}"]["x"][0].item() for i in range(2)) == 2 * last
        grown = resident() - before
        assert grown < 16 * 1024, f"{grown} kB of a 64 MB shard became resident for two items of 1 MB"

    assert forked(read) == 0


def test_many_shards_keep_few_files_open(tmp_path, small_shards, monkeypatch):
    monkeypatch.setattr(cache_module, "_OPEN_SHARDS", 2)
    cache, _ = build(tmp_path, range(40))
    assert_holds(cache, [0, 39, 20, 1, 38])
    assert len(cache._handles) == 2


def test_a_shard_that_goes_during_training_is_named(tmp_path):
    cache, _ = build(tmp_path, range(3))
    shards(cache)[0].unlink()
    with pytest.raises(DataError, match=r"\.safetensors: the cache shard cannot be read"):
        cache["key0"]
    with pytest.raises(DataError, match="nothing is cached for content key7"):
        cache["key7"]


def test_another_process_that_looked_too_early_sees_what_was_built(tmp_path):
    waiting = EmbeddingCache(tmp_path, FINGERPRINT)
    assert waiting.missing(["key0"]) == ["key0"]
    build(tmp_path, range(3))
    assert waiting.missing(["key0"]) == []
    assert_holds(waiting, range(3))


def test_a_cache_travels_to_workers(tmp_path):
    cache, _ = build(tmp_path, range(3))
    assert_holds(cache, [1])
    assert_holds(pickle.loads(pickle.dumps(cache)), [2])

    class Squares(torch.utils.data.Dataset):
        def __getitem__(self, n):
            return cache[f"key{n}"]["square"]

    batch = next(iter(DataLoader(Squares(), batch_sampler=[[0, 2]], num_workers=1)))
    assert batch.tolist() == [0, 4]


def test_a_wrong_number_of_rows_is_an_error(tmp_path):
    with pytest.raises(DataError, match="2 rows of 'x' for 3 items"):
        EmbeddingCache(tmp_path, FINGERPRINT).get_or_build(items(range(3)), lambda n: {"x": torch.ones(2, 1)}, 3)


def test_too_little_room_is_noticed_before_anything_is_written(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 5, 200))
    with pytest.raises(DataError, match=r"caching 1,000 items needs 14\.0 kB, but only 200 bytes are free"):
        build(tmp_path, range(1000))
    assert shards(EmbeddingCache(tmp_path, FINGERPRINT)) == []


def test_a_disk_that_fills_keeps_what_is_built(tmp_path, forked, monkeypatch):
    """A limit on file size stands for the full disk: the second shard is larger than it."""
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(cache_module, "SHARD_ITEMS", 1)

    def fill():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        cache = EmbeddingCache(tmp_path, {"e": 1})
        with pytest.raises(DataError, match="start again: what is built is kept"):
            cache.get_or_build(items(range(2)), lambda n: {"x": torch.ones(1, 10 ** (n[0] + 3))}, batch_size=1)

    assert forked(fill) == 0
    cache = EmbeddingCache(tmp_path, {"e": 1})
    assert cache.missing(["key0", "key1"]) == ["key1"]
    assert not list(cache.folder.glob(".*.tmp"))


def test_a_changed_image_is_encoded_again(relation, picture, tmp_path):
    from training.prepare import main

    def prepare_and_cache():
        out = tmp_path / "m.jsonl"
        assert main([str(tmp_path / "set"), "--out", str(out)]) == 0
        seen = []

        def encode(images):
            seen.extend(images)
            return {"embedding": load_quadrants(images, square_canvas(32)).mean(dim=(1, 2))}

        manifest = Manifest.load(out)
        cache = EmbeddingCache(tmp_path / "cache", {"encoder": "mean"}).get_or_build(manifest.images().items(), encode)
        return seen, cache, manifest

    relation(tmp_path / "set", {"a": 3})
    assert len(prepare_and_cache()[0]) == 6
    assert prepare_and_cache()[0] == []
    picture(tmp_path / "set" / "a" / "Group1" / "1.png", (24, 8), seed=77)
    seen, cache, manifest = prepare_and_cache()
    assert seen == [manifest[1].before, manifest[1].after]
    expected = load_quadrants([manifest[1].after], square_canvas(32)).mean(dim=(1, 2))[0]
    assert torch.equal(cache[manifest[1].after.key]["embedding"], expected)


def test_prompts_have_keys_of_their_own():
    assert text_key("a") != text_key("b") and text_key("") == text_key("")
    assert len(text_key("grüß")) == 32


def test_the_fingerprint_is_readable_beside_the_shards(tmp_path):
    cache, _ = build(tmp_path, range(1))
    assert json.loads((cache.folder / "fingerprint.json").read_text()) == FINGERPRINT
