"""Pictures without a photograph that have a photograph's statistics: clouds and dead leaves.

A few photographs teach a model their own colours and edges; these make up for the thousands that are missing.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from .scenes import SHAPES, grid

_OVERSAMPLING = 2
_SMALLEST, _LARGEST = (0.04, 0.12), 0.5  # half the width of a picture's smallest leaves, and of any, in sides
_OUTLINES = [SHAPES[name][0] for name in ("disc", "square", "triangle", "disc", "star")]


def clouds(rng: np.random.Generator, side: int) -> np.ndarray:
    """Coloured noise whose amplitude falls with a power of the frequency: float32 [side, side, 3] in 0..1."""
    noise = _noise(rng, side, 3) @ _colour_mix(rng)
    mean, contrast = rng.uniform(0.2, 0.8, 3) * 0.5 + rng.uniform(0.1, 0.4), rng.uniform(0.05, 0.22)
    return _finished(mean + contrast * noise)


def leaves(rng: np.random.Generator, side: int) -> np.ndarray:
    """Dead leaves: opaque shapes of all sizes that hide each other, shaded and mottled.

    The model of images of Lee, Mumford and Huang, "Occlusion Models for Natural Images", IJCV 2001.
    """
    number = _numbered_leaves(rng, side * _OVERSAMPLING)
    count = number.max() + 1
    colours = _palette(rng, count)
    x, y = grid(side * _OVERSAMPLING)
    slopes = rng.normal(0, rng.uniform(0, 0.5), (2, count))
    light = slopes[0][number] * x + slopes[1][number] * y + rng.uniform(0, 0.15) * _noise(rng, len(number), 1)[..., 0]
    image = colours[number] + light[..., None]
    return _finished(image.reshape(side, _OVERSAMPLING, side, _OVERSAMPLING, 3).mean((1, 3)))


def _numbered_leaves(rng: np.random.Generator, side: int) -> np.ndarray:
    """For every pixel the number of the leaf that covers it; 0 is the ground: [side, side]."""
    page = Image.new("I", (side, side))
    canvas = ImageDraw.Draw(page)
    # Sizes fall with the third power, which makes the picture look alike at every scale.
    sizes = np.minimum(rng.uniform(*_SMALLEST) / np.sqrt(rng.random(int(rng.integers(20, 160)))), _LARGEST)
    for number, outline in enumerate(_placed_outlines(rng, sizes), 1):
        canvas.polygon((outline * side).tolist(), fill=number)
    return np.asarray(page)


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
    """Noise of variance 1 with a random spectral slope: [side, side, channels]."""
    down, right = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None]
    frequency = np.sqrt(down**2 + right**2)
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.normal(size=(side, side, channels)), axes=(0, 1))
    noise = np.fft.irfft2(spectrum * (frequency ** -rng.uniform(1.0, 2.0))[..., None], (side, side), axes=(0, 1))
    return noise / noise.std((0, 1))


def _colour_mix(rng: np.random.Generator) -> np.ndarray:
    """A matrix [3, 3] that makes independent channels as alike as a photograph's are."""
    mix = np.eye(3) * rng.uniform(0.2, 0.8) + rng.normal(0, 0.25, (3, 3))
    mix[0] += 1  # a share of lightness that all three have in common
    return mix / np.sqrt((mix**2).sum(0))


def _finished(image: np.ndarray) -> np.ndarray:
    return np.clip(image, 0, 1).astype(np.float32)


KINDS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {"leaves": leaves, "clouds": clouds}
