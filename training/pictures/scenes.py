"""Drawn scenes: a plain background with a few coloured shapes, described in numbers so that they can be edited.

Coordinates and lengths are shares of the side, x to the right and y down; a picture is float32 [side, side, 3] in 0..1.
"""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

Colour = tuple[float, float, float]

PALETTE: dict[str, Colour] = {
    "red": (0.92, 0.1, 0.12), "orange": (1.0, 0.55, 0.05), "yellow": (1.0, 0.9, 0.1), "green": (0.1, 0.72, 0.2),
    "cyan": (0.1, 0.85, 0.9), "blue": (0.1, 0.25, 0.95), "violet": (0.55, 0.15, 0.85), "pink": (1.0, 0.35, 0.75),
    "white": (1.0, 1.0, 1.0), "black": (0.02, 0.02, 0.02),
}  # fmt: skip
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "violet", "pink")
BACKGROUNDS = ("flat", "gradient", "texture", "stripes")

_OVERSAMPLING = 4
_REACH = 1.45  # no outline goes further from its centre
_GAP = 0.03  # between objects
_FULL_TURN = 2 * np.pi


def _regular(corners: int, start: float = 0.0) -> np.ndarray:
    angles = start + np.arange(corners) * _FULL_TURN / corners
    return np.stack([np.sin(angles), -np.cos(angles)], 1)


def _star() -> np.ndarray:
    return _regular(10) * np.where(np.arange(10) % 2, 0.45, 1.0)[:, None] * 1.15


def _cross() -> np.ndarray:
    a, b = 0.33, 1.0
    return np.array(
        [(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a), (a, b), (-a, b), (-a, a), (-b, a), (-b, -a), (-a, -a)]
    )


def _heart() -> np.ndarray:
    t = np.arange(40) * _FULL_TURN / 40
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x, -y - 2], 1) / 15.5


def _square(half: float) -> np.ndarray:
    return np.array([(-half, -half), (half, -half), (half, half), (-half, half)])


# Outlines about one unit around their centre; every second one cuts a hole.
SHAPES: dict[str, tuple[np.ndarray, ...]] = {
    "disc": (_regular(48),),
    "square": (_square(0.88),),
    "triangle": (_regular(3) * 1.2 + (0, 0.2),),
    "star": (_star(),),
    "ring": (_regular(48), _regular(48) * 0.55),
    "cross": (_cross(),),
    "heart": (_heart(),),
    "frame": (_square(0.9), _square(0.5)),
}
_ROUND = ("disc", "ring")


@dataclass(frozen=True)
class Thing:
    """One object of a scene.

    Attributes:
        shape: a name of ``SHAPES``. colour: a name of ``PALETTE``.
        centre: (x, y). size: half its width. angle: in radians, clockwise.
        shade: 1 for the colour of the palette, less for a darker one.
    """

    shape: str
    colour: str
    centre: tuple[float, float]
    size: float
    angle: float = 0.0
    shade: float = 1.0

    @property
    def rgb(self) -> np.ndarray:
        """Its colour as float32 [3]."""
        return np.asarray(PALETTE[self.colour], dtype=np.float32) * np.float32(self.shade)


@dataclass(frozen=True)
class Background:
    """What lies behind the objects.

    Attributes:
        kind: a name of ``BACKGROUNDS``.
        angle: direction of gradient or stripes, in radians. count: waves across the side. phase: 0..1.
    """

    kind: str
    first: Colour
    second: Colour = (0.0, 0.0, 0.0)
    angle: float = 0.0
    count: float = 1.0
    phase: float = 0.0


@dataclass(frozen=True)
class Scene:
    """A background and objects; later ones lie above earlier ones."""

    background: Background
    things: tuple[Thing, ...]

    def with_things(self, things: Sequence[Thing]) -> "Scene":
        """The same background with other objects."""
        return replace(self, things=tuple(things))


def random_scene(
    rng: np.random.Generator, counts: tuple[int, int] = (1, 4), shapes: Sequence[str] = tuple(SHAPES),
    colours: Sequence[str] = COLOURS, sizes: tuple[float, float] = (0.13, 0.24),
) -> Scene:  # fmt: skip
    """A scene of counts[0] to counts[1] objects that do not touch; fewer where they find no room."""
    wanted = int(rng.integers(counts[0], counts[1] + 1))
    things: list[Thing] = []
    for x, y, size in rng.random((12 * wanted, 3)):
        size = sizes[0] + (sizes[1] - sizes[0]) * size
        centre = (size + (1 - 2 * size) * x, size + (1 - 2 * size) * y)
        if all(_distance(centre, other.centre) > size + other.size + _GAP for other in things):
            things.append(_random_thing(rng, shapes, colours, centre, size))
        if len(things) == wanted:
            break
    return Scene(random_background(rng), tuple(things))


def random_background(rng: np.random.Generator) -> Background:
    """A background of any kind; its colours are paler than those of the objects, or darker."""
    first, second = _random_tone(rng), _random_tone(rng)
    angle, count, phase = rng.uniform(0, _FULL_TURN), rng.uniform(2, 5), rng.random()
    return Background(BACKGROUNDS[rng.integers(len(BACKGROUNDS))], first, second, angle, count, phase)


def _random_tone(rng: np.random.Generator) -> Colour:
    hue, saturation, value = rng.random(3)
    return colorsys.hsv_to_rgb(hue, 0.65 * saturation, 0.15 + 0.8 * value)


def _random_thing(
    rng: np.random.Generator, shapes: Sequence[str], colours: Sequence[str], centre: tuple[float, float], size: float
) -> Thing:
    shape, colour = shapes[rng.integers(len(shapes))], colours[rng.integers(len(colours))]
    return Thing(shape, colour, centre, size, rng.uniform(-0.5, 0.5), rng.uniform(0.8, 1.0))


def _distance(first: tuple[float, float], second: tuple[float, float]) -> float:
    return ((first[0] - second[0]) ** 2 + (first[1] - second[1]) ** 2) ** 0.5


def draw(scene: Scene, side: int) -> np.ndarray:
    """The picture of a scene."""
    image = draw_background(scene.background, side)
    _paint(image, scene.things)
    return image


def draw_on(image: np.ndarray, things: Sequence[Thing]) -> np.ndarray:
    """The image with objects drawn on it, later ones above earlier ones."""
    result = image.copy()
    _paint(result, things)
    return result


def draw_background(background: Background, side: int) -> np.ndarray:
    """The picture of a background alone."""
    first, second = (np.asarray(c, dtype=np.float32) for c in (background.first, background.second))
    if background.kind == "flat":
        return np.broadcast_to(first, (side, side, 3)).copy()
    return first + (second - first) * _weights(background, side)[..., None]


def _weights(background: Background, side: int) -> np.ndarray:
    """Share of the second colour, [side, side]."""
    x, y = grid(side)
    along = np.float32(np.cos(background.angle)) * x + np.float32(np.sin(background.angle)) * y
    if background.kind == "gradient":
        return along / np.ptp(along) + np.float32(0.5)
    wave = np.sin(np.float32(_FULL_TURN) * (background.count * along + np.float32(background.phase)), dtype=np.float32)
    if background.kind == "texture":
        across = np.float32(np.sin(background.angle)) * x - np.float32(np.cos(background.angle)) * y
        wave *= np.sin(np.float32(_FULL_TURN) * background.count * across, dtype=np.float32)
        return 0.5 + 0.5 * wave
    # The edge of a stripe is one pixel wide.
    return np.clip(0.5 + wave * np.float32(side / (_FULL_TURN * background.count)), 0, 1)


@cache
def grid(side: int) -> tuple[np.ndarray, np.ndarray]:
    """x and y of the pixels' centres, from -0.5 to 0.5: float32 [1, side] and [side, 1]."""
    places = (np.arange(side, dtype=np.float32) + 0.5) / side - np.float32(0.5)
    return places[None, :], places[:, None]


def _paint(image: np.ndarray, things: Sequence[Thing]) -> None:
    """Draw objects into an image."""
    for thing in things:
        rows, columns, alpha = _patch(thing, len(image))
        region = image[rows, columns]
        region += alpha[..., None] * (thing.rgb - region)


def _patch(thing: Thing, side: int) -> tuple[slice, slice, np.ndarray]:
    """Rows and columns that an object lies in, and how much of each pixel there it covers: float32 in 0..1."""
    reach = _REACH * thing.size
    (left, right), (top, bottom) = (
        (max(0, int((c - reach) * side)), min(side, int((c + reach) * side) + 1)) for c in thing.centre
    )
    mask = Image.new("L", ((right - left) * _OVERSAMPLING, (bottom - top) * _OVERSAMPLING))
    canvas = ImageDraw.Draw(mask)
    for number, outline in enumerate(SHAPES[thing.shape]):
        places = (_turned(outline, thing) * thing.size + thing.centre) * side - (left, top)
        canvas.polygon((places * _OVERSAMPLING).ravel().tolist(), fill=0 if number % 2 else 255)
    alpha = np.asarray(mask.reduce(_OVERSAMPLING), dtype=np.float32) * np.float32(1 / 255)
    return slice(top, bottom), slice(left, right), alpha


def _turned(outline: np.ndarray, thing: Thing) -> np.ndarray:
    if thing.shape in _ROUND or not thing.angle:
        return outline
    cos, sin = np.cos(thing.angle), np.sin(thing.angle)
    return outline @ np.array([[cos, sin], [-sin, cos]])
