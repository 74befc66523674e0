"""Bad items by name, and files that are not replaced."""

import json
import os
import shutil
from pathlib import Path

import pytest

from training.prepare import main


def test_every_kind_of_bad_item_is_named(prepare, picture, truncate, tmp_path):
    source = tmp_path / "set"
    for i in range(9):
        picture(source / "t" / "before" / f"{i}.png", seed=i)
        picture(source / "t" / "after" / f"{i}.png", seed=i + 50)
    expected = {}

    def spoil(name, reason):
        expected[str(source / name)] = reason

    truncate(source / "t/before/0.png"), spoil("t/before/0.png", "not a readable image")
    picture(source / "t/after/1.png", (13, 8)), spoil("t/after/1.png", "of another shape; crop both to one shape")
    (source / "t/after/2.png").unlink(), spoil("t/before/2.png", "its partner is missing: no after/2.*")
    (source / "t/before/3.png").unlink(), spoil("t/after/3.png", "its partner is missing: no before/3.*")
    (source / "t/after/4.png").write_bytes(b""), spoil("t/after/4.png", "the file is empty")
    (source / "t/before/5.png").write_text("words"), spoil("t/before/5.png", "the format is not recognised")
    picture(source / "t/before/6.jpg"), spoil("t/before/6.jpg", "6.jpg and 6.png have the same name")
    (source / "t/after/7.txt").write_bytes(b"\xff\xfe\x00"), spoil("t/after/7.png", "cannot be read as UTF-8")
    picture(source / "t/after/9.png"), picture(source / "t/before/9.png", seed=1)
    picture(source / "single/1_before.png"), picture(source / "single/1_after.png", seed=1)
    spoil("single/1_before.png", "the only usable pair of task 'single'")
    picture(source / "typo/befor/1.png"), spoil("typo/befor/1.png", "1 images in this folder belong to no pair")
    picture(source / "half/before/1.png"), spoil("half/before/1.png", "no after/1.*")

    status, lines, bad = prepare(source)
    assert status == 0
    assert [Path(line["before"]).stem for line in lines] == ["8", "9"]
    assert bad.keys() == expected.keys()
    assert {file: reason in bad[file] for file, reason in expected.items()} == dict.fromkeys(expected, True)


def test_images_that_labels_do_not_name_are_named(prepare, relation, picture, tmp_path):
    source = relation(tmp_path / "set", {"a": 2})
    stray = picture(source / "a" / "Group1" / "9.png", (24, 8), seed=99)
    assert list(prepare(source)[2]) == [str(stray)]


def test_images_of_kinds_that_are_not_read_are_named(prepare, picture, tmp_path):
    source = tmp_path / "set"
    for side, seeds in (("before", (0, 1)), ("after", (50, 51))):
        for number, seed in enumerate(seeds):
            picture(source / "snow" / side / f"{number}.jfif", (8, 8), seed=seed)
        (source / "rain" / side).mkdir(parents=True)
        (source / "rain" / side / "0.HEIC").write_bytes(b"heic")
    _, lines, bad = prepare(source)
    assert {line["task"] for line in lines} == {"snow"} and len(lines) == 2
    assert bad.keys() == {str(source / "rain" / side / "0.HEIC") for side in ("before", "after")}
    assert all("not read (.heic); convert them to PNG or JPEG" in reason for reason in bad.values())


def test_names_that_are_not_unicode_are_named(prepare, relation, tmp_path, capsys):
    source = relation(tmp_path / "set", {"a": 2})
    for i in range(2):
        folder = os.fsencode(source) + b"/bad\xff"
        os.makedirs(folder, exist_ok=True)
        shutil.copy(source / "a" / "Group1" / f"{i}.png", folder + f"/{i}_before.png".encode())
    labels = [{"img_name": "n" * 5000}, {"img_name": "0.png", "edit_instruction": "\ud800"}, {"img_name": "1.png"}]
    (source / "a" / "Group1" / "labels.json").write_text(json.dumps([*labels, {"img_name": "0.png"}]))
    status, lines, bad = prepare(source)
    assert (status, len(lines)) == (0, 2)
    assert sorted(reason.split(";")[0][:32] for reason in bad.values()) == [
        "2 images in this folder belong t", "its caption is not valid Unicode", "named by labels.json (entry 0), ",
    ]  # fmt: skip
    assert any("bad\udcff" in file for file in bad) and "bad\\udcff" in capsys.readouterr().out
    (source / "a" / "Group1" / "labels.json").write_text("[" * 100_000)
    assert "not readable as JSON" in str(prepare(source)[2])


@pytest.mark.parametrize("name", ["victim.bad.jsonl", "victim.jsonl"])
@pytest.mark.parametrize("content", ['{"mine": 1}\n', "words", "[]"])
def test_files_of_others_are_not_replaced(relation, tmp_path, capsys, name, content):
    source, victim = relation(tmp_path / "set", {"a": 2}), tmp_path / name
    victim.write_text(content)
    assert main([str(source), "--out", str(tmp_path / "victim.jsonl"), "--workers", "1"]) == 1
    assert victim.read_text() == content and f"{victim}: this is no " in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set", name]


def test_a_source_is_not_replaced_by_its_manifest(prepare, relation, tmp_path, capsys):
    prepare(relation(tmp_path / "set", {"a": 2}))
    out = tmp_path / "out" / "manifest.jsonl"
    before = out.read_bytes()
    assert prepare(out)[0] == 1 and out.read_bytes() == before
    assert "is the source itself" in capsys.readouterr().err


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


def test_bad_lines_of_jsonl(prepare, picture, read_lines, tmp_path):
    picture(tmp_path / "a.png"), picture(tmp_path / "b.png", seed=1)
    good, other = (
        json.dumps({"task": "t", "before": f"{one}.png", "after": f"{two}.png"}) for one, two in ("ab", "ba")
    )
    bad_lines = {
        "{": "not a pair in JSON",
        "[1]": "not a pair in JSON",
        '{"task": "t", "before": "a.png"}': "'after' is missing",
        '{"task": 5, "before": "a.png", "after": "a.png"}': "'task' is 5",
        '{"task": "t", "before": "a.png", "after": "a.png", "row": "top"}': "'row' is 'top'",
        '{"task": "t", "before": "a.png", "after": "b.png", "halves": true}': "before and after differ",
        '{"task": "t", "before": "a\\u0000.png", "after": "a.png"}': "cannot be read",
        '{"task": "t", "before": "a.png", "after": "b.png", "prompt": "\\ud800"}': "its caption is not valid Unicode",
        '{"task": "\\udfff", "before": "a.png", "after": "b.png"}': "its name is not valid Unicode",
        "[" * 100_000: "not a pair in JSON",
        '{"task": ' + "9" * 5000 + ', "before": "a.png", "after": "b.png"}': "not a pair in JSON",
        json.dumps({"task": "t", "before": "n" * 5000 + ".png", "after": "b.png"}): "File name too long",
        '{"task": "t", "before": "./a.png", "after": "b.png", "prompt": "again"}': "task 't' has this pair already",
        '{"task": "t", "before": "b.png", "after": "b.png"}': "it is byte for byte",
    }
    source = tmp_path / "pairs.jsonl"
    source.write_text("\n".join([good, *bad_lines, other]))
    status, lines, bad = prepare(source)
    assert (status, len(lines)) == (0, 2)
    left = [item["reason"] for item in read_lines(tmp_path / "out" / "manifest.bad.jsonl")]
    assert len(left) == len(bad_lines)
    for expected in bad_lines.values():
        found = next((reason for reason in left if expected in reason), None)
        assert found, expected
        left.remove(found)
    assert [file for file in bad if "line 4" in file]


def test_an_unreadable_pair_can_leave_a_task_single(prepare, relation, truncate, tmp_path):
    source = relation(tmp_path / "set", {"a": 2, "b": 2})
    truncate(source / "a" / "Group1" / "1.png")
    status, lines, bad = prepare(source)
    assert (status, {line["task"] for line in lines}) == (0, {"b"})
    assert "only usable pair of task 'a'" in bad[str(source / "a" / "Group1" / "0.png")]


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
