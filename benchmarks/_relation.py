"""A data set in the layout of Relation252K: side-by-side JPEGs, of which a few hundred differ, the rest are links."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from skimage import data

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field")
DISTINCT = 200
TASKS = 218


def make_relation(folder: Path, pairs: int, side: int) -> None:
    """Relation252K's layout with as many pairs as asked for, in up to 218 tasks."""
    distinct = make_images(folder.with_name("images"), min(pairs, DISTINCT), side)
    tasks = min(TASKS, pairs // 2)
    for task in range(tasks):
        group = folder / f"task{task:03d}" / "Group1"
        group.mkdir(parents=True)
        names = [f"{i}.jpg" for i in range(len(range(task, pairs, tasks)))]
        for i, name in enumerate(names):
            os.link(distinct[(task + i * tasks) % len(distinct)], group / name)
        labels = [{"img_name": name, "edit_instruction": f"do edit {task}"} for name in names]
        (group / "labels.json").write_text(json.dumps(labels))


def make_images(folder: Path, count: int, side: int) -> list[Path]:
    """Side-by-side JPEGs: crops of photographs, and their negatives."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    photographs = [Image.fromarray(getattr(data, name)()).convert("RGB") for name in PHOTOGRAPHS]
    paths = [folder / f"{i}.jpg" for i in range(count)]
    for path, photograph in zip(paths, itertools.cycle(photographs)):
        left, top = (int(rng.integers(length - 256)) for length in photograph.size)
        image = photograph.crop((left, top, left + 256, top + 256)).resize((side, side), Image.Resampling.LANCZOS)
        both = Image.new("RGB", (2 * side, side))
        both.paste(image, (0, 0))
        both.paste(ImageOps.invert(image), (side, 0))
        both.save(path, quality=92)
    return paths
