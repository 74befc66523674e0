"""Stylisation: more media, such as stained glass, cloth and old prints."""

from functools import cache

import numpy as np
from scipy.spatial import cKDTree

from .edit import Choice, Edit, Image, Parameters, Span, image_edit
from .pixels import blend, blurred, edges, grain, luma, of_hue, places, ramp, resized, step
from .stylise import FAMILY


@cache
def _shards(side: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Number of the nearest of some random points, and how much of each pixel lies between two: [side, side] each."""
    points = np.random.default_rng(21).random((count, 2)) - 0.5
    x, y = np.broadcast_arrays(*places(np.empty((side, 1))))
    distances, nearest = cKDTree(points).query(np.stack([x, y], -1), k=2)
    return nearest[..., 0], step(np.float32(0.012) - (distances[..., 1] - distances[..., 0]).astype(np.float32), side)


def _stained_glass(image: Image, p: Parameters) -> Image:
    """Shards of one colour each, in lead."""
    number, lead = _shards(len(image), int(p["shards"]))
    area = np.maximum(np.bincount(number.ravel()), 1)
    colours = np.stack(
        [np.bincount(number.ravel(), channel.ravel()) / area for channel in np.moveaxis(image, -1, 0)], 1
    )
    return blend(colours.astype(np.float32)[number] * np.float32(1.15), np.float32(0.05), lead)


def _pop_art(image: Image, p: Parameters) -> Image:
    """Four small prints in colours of their own."""
    side, length = len(image), -(-len(image) // 2)
    grey = luma(resized(image, length, length))
    hues = [np.float32(p["hue"]) + start for start in (0.0, 0.28, 0.52, 0.77)]
    prints = [
        ramp((grey - 0.5) * 2 + 0.5, of_hue(h + 0.5, 0.9, 0.3), of_hue(h, 0.85), of_hue(h + 0.12, 0.3)) for h in hues
    ]
    rows = [np.concatenate(prints[start : start + 2], axis=1) for start in (0, 2)]
    return np.concatenate(rows)[:side, :side]


def _blueprint(image: Image, p: Parameters) -> Image:
    """White lines on blue squared paper."""
    x, y = (abs((c * 8 + 0.5) % 1 - 0.5) for c in places(image))
    paper = 0.12 * step(0.07 - np.minimum(x, y), len(image) / 8)
    lines = np.clip(np.float32(p["gain"]) * edges(luma(image)) - 0.05, 0, 1)
    return blend(np.zeros_like(image) + of_hue(0.61, 0.85, 0.6), np.float32(1), np.maximum(lines, paper))


def _chalk(image: Image, p: Parameters) -> Image:
    """Chalk on a blackboard: broken lines and a little of the light parts."""
    lines = np.float32(p["gain"]) * edges(luma(image)) + 0.25 * luma(image)
    chalk = np.clip(lines * (0.85 + 0.35 * grain(len(image), 22)), 0, 1)
    return blend(np.zeros_like(image) + of_hue(0.42, 0.25, 0.2), np.float32(0.95), chalk)


def _old_photo(image: Image, p: Parameters) -> Image:
    """Brown, pale, grainy and dark at the corners."""
    x, y = places(image)
    grey = 0.15 + 0.7 * luma(image) + 0.05 * grain(len(image), 23)
    grey = grey * (1 - np.float32(p["corners"]) * np.clip(2 * (x * x + y * y) - 0.2, 0, 1))
    return ramp(grey, of_hue(0.07, 0.7, 0.12), of_hue(0.09, 0.45, 0.65), of_hue(0.12, 0.2, 1.0))


def _cloth(image: Image, p: Parameters) -> Image:
    """Woven of threads that lie above and below in turn."""
    x, y = (np.float32(2 * np.pi * p["threads"]) * c for c in places(image))
    weave = np.where(np.sin(x / 2) * np.sin(y / 2) > 0, np.cos(x), np.cos(y))
    return blurred(image, 0.012) * (0.8 + 0.3 * weave)[..., None]


def _watercolour(image: Image, p: Parameters) -> Image:
    """Pale washes with darker rims, on paper."""
    wash = np.round(blurred(image, 0.025) * 5) / 5
    rim = np.clip(4 * edges(luma(wash)), 0, 0.5)
    paper = 1 + 0.05 * grain(len(image), 24)
    return (1 - (1 - wash) * np.float32(p["strength"])) * ((1 - rim) * paper)[..., None]


def _two_inks(image: Image, p: Parameters) -> Image:
    """A print in red and blue, in two screens of lines."""
    x, y = places(image)
    red, blue = (
        step(image[..., channel] + 0.1 - (0.5 + 0.5 * np.cos(np.float32(2 * np.pi * p["count"]) * across)), 3)
        for channel, across in ((2, 0.7 * (x + y)), (0, 0.7 * (x - y)))
    )
    return (1 - (1 - red)[..., None] * (1 - of_hue(0.98, 0.75))) * (1 - (1 - blue)[..., None] * (1 - of_hue(0.58, 0.8)))


def _stitched(image: Image, p: Parameters) -> Image:
    """Cross stitch: one x a cell, on pale cloth."""
    cells, side = int(p["cells"]), len(image)
    x, y = ((c + 0.5) * cells % 1 - 0.5 for c in places(image))
    cross = step(0.2 - np.minimum(abs(x - y), abs(x + y)), side / cells)
    index = np.arange(side) * cells // side
    colours = resized(image, cells, cells)[index[:, None], index[None]]
    return blend(np.full_like(image, 0.9), colours, cross)


def _levels(image: Image, p: Parameters) -> Image:
    """Four levels a channel."""
    return np.round((image - 0.5) * np.float32(p["gain"]) * 3 + 1.5) / 3


_GAIN = Span(4.0, 8.0)

EDITS: list[Edit] = [
    image_edit("stained_glass", FAMILY, _stained_glass, shards=Choice((50, 60, 80, 90), held=(70,))),
    image_edit("pop_art", FAMILY, _pop_art, hue=Span(0.0, 0.9)),
    image_edit("blueprint", FAMILY, _blueprint, gain=_GAIN),
    image_edit("chalkboard", FAMILY, _chalk, gain=_GAIN),
    image_edit("old_photo", FAMILY, _old_photo, corners=Span(0.5, 1.0)),
    image_edit("cloth", FAMILY, _cloth, threads=Span(10.0, 16.0)),
    image_edit("watercolour", FAMILY, _watercolour, strength=Span(0.65, 1.0)),
    image_edit("two_inks", FAMILY, _two_inks, count=Span(8.0, 13.0)),
    image_edit("cross_stitch", FAMILY, _stitched, cells=Choice((14, 16, 20), held=(18,))),
    image_edit("four_levels", FAMILY, _levels, gain=Span(1.0, 1.5)),
]
HELD_OUT = ("chalkboard",)
