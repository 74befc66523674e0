"""Operations on pixels that several edits share. Images are float32 [H, W, 3] in 0..1, lengths shares of the side."""

import colorsys
from functools import cache

import numpy as np
from PIL import Image as Pillow
from PIL import ImageFilter
from scipy import ndimage

from ..scenes import grid
from .edit import Image

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # Rec. 601


def luma(image: Image) -> np.ndarray:
    """Lightness [H, W]."""
    return image @ _LUMA


def as_rgb(grey: np.ndarray) -> Image:
    """A grey image [H, W] with three channels."""
    return np.repeat(grey[..., None], 3, axis=-1)


def of_hue(hue: float, saturation: float = 1.0, value: float = 1.0) -> np.ndarray:
    """A colour [3]; hue 0 is red, a third green, two thirds blue."""
    return np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value), dtype=np.float32)


def blend(image: Image, other: Image | np.ndarray, weights: np.ndarray | float) -> Image:
    """The image with a share of the other one: weights [H, W] or a number."""
    weights = np.asarray(weights, dtype=np.float32)
    return image + (other - image) * (weights[..., None] if weights.ndim else weights)


def ramp(grey: np.ndarray, *colours: np.ndarray) -> Image:
    """Colours of a map, at equal distances, for greys [H, W] from 0 to 1."""
    stops = np.linspace(0, 1, len(colours))
    table = np.stack([np.interp(np.linspace(0, 1, 256), stops, channel) for channel in np.stack(colours, 1)], 1)
    return table.astype(np.float32)[(np.clip(grey, 0, 1) * 255).astype(np.uint8)]


def step(values: np.ndarray, sharpness: float) -> np.ndarray:
    """0 below zero and 1 above, over a slope of the given sharpness."""
    return np.clip(values * np.float32(sharpness) + 0.5, 0, 1)


def as_picture(image: Image) -> Pillow.Image:
    """The image as Pillow keeps it, in 8 bits."""
    return Pillow.fromarray((np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8))


def from_picture(picture: Pillow.Image) -> Image:
    """What Pillow made of an image."""
    return np.asarray(picture, dtype=np.float32) * np.float32(1 / 255)


def blurred(image: Image, sigma: float) -> Image:
    """Gaussian blur."""
    return from_picture(as_picture(image).filter(ImageFilter.GaussianBlur(sigma * len(image))))


def resized(image: Image, width: int, height: int) -> Image:
    """Means over larger pixels, or interpolation between smaller ones."""
    return from_picture(as_picture(image).resize((width, height), Pillow.Resampling.BICUBIC))


def edges(image: np.ndarray) -> np.ndarray:
    """Length of the gradient per step of 1/64 of the side, of [H, W] or [H, W, 3]."""
    scale = np.float32(len(image) / 64)
    down, right = (ndimage.gaussian_filter1d(image, scale * 0.8, axis, order=1, truncate=2.5) for axis in (0, 1))
    return scale * np.sqrt(down * down + right * right)


def warp(image: Image, x: np.ndarray, y: np.ndarray, repeat_edge: bool = True) -> Image:
    """The image looked up at x, y (-0.5 to 0.5, broadcast to [side, side]), interpolated between the four nearest
    pixels; black outside unless the edge repeats.
    """
    side = len(image)
    (left, right_share), (top, low_share) = (
        _between((c + np.float32(0.5)) * side - np.float32(0.5), side) for c in (x, y)
    )
    first, pixels = top * side + left, image.reshape(-1, image.shape[-1])
    upper, lower = (
        pixels[corner] + right_share[..., None] * (pixels[corner + 1] - pixels[corner])
        for corner in (first, first + side)
    )
    found = upper + low_share[..., None] * (lower - upper)
    if repeat_edge:
        return found
    return found * (np.maximum(abs(x), abs(y)) <= 0.5)[..., None]


def _between(place: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """The pixel before a place and the share of the next one."""
    place = np.clip(place, 0, side - 1)
    before = np.minimum(place.astype(np.int32), side - 2)
    return before, (place - before).astype(np.float32)


def places(image: Image) -> tuple[np.ndarray, np.ndarray]:
    """x and y of the pixels from -0.5 to 0.5: float32 [1, side] and [side, 1]."""
    return grid(len(image))


def shifted(image: np.ndarray, right: float, down: float) -> np.ndarray:
    """The image moved by shares of its side; its edge repeats."""
    side = len(image)
    rows, columns = (np.clip(np.arange(side) - round(d * side), 0, side - 1) for d in (down, right))
    return image[rows[:, None], columns[None, :]]


def near_hue(image: Image, hue: float, width: float) -> np.ndarray:
    """How much each pixel is of a hue, [H, W]: 1 for colours within ``width`` of it, 0 for others and for greys."""
    red, green, blue = np.moveaxis(image, -1, 0)
    found = np.arctan2(np.float32(np.sqrt(3)) * (green - blue), 2 * red - green - blue) / np.float32(2 * np.pi)
    distance = abs((found - np.float32(hue) + np.float32(0.5)) % 1 - np.float32(0.5))
    colourful = image.max(-1) - image.min(-1)
    return step(np.float32(width) - distance, 16) * np.clip(8 * colourful - np.float32(0.5), 0, 1)


@cache
def grain(side: int, seed: int, cells: int = 64) -> np.ndarray:
    """Noise of variance about 1 that is the same in every image, [side, side]."""
    noise = np.random.default_rng(seed).standard_normal((cells, cells), dtype=np.float32)
    return np.asarray(Pillow.fromarray(noise).resize((side, side), Pillow.Resampling.BICUBIC))
