"""Operations on pixels that several edits share. Images are float32 [H, W, 3] in 0..1, lengths shares of the side."""

import colorsys

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


def blurred(image: Image, sigma: float) -> Image:
    """Gaussian blur."""
    picture = Pillow.fromarray((image * 255 + 0.5).astype(np.uint8))
    soft = picture.filter(ImageFilter.GaussianBlur(sigma * len(image)))
    return np.asarray(soft, dtype=np.float32) / 255


def edges(image: np.ndarray) -> np.ndarray:
    """Length of the gradient per step of 1/64 of the side, of [H, W] or [H, W, 3]."""
    scale = np.float32(len(image) / 64)
    down, right = (ndimage.gaussian_filter1d(image, scale * 0.8, axis, order=1, truncate=2.5) for axis in (0, 1))
    return scale * np.sqrt(down * down + right * right)


def warp(image: Image, x: np.ndarray, y: np.ndarray, repeat_edge: bool = True) -> Image:
    """The image looked up at x, y (-0.5 to 0.5, [side, side]); black outside unless the edge repeats."""
    side = len(image)
    places = [(y + 0.5) * side - 0.5, (x + 0.5) * side - 0.5]
    mode = "nearest" if repeat_edge else "constant"
    channels = [ndimage.map_coordinates(image[..., c], places, order=1, mode=mode) for c in range(3)]
    return np.stack(channels, -1)


def places(image: Image) -> tuple[np.ndarray, np.ndarray]:
    """x and y of the pixels from -0.5 to 0.5: float32 [1, side] and [side, 1]."""
    return grid(len(image))


def shifted(image: np.ndarray, right: float, down: float) -> np.ndarray:
    """The image moved by shares of its side; its edge repeats."""
    side = len(image)
    rows, columns = (np.clip(np.arange(side) - round(d * side), 0, side - 1) for d in (down, right))
    return image[rows[:, None], columns[None, :]]
