"""Pictures without a photograph that have a photograph's statistics: clouds and dead leaves.

A few photographs teach a model their own colours and edges; these make up for the thousands that are missing.
"""

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
from PIL import Image, ImageDraw
from scipy import fft

from .scenes import SHAPES, grid

_OVERSAMPLING = 2
_MOST = 160  # leaves; a byte numbers them
_SMALLEST, _LARGEST = (0.04, 0.12), 0.5  # half the width of a picture's smallest leaves, and of any, in sides
_OUTLINES = [SHAPES[name][0] for name in ("disc", "square", "triangle", "disc", "star")]


def clouds(rng: np.random.Generator, side: int) -> np.ndarray:
    """Coloured noise whose amplitude falls with a power of the frequency: float32 [side, side, 3] in 0..1."""
    noise = _noise(rng, side, 3)
    mean, contrast = rng.uniform(0.2, 0.8, 3) * 0.5 + rng.uniform(0.1, 0.4), rng.uniform(0.05, 0.22)
    return _finished(mean.astype(np.float32) + noise @ (contrast * _colour_mix(rng)).astype(np.float32))


def leaves(rng: np.random.Generator, side: int) -> np.ndarray:
    """Dead leaves: opaque shapes of all sizes that hide each other, shaded and mottled.

    The model of images of Lee, Mumford and Huang, "Occlusion Models for Natural Images", IJCV 2001.
    """
    # Sizes fall with the third power, which makes the picture look alike at every scale.
    sizes = np.minimum(rng.uniform(*_SMALLEST) / np.sqrt(rng.random(int(rng.integers(20, _MOST)))), _LARGEST)
    outlines = _placed_outlines(rng, sizes)
    colours = _palette(rng, len(sizes) + 1)
    colours = list(map(tuple, (255 * colours.clip(0, 1)).astype(int).tolist()))
    image = _stacked("RGB", side * _OVERSAMPLING, outlines, colours).reduce(_OVERSAMPLING)
    number = np.asarray(_stacked("L", side, outlines, range(len(sizes) + 1)))
    x, y = grid(side)
    slopes = rng.normal(0, rng.uniform(0, 0.5), (2, len(sizes) + 1)).astype(np.float32)
    light = slopes[0][number] * x + slopes[1][number] * y
    light += np.float32(rng.uniform(0, 0.15)) * _noise(rng, side, 1)[..., 0]
    return _finished(np.asarray(image, dtype=np.float32) / 255 + light[..., None])


def _stacked(mode: str, side: int, outlines: list[np.ndarray], fills: Sequence) -> Image.Image:
    """A page of the first fill, and on it the outlines, each above those before it, in the other fills."""
    page = Image.new(mode, (side, side), fills[0])
    canvas = ImageDraw.Draw(page)
    for outline, fill in zip(outlines, fills[1:]):
        canvas.polygon((outline * side).tolist(), fill=fill)
    return page


def _placed_outlines(rng: np.random.Generator, sizes: np.ndarray) -> list[np.ndarray]:
    """An outline for each size, squeezed, turned and put anywhere on a picture of 0 to 1: x, y, x, y and so on."""
    count = len(sizes)
    kinds, scales = rng.integers(len(_OUTLINES), size=count), sizes[:, None] * rng.uniform(0.4, 1.0, (count, 2))
    turns, places = np.exp(1j * rng.uniform(0, 2 * np.pi, count)), rng.uniform(-0.1, 1.1, (count, 2)) @ [1, 1j]
    placed: dict[int, np.ndarray] = {}
    for kind, outline in enumerate(_OUTLINES):
        chosen = np.flatnonzero(kinds == kind)
        points = (outline * scales[chosen, None]) @ [1, 1j] * turns[chosen, None] + places[chosen, None]
        placed.update(zip(chosen, points.view(float)))
    return [placed[number] for number in range(count)]


def _palette(rng: np.random.Generator, count: int) -> np.ndarray:
    """Colours [count, 3] around a few main ones, as the things of one photograph have."""
    main = rng.random((int(rng.integers(2, 7)), 3)) * rng.uniform(0.5, 1.0)
    grey = main.mean(1, keepdims=True)
    main = grey + (main - grey) * rng.uniform(0.1, 1.2)
    return main[rng.integers(len(main), size=count)] + rng.normal(0, 0.1, (count, 3)) + rng.normal(0, 0.12, (count, 1))


def _noise(rng: np.random.Generator, side: int, channels: int) -> np.ndarray:
    """Noise of variance 1 with a random spectral slope: float32 [side, side, channels]."""
    white = rng.standard_normal((channels, side, side), dtype=np.float32)
    spectrum = fft.rfft2(white) * np.exp(np.float32(-rng.uniform(1.0, 2.0)) * _log_frequency(side))
    noise = fft.irfft2(spectrum, (side, side))
    return np.moveaxis(noise / noise.std((1, 2), keepdims=True), 0, -1)


@cache
def _log_frequency(side: int) -> np.ndarray:
    """Logarithm of the frequency, infinite for the mean: float32 [side, side // 2 + 1]."""
    down, right = fft.fftfreq(side)[:, None], fft.rfftfreq(side)[None]
    frequency = np.hypot(down, right)
    frequency[0, 0] = np.inf
    return np.log(frequency).astype(np.float32)


def _colour_mix(rng: np.random.Generator) -> np.ndarray:
    """A matrix [3, 3] that makes independent channels as alike as a photograph's are."""
    mix = np.eye(3) * rng.uniform(0.2, 0.8) + rng.normal(0, 0.25, (3, 3))
    mix[0] += 1  # a share of lightness that all three have in common
    return mix / np.sqrt((mix**2).sum(0))


def _finished(image: np.ndarray) -> np.ndarray:
    return np.clip(image, 0, 1)


KINDS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {"leaves": leaves, "clouds": clouds}
