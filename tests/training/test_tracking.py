"""Rows and grids."""

import torch

from training.tracking import CSVTracker, labelled_grid, read_metrics, to_picture


def test_rows_after_the_resumed_step_are_dropped(tmp_path):
    path = tmp_path / "metrics.csv"
    tracker = CSVTracker(path, 0)
    for step in (1, 2, 3):
        tracker.log({"loss": step / 10}, step)
    with path.open("a") as file:
        file.write("4,")  # what a kill in the middle of a row leaves
    CSVTracker(path, 2).log({"loss": 9.0}, 3)
    assert [(row["step"], row["loss"]) for row in read_metrics(path)] == [("1", "0.1"), ("2", "0.2"), ("3", "9.0")]


def test_a_grid_shows_every_image_under_its_label():
    red, blue = torch.zeros(8, 8, 3), torch.zeros(8, 16, 3)
    red[..., 0], blue[..., 2] = 1, 1
    grid = labelled_grid([{"a": red, "b": blue}, {"a": blue, "b": red}], height=32)
    assert grid.size == (64 + 64, 20 + 64)
    assert grid.getpixel((5, 40)) == (255, 0, 0) and grid.getpixel((70, 40)) == (0, 0, 255)
    assert grid.getpixel((5, 75)) == (0, 0, 255) and grid.getpixel((70, 75)) == (255, 0, 0)
    assert any(grid.getpixel((x, y))[0] < 128 for x in range(20) for y in range(20))
    assert to_picture(torch.full((2, 2, 3), 0.5)).getpixel((0, 0)) == (128, 128, 128)
