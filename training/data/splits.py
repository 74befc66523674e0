"""Held-out data: whole tasks (unseen transformations) and single images of trained tasks (unseen images)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from ..hashing import uniform
from .errors import DataError
from .manifest import Manifest, Pair

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Splits:
    """What is trained on, and what is not.

    Attributes:
        held_out_images: pairs of trained tasks; None when nothing was to be held out.
        held_out_tasks: all pairs of the tasks that are not trained; None when nothing was to be held out.
    """

    train: Manifest
    held_out_images: Manifest | None
    held_out_tasks: Manifest | None


def split(
    manifest: Manifest, tasks: float | Sequence[str] = 0.0, images: float = 0.0, seed: int = 0, pairs: int = 0
) -> Splits:
    """Split by task, then the remaining tasks by image.

    Every task and every image draws its own number from (seed, name), so appending data never moves what was there
    to the other side. No image of ``held_out_images`` is in ``train``: a training pair that shares one is left out. So
    is one that is the very pair of a held-out task, under another task's name.

    Args:
        tasks: the share of tasks to hold out, or their names.
        images: the share of images to hold out within the trained tasks.
        pairs: in place of a share, how many pairs of every trained task to hold out, two or more; tasks in which fewer
            than two would be left are trained on whole.

    Raises:
        DataError: for shares outside 0..1, unknown task names, or a split that leaves one side empty.
    """
    if pairs and (images or pairs == 1):
        raise DataError(
            f"{pairs} pairs of a task and a share of {images} of images are to be held out; give one of them,"
            " and two pairs at least: an analogy needs two"
        )
    held_tasks = _held_tasks(manifest, tasks, seed)
    trained = [n for task, numbers in manifest.tasks.items() if task not in held_tasks for n in numbers]
    if pairs:
        held_images = _held_pairs(manifest, held_tasks, pairs, seed)
    else:
        held_images = [n for n in trained if images and uniform("image", seed, manifest[n].before.key) < _share(images)]
    unseen = {key for n in held_images for key in _keys(manifest[n])}
    held = sorted(n for task in held_tasks for n in manifest.tasks[task])
    of_held_tasks = {_keys(manifest[n]) for n in held}
    train = sorted(
        n for n in trained if unseen.isdisjoint(_keys(manifest[n])) and _keys(manifest[n]) not in of_held_tasks
    )
    shared = len(set(trained) - set(held_images) - set(train))
    if shared:
        logger.warning("%d training pairs are left out, for they are or share an image with held-out pairs", shared)
    return Splits(
        train=_some(manifest, train, "training", seed),
        held_out_images=_some(manifest, sorted(held_images), "held-out images", seed) if images or pairs else None,
        held_out_tasks=_some(manifest, held, "held-out tasks", seed) if tasks else None,
    )


def _held_pairs(manifest: Manifest, held_tasks: set[str], pairs: int, seed: int) -> list[int]:
    """The pairs of every task whose images drew the lowest numbers, so that an image of several tasks goes one way."""
    held = []
    for task, numbers in manifest.tasks.items():
        if task in held_tasks:
            continue
        if len(numbers) < pairs + 2:
            logger.warning(
                "task %r has %d pairs, too few to hold out %d; all are trained on", task, len(numbers), pairs
            )
            continue
        held += sorted(numbers, key=lambda n: (uniform("image", seed, manifest[n].before.key), n))[:pairs]
    return held


def _held_tasks(manifest: Manifest, tasks: float | Sequence[str], seed: int) -> set[str]:
    if isinstance(tasks, (int, float)):
        share = _share(tasks)
        return {task for task in manifest.tasks if uniform("task", seed, task) < share}
    unknown = [task for task in tasks if task not in manifest.tasks]
    if unknown:
        raise DataError(f"{manifest.path}: no task {unknown[0]!r} to hold out; known: {_listing(manifest)}")
    return set(tasks)


def _listing(manifest: Manifest, limit: int = 20) -> str:
    names = sorted(manifest.tasks)
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _share(value: float) -> float:
    if not 0 <= value < 1:
        raise DataError(f"the share to hold out is {value}; expected a number from 0 up to, but not including, 1")
    return value


def _keys(pair: Pair) -> tuple[str, str]:
    return pair.before.key, pair.after.key


def _some(manifest: Manifest, numbers: list[int], side: str, seed: int) -> Manifest:
    if not numbers:
        raise DataError(
            f"{manifest.path}: the split leaves no pairs for {side} ({len(manifest.tasks)} tasks, {len(manifest)}"
            f" pairs, seed {seed}); change the share or the seed, or name the tasks to hold out"
        )
    return manifest.subset(numbers)
