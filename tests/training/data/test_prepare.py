"""The command line: formats, bad items by name, exit statuses, memory."""

import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from PIL import Image

from training.data import Manifest, load_image
from training.data.sources import reader_of
from training.data.writer import write_manifest
from training.prepare import main


@pytest.fixture
def prepare(tmp_path, read_lines):
    """prepare(source, *options) -> (exit status, manifest lines, {bad file: reason})."""
    out = tmp_path / "out" / "manifest.jsonl"

    def run(source, *options):
        status = main([str(source), "--out", str(out), "--workers", "2", *options])
        listing = out.with_suffix(".bad.jsonl")
        bad = {item["file"]: item["reason"] for item in read_lines(listing)} if listing.exists() else {}
        return status, read_lines(out) if out.exists() else None, bad

    return run


def pixels(path):
    with Image.open(path) as image:
        return image.convert("RGB").tobytes()


def test_relation252k_names_halves_and_prompts(prepare, relation, tmp_path):
    source = relation(tmp_path / "set", {"snow": 3, "style/oil": 2})
    relation(tmp_path / "set", {"snow": 2}, group="Group2")
    status, lines, bad = prepare(source)
    assert (status, bad) == (0, {})
    assert [line["task"] for line in lines] == ["snow"] * 5 + ["style/oil"] * 2
    first = lines[0]
    assert first["before"] == first["after"] == "../set/snow/Group1/0.png"
    assert (first["halves"], first["size"], first["prompt"]) == (True, [12, 8], "snow number 0")


def test_a_single_task_folder_is_named_after_itself(prepare, relation, tmp_path):
    relation(tmp_path / "set", {"snow": 2})
    assert {line["task"] for line in prepare(tmp_path / "set" / "snow")[1]} == {"snow"}


def test_labels_directly_in_task_folders_are_read(prepare, relation, tmp_path):
    source = relation(tmp_path / "set", {"snow": 2, "rain": 2}, group=".")
    assert {line["task"] for line in prepare(source)[1]} == {"snow", "rain"}


@pytest.mark.parametrize("below", ["", "snow"])
def test_control_target_pairs_stems_and_reads_captions(prepare, picture, tmp_path, below):
    source = tmp_path / "set"
    for i in range(2):
        picture(source / "control" / below / f"{i}.png", seed=i)
        picture(source / "target" / below / f"{i}.jpg", seed=10 + i)
    (source / "target" / below / "0.txt").write_text(" let it snow\n", encoding="utf-8")
    (source / "control" / below / "1.txt").write_text("more snow", encoding="utf-8")
    status, lines, bad = prepare(source)
    assert (status, bad) == (0, {})
    assert [line["prompt"] for line in lines] == ["let it snow", "more snow"]
    assert [Path(line["before"]).parts[2] for line in lines] == ["control", "control"]
    assert [Path(line["after"]).parts[2] for line in lines] == ["target", "target"]
    assert {line["task"] for line in lines} == {below or "set"}


def test_control_target_in_task_folders(prepare, picture, tmp_path):
    for task in ("rain", "snow"):
        for side in ("control", "target"):
            for i in range(2):
                picture(tmp_path / "set" / task / side / f"{i}.png", seed=i)
    assert [line["task"] for line in prepare(tmp_path / "set")[1]] == ["rain", "rain", "snow", "snow"]


def test_a_task_folder_without_a_side_is_reported_and_the_others_kept(prepare, picture, tmp_path):
    for folder in ("rain/control", "rain/target", "snow/control"):
        for i in range(2):
            picture(tmp_path / "set" / folder / f"{i}.png", seed=i)
    _, lines, bad = prepare(tmp_path / "set")
    assert [line["task"] for line in lines] == ["rain", "rain"]
    assert len(bad) == 2 and all("snow" in item for item in bad)


def test_plain_folders_of_both_shapes(prepare, picture, tmp_path):
    source = tmp_path / "set"
    for i in range(2):
        picture(source / "rain" / "before" / f"{i}.png", seed=i)
        picture(source / "rain" / "after" / f"{i}.webp", seed=i + 5)
        picture(source / "snow" / f"{i}_before.png", seed=i + 10)
        picture(source / "snow" / f"{i}_after.png", seed=i + 15)
    (source / "rain" / "prompt.txt").write_text("rain")
    (source / "rain" / "after" / "1.txt").write_text("drizzle")
    status, lines, bad = prepare(source)
    assert (status, bad) == (0, {})
    assert [(line["task"], line["prompt"]) for line in lines] == [
        ("rain", "rain"),
        ("rain", "drizzle"),
        ("snow", ""),
        ("snow", ""),
    ]
    assert all("halves" not in line for line in lines)


def test_jsonl_is_read_and_its_own_output_again(prepare, picture, relation, tmp_path):
    picture(tmp_path / "a.png", seed=1), picture(tmp_path / "b.png", seed=2), picture(tmp_path / "ab.png", (24, 8))
    source = tmp_path / "pairs.jsonl"
    pairs = [
        {"task": "t", "before": "a.png", "after": "b.png", "prompt": "grüß"},
        {"task": "u", "before": "ab.png", "halves": True},
        {"task": "t", "before": str(tmp_path / "b.png"), "after": "a.png"},
        {"task": "u", "before": "ab.png", "after": "ab.png", "halves": True, "prompt": "again"},
    ]
    source.write_text("\n\n".join(map(json.dumps, pairs)), encoding="utf-8")
    status, lines, bad = prepare(source)
    assert (status, bad) == (0, {})
    assert [(line["task"], line["prompt"]) for line in lines] == [("t", "grüß"), ("t", ""), ("u", ""), ("u", "again")]
    made = tmp_path / "out" / "manifest.jsonl"
    again = shutil.copy(made, made.with_name("copy.jsonl"))
    assert prepare(again)[1] == lines


def test_canvases_become_tasks_of_two_rows(prepare, picture, tmp_path):
    image = picture(tmp_path / "set" / "target" / "x.png", (32, 16))
    (tmp_path / "set" / "target" / "x.txt").write_text("snow")
    picture(tmp_path / "set" / "control" / "x.png", (32, 16), seed=1)
    status, lines, bad = prepare(tmp_path / "set", "--format", "canvases")
    assert (status, bad) == (0, {})
    assert [(line["task"], line["row"], line["size"]) for line in lines] == [
        ("target/x", "top", [16, 8]),
        ("target/x", "bottom", [16, 8]),
    ]
    pair = Manifest.load(tmp_path / "out" / "manifest.jsonl")[1]
    with Image.open(image) as canvas:
        expected = canvas.crop((16, 8, 32, 16)).tobytes()
    assert (load_image(pair.after) * 255).round().byte().numpy().tobytes() == expected


def test_every_kind_of_bad_item_is_named(prepare, picture, truncate, tmp_path):
    source = tmp_path / "set"
    for i in range(9):
        picture(source / "t" / "before" / f"{i}.png", seed=i)
        picture(source / "t" / "after" / f"{i}.png", seed=i + 50)
    expected = {}

    def spoil(name, reason):
        expected[str(source / name)] = reason

    truncate(source / "t/before/0.png"), spoil("t/before/0.png", "not a readable image")
    picture(source / "t/after/1.png", (13, 8)), spoil("t/after/1.png", "its size is 13 x 8, but")
    (source / "t/after/2.png").unlink(), spoil("t/before/2.png", "its partner is missing: no after/2.*")
    (source / "t/before/3.png").unlink(), spoil("t/after/3.png", "its partner is missing: no before/3.*")
    (source / "t/after/4.png").write_bytes(b""), spoil("t/after/4.png", "the file is empty")
    (source / "t/before/5.png").write_text("words"), spoil("t/before/5.png", "the format is not recognised")
    picture(source / "t/before/6.jpg"), spoil("t/before/6.jpg", "6.jpg and 6.png have the same name")
    (source / "t/after/7.txt").write_bytes(b"\xff\xfe\x00"), spoil("t/after/7.png", "cannot be read as UTF-8")
    picture(source / "t/after/9.png"), picture(source / "t/before/9.png")
    picture(source / "single/1_before.png"), picture(source / "single/1_after.png")
    spoil("single/1_before.png", "the only usable pair of task 'single'")
    picture(source / "typo/befor/1.png"), spoil("typo/befor/1.png", "1 images in this folder belong to no pair")
    picture(source / "half/before/1.png"), spoil("half/before/1.png", "no after/1.*")

    status, lines, bad = prepare(source)
    assert status == 0
    assert [Path(line["before"]).stem for line in lines] == ["8", "9"]
    assert bad.keys() == expected.keys()
    assert {file: reason in bad[file] for file, reason in expected.items()} == dict.fromkeys(expected, True)


def test_bad_items_of_labels(prepare, relation, picture, tmp_path):
    source = relation(tmp_path / "set", {"a": 2, "b": 2, "c": 2})
    group = source / "a" / "Group1"
    labels = json.loads((group / "labels.json").read_text())
    labels += [{"img_name": "gone.png"}, {"edit_instruction": "x"}, "text", {"img_name": "odd.png"}]
    (group / "labels.json").write_text(json.dumps(labels))
    picture(group / "odd.png", (25, 8))
    (source / "b" / "Group1" / "labels.json").write_text('[{"img_name": ')
    (source / "c" / "Group1" / "labels.json").write_text('{"img_name": "0.png"}')
    status, lines, bad = prepare(source)
    assert (status, len(lines)) == (0, 2)
    assert "there is no such file" in bad[str(group / "gone.png")]
    assert "its width is odd (25 pixels)" in bad[str(group / "odd.png")]
    assert bad[str(group / "labels.json")] == "entry 4 has no img_name"  # the last of its two
    assert "not readable as JSON" in bad[str(source / "b" / "Group1" / "labels.json")]
    assert "expected a list" in bad[str(source / "c" / "Group1" / "labels.json")]


def test_bad_lines_of_jsonl(prepare, picture, tmp_path):
    picture(tmp_path / "a.png")
    good = json.dumps({"task": "t", "before": "a.png", "after": "a.png"})
    bad_lines = {
        "{": "not a pair in JSON",
        "[1]": "not a pair in JSON",
        '{"task": "t", "before": "a.png"}': "'after' is missing",
        '{"task": 5, "before": "a.png", "after": "a.png"}': "'task' is 5",
        '{"task": "t", "before": "a.png", "after": "a.png", "row": "top"}': "'row' is 'top'",
        '{"task": "t", "before": "a.png", "after": "b.png", "halves": true}': "before and after differ",
        '{"task": "t", "before": "a\\u0000.png", "after": "a.png"}': "cannot be read",
    }
    source = tmp_path / "pairs.jsonl"
    source.write_text("\n".join([good, *bad_lines, good]))
    status, lines, bad = prepare(source)
    assert (status, len(lines)) == (0, 2)
    assert len(bad) == len(bad_lines)
    for (file, reason), expected in zip(bad.items(), bad_lines.values()):
        assert expected in reason, file
    assert [file for file in bad if "line 4" in file]


def test_an_unreadable_pair_can_leave_a_task_single(prepare, relation, truncate, tmp_path):
    source = relation(tmp_path / "set", {"a": 2, "b": 2})
    truncate(source / "a" / "Group1" / "1.png")
    status, lines, bad = prepare(source)
    assert (status, {line["task"] for line in lines}) == (0, {"b"})
    assert "only usable pair of task 'a'" in bad[str(source / "a" / "Group1" / "0.png")]


def test_quick_reads_headers_only(prepare, relation, truncate, tmp_path):
    source = relation(tmp_path / "set", {"a": 3})
    truncate(source / "a" / "Group1" / "1.png")
    assert len(prepare(source, "--quick")[1]) == 3
    assert len(prepare(source)[1]) == 2


def test_bad_items_come_before_the_summary(prepare, relation, truncate, tmp_path, capsys):
    source = relation(tmp_path / "set", {"a": 3})
    truncate(source / "a" / "Group1" / "1.png")
    prepare(source)
    text = capsys.readouterr().out
    assert 0 < text.index("estimate: ") < text.index("bad: ") < text.index("2 pairs in 1 tasks, 1 bad items left out")
    assert str(source / "a" / "Group1" / "1.png") in text


def test_strict_keeps_the_manifest_that_was_there(prepare, relation, truncate, tmp_path):
    source = relation(tmp_path / "set", {"a": 3})
    before = prepare(source)[1]
    truncate(source / "a" / "Group1" / "1.png")
    status, lines, bad = prepare(source, "--strict")
    assert (status, lines, len(bad)) == (1, before, 1)
    status, lines, bad = prepare(source)
    assert (status, len(lines)) == (0, 2)


def test_a_clean_run_removes_the_old_list_of_bad_items(prepare, relation, truncate, tmp_path):
    source = relation(tmp_path / "set", {"a": 3})
    image = source / "a" / "Group1" / "1.png"
    whole = image.read_bytes()
    truncate(image)
    assert len(prepare(source)[2]) == 1
    image.write_bytes(whole)
    assert prepare(source)[2] == {}
    assert not list((tmp_path / "out").glob("*.bad.jsonl"))


def test_nothing_usable_is_an_error(prepare, relation, tmp_path, capsys):
    source = relation(tmp_path / "set", {"a": 1, "b": 1})
    status, lines, bad = prepare(source)
    assert (status, lines, len(bad)) == (1, None, 2)
    assert "no task has two usable pairs" in capsys.readouterr().err


def test_exit_statuses_of_the_real_command(relation, tmp_path):
    source = relation(tmp_path / "set", {"a": 2})

    def run(*arguments):
        command = [sys.executable, "-m", "training.prepare", *map(str, arguments)]
        root = Path(__file__).parents[3]
        return subprocess.run(command, cwd=root, capture_output=True, text=True, env={**os.environ, "COLUMNS": "120"})

    out = tmp_path / "m.jsonl"
    assert run(source, "--out", out).returncode == 0
    (tmp_path / "empty").mkdir()
    unknown = run(tmp_path / "empty", "--out", out)
    assert unknown.returncode == 1 and "no known layout" in unknown.stderr and "labels.json" in unknown.stderr
    assert "Traceback" not in unknown.stderr


def test_a_folder_in_place_of_the_manifest_is_an_error(relation, tmp_path, capsys):
    source = relation(tmp_path / "set", {"a": 2})
    assert main([str(source), "--out", str(tmp_path)]) == 1
    assert "--out names the manifest file to write" in capsys.readouterr().err


def test_a_missing_source_is_an_error(prepare, tmp_path, capsys):
    assert prepare(tmp_path / "none")[0] == 1
    assert "none: there is no such file or folder" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["--out", "m.jsonl", "--workers", "0"], ["--out", "m", "--format", "zip"]])
def test_a_wrong_command_line_exits_with_2(arguments, tmp_path):
    with pytest.raises(SystemExit) as exit_:
        main([str(tmp_path), *arguments])
    assert exit_.value.code == 2


def test_an_interrupted_run_leaves_the_old_manifest_and_no_litter(relation, tmp_path):
    source = relation(tmp_path / "set", {"a": 4})
    out = tmp_path / "out.jsonl"
    out.write_text("old")

    def interrupted():
        for number, item in enumerate(reader_of(source)[1](source)):
            if number == 3:
                raise KeyboardInterrupt
            yield item

    with pytest.raises(KeyboardInterrupt):
        write_manifest(interrupted(), out, workers=1)
    assert out.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "set"]


def test_photographs_decode_and_sizes_are_true(prepare, photographs):
    status, lines, bad = prepare(photographs)
    assert (status, bad, len(lines)) == (0, {}, 8)
    assert {tuple(line["size"]) for line in lines} == {(512, 512), (451, 300), (600, 400), (640, 427)}


def test_memory_does_not_grow_with_the_data(relation, tmp_path):
    model = relation(tmp_path / "model", {"t": 20}) / "t"

    def peak(tasks, name):
        source = tmp_path / name
        for task in range(tasks):
            (source / str(task) / "Group1").mkdir(parents=True)
            for file in (model / "Group1").iterdir():
                os.link(file, source / str(task) / "Group1" / file.name)
        tracemalloc.start()
        summary = write_manifest(reader_of(source)[1](source), tmp_path / f"{name}.jsonl", workers=2, quick=True)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert summary.pairs == tasks * 20
        return peak

    peak(5, "first")  # imports and caches of the interpreter
    small, large = peak(5, "small"), peak(100, "large")
    # 1,900 more pairs: keeping even their manifest lines alone would take 400 kB.
    assert large - small < 100_000, f"{small:,} bytes for 100 pairs, {large:,} for 2,000"


def test_symbolic_links_are_followed_but_not_in_circles(prepare, relation, tmp_path):
    relation(tmp_path / "elsewhere", {"a": 2})
    source = tmp_path / "set"
    source.mkdir()
    (source / "linked").symlink_to(tmp_path / "elsewhere" / "a")
    (source / "circle").symlink_to(source)
    status, lines, _ = prepare(source)
    assert (status, [line["task"] for line in lines]) == (0, ["linked", "linked"])
