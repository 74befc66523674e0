"""What an edit is: a name, a family, parameters with a range that training never sees, and pairs of images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .. import photographs, scenes, textures

Image = np.ndarray
Parameters = Mapping[str, float]
Apply = Callable[[Image, Parameters], Image]
Stage = Callable[[np.random.Generator, Parameters], tuple[scenes.Scene, scenes.Scene]]
Pairs = Callable[[np.random.Generator, Parameters, int, Sequence[str]], tuple[Image, Image]]

_PHOTOGRAPHS = 0.75  # share of photographs and textures among the subjects
_HELD = (0.4, 0.6)  # part of a range that is held out: what lies on both sides of it is trained


@dataclass(frozen=True)
class Span:
    """A parameter that takes any value of a range."""

    low: float
    high: float

    @property
    def held(self) -> tuple[float, float]:
        """The part that training never draws."""
        return tuple(self.low + share * (self.high - self.low) for share in _HELD)

    def draw(self, rng: np.random.Generator, held: bool) -> float:
        """A value of the held-out part, or of the rest."""
        share, (start, end) = rng.random(), _HELD
        if held:
            share = start + share * (end - start)
        else:
            share *= 1 - (end - start)
            share += (share >= start) * (end - start)
        return self.low + share * (self.high - self.low)

    def share(self, value: float) -> float:
        """Where a value lies in the range: 0 at its low end, 1 at its high one."""
        return (value - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class Choice:
    """A parameter that takes one of some numbers."""

    trained: tuple[float, ...]
    held: tuple[float, ...]

    def draw(self, rng: np.random.Generator, held: bool) -> float:
        """One of the held-out numbers, or of the others."""
        numbers = self.held if held else self.trained
        return numbers[rng.integers(len(numbers))]

    def share(self, value: float) -> float:
        """Where a value lies between the smallest number, 0, and the largest one, 1."""
        numbers = self.trained + self.held
        return (value - min(numbers)) / (max(numbers) - min(numbers))


@dataclass(frozen=True)
class Edit:
    """One way to change an image.

    Attributes:
        spans: what its parameters may be.
        pairs: draws a subject and edits it.
        apply: the edit of a given square image [side, side, 3]; None when it needs to know the scene.
    """

    name: str
    family: str
    spans: Mapping[str, Span | Choice]
    pairs: Pairs
    apply: Apply | None = None

    def parameters(self, rng: np.random.Generator, held: bool = False) -> dict[str, float]:
        """Random parameters; with ``held`` such as training never draws."""
        return {name: span.draw(rng, held) for name, span in self.spans.items()}

    def pair(
        self, rng: np.random.Generator, parameters: Parameters, side: int, names: Sequence[str]
    ) -> tuple[Image, Image]:
        """A random subject before and after: two float32 [side, side, 3] in 0..1.

        Args:
            names: the photographs, and kinds of textures, to draw from.
        """
        before, after = self.pairs(rng, parameters, side, names)
        return finished(before), finished(after)


def finished(image: Image) -> Image:
    """An image as every edit hands it out: float32, in 0..1, contiguous."""
    return np.clip(np.ascontiguousarray(image, dtype=np.float32), 0, 1)


def eight_bits(image: Image) -> np.ndarray:
    """An image as files keep it: uint8."""
    return (image * 255 + 0.5).astype(np.uint8)


def subject(rng: np.random.Generator, side: int, names: Sequence[str]) -> Image:
    """A photograph's crop, or the texture that stands for one, or a drawn scene."""
    if rng.random() >= _PHOTOGRAPHS:
        return scenes.draw(scenes.random_scene(rng), side)
    return picture(rng, side, names)


def image_edit(name: str, family: str, apply: Apply, **spans: Span | Choice) -> Edit:
    """An edit of any image."""

    def clipped(image: Image, parameters: Parameters) -> Image:
        if image.shape != (len(image), len(image), 3):
            raise ValueError(f"{name} edits square colour images, but this one is {list(image.shape)}; crop it first")
        return finished(apply(image, parameters))

    def pairs(rng: np.random.Generator, parameters: Parameters, side: int, names: Sequence[str]) -> tuple[Image, Image]:
        before = subject(rng, side, names)
        return before, clipped(before, parameters)

    return Edit(name, family, spans, pairs, clipped)


def scene_edit(name: str, family: str, stage: Stage, **spans: Span | Choice) -> Edit:
    """An edit of a scene: ``stage`` draws it before and after."""

    def pairs(rng: np.random.Generator, parameters: Parameters, side: int, names: Sequence[str]) -> tuple[Image, Image]:
        before, after = stage(rng, parameters)
        return scenes.draw(before, side), scenes.draw(after, side)

    return Edit(name, family, spans, pairs)


def object_edit(name: str, family: str, stage: Stage, **spans: Span | Choice) -> Edit:
    """An edit of objects that lie on a photograph, on clouds or on a plain background."""

    def pairs(rng: np.random.Generator, parameters: Parameters, side: int, names: Sequence[str]) -> tuple[Image, Image]:
        before, after = stage(rng, parameters)
        behind = ground(rng, side, names)
        return scenes.draw_on(behind, before.things), scenes.draw_on(behind, after.things)

    return Edit(name, family, spans, pairs)


def ground(rng: np.random.Generator, side: int, names: Sequence[str]) -> Image:
    """A subject without drawn shapes of its own."""
    plain = [name for name in names if name != "leaves"]
    if not plain or rng.random() >= _PHOTOGRAPHS:
        return scenes.draw_background(scenes.random_background(rng), side)
    return picture(rng, side, plain)


def picture(rng: np.random.Generator, side: int, names: Sequence[str]) -> Image:
    """A photograph's crop, or the texture that stands for one."""
    name = names[rng.integers(len(names))]
    return textures.KINDS[name](rng, side) if name in textures.KINDS else photographs.random_crop(rng, name, side)


def undo(name: str, family: str, edit: Edit) -> Edit:
    """The way back: what an edit of any image put over its subject goes."""

    def pairs(rng: np.random.Generator, parameters: Parameters, side: int, names: Sequence[str]) -> tuple[Image, Image]:
        return edit.pairs(rng, parameters, side, names)[::-1]

    return Edit(name, family, edit.spans, pairs)


def compose(first: Edit, second: Edit) -> Edit:
    """The first edit, then the second one.

    Raises:
        ValueError: when the second one cannot edit a given image.
    """
    if second.apply is None:
        raise ValueError(f"{second.name} edits scenes only and cannot follow {first.name}; swap them")
    edits = {"first": first, "second": second}
    spans = {f"{part}.{name}": span for part, edit in edits.items() for name, span in edit.spans.items()}

    def pairs(rng: np.random.Generator, parameters: Parameters, side: int, names: Sequence[str]) -> tuple[Image, Image]:
        before, between = first.pair(rng, _part(parameters, "first"), side, names)
        return before, second.apply(between, _part(parameters, "second"))

    def apply(image: Image, parameters: Parameters) -> Image:
        return second.apply(first.apply(image, _part(parameters, "first")), _part(parameters, "second"))

    return Edit(f"{first.name}+{second.name}", "composition", spans, pairs, apply if first.apply else None)


def _part(parameters: Parameters, part: str) -> dict[str, float]:
    return {name.removeprefix(f"{part}."): value for name, value in parameters.items() if name.startswith(f"{part}.")}
