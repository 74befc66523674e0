"""Rows and grids."""

import os

import psutil
import pytest
import torch

from training.run.tracking import CSVTracker, labelled_grid, peak_memory, read_metrics, to_picture, wandb_run


def test_rows_after_the_resumed_step_are_dropped(tmp_path):
    path = tmp_path / "metrics.csv"
    tracker = CSVTracker(path, 0)
    for step in (1, 2, 3):
        tracker.log({"loss": step / 10}, step)
    with path.open("a") as file:
        file.write("4,")  # what a kill in the middle of a row leaves
    CSVTracker(path, 2).log({"loss": 9.0}, 3)
    assert [(row["step"], row["loss"]) for row in read_metrics(path)] == [("1", "0.1"), ("2", "0.2"), ("3", "9.0")]


def test_processes_that_do_not_log_leave_the_rows_alone(tmp_path):
    path = tmp_path / "metrics.csv"
    CSVTracker(path, 0).log({"loss": 1.0}, 1)
    before = path.read_bytes()
    trackers = [CSVTracker(path, 0) for _ in range(3)]
    assert path.read_bytes() == before
    trackers[0].log({"loss": 2.0}, 1)
    assert [row["loss"] for row in read_metrics(path)] == ["2.0"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="the peak of the GPU is another")
def test_peak_memory_is_that_of_the_process_without_a_gpu():
    before = peak_memory()
    held = torch.ones(3 * 10**8 // 4)
    held.add_(1)
    resident = psutil.Process().memory_info().rss
    assert peak_memory() >= max(before, 0.99 * resident) and resident > 3e8
    del held
    assert 0.99 * resident <= peak_memory() < 20 * resident


def test_a_grid_shows_every_image_under_its_label():
    red, blue = torch.zeros(8, 8, 3), torch.zeros(8, 16, 3)
    red[..., 0], blue[..., 2] = 1, 1
    grid = labelled_grid([{"a": red, "b": blue}, {"a": blue, "b": red}], height=32)
    assert grid.size == (64 + 64, 20 + 64)
    assert grid.getpixel((5, 40)) == (255, 0, 0) and grid.getpixel((70, 40)) == (0, 0, 255)
    assert grid.getpixel((5, 75)) == (0, 0, 255) and grid.getpixel((70, 75)) == (255, 0, 0)
    assert any(grid.getpixel((x, y))[0] < 128 for x in range(20) for y in range(20))
    assert to_picture(torch.full((2, 2, 3), 0.5)).getpixel((0, 0)) == (128, 128, 128)


def test_a_resumed_run_goes_on_in_its_newest_wandb_run(tmp_path):
    assert wandb_run(tmp_path, 5) == {}
    for name in ("run-20250101_000000-aaaa", "offline-run-20260101_000000-bbbb", "run-20240101_000000-cccc"):
        (tmp_path / "wandb" / name).mkdir(parents=True)
    assert wandb_run(tmp_path, 5) == {"id": "bbbb", "resume": "allow"}
    assert wandb_run(tmp_path, 0) == {}


def test_wandb_writes_into_the_run_only(run_training, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    before = set(os.listdir())
    settings = ["log.trackers=[csv,wandb]", "validation.every=2", "validation.analogies=1", "validation.steps=1"]
    run_training(tmp_path / "run", "train.steps=2", *settings)
    run_training(tmp_path / "run", "train.steps=3", *settings)
    first, second = sorted((tmp_path / "run" / "wandb").glob("offline-run-*"))
    assert first.name.rsplit("-", 1)[1] == second.name.rsplit("-", 1)[1]
    assert next(first.glob("*.wandb")).stat().st_size > 1000 and len(list(first.rglob("held-out-*.png"))) == 2
    assert set(os.listdir()) == before
