"""Geometry: pixels move."""

import numpy as np

from .edit import Edit, Image, Parameters, Span, image_edit
from .pixels import of_hue, places, shifted, warp

FAMILY = "geometry"


def _mirror(image: Image, p: Parameters) -> Image:
    return image[:, ::-1]


def _flip(image: Image, p: Parameters) -> Image:
    return image[::-1]


def _quarters(turns: int):
    """Quarter turns, clockwise."""
    return lambda image, p: np.rot90(image, -turns)


def _zoom_in(image: Image, p: Parameters) -> Image:
    x, y = places(image)
    return warp(image, x / p["factor"], y / p["factor"])


def _zoom_out(image: Image, p: Parameters) -> Image:
    x, y = places(image)
    small = warp(image, x * p["factor"], y * p["factor"])
    inside = np.maximum(abs(x), abs(y)) <= 0.5 / p["factor"]
    return np.where(inside[..., None], small, of_hue(p["hue"], 0.7, 0.9))


def _shear_sideways(image: Image, p: Parameters) -> Image:
    x, y = places(image)
    return warp(image, x + p["slope"] * y, y, repeat_edge=False)


def _shear_down(image: Image, p: Parameters) -> Image:
    x, y = places(image)
    return warp(image, x, y + p["slope"] * x, repeat_edge=False)


def _shift_right(image: Image, p: Parameters) -> Image:
    return shifted(image, p["distance"], 0.0)


def _mirror_left_half(image: Image, p: Parameters) -> Image:
    return np.where((places(image)[0] > 0)[..., None], image[:, ::-1], image)


_SLOPE = Span(0.5, 1.0)

EDITS: list[Edit] = [
    image_edit("mirror", FAMILY, _mirror),
    image_edit("flip", FAMILY, _flip),
    image_edit("quarter_turn", FAMILY, _quarters(1)),
    image_edit("half_turn", FAMILY, _quarters(2)),
    image_edit("three_quarter_turn", FAMILY, _quarters(3)),
    image_edit("zoom_in", FAMILY, _zoom_in, factor=Span(1.7, 2.6)),
    image_edit("zoom_out", FAMILY, _zoom_out, factor=Span(1.6, 2.4), hue=Span(0.0, 0.9)),
    image_edit("shear_sideways", FAMILY, _shear_sideways, slope=_SLOPE),
    image_edit("shear_down", FAMILY, _shear_down, slope=_SLOPE),
    image_edit("shift_right", FAMILY, _shift_right, distance=Span(0.25, 0.45)),
    image_edit("mirror_left_half", FAMILY, _mirror_left_half),
]
HELD_OUT = ("three_quarter_turn", "shear_down")
