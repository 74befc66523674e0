"""Local filters: every pixel depends on its neighbourhood."""

import numpy as np
from PIL import Image as Pillow
from scipy import ndimage

from .edit import Choice, Edit, Image, Parameters, Span, image_edit
from .pixels import as_picture, as_rgb, blurred, edges, from_picture, luma, shifted

FAMILY = "local_filters"


def _blur(image: Image, p: Parameters) -> Image:
    return blurred(image, p["sigma"])


def _smear(right: float, down: float):
    def apply(image: Image, p: Parameters) -> Image:
        """The mean of copies along a line."""
        side, reach = len(image), int(p["length"] * len(image) / 2)
        padded = np.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
        places = [(reach + round(down * o), reach + round(right * o)) for o in range(-reach, reach + 1)]
        return sum(padded[y : y + side, x : x + side] for y, x in places) / np.float32(len(places))

    return apply


def _sharpen(image: Image, p: Parameters) -> Image:
    return image + np.float32(p["gain"]) * (image - blurred(image, 0.03))


def _high_pass(image: Image, p: Parameters) -> Image:
    return 0.5 + np.float32(p["gain"]) * (image - blurred(image, 0.12))


def _emboss(right: float, down: float):
    def apply(image: Image, p: Parameters) -> Image:
        grey = luma(image)
        relief = shifted(grey, right / 32, down / 32) - shifted(grey, -right / 32, -down / 32)
        return as_rgb(0.5 + np.float32(p["gain"]) * relief)

    return apply


def _mosaic(across: bool, down: bool):
    def apply(image: Image, p: Parameters) -> Image:
        """Means of cells, or of whole columns or rows."""
        cells, side = int(p["cells"]), len(image)
        small = as_picture(image).resize((cells if across else 1, cells if down else 1), Pillow.Resampling.BOX)
        return from_picture(small.resize((side, side), Pillow.Resampling.NEAREST))

    return apply


def _extreme(filter_1d):
    def apply(image: Image, p: Parameters) -> Image:
        size = 2 * round(p["radius"] * len(image)) + 1
        return filter_1d(filter_1d(image, size, axis=0), size, axis=1)

    return apply


def _edges_on_black(image: Image, p: Parameters) -> Image:
    return as_rgb(np.float32(p["gain"]) * edges(luma(image)))


def _edges_on_white(image: Image, p: Parameters) -> Image:
    return 1 - _edges_on_black(image, p)


def _neon(image: Image, p: Parameters) -> Image:
    return np.float32(p["gain"]) * edges(image)


def _ghost(right: float, down: float):
    def apply(image: Image, p: Parameters) -> Image:
        """A double exposure."""
        return (image + shifted(image, right * p["distance"], down * p["distance"])) / 2

    return apply


_LENGTH, _CELLS, _RADIUS = Span(0.3, 0.6), Choice((4, 5, 7, 9), held=(6, 8)), Span(0.06, 0.13)

EDITS: list[Edit] = [
    image_edit("gaussian_blur", FAMILY, _blur, sigma=Span(0.08, 0.16)),
    image_edit("motion_blur_horizontal", FAMILY, _smear(1, 0), length=_LENGTH),
    image_edit("motion_blur_vertical", FAMILY, _smear(0, 1), length=_LENGTH),
    image_edit("motion_blur_diagonal", FAMILY, _smear(0.7, 0.7), length=_LENGTH),
    image_edit("sharpen", FAMILY, _sharpen, gain=Span(5.0, 9.0)),
    image_edit("high_pass", FAMILY, _high_pass, gain=Span(1.0, 2.5)),
    image_edit("emboss_left", FAMILY, _emboss(1, 0), gain=Span(0.8, 1.6)),
    image_edit("emboss_corner", FAMILY, _emboss(0.7, 0.7), gain=Span(0.8, 1.6)),
    image_edit("emboss_top", FAMILY, _emboss(0, 1), gain=Span(0.8, 1.6)),
    image_edit("mosaic", FAMILY, _mosaic(True, True), cells=_CELLS),
    image_edit("mosaic_columns", FAMILY, _mosaic(True, False), cells=_CELLS),
    image_edit("mosaic_rows", FAMILY, _mosaic(False, True), cells=_CELLS),
    image_edit("grow_light", FAMILY, _extreme(ndimage.maximum_filter1d), radius=_RADIUS),
    image_edit("grow_dark", FAMILY, _extreme(ndimage.minimum_filter1d), radius=_RADIUS),
    image_edit("edges_on_black", FAMILY, _edges_on_black, gain=Span(3.0, 7.0)),
    image_edit("edges_on_white", FAMILY, _edges_on_white, gain=Span(3.0, 7.0)),
    image_edit("neon", FAMILY, _neon, gain=Span(3.0, 7.0)),
    image_edit("ghost_sideways", FAMILY, _ghost(1, 0), distance=Span(0.25, 0.45)),
    image_edit("ghost_down", FAMILY, _ghost(0, 1), distance=Span(0.25, 0.45)),
]
HELD_OUT = ("motion_blur_diagonal", "emboss_top", "mosaic_rows")
