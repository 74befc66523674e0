"""The suite ``benchmarks.gpu``: every part at toy size, and what is left of a run that is cut off."""

import json
import subprocess
import sys

from benchmarks.gpu import PARTS, ROOT, Results, run_parts

TOO_SLOW = {"compiled"}  # to trace a model takes half a minute; test_apply does it


def test_all_parts_run_at_toy_size(tmp_path):
    parts = [part for part in PARTS if part not in TOO_SLOW]
    command = [sys.executable, "-m", "benchmarks.gpu", "--dry", "--out", str(tmp_path), "--only", *parts]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + (tmp_path / "log.txt").read_text()
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["dry"] and results["machine"]["ComfyUI"]
    rows = results["results"]
    assert {row["part"] for row in rows} == set(parts)
    assert {row["value"] for row in rows if row["part"] == "tests"} == {"passed"}
    assert all(row["value"] > 0 for row in rows if row["part"] != "tests")
    table = (tmp_path / "results.md").read_text()
    assert table.startswith("Toy sizes") and table.count("### ") == len(parts)


def test_what_was_known_when_a_part_is_cut_off_is_kept(tmp_path):
    row = '{"what": "a", "value": 1.5, "unit": "s", "goal": 1}'
    program = f"import time; print('PART step'); print('RESULT {row}', flush=True); time.sleep(60)"
    results = Results(tmp_path, dry=False)
    with (tmp_path / "log.txt").open("w") as log:
        run_parts(["step"], [sys.executable, "-c", program], 5, results, log)
        run_parts(["memory"], [sys.executable, "-c", "raise SystemExit('no memory')"], 30, results, log)
    rows = [
        (row["part"], row["what"], row["value"])
        for row in json.loads((tmp_path / "results.json").read_text())["results"]
    ]
    assert rows == [("step", "a", 1.5), ("step", "cut off", "after 5 s"), ("memory", "failed", "no memory")]
    assert "| a | 1.5 s | at most 1: missed |" in (tmp_path / "results.md").read_text()
