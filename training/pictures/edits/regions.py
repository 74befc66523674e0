"""Edits of one place of the image: a half, a third, a band, a corner, a disc; all around it stays as it was."""

from collections.abc import Callable

import numpy as np

from .edit import Edit, Image, Parameters, Span, image_edit
from .filters import FAMILY as FILTERS
from .overlays import FAMILY as OVERLAYS
from .pixels import as_picture, as_rgb, blend, blurred, edges, from_picture, luma, of_hue, places, step

Region = Callable[[Image, Parameters], np.ndarray]
Change = Callable[[Image, Parameters], Image]


def _edge(right: float, down: float) -> Region:
    """What lies within ``reach`` of an edge."""

    def region(image: Image, p: Parameters) -> np.ndarray:
        x, y = places(image)
        return step(right * x + down * y + np.zeros_like(x + y) - np.float32(0.5 - p["reach"]), len(image))

    return region


def _corner(right: float, down: float) -> Region:
    """A square in a corner."""

    def region(image: Image, p: Parameters) -> np.ndarray:
        x, y = places(image)
        return step(np.minimum(right * x, down * y) - np.float32(0.5 - p["reach"]), len(image))

    return region


def _band(right: float, down: float) -> Region:
    """A band through the centre."""

    def region(image: Image, p: Parameters) -> np.ndarray:
        x, y = places(image)
        return step(np.float32(p["reach"] / 2) - abs(right * x + down * y) + np.zeros_like(x + y), len(image))

    return region


def _disc(image: Image, p: Parameters) -> np.ndarray:
    x, y = places(image)
    return step(np.float32(0.65 * p["reach"]) - np.sqrt(x * x + y * y), len(image))


def _slope(image: Image, p: Parameters) -> np.ndarray:
    """All above a diagonal."""
    x, y = places(image)
    return step(np.float32(2 * p["reach"] - 0.9) - x - y, len(image))


def _outside(region: Region) -> Region:
    return lambda image, p: 1 - region(image, p)


def _within(region: Region, change: Change):
    return lambda image, p: blend(image, change(image, p), region(image, p))


def _soft(image: Image, p: Parameters) -> Image:
    return blurred(image, p["sigma"])


def _cells(image: Image, p: Parameters) -> Image:
    side, cells = len(image), round(1 / p["cell"])
    return from_picture(as_picture(image).resize((cells, cells), 4).resize((side, side), 0))


def _grey(image: Image, p: Parameters) -> Image:
    return as_rgb(luma(image))


def _negative(image: Image, p: Parameters) -> Image:
    return 1 - image


def _dark(image: Image, p: Parameters) -> Image:
    return image * np.float32(p["keep"])


def _light(image: Image, p: Parameters) -> Image:
    return 1 - (1 - image) * np.float32(p["keep"])


def _tint(image: Image, p: Parameters) -> Image:
    return 0.6 * luma(image)[..., None] + 0.4 * of_hue(p["hue"])


def _outlines(image: Image, p: Parameters) -> Image:
    return as_rgb(1 - 5 * edges(luma(image)))


def _two_levels(image: Image, p: Parameters) -> Image:
    return step(image - np.float32(0.45), 12)


def _mirrored(image: Image, p: Parameters) -> Image:
    return image[:, ::-1]


_LEFT, _RIGHT, _TOP, _BOTTOM = _edge(-1, 0), _edge(1, 0), _edge(0, -1), _edge(0, 1)
_ROW, _COLUMN = _band(0, 1), _band(1, 0)
_REACH, _SIGMA, _CELL, _KEEP = Span(0.35, 0.6), Span(0.08, 0.14), Span(0.12, 0.22), Span(0.2, 0.5)
# Part of the name: how it changes, its parameter beside the reach, and the regions it is made for.
_CHANGES: dict[str, tuple[Change, dict[str, Span], dict[str, Region]]] = {
    "blur": (_soft, {"sigma": _SIGMA}, {
        "top": _TOP, "bottom": _BOTTOM, "middle": _disc, "all_but_row": _outside(_ROW),
        "all_but_middle": _outside(_disc),
    }),
    "pixelate": (_cells, {"cell": _CELL}, {"right": _RIGHT, "row": _ROW, "middle": _disc}),
    "grey": (_grey, {}, {
        "left": _LEFT, "right": _RIGHT, "middle": _disc, "all_but_middle": _outside(_disc),
    }),
    "invert": (_negative, {}, {"top": _TOP, "column": _COLUMN, "middle": _disc}),
    "outline": (_outlines, {}, {"right": _RIGHT}),
    "posterise": (_two_levels, {}, {"bottom": _BOTTOM}),
    "mirror": (_mirrored, {}, {"row": _ROW}),
}  # fmt: skip
_PAINTS: dict[str, tuple[Change, dict[str, Span], dict[str, Region]]] = {
    "dim": (_dark, {"keep": _KEEP}, {
        "row": _ROW, "top_left": _corner(-1, -1), "middle": _disc,
        "all_but_middle": _outside(_disc),
    }),
    "lighten": (_light, {"keep": _KEEP}, {"top": _TOP, "top_right": _corner(1, -1), "middle": _disc}),
    "tint": (_tint, {"hue": Span(0.0, 0.9)}, {
        "left": _LEFT, "bottom": _BOTTOM, "row": _ROW, "slope": _slope, "middle": _disc,
    }),
}  # fmt: skip


def _edits(family: str, changes: dict[str, tuple[Change, dict[str, Span], dict[str, Region]]]) -> list[Edit]:
    return [
        image_edit(f"{name}_{place}", family, _within(region, change), reach=_REACH, **spans)
        for name, (change, spans, regions) in changes.items()
        for place, region in regions.items()
    ]


EDITS: list[Edit] = _edits(FILTERS, _CHANGES) + _edits(OVERLAYS, _PAINTS)
HELD_OUT = ("blur_bottom", "grey_right", "tint_row")
