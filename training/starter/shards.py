"""Pairs drawn ahead of the trainers: ``python -m training.starter draw``.

A shard is one safetensors file of tasks, each an edit with parameters of its own on a few subjects. Shard number i of a
seed is always the same, so drawing goes on where it stopped, in as many processes as there are.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from lorweb_core.atomic import replacing

from ..hashing import random_words
from ..pictures.edits import EDITS, IDENTITY, TRAINING_EDITS, Edit, Parameters, compose, eight_bits, followers
from ..pictures.recipe import TRAINING_SUBJECTS, refuse_unknown

IMAGES = "images"
_TASKS = "tasks"  # in the header


@dataclass
class DrawSettings:
    """What is drawn.

    Attributes:
        side: of an image in pixels. seed: of all of it.
        shards: how many, of ``tasks`` tasks each, and a task has ``pairs`` pairs.
        composed: share of the tasks with two edits, one after the other. unchanged: share of those that change nothing.
        edits: names to draw from, the more often the more often they are listed; empty for all training edits alike.
        workers: processes; 0 for one a core.
    """

    side: int = 128
    seed: int = 1
    shards: int = 640
    tasks: int = 64
    pairs: int = 4
    composed: float = 0.25
    unchanged: float = 0.02
    edits: list[str] = field(default_factory=list)
    workers: int = 0


@dataclass(frozen=True)
class Drawn:
    """A task: the edits that follow each other in it, each with its parameters."""

    edits: tuple[str, ...]
    parameters: tuple[Mapping[str, float], ...]


def draw_shards(folder: Path, settings: DrawSettings) -> None:
    """Draw what is missing of a folder's shards.

    Raises:
        ValueError: for an edit that is not known.
    """
    for name in settings.edits:
        refuse_unknown("training edit (draw.edits)", name, TRAINING_EDITS)
    folder.mkdir(parents=True, exist_ok=True)
    missing = [number for number in range(settings.shards) if not shard_path(folder, number).exists()]
    workers = min(settings.workers or os.cpu_count() or 1, len(missing))
    draw, progress = partial(_draw_shard, folder, settings), partial(tqdm, total=len(missing), unit="shard")
    if workers < 2:
        list(progress(map(draw, missing)))
        return
    with get_context("spawn").Pool(workers) as processes:
        list(progress(processes.imap(draw, missing)))


def shard_path(folder: Path, number: int) -> Path:
    """Where a shard lies."""
    return folder / f"{number:05d}.safetensors"


def read_shard(path: Path) -> tuple[list[Drawn], Tensor]:
    """The tasks of a shard, and their pairs: uint8 [tasks, pairs, 2, side, side, 3]."""
    with safe_open(path, framework="pt") as file:
        tasks = json.loads(file.metadata()[_TASKS])
        return [Drawn(tuple(edits), tuple(parameters)) for edits, parameters in tasks], file.get_tensor(IMAGES)


def _draw_shard(folder: Path, settings: DrawSettings, number: int) -> None:
    torch.set_num_threads(1)
    rng = np.random.default_rng(random_words("shard", settings.seed, number))
    tasks, images = zip(*(_draw_task(rng, settings) for _ in range(settings.tasks)))
    header = json.dumps([(task.edits, [dict(values) for values in task.parameters]) for task in tasks])
    with replacing(shard_path(folder, number)) as temporary:
        save_file({IMAGES: torch.from_numpy(eight_bits(np.stack(images)))}, temporary, {_TASKS: header})


def _draw_task(rng: np.random.Generator, settings: DrawSettings) -> tuple[Drawn, np.ndarray]:
    """A task and its pairs, float32 [pairs, 2, side, side, 3]."""
    names = [IDENTITY] if rng.random() < settings.unchanged else settings.edits or TRAINING_EDITS
    task = draw_task(rng, names, 0.0 if names == [IDENTITY] else settings.composed)
    edit, parameters = as_one(task)
    pairs = [edit.pair(rng, parameters, settings.side, TRAINING_SUBJECTS) for _ in range(settings.pairs)]
    return task, np.stack([np.stack(pair) for pair in pairs])


def draw_task(rng: np.random.Generator, edits: Sequence[str], composed: float) -> Drawn:
    """A random edit, or with a chance of ``composed`` two that follow each other."""
    names = (str(rng.choice(edits)),)
    if rng.random() < composed:
        names = (*names, str(rng.choice(followers(names[0]))))
    return Drawn(names, tuple(EDITS[name].parameters(rng) for name in names))


def as_one(task: Drawn) -> tuple[Edit, Parameters]:
    """The edit of a task as one, and its parameters."""
    if len(task.edits) == 1:
        return EDITS[task.edits[0]], task.parameters[0]
    parts = zip(("first", "second"), task.parameters)
    parameters = {f"{part}.{name}": value for part, values in parts for name, value in values.items()}
    return compose(*(EDITS[name] for name in task.edits)), parameters
