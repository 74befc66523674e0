"""Photographs that come inside the wheels of scikit-image and scikit-learn, and random square crops of them.

scikit-image's are in the public domain or CC0. scikit-learn's are CC BY 2.0: "china" by danielbuechele, "flower" by
vultilion, both on Flickr.

Crops of the training photographs come in other colours as often as in their own, because the photographs are few.
"""

from functools import cache

import numpy as np
from PIL import Image

TRAINING = (
    "astronaut", "coffee", "rocket", "china", "immunohistochemistry", "retina", "camera", "clock", "brick",
    "grass", "gravel",
)  # fmt: skip
HELD_OUT = ("chelsea", "flower")

_SCIKIT_LEARN = ("china", "flower")
_SMALLEST, _LARGEST = 0.25, 0.8  # side of a crop, as a share of the photograph's shorter side
_FLAT = 0.1  # a crop whose channels vary less than this shows next to nothing of most edits
_TRIES = 6
_TINT, _SHIFT = 0.1, 0.05
_RECOLOURED = 0.5  # share of the training crops in other colours


@cache
def load(name: str) -> np.ndarray:
    """A photograph by its name in scikit-image or scikit-learn: uint8 [height, width, 3]."""
    if name in _SCIKIT_LEARN:
        from sklearn.datasets import load_sample_image

        return load_sample_image(f"{name}.jpg")
    from skimage import data

    pixels = getattr(data, name)()
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=-1)


@cache
def _picture(name: str, shrink: int = 1) -> Image.Image:
    return Image.fromarray(load(name)).reduce(shrink)


def random_crop(rng: np.random.Generator, name: str, side: int) -> np.ndarray:
    """A square crop of a photograph, float32 [side, side, 3] in 0..1, turned and tinted at random.

    Crops that are nearly flat are drawn again, a few times.
    """
    for _ in range(_TRIES):
        crop = _crop(rng, name, side)
        if crop.std((0, 1)).mean() >= _FLAT:
            break
    if name in TRAINING and rng.random() < _RECOLOURED:
        crop = _recoloured(rng, crop)
    crop = np.rot90(crop, rng.integers(4))
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    gain = 1 + _TINT * rng.uniform(-1, 1, 3)
    return np.clip(crop * gain + _SHIFT * rng.uniform(-1, 1), 0, 1).astype(np.float32)


def _crop(rng: np.random.Generator, name: str, side: int) -> np.ndarray:
    """A random square of a photograph, scaled with antialiasing."""
    share = rng.uniform(_SMALLEST, _LARGEST)
    pixels_per_pixel = share * min(_picture(name).size) / side
    # A shrunken copy that still has twice the pixels is several times faster and looks the same.
    picture = _picture(name, 2 ** int(np.log2(max(1, pixels_per_pixel / 2))))
    size = share * min(picture.size)
    left, top = (rng.uniform(0, length - size) for length in picture.size)
    scaled = picture.resize((side, side), Image.Resampling.BICUBIC, box=(left, top, left + size, top + size))
    return np.asarray(scaled, dtype=np.float32) / 255


def _recoloured(rng: np.random.Generator, crop: np.ndarray) -> np.ndarray:
    """The crop with another colour for dark, light and what lies between, and a share of its own colours, exchanged."""
    grey = crop.mean(-1, keepdims=True)
    dark, light = rng.uniform(0, 0.5, 3), rng.uniform(0.5, 1, 3)
    if rng.random() < 0.3:
        dark, light = light, dark
    own = (crop - grey)[..., rng.permutation(3)] * rng.uniform(-1, 2)
    return np.clip(dark + (light - dark) * grey ** rng.uniform(0.6, 1.6) + own, 0, 1)
