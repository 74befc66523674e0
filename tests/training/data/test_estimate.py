"""What is said before the work starts."""

import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from training.data import DataError
from training.data import estimate as estimate_module
from training.data.estimate import SAMPLE, estimate, survey
from training.data.sources import BadItem, Candidate, reader_of
from training.data.units import duration, size
from training.data.writer import write_manifest


def listing(count):
    for i in range(count):
        yield Candidate(f"t{i % 7}", Path(f"{i}"), Path(f"{i}"), prompt=f"prompt {i % 11}")


def test_a_survey_counts_everything():
    counted = survey([*listing(500), BadItem("x", "y")])
    assert (counted.items, counted.tasks, counted.prompts) == (501, 7, 11)


def test_the_sample_is_bounded_and_spread():
    sample = [int(candidate.before.name) for candidate in survey(listing(10_000)).sample]
    assert len(set(sample)) == SAMPLE
    assert min(sample) < 1500 and max(sample) > 8500 and 4000 < sum(sample) / SAMPLE < 6000
    assert len(survey(listing(5)).sample) == 5


def test_prompts_are_counted_up_to_a_limit(monkeypatch):
    monkeypatch.setattr(estimate_module, "MAX_PROMPTS", 10)
    counted = survey(listing(500))
    assert counted.prompts == 10
    assert "(10 or more prompts)" in estimate(counted, Path("m.jsonl"), workers=1).describe()


def test_the_manifest_is_as_large_as_estimated(relation, tmp_path):
    source, out = relation(tmp_path / "set", {"a": 40, "b": 40}), tmp_path / "m.jsonl"
    read = reader_of(source)[1]
    expected = estimate(survey(read(source)), out, workers=1)
    write_manifest(read(source), out, workers=1)
    assert abs(expected.manifest_bytes / out.stat().st_size - 1) < 0.05
    assert expected.seconds > 0
    assert "80 items in 2 tasks" in expected.describe()


def test_a_disk_without_room_is_refused(relation, tmp_path, monkeypatch):
    source = relation(tmp_path / "set", {"a": 4})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("usage", "total used free")(10, 5, 100))
    with pytest.raises(DataError, match="but only 100 bytes are free"):
        estimate(survey(reader_of(source)[1](source)), tmp_path / "m.jsonl", workers=1)


def test_figures_for_people():
    assert [size(n) for n in (0, 999, 1000, 2.6e9, 5e12)] == ["0 bytes", "999 bytes", "1.0 kB", "2.6 GB", "5.0 TB"]
    assert [duration(s) for s in (0.1, 89, 120, 7200)] == ["1 s", "89 s", "2 min", "2.0 h"]
