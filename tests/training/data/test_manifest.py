"""The manifest: what it holds, its digest, its errors, its memory."""

import json
import shutil
import tracemalloc

import pytest

from training.data import DataError, Manifest


def test_pairs_and_tasks(manifest, tmp_path):
    loaded = manifest({"a": 3, "b": 2})
    assert len(loaded) == 5
    assert {task: list(numbers) for task, numbers in loaded.tasks.items()} == {"a": [0, 1, 2], "b": [3, 4]}
    pair = loaded[4]
    assert (pair.task, pair.prompt, pair.size) == ("b", "b number 1", (12, 8))
    assert pair.before.path.resolve() == tmp_path / "m" / "b" / "Group1" / "1.png"
    assert (pair.before.part, pair.after.part) == ("left", "right")
    assert pair.before.key != pair.after.key and pair.before.hash == pair.after.hash
    assert [p.prompt for p in loaded] == loaded.prompts()
    assert len(loaded.images()) == 10


def test_swapping_a_pair_twice_gives_its_images_back(manifest):
    pair = manifest({"a": 2})[0]
    assert (pair.swapped().before, pair.swapped().after) == (pair.after, pair.before)
    assert pair.swapped().prompt == "" != pair.prompt
    assert pair.swapped().swapped().before == pair.before


def test_digest_follows_the_content_and_not_the_place(manifest, tmp_path):
    loaded = manifest({"a": 2, "b": 2})
    assert manifest({"a": 2, "b": 2}, "elsewhere").digest == loaded.digest
    assert manifest({"a": 3, "b": 2}, "more").digest != loaded.digest
    lines = loaded.path.read_text().splitlines()
    for change in ({"prompt": "other"}, {"task": "other"}, {"hashes": ["0", "0"]}, {"halves": False}):
        changed = tmp_path / "changed.jsonl"
        changed.write_text("\n".join([*lines[:-1], json.dumps(json.loads(lines[-1]) | change)]))
        assert Manifest.load(changed).digest != loaded.digest, change


def test_a_moved_data_set_keeps_working(manifest, tmp_path):
    loaded = manifest({"a": 2})
    (tmp_path / "new").mkdir()
    shutil.move(tmp_path / "m", tmp_path / "new" / "m")
    moved = Manifest.load(shutil.move(loaded.path, tmp_path / "new" / "m.jsonl"))
    assert moved.digest == loaded.digest
    assert moved[0].before.path.is_file()


def test_subset_renumbers(manifest):
    loaded = manifest({"a": 2, "b": 2})
    subset = loaded.subset([3, 1])
    assert [pair.prompt for pair in subset] == ["b number 1", "a number 1"]
    assert {task: list(numbers) for task, numbers in subset.tasks.items()} == {"b": [0], "a": [1]}
    assert subset.digest != loaded.digest


def test_line_endings_and_blank_lines_do_not_matter(manifest, tmp_path):
    loaded = manifest({"a": 2})
    first, second = loaded.path.read_bytes().splitlines()
    (tmp_path / "crlf.jsonl").write_bytes(b"\r\n" + first + b"\r\n  \r\n" + second)
    assert Manifest.load(tmp_path / "crlf.jsonl").digest == loaded.digest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": ""}, "'task' is ''"),
        ({"before": None}, "'before' is None"),
        ({"hashes": ["only one"]}, "values to unpack"),
        ({"size": 5}, "cannot unpack"),
        ({"size": [0, 8]}, "'size' is"),
        ({"prompt": None}, "'prompt' is None"),
        ({"row": "middle"}, "'row' is 'middle'"),
    ],
)
def test_a_line_that_prepare_does_not_write_is_named(manifest, tmp_path, change, message):
    lines = manifest({"a": 2}).path.read_text().splitlines()
    broken = tmp_path / "broken.jsonl"
    broken.write_text("\n".join([lines[0], "", json.dumps(json.loads(lines[1]) | change)]))
    with pytest.raises(DataError, match=rf"broken\.jsonl, line 3: .*{message}"):
        Manifest.load(broken)


def test_missing_fields_text_and_empty_files_are_named(tmp_path):
    (tmp_path / "m.jsonl").write_text('{"task": "t", "before": "a", "after": "b"}')
    with pytest.raises(DataError, match=r"line 1: .*hashes.*training\.prepare"):
        Manifest.load(tmp_path / "m.jsonl")
    (tmp_path / "m.jsonl").write_text("not json")
    with pytest.raises(DataError, match="line 1"):
        Manifest.load(tmp_path / "m.jsonl")
    (tmp_path / "m.jsonl").write_text("\n")
    with pytest.raises(DataError, match="holds no pairs"):
        Manifest.load(tmp_path / "m.jsonl")
    with pytest.raises(DataError, match=r"gone\.jsonl: the manifest cannot be read"):
        Manifest.load(tmp_path / "gone.jsonl")


def test_memory_at_the_design_point_is_little_more_than_the_file(manifest, tmp_path):
    lines = manifest({"a": 2}).path.read_text().splitlines()
    line = json.loads(lines[0])
    large = tmp_path / "large.jsonl"
    large.write_text("\n".join(json.dumps(line | {"task": f"task {i % 218}"}) for i in range(33_274)))
    tracemalloc.start()
    loaded = Manifest.load(large)
    held = tracemalloc.get_traced_memory()[0] - large.stat().st_size
    tracemalloc.stop()
    assert (len(loaded), len(loaded.tasks)) == (33_274, 218)
    assert held < 2_000_000, f"{held:,} bytes beyond the text"
