"""Analogies a : a' :: b : b' drawn on the fly from two pairs of one task, and their canvases."""

from __future__ import annotations

import logging
import math
import random
from bisect import bisect_right
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, count
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lorweb_core.canvas import MULTIPLE, CanvasGeometry

from ..hashing import as_fraction, content_hash, permuted, random_words
from .errors import DataError
from .images import ImageRef, load_image, load_images
from .layouts import CANVAS, Layout
from .manifest import Manifest, Pair

logger = logging.getLogger(__name__)

OVER = ("tasks", "pairs", "analogies")
CAPTIONS = ("answer", "example")


@dataclass(frozen=True)
class Analogy:
    """The example pair (a, a') and the pair to answer (b, b').

    Attributes:
        index: its position in the sampler.
    """

    example: Pair
    answer: Pair
    index: int

    @property
    def key(self) -> str:
        """Identity of the four images in their quadrants, for caches."""
        images = (self.example.before, self.example.after, self.answer.before, self.answer.after)
        return content_hash(" ".join(image.key for image in images).encode())


class AnalogySampler:
    """An endless sequence of analogies: ``sampler[i]`` is a pure function of (manifest, seed, i).

    Resuming needs the position only, and processes share the work by index arithmetic. The first n positions serve
    as a fixed list of analogies.

    Args:
        swap: chance that an analogy runs backwards, a <-> a' and b <-> b' together. Its prompt is then empty.
        over: "tasks" gives every task the same share, "pairs" every pair, "analogies" every two pairs of a task: each
            couple comes once before any comes again, either of the two as the example.

    Raises:
        DataError: for a chance outside 0..1, an unknown ``over``, or no task with two pairs.
    """

    def __init__(self, manifest: Manifest, seed: int = 0, swap: float = 0.0, over: str = "tasks"):
        if not 0 <= swap <= 1 or over not in OVER:
            raise DataError(
                f"the sampler got swap {swap} and over {over!r}; expected a chance from 0 to 1 and one of {OVER}"
            )
        self.manifest, self.seed, self.swap, self.over = manifest, seed, swap, over
        self._tasks = [numbers for numbers in manifest.tasks.values() if len(numbers) > 1]
        if not self._tasks:
            raise DataError(f"{manifest.path}: no task has the two pairs that an analogy needs")
        if len(self._tasks) < len(manifest.tasks):
            lonely = [task for task, numbers in manifest.tasks.items() if len(numbers) == 1]
            logger.warning("%d tasks have a single pair and are not sampled, such as %r", len(lonely), lonely[0])

    def __getitem__(self, index: int) -> Analogy:
        """The analogy at a position (0, 1, 2, ...)."""
        numbers, first, second, swapped = self._draw(index)
        example, answer = (self._pair(numbers[place], swapped) for place in (first, second))
        return Analogy(example, answer, int(index))

    def distinct(self, most: int) -> list[int]:
        """The first positions whose analogies are no repetition: as many as asked for, or as there are."""
        there = sum(len(numbers) * (len(numbers) - 1) for numbers in self._tasks)
        found: dict[tuple[int, int], int] = {}
        for index in count():
            if len(found) == min(most, there):
                return list(found.values())
            numbers, first, second, _ = self._draw(index)
            found.setdefault((numbers[first], numbers[second]), index)

    def examples(self, index: int, most: int) -> list[Pair]:
        """Up to ``most`` pairs that show the edit of the analogy at a position: its own example, and others of the task
        that are not its answer.
        """
        numbers, first, second, swapped = self._draw(index)
        others = [place for place in range(len(numbers)) if place not in (first, second)]
        seed, *_ = random_words("examples", self.seed, int(index))
        chosen = random.Random(seed).sample(others, min(most - 1, len(others)))
        return [self._pair(numbers[place], swapped) for place in sorted((first, *chosen))]

    def _draw(self, index: int) -> tuple[Sequence[int], int, int, bool]:
        """The pairs of a task, the places of the example and of the answer among them, whether they are swapped."""
        which, first, second, coin = random_words("analogy", self.seed, int(index))
        if self.over == "analogies":
            return (*self._couple(int(index), which), as_fraction(coin) < self.swap)
        numbers, first = self._draw_first(which, first)
        second %= len(numbers) - 1
        second += second >= first  # skips the first pair, so that every other one is equally likely
        return numbers, first, second, as_fraction(coin) < self.swap

    def _pair(self, number: int, swapped: bool) -> Pair:
        pair = self.manifest[number]
        return pair.swapped() if swapped else pair

    def _draw_first(self, which: int, first: int) -> tuple[Sequence[int], int]:
        """The pairs of a task, and the place of the example pair among them."""
        if self.over == "tasks":
            numbers = self._tasks[which % len(self._tasks)]
            return numbers, first % len(numbers)
        place = which % self._ends[-1]
        task = bisect_right(self._ends, place)
        return self._tasks[task], place - (self._ends[task - 1] if task else 0)

    def _couple(self, index: int, coin: int) -> tuple[Sequence[int], int, int]:
        """The pairs of a task and the places of two of them, at an index of the endless shuffled list of couples."""
        round_, place = divmod(index, self._couples[-1])
        place = permuted(place, self._couples[-1], "couples", self.seed, round_)
        task = bisect_right(self._couples, place)
        later, earlier = couple_of(place - (self._couples[task - 1] if task else 0))
        return (self._tasks[task], later, earlier) if coin & 1 else (self._tasks[task], earlier, later)

    @cached_property
    def _couples(self) -> list[int]:
        """Running number of couples of two pairs over the tasks that are sampled."""
        return list(accumulate(math.comb(len(numbers), 2) for numbers in self._tasks))

    @cached_property
    def _ends(self) -> list[int]:
        """Running number of pairs over the tasks that are sampled."""
        return list(accumulate(map(len, self._tasks)))


def couple_of(number: int) -> tuple[int, int]:
    """Couple ``number`` of (1, 0), (2, 0), (2, 1), (3, 0), ...: the larger first."""
    later = (1 + math.isqrt(1 + 8 * number)) // 2
    return later, number - math.comb(later, 2)


def square_canvas(pixels: int) -> CanvasGeometry:
    """The geometry of square training canvases of the given side; a quadrant has half of it.

    Raises:
        DataError: when a quadrant is not a whole number of tokens.
    """
    if pixels < 2 * MULTIPLE or pixels % (2 * MULTIPLE):
        raise DataError(f"the canvas is {pixels} pixels wide; expected a multiple of {2 * MULTIPLE}")
    return CanvasGeometry.plan(pixels // 2, pixels // 2, long_side=pixels)


def geometry_of(layout: Layout, pixels: int) -> CanvasGeometry:
    """The geometry of square training images.

    Args:
        pixels: side of the image that is sampled: of the canvas, or of b' alone.

    Raises:
        DataError: when b' is not a whole number of tokens.
    """
    return square_canvas(2 * pixels // layout.quadrants)


def load_quadrant(image: ImageRef, geometry: CanvasGeometry, fit: str = "crop") -> Tensor:
    """An image as it appears in a quadrant: [quadrant_height, quadrant_width, 3] in 0..1."""
    return geometry.quadrant(load_image(image)[None], fit)[0]


def load_quadrants(images: Sequence[ImageRef], geometry: CanvasGeometry, fit: str = "crop", workers: int = 4) -> Tensor:
    """``load_quadrant`` of several images in threads: [n, quadrant_height, quadrant_width, 3]."""
    with ThreadPoolExecutor(workers) as executor:
        return torch.stack(list(executor.map(lambda image: load_quadrant(image, geometry, fit), images)))


class AnalogyDataset(Dataset):
    """Analogies as tensors, by position in the sampler. Endless: give the DataLoader a sampler of positions.

    An item holds ``index``, ``task``, ``prompt``, ``analogy_key``, ``image_keys`` (of a, a', b), with ``examples`` also
    ``example_keys`` (of a and a' of each) and, with ``pixels``, float tensors in 0..1:

    - ``target`` [H, W, 3]: the image that the base is to make;
    - ``a``, ``a_prime``, ``b`` [h, w, 3]: for the image encoder;
    - with the layout of the canvas ``reference`` [H, W, 3]: the canvas a | a' over b | b.

    Args:
        geometry: one for all items, so that they batch.
        fit: how images of another shape come into a quadrant: "crop", "pad" or "stretch". A batch needs one shape, so
            b is fitted too.
        pixels: False leaves the images on disk, for training from caches alone.
        examples: how many pairs of the task may stand for the example, where it is more than the example alone.
        caption: whose words are the prompt, the "answer" pair's or the "example" pair's.
        layout: what the base is shown, and makes.
    """

    def __init__(
        self,
        sampler: AnalogySampler,
        geometry: CanvasGeometry,
        fit: str = "crop",
        pixels: bool = True,
        examples: int = 1,
        caption: str = "answer",
        layout: Layout = CANVAS,
    ):
        self.sampler, self.geometry, self.fit, self.pixels, self.examples = sampler, geometry, fit, pixels, examples
        self.caption, self.layout = caption, layout

    def prompt(self, index: int) -> str:
        """The prompt of the item at a position."""
        return getattr(self.sampler[index], self.caption).prompt

    def files(self, index: int) -> dict[str, str]:
        """Which files the images of an item are of, with the part that is meant."""
        analogy = self.sampler[index]
        images = {"a": analogy.example.before, "a_prime": analogy.example.after}
        images |= {"b": analogy.answer.before, "b_prime": analogy.answer.after}
        return {name: f"{image.path} {image.part}".strip() for name, image in images.items()}

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The item at a position.

        Raises:
            ImageError: naming the file that is missing, broken or changed.
        """
        analogy = self.sampler[index]
        example, answer = analogy.example, analogy.answer
        item = {
            "index": analogy.index,
            "task": answer.task,
            "prompt": getattr(analogy, self.caption).prompt,
            "analogy_key": analogy.key,
            "image_keys": (example.before.key, example.after.key, answer.before.key),
        }
        if self.examples > 1:
            pairs = self.sampler.examples(index, self.examples)
            item["example_keys"] = [(pair.before.key, pair.after.key) for pair in pairs]
        if self.pixels:
            item |= self._images(example, answer)
        return item

    def _images(self, example: Pair, answer: Pair) -> dict[str, Tensor]:
        images = load_images((example.before, example.after, answer.before, answer.after))
        return self.layout.arrange(*(self.geometry.quadrant(image[None], self.fit)[0] for image in images))


def collate(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Items as one batch: tensors are stacked to [B, ...], everything else becomes a list."""
    columns = {name: [item[name] for item in items] for name in items[0]}
    return {name: torch.stack(c) if isinstance(c[0], Tensor) else c for name, c in columns.items()}
