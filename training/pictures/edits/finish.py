"""Filters of a picture's finish: grain and other noise, blocks, smoothing, local contrast, faults of a lens."""

import numpy as np
from PIL import Image as Pillow
from PIL import ImageFilter
from scipy import fft, ndimage

from .edit import Edit, Image, Parameters, Span, image_edit
from .filters import FAMILY
from .pixels import as_picture, as_rgb, blend, blurred, edges, from_picture, grain, luma, places, shifted, warp

_BLOCKS = 16  # across a picture


def _film_grain(image: Image, p: Parameters) -> Image:
    return image + (np.float32(p["amount"]) * grain(len(image), 11))[..., None]


def _colour_noise(image: Image, p: Parameters) -> Image:
    noise = np.stack([grain(len(image), seed) for seed in (12, 13, 14)], -1)
    return image + np.float32(p["amount"]) * noise


def _specks(image: Image, p: Parameters) -> Image:
    """Some cells are white, some black."""
    noise, limit = grain(len(image), 15, 32), np.float32(p["limit"])
    return np.where((noise > limit)[..., None], 1, np.where((noise < -limit)[..., None], 0, image))


def _bands_of_noise(image: Image, p: Parameters) -> Image:
    """Rows lighter and darker at random."""
    rows = grain(len(image), 16, 40)[:, :1]
    return image + (np.float32(p["amount"]) * rows)[..., None]


def _jitter(image: Image, p: Parameters) -> Image:
    """Rows slip sideways at random."""
    x, y = places(image)
    return warp(image, x + np.float32(p["amount"]) * grain(len(image), 17, 24)[:, :1], y)


def _frosted(image: Image, p: Parameters) -> Image:
    """Seen through uneven glass."""
    x, y = places(image)
    right, down = (np.float32(p["amount"]) * grain(len(image), seed, 40) for seed in (18, 19))
    return warp(image, x + right, y + down)


def _blocks(image: Image, p: Parameters) -> Image:
    """Cosine transform by blocks, coarsely quantised: what too strong a compression leaves."""
    side, block = len(image), max(2, round(len(image) / _BLOCKS))
    count = -(-side // block)
    padded = np.pad(image, ((0, count * block - side),) * 2 + ((0, 0),), mode="edge")
    cells = padded.reshape(count, block, count, block, 3)
    waves = fft.dctn(cells, axes=(1, 3), norm="ortho") / block
    coarse = np.float32(p["step"]) * (1 + np.add.outer(np.arange(block), np.arange(block))).astype(np.float32)
    coarse = coarse[None, :, None, :, None] * np.float32(4 / block)
    kept = np.round(waves / coarse) * coarse
    back = fft.idctn(kept * block, axes=(1, 3), norm="ortho")
    return back.reshape(padded.shape)[:side, :side]


def _fringes(image: Image, p: Parameters) -> Image:
    """Red and blue are imaged larger and smaller than green."""
    x, y = places(image)
    amount = np.float32(p["amount"])
    red, blue = (warp(image[..., c : c + 1], x * s, y * s) for c, s in ((0, 1 - amount), (2, 1 + amount)))
    return np.concatenate([red, image[..., 1:2], blue], -1)


def _split_channels(image: Image, p: Parameters) -> Image:
    """Red slips to the left, blue to the right."""
    red, blue = (shifted(image[..., c], s * p["amount"], 0.0) for c, s in ((0, -1), (2, 1)))
    return np.stack([red, image[..., 1], blue], -1)


def _local_contrast(image: Image, p: Parameters) -> Image:
    """Lightness evened out within the surroundings of each pixel."""
    grey = luma(image)
    size = max(3, len(image) // 4)
    centre = grey - ndimage.uniform_filter(grey, size, mode="nearest")
    # The filter's running sums may end a little below zero where nothing varies.
    spread = np.sqrt(np.maximum(ndimage.uniform_filter(centre * centre, size, mode="nearest"), 0)) + 0.04
    even = 0.5 + 0.22 * centre / spread
    return image + (np.float32(p["strength"]) * (even - grey))[..., None]


def _relief(image: Image, p: Parameters) -> Image:
    """Colours stay, edges rise."""
    grey, reach = luma(image), 1 / 40
    return image + np.float32(p["gain"]) * (shifted(grey, reach, reach) - shifted(grey, -reach, -reach))[..., None]


def _daubed(image: Image, p: Parameters) -> Image:
    """The median of each neighbourhood, of pixels no finer than a 48th."""
    side, cells = len(image), min(len(image), 48)
    small = as_picture(image).resize((cells, cells), Pillow.Resampling.BOX).filter(ImageFilter.MedianFilter(5))
    return from_picture(small.resize((side, side), Pillow.Resampling.BILINEAR))


def _smooth(image: Image, p: Parameters) -> Image:
    """Flat where it varies little, edges kept: the guided filter of He, Sun and Tang, ECCV 2010, led by lightness."""
    size, grey = max(3, round(p["radius"] * len(image)) * 2 + 1), luma(image)
    stack = np.concatenate([grey[..., None], (grey * grey)[..., None], image, grey[..., None] * image], -1)
    mean, square, colour, product = np.split(_box(stack, size), (1, 2, 5), axis=-1)
    slope = (product - mean * colour) / (square - mean * mean + np.float32(0.03))
    slope, base = np.split(_box(np.concatenate([slope, colour - slope * mean], -1), size), 2, axis=-1)
    return slope * grey[..., None] + base


def _box(values: np.ndarray, size: int) -> np.ndarray:
    return ndimage.uniform_filter(values, (size, size, 0), mode="nearest")


def _outlined(image: Image, p: Parameters) -> Image:
    return blend(image, np.float32(0), np.clip(np.float32(p["gain"]) * edges(luma(image)) - 0.1, 0, 1))


def _edges_lit(image: Image, p: Parameters) -> Image:
    return image + as_rgb(np.float32(p["gain"]) * edges(luma(image)))


def _rushing(image: Image, p: Parameters) -> Image:
    """A zoom while the shutter is open."""
    side, picture = len(image), as_picture(image)
    margins = np.linspace(0, p["length"] * side / 2, 7)
    boxes = [(margin, margin, side - margin, side - margin) for margin in margins]
    copies = (picture.resize((side, side), Pillow.Resampling.BILINEAR, box) for box in boxes)
    return sum(map(from_picture, copies)) / np.float32(len(boxes))


def _haloed(image: Image, p: Parameters) -> Image:
    """Sharpened with a wide mask: light edges glow, dark ones sink."""
    return image + np.float32(p["gain"]) * (image - blurred(image, 0.07))


_NOISE = Span(0.06, 0.14)

EDITS: list[Edit] = [
    image_edit("film_grain", FAMILY, _film_grain, amount=_NOISE),
    image_edit("colour_noise", FAMILY, _colour_noise, amount=_NOISE),
    image_edit("specks", FAMILY, _specks, limit=Span(1.2, 1.8)),
    image_edit("row_noise", FAMILY, _bands_of_noise, amount=_NOISE),
    image_edit("row_jitter", FAMILY, _jitter, amount=Span(0.015, 0.05)),
    image_edit("frosted_glass", FAMILY, _frosted, amount=Span(0.012, 0.035)),
    image_edit("compressed", FAMILY, _blocks, step=Span(0.08, 0.2)),
    image_edit("colour_fringes", FAMILY, _fringes, amount=Span(0.03, 0.08)),
    image_edit("split_channels", FAMILY, _split_channels, amount=Span(0.03, 0.08)),
    image_edit("local_contrast", FAMILY, _local_contrast, strength=Span(0.6, 1.0)),
    image_edit("relief", FAMILY, _relief, gain=Span(1.5, 3.0)),
    image_edit("daubed", FAMILY, _daubed),
    image_edit("smooth", FAMILY, _smooth, radius=Span(0.05, 0.09)),
    image_edit("outlined", FAMILY, _outlined, gain=Span(4.0, 8.0)),
    image_edit("edges_lit", FAMILY, _edges_lit, gain=Span(2.0, 4.0)),
    image_edit("zoom_blur", FAMILY, _rushing, length=Span(0.2, 0.4)),
    image_edit("haloed", FAMILY, _haloed, gain=Span(0.7, 1.4)),
]
HELD_OUT = ("colour_noise", "edges_lit")
