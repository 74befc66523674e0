"""Checkpoints: complete or absent, whatever happens while they are written."""

import json
import os
import re
import resource
import shutil

import pytest
import torch

from training.run.checkpointing import Checkpoints


def tensors(value, size=4):
    return {"adapter": {"a": torch.full((size,), float(value)), "b": torch.arange(3)}}


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", keep=2)
    assert checkpoints.steps() == []
    checkpoints.save(7, tensors(1.5), {"step": 7, "rate": 0.1})
    loaded, state = checkpoints.load(7)
    assert torch.equal(loaded["adapter"]["a"], torch.full((4,), 1.5)) and state == {"step": 7, "rate": 0.1}
    assert loaded["adapter"]["b"].dtype == torch.int64


def test_old_checkpoints_are_pruned_and_strangers_left_alone(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    (tmp_path / "step-mine").mkdir()
    for step in (10, 9, 30, 200):
        checkpoints.save(step, tensors(step), {})
    assert checkpoints.steps() == [30, 200] and (tmp_path / "step-mine").exists()


def test_an_unfinished_checkpoint_is_never_seen(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(1, tensors(1), {})
    shutil.copytree(checkpoints.path(1), tmp_path / ".step-00000002.tmp")
    assert checkpoints.steps() == [1]
    checkpoints.save(2, tensors(2), {})
    assert checkpoints.steps() == [1, 2] and list(tmp_path.glob(".*")) == []


def three(folder):
    """Checkpoints of the steps 1 to 3, as a fresh start sees them."""
    for step in (1, 2, 3):
        Checkpoints(folder, keep=5).save(step, tensors(step), {"step": step, "rates": (0.1, 0.2), "names": {1: "a"}})
    return Checkpoints(folder, keep=5)


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:-10])


def replace_text(old, new):
    return lambda path: path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize(
    ("file", "spoil", "said"),
    [
        ("adapter.safetensors", flip, "is damaged; its state says another checksum"),
        ("adapter.safetensors", cut, "is damaged"),
        ("adapter.safetensors", os.remove, r"cannot be read \(No such file"),
        ("state.json", replace_text('"step": 3', '"step": 4'), "was changed after it was written"),
        ("state.json", replace_text("checksums", "checksum"), "has no checksums of the files beside it"),
        ("state.json", replace_text("0.2", "NaN"), "was changed after it was written"),
        ("state.json", cut, "cannot be read"),
        ("state.json", os.remove, "cannot be read"),
        ("state.json", lambda path: path.write_text("[" * 100_000), "cannot be read"),
        ("state.json", lambda path: path.write_text("[1]"), "holds a list"),
        ("state.json", lambda path: path.write_bytes(b"\xff"), "cannot be read"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(tmp_path, caplog, file, spoil, said):
    assert three(tmp_path).resumable == 3
    spoil(tmp_path / "step-00000003" / file)
    checkpoints = Checkpoints(tmp_path, keep=1)
    assert checkpoints.resumable == 2
    assert re.search(rf"step-00000003/{file}: .*{said}.*; going back to an older checkpoint", caplog.messages[-1])
    loaded, state = checkpoints.load(2)
    assert torch.equal(loaded["adapter"]["a"], torch.full((4,), 2.0))
    assert state == {"step": 2, "rates": [0.1, 0.2], "names": {"1": "a"}}
    checkpoints.set_aside_newer(2)
    assert checkpoints.steps() == [1, 2] and (tmp_path / "damaged-step-00000003").is_dir()
    checkpoints.save(3, tensors(3), {})
    assert Checkpoints(tmp_path, keep=1).resumable == 3 and checkpoints.steps() == [3]


def test_without_a_good_checkpoint_nothing_is_begun_anew_in_silence(tmp_path):
    assert Checkpoints(tmp_path, keep=1).resumable == 0
    for step in three(tmp_path).steps():
        flip(tmp_path / f"step-0000000{step}" / "adapter.safetensors")
    with pytest.raises(ValueError, match=r"every checkpoint is damaged \(1, 2, 3\); remove this folder"):
        _ = Checkpoints(tmp_path, keep=1).resumable


@pytest.mark.parametrize("failing", ["rename", "json"])
def test_a_failure_leaves_the_last_good_one(tmp_path, monkeypatch, failing):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, tensors(1), {})

    def refuse(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os if failing == "rename" else json, "replace" if failing == "rename" else "dumps", refuse)
    with pytest.raises(
        OSError, match=r"checkpoint of step 2 cannot be written .*No space left.*last good checkpoint is 1"
    ):
        checkpoints.save(2, tensors(2), {})
    assert checkpoints.steps() == [1] and list(tmp_path.glob(".*")) == []


def test_a_full_disk_leaves_the_last_good_one(small_disk):
    small_disk = small_disk("1m")
    checkpoints = Checkpoints(small_disk, keep=1)
    checkpoints.save(1, tensors(1, size=100_000), {"step": 1})
    with pytest.raises(OSError, match=r"step 2 cannot be written .* The last good checkpoint is 1: make room"):
        checkpoints.save(2, tensors(2, size=200_000), {"step": 2})
    assert checkpoints.steps() == [1] and list(small_disk.glob(".*")) == []
    assert torch.equal(checkpoints.load(1)[0]["adapter"]["a"], torch.ones(100_000))
    checkpoints.save(3, tensors(3, size=1000), {"step": 3})
    assert checkpoints.steps() == [3]


def test_a_file_size_limit_leaves_the_last_good_one(tmp_path):
    import signal

    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, tensors(1), {})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        with pytest.raises(OSError, match="step 2 cannot be written"):
            checkpoints.save(2, tensors(2, size=200_000), {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert checkpoints.steps() == [1]
