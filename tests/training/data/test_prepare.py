"""The command line: formats, exit statuses, memory."""

import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from training.data import AnalogyDataset, AnalogySampler, Manifest, load_image, square_canvas
from training.data.sources import reader_of
from training.data.writer import write_manifest
from training.prepare import main


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
        for number, side in enumerate(("control", "target")):
            for i in range(2):
                picture(tmp_path / "set" / task / side / f"{i}.png", seed=10 * number + i)
    assert [line["task"] for line in prepare(tmp_path / "set")[1]] == ["rain", "rain", "snow", "snow"]


def test_a_task_folder_without_a_side_is_reported_and_the_others_kept(prepare, picture, tmp_path):
    for number, folder in enumerate(("rain/control", "rain/target", "snow/control")):
        for i in range(2):
            picture(tmp_path / "set" / folder / f"{i}.png", seed=10 * number + i)
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
    picture(tmp_path / "cd.png", (24, 8), seed=3)
    source = tmp_path / "pairs.jsonl"
    pairs = [
        {"task": "t", "before": "a.png", "after": "b.png", "prompt": "grüß"},
        {"task": "u", "before": "ab.png", "halves": True},
        {"task": "t", "before": str(tmp_path / "b.png"), "after": "a.png"},
        {"task": "u", "before": "cd.png", "after": "cd.png", "halves": True, "prompt": "again"},
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


def test_two_layouts_in_one_folder_are_both_read_and_the_rest_is_named(prepare, picture, tmp_path):
    source = tmp_path / "I"
    for i in range(2):
        for number, side in enumerate(("sun/before", "sun/after", "hat/control", "hat/target", "sun/before/low")):
            picture(source / side / f"{i}.png", seed=10 * number + i)
        picture(source / "sun" / "after" / "low" / f"{i}.png", seed=90 + i)
        picture(source / "scraps" / f"{i}.png", seed=70 + i)
    status, lines, bad = prepare(source)
    assert status == 0
    assert Counter(line["task"] for line in lines) == {"sun": 2, "sun/low": 2, "hat": 2}
    assert list(bad) == [str(source / "scraps" / "0.png")]
    assert "2 images in this folder belong to no pair; expected control/<name>.* and target/" in bad[next(iter(bad))]
    _, lines, bad = prepare(source, "--format", "control_target")
    assert {line["task"] for line in lines} == {"hat"}
    assert {Path(file).parent.relative_to(source).as_posix() for file in bad} == {
        "scraps", "sun/before", "sun/after", "sun/before/low", "sun/after/low",
    }  # fmt: skip


def test_sides_of_one_shape_and_other_sizes_are_a_pair(prepare, picture, tmp_path):
    for i, size in enumerate([(240, 160), (101, 67), (1000, 675), (1000, 690)]):
        picture(tmp_path / "set" / "before" / f"{i}.png", (120, 80), seed=i)
        picture(tmp_path / "set" / "after" / f"{i}.png", size, seed=10 + i)
    _, lines, bad = prepare(tmp_path / "set")
    assert [(Path(line["before"]).stem, line["size"]) for line in lines] == [(str(i), [120, 80]) for i in range(3)]
    ((file, reason),) = bad.items()
    assert file.endswith("3.png") and "its size is 1000 x 690, but" in reason and "crop both to one shape" in reason
    images = [AnalogyDataset(AnalogySampler(Manifest.load(tmp_path / "out/manifest.jsonl")), square_canvas(32))[0]]
    assert images[0]["target"].shape == (32, 32, 3)


def test_many_captions_in_one_task_are_warned_of_and_can_be_its_tasks(prepare, picture, tmp_path, capsys):
    captions = ["add a hat", "make it snow", "add a hat", "make it snow", ""]
    for i, caption in enumerate(captions):
        picture(tmp_path / "set" / "control" / f"{i}.png", seed=i)
        picture(tmp_path / "set" / "target" / f"{i}.png", seed=10 + i)
        (tmp_path / "set" / "target" / f"{i}.txt").write_text(caption)
    assert {line["task"] for line in prepare(tmp_path / "set")[1]} == {"set"}
    assert "1 of 1 tasks have several captions, such as 'set' with 3" in capsys.readouterr().out
    _, lines, bad = prepare(tmp_path / "set", "--task-from-caption")
    assert [(line["task"], line["prompt"]) for line in lines] == sorted((text, text) for text in captions if text)
    assert "the only usable pair of task 'set'" in str(bad) and "warning" not in capsys.readouterr().out


def test_tasks_that_their_makers_named_are_not_suspected(prepare, relation, tmp_path, capsys):
    prepare(relation(tmp_path / "set", {"snow": 3, "rain": 3}))
    assert "warning" not in capsys.readouterr().out


def test_data_that_the_released_code_prepared_is_named_in_a_line(prepare, picture, tmp_path, capsys):
    for i in range(2):
        picture(tmp_path / "set" / "control" / f"{i}.png", (36, 8), seed=i)
        picture(tmp_path / "set" / "target" / f"{i}.png", (12, 8), seed=10 + i)
    (tmp_path / "set" / "analogy_metadata.json").write_text("[]")
    assert prepare(tmp_path / "set") == (1, None, {})
    (line,) = capsys.readouterr().err.splitlines()
    assert "strips a | a' | b (control)" in line and "name the Relation252K folder" in line


def test_quick_reads_headers_only(prepare, relation, truncate, tmp_path):
    source = relation(tmp_path / "set", {"a": 3})
    truncate(source / "a" / "Group1" / "1.png")
    assert len(prepare(source, "--quick")[1]) == 3
    assert len(prepare(source)[1]) == 2


def test_the_real_command_ends_with_a_line_and_a_status(tmp_path):
    def run(*arguments):
        command = [sys.executable, "-m", "training.prepare", *map(str, arguments)]
        root = Path(__file__).parents[3]
        return subprocess.run(command, cwd=root, capture_output=True, text=True, env={**os.environ, "COLUMNS": "120"})

    out = tmp_path / "m.jsonl"
    (tmp_path / "empty").mkdir()
    unknown = run(tmp_path / "empty", "--out", out)
    assert unknown.returncode == 1 and unknown.stdout == ""
    (line,) = unknown.stderr.splitlines()
    assert "no known layout" in line and "labels.json" in line and line.isascii()


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
    assert large - small < 160_000, f"{small:,} bytes for 100 pairs, {large:,} for 2,000"


def test_symbolic_links_are_followed_but_not_in_circles(prepare, relation, tmp_path):
    relation(tmp_path / "elsewhere", {"a": 2})
    source = tmp_path / "set"
    source.mkdir()
    (source / "linked").symlink_to(tmp_path / "elsewhere" / "a")
    (source / "circle").symlink_to(source)
    status, lines, _ = prepare(source)
    assert (status, [line["task"] for line in lines]) == (0, ["linked", "linked"])
