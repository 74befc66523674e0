"""What is written while training: numbers to CSV, TensorBoard or wandb, images as labelled grids."""

import csv
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.tracking import GeneralTracker
from PIL import Image, ImageDraw
from torch import Tensor

from lorweb_core.atomic import replacing

from ..packages import require

_PACKAGES = ("tensorboard", "wandb")  # trackers of accelerate's, named like what they need


class CSVTracker(GeneralTracker):
    """``metrics.csv``, one row a logged step; rows after the step a run resumes from are dropped.

    The file is not touched before the first row: every process makes a tracker, and the main one alone logs.

    Args:
        path: the file.
        resumed_step: step that the run continues from.
    """

    name = "csv"
    requires_logging_directory = False
    main_process_only = True

    def __init__(self, path: Path, resumed_step: int):
        super().__init__()
        self.path = path
        self._kept: int | None = resumed_step

    @property
    def tracker(self) -> Path:
        """The file itself."""
        return self.path

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """The run saves its configuration beside the file."""

    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        """Append one row."""
        row = {"step": step, **values}
        if self._kept is not None:
            self._begin(self._kept, list(row))
            self._kept = None
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, fieldnames=list(row)).writerow(row)

    def _begin(self, step: int, columns: list[str]) -> None:
        """The header and the rows up to a step."""
        rows = read_metrics(self.path) if self.path.exists() else []
        with replacing(self.path) as name, name.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, restval="", extrasaction="ignore")
            writer.writeheader()
            writer.writerows(row for row in rows if int(row["step"]) <= step)


def read_metrics(path: Path) -> list[dict[str, str]]:
    """The rows of a ``metrics.csv``; a last line that a kill cut short is left out."""
    with path.open(newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if None not in row.values()]


def make_trackers(names: Sequence[str], run: Path, resumed_step: int) -> tuple[list, dict[str, dict]]:
    """(trackers for ``Accelerator(log_with=...)``, arguments of its ``init_trackers``).

    Raises:
        ValueError: for a tracker that is unknown or not installed.
    """
    trackers: list = []
    for name in names:
        if name == "csv":
            trackers.append(CSVTracker(run / "metrics.csv", resumed_step))
        elif name not in _PACKAGES:
            raise ValueError(f"log.trackers holds {name!r}; expected csv, {', '.join(_PACKAGES)}")
        else:
            require(name, f"log.trackers={name}")
            trackers.append(name)
    wandb = {"dir": str(run), "name": run.resolve().name, **wandb_run(run, resumed_step)}
    return trackers, {"tensorboard": {"purge_step": resumed_step + 1}, "wandb": wandb}


def wandb_run(run: Path, resumed_step: int) -> dict[str, str]:
    """Which wandb run to continue, told by the newest folder that wandb left in ours; empty for a new one."""
    folders = [path.name for path in run.glob("wandb/*run-*-*")]  # run-<time>-<id> or offline-run-<time>-<id>
    if not resumed_step or not folders:
        return {}
    newest = max(folders, key=lambda name: name[name.index("run-") :])
    return {"id": newest.rsplit("-", 1)[1], "resume": "allow"}


def peak_memory() -> int:
    """Most bytes that tensors had on the GPU so far; without one, most memory that this process had."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if os.name == "nt":
        import psutil

        return psutil.Process().memory_info().peak_wset
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def labelled_grid(rows: Sequence[Mapping[str, Tensor]], height: int = 256) -> Image.Image:
    """A picture with one analogy a row and a label over every column.

    Args:
        rows: label -> image [H, W, 3] in 0..1, the same labels in every row.
        height: of a cell in pixels.
    """
    labels = list(rows[0])
    cells = [[to_picture(row[label], height) for label in labels] for row in rows]
    widths = [max(row[i].width for row in cells) for i in range(len(labels))]
    grid = Image.new("RGB", (sum(widths), 20 + height * len(rows)), "white")
    draw, left = ImageDraw.Draw(grid), 0
    for column, (label, width) in enumerate(zip(labels, widths, strict=True)):
        draw.text((left + 4, 4), label, fill="black")
        for row, pictures in enumerate(cells):
            grid.paste(pictures[column], (left, 20 + row * height))
        left += width
    return grid


def to_picture(image: Tensor, height: int | None = None) -> Image.Image:
    """[H, W, 3] in 0..1 as an 8-bit picture, scaled to a height."""
    picture = Image.fromarray(image.detach().float().clamp(0, 1).mul(255).round().byte().cpu().numpy())
    if height is None or picture.height == height:
        return picture
    return picture.resize((max(1, round(picture.width * height / picture.height)), height), Image.Resampling.BICUBIC)
