"""Stylisation: the image as another medium would show it."""

import numpy as np
from scipy import ndimage

from .edit import Choice, Edit, Image, Parameters, Span, image_edit
from .filters import EDITS as FILTERS
from .pixels import as_rgb, blend, blurred, edges, luma, of_hue, places, ramp, step

FAMILY = "stylisation"

_BAYER = np.array([[0, 8, 2, 10], [12, 4, 14, 6], [3, 11, 1, 9], [15, 7, 13, 5]], dtype=np.float32) / 16 + 1 / 32
_MOSAIC = next(edit for edit in FILTERS if edit.name == "mosaic")


def _posterise(image: Image, p: Parameters) -> Image:
    """Two levels a channel."""
    return step(image - np.float32(p["threshold"]), 12)


def _three_greys(image: Image, p: Parameters) -> Image:
    grey = luma(image)
    return as_rgb((step(grey - np.float32(p["threshold"]), 12) + step(grey - np.float32(2 * p["threshold"]), 12)) / 2)


def _threshold(image: Image, p: Parameters) -> Image:
    return as_rgb(step(luma(image) - np.float32(p["threshold"]), 12))


def _solarise(image: Image, p: Parameters) -> Image:
    return np.where(image > p["threshold"], 1 - image, image)


def _screen(image: Image, cells: float) -> np.ndarray:
    """Thresholds of round dots, [side, side] in 0..1."""
    x, y = (np.cos(np.float32(2 * np.pi * cells) * c) for c in places(image))
    return 0.5 + 0.25 * (x + y)


def _halftone(image: Image, p: Parameters) -> Image:
    return as_rgb(step(luma(image) - _screen(image, p["cells"]), 4))


def _halftone_colour(image: Image, p: Parameters) -> Image:
    return step(image - _screen(image, p["cells"])[..., None], 4)


def _bayer(image: Image, p: Parameters) -> np.ndarray:
    index = (np.arange(len(image)) * p["cells"] / len(image)).astype(int) % 4
    return _BAYER[index[:, None], index[None, :]]


def _dither(image: Image, p: Parameters) -> Image:
    return as_rgb((luma(image) > _bayer(image, p)).astype(np.float32))


def _dither_colour(image: Image, p: Parameters) -> Image:
    return (image > _bayer(image, p)[..., None]).astype(np.float32)


def _lines(image: Image, p: Parameters, right: float, down: float) -> np.ndarray:
    """Lines that are thicker where the image is darker: white [side, side] with black lines."""
    x, y = places(image)
    wave = 0.5 + 0.5 * np.cos(np.float32(2 * np.pi * p["count"]) * (right * x + down * y))
    return step(luma(image) + 0.15 - wave, 3)


def _hatch(*directions: tuple[float, float]):
    def apply(image: Image, p: Parameters) -> Image:
        return as_rgb(np.min([_lines(image, p, *direction) for direction in directions], axis=0))

    return apply


def _sketch(image: Image, p: Parameters) -> Image:
    """A pencil drawing: grey divided by its blur (colour dodge)."""
    grey = luma(image)
    soft = luma(blurred(image, p["sigma"]))
    return as_rgb(((grey + 0.05) / (soft + 0.05)) ** 3)


def _cel(image: Image, p: Parameters) -> Image:
    """Few flat colours with black outlines."""
    flat = np.round(image * 2 * np.float32(p["gain"])) / 2
    return blend(flat, np.float32(0), np.clip(6 * edges(luma(image)) - 0.2, 0, 1))


def _oil(image: Image, p: Parameters) -> Image:
    """Blots: a morphological opening and closing, then few colours."""
    size = 2 * round(p["radius"] * len(image)) + 1
    for passes in (
        (ndimage.minimum_filter1d, ndimage.maximum_filter1d),
        (ndimage.maximum_filter1d, ndimage.minimum_filter1d),
    ):
        for extreme in passes:
            image = extreme(extreme(image, size, axis=0), size, axis=1)
    return np.clip((image - 0.4) * 1.8 + 0.5, 0, 1)


def _map(*colours: tuple[float, float, float]):
    table = [of_hue(*colour) for colour in colours]

    def apply(image: Image, p: Parameters) -> Image:
        return ramp((luma(image) - 0.5) * np.float32(p["gain"]) + 0.5, *table)

    return apply


def _night_vision(image: Image, p: Parameters) -> Image:
    """Green on black, with the lines of a tube."""
    lines = 0.7 + 0.3 * np.cos(np.float32(2 * np.pi * 10) * places(image)[1])
    return (luma(image) * np.float32(p["gain"]) * lines)[..., None] * of_hue(0.34, 0.8, 1.0)


def _beads(ground: float):
    def apply(image: Image, p: Parameters) -> Image:
        """A disc for every cell, of the cell's mean colour."""
        x, y = ((c + 0.5) * p["cells"] % 1 - 0.5 for c in places(image))
        disc = step(0.42 - np.sqrt(x * x + y * y), len(image) / p["cells"])
        return blend(np.full_like(image, ground), _MOSAIC.apply(image, p), disc)

    return apply


def _tiles(image: Image, p: Parameters) -> Image:
    """Flat tiles with dark joints."""
    x, y = (abs((c + 0.5) * p["cells"] % 1 - 0.5) for c in places(image))
    joint = step(np.maximum(x, y) - 0.4, len(image) / p["cells"])
    return blend(_MOSAIC.apply(image, p), np.float32(0), joint)


def _contours(image: Image, p: Parameters) -> Image:
    """Bands of height, black and white."""
    height = luma(blurred(image, 0.02))
    return as_rgb(0.5 + 0.5 * np.sin(np.float32(2 * np.pi * p["bands"]) * height))


_THRESHOLD, _CELLS = Span(0.3, 0.6), Choice((8, 9, 11, 12), held=(10,))
_FEW = Choice((5, 6, 8, 9), held=(7,))
# Hue, saturation and value from dark to light.
_MAPS = {
    "thermal": ((0.7, 1, 0.2), (0.7, 0.9, 0.8), (0.95, 0.9, 0.9), (0.1, 1, 1), (0.16, 0.3, 1)),
    "rainbow": ((0.66, 1, 1), (0.5, 1, 1), (0.33, 1, 1), (0.16, 1, 1), (0.0, 1, 1)),
    "ice": ((0.75, 1, 0.15), (0.62, 0.9, 0.7), (0.52, 0.6, 0.95), (0.5, 0.0, 1)),
    "fire": ((0.0, 1, 0.05), (0.0, 1, 0.7), (0.08, 1, 1), (0.16, 0.4, 1)),
}

EDITS: list[Edit] = [
    image_edit("posterise", FAMILY, _posterise, threshold=_THRESHOLD),
    image_edit("three_greys", FAMILY, _three_greys, threshold=Span(0.25, 0.4)),
    image_edit("threshold", FAMILY, _threshold, threshold=_THRESHOLD),
    image_edit("solarise", FAMILY, _solarise, threshold=Span(0.25, 0.5)),
    image_edit("halftone", FAMILY, _halftone, cells=_CELLS),
    image_edit("halftone_colour", FAMILY, _halftone_colour, cells=_CELLS),
    image_edit("dither", FAMILY, _dither, cells=Choice((14, 16, 20), held=(18,))),
    image_edit("dither_colour", FAMILY, _dither_colour, cells=Choice((14, 16, 20), held=(18,))),
    image_edit("hatch_rising", FAMILY, _hatch((0.7, 0.7)), count=_CELLS),
    image_edit("hatch_falling", FAMILY, _hatch((0.7, -0.7)), count=_CELLS),
    image_edit("engraving", FAMILY, _hatch((0, 1)), count=_CELLS),
    image_edit("cross_hatch", FAMILY, _hatch((0.7, 0.7), (0.7, -0.7)), count=_CELLS),
    image_edit("sketch", FAMILY, _sketch, sigma=Span(0.04, 0.1)),
    image_edit("cel", FAMILY, _cel, gain=Span(1.0, 1.4)),
    image_edit("oil", FAMILY, _oil, radius=Span(0.04, 0.07)),
    *(image_edit(name, FAMILY, _map(*colours), gain=Span(0.9, 1.6)) for name, colours in _MAPS.items()),
    image_edit("night_vision", FAMILY, _night_vision, gain=Span(0.9, 1.6)),
    image_edit("beads_black", FAMILY, _beads(0.0), cells=_FEW),
    image_edit("beads_white", FAMILY, _beads(1.0), cells=_FEW),
    image_edit("tiles", FAMILY, _tiles, cells=_FEW),
    image_edit("contours", FAMILY, _contours, bands=Span(1.5, 2.5)),
]  # fmt: skip
HELD_OUT = ("halftone_colour", "cross_hatch", "fire", "beads_white")
