"""Photographs, and random square crops of them.

Some come inside the wheels of scikit-image and scikit-learn. scikit-image's are in the public domain or CC0.
scikit-learn's are CC BY 2.0: "china" by danielbuechele, "flower" by vultilion, both on Flickr. The others, which
``photographs.yaml`` lists with authors and licences, are fetched into ``FOLDER``; where there is no such folder, the
wheels' photographs are all.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath

import numpy as np
import yaml
from PIL import Image, ImageStat

FOLDER = Path("runs/starter/photographs")
COMMAND = "python -m training.starter photographs"

_LIST = Path(__file__).with_suffix(".yaml")
_SCIKIT_LEARN = ("china", "flower")
_SMALLEST, _LARGEST = 0.25, 0.8  # side of a crop, as a share of the photograph's shorter side
_FEWEST = 96  # pixels along a crop, as far as the photograph has them: what is enlarged much is blurred
_FLAT = 0.1  # a crop whose channels vary less than this shows next to nothing of most edits
_TRIES = 6
_TINT, _SHIFT = 0.1, 0.05


@dataclass(frozen=True)
class Source:
    """Where a photograph comes from.

    Attributes:
        package: of Debian. picture: its path in the package. credits: path of the text that names author and licence.
        held_out: whether training never sees it.
    """

    package: str
    picture: PurePosixPath
    credits: PurePosixPath
    licence: str
    author: str
    held_out: bool = False


def read_sources() -> dict[str, Source]:
    """Name -> source of every listed photograph."""
    groups = yaml.safe_load(_LIST.read_text(encoding="utf-8"))
    return {name: _source(group, name, own) for group in groups for name, own in group["photographs"].items()}


def _source(group: Mapping, name: str, own: Mapping) -> Source:
    folder, file = PurePosixPath("/", group["folder"]), own.get("file", name)
    paths = {key: (folder / group[key].format(file)).relative_to("/") for key in ("picture", "credits")}
    return Source(group["package"], **paths, **{key: value for key, value in own.items() if key != "file"})


TRAINING_IN_WHEELS = (
    "astronaut", "coffee", "rocket", "china", "immunohistochemistry", "retina", "camera", "clock", "brick",
    "grass", "gravel",
)  # fmt: skip
HELD_OUT_IN_WHEELS = ("chelsea", "flower")
IN_WHEELS = TRAINING_IN_WHEELS + HELD_OUT_IN_WHEELS

_FETCHED = read_sources() if FOLDER.is_dir() else {}
TRAINING = (*TRAINING_IN_WHEELS, *(name for name, source in _FETCHED.items() if not source.held_out))
HELD_OUT = (*HELD_OUT_IN_WHEELS, *(name for name, source in _FETCHED.items() if source.held_out))

# Share of the training crops in other colours: the fewer the photographs, the more must be made of each.
_RECOLOURED = 0.2 if _FETCHED else 0.5


def load(name: str) -> np.ndarray:
    """A photograph by its name, from ``FOLDER`` or else from the wheels: uint8 [height, width, 3].

    Raises:
        ValueError: when it is in neither.
    """
    return np.asarray(_picture(name))


@cache
def _picture(name: str, shrink: int = 1) -> Image.Image:
    if shrink > 1:
        return _picture(name).reduce(shrink)
    path = FOLDER / f"{name}.jpg"
    if path.is_file():
        with Image.open(path) as picture:
            return picture.convert("RGB")
    if name not in IN_WHEELS:
        raise ValueError(f"{path}: there is no such photograph; fetch all of them with: {COMMAND}")
    return Image.fromarray(load_from_wheel(name))


def load_from_wheel(name: str) -> np.ndarray:
    """A photograph of scikit-image or scikit-learn: uint8 [height, width, 3]."""
    if name in _SCIKIT_LEARN:
        from sklearn.datasets import load_sample_image

        return load_sample_image(f"{name}.jpg")
    from skimage import data

    pixels = getattr(data, name)()
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=-1)


def random_crop(rng: np.random.Generator, name: str, side: int) -> np.ndarray:
    """A square crop of a photograph, float32 [side, side, 3] in 0..1, turned and tinted at random.

    Crops that are nearly flat are drawn again, a few times.
    """
    for _ in range(_TRIES):
        square = _crop(rng, name, side)
        if np.mean(ImageStat.Stat(square).stddev) / 255 >= _FLAT:
            break
    crop = np.asarray(square, dtype=np.float32) / 255
    if name in TRAINING and rng.random() < _RECOLOURED:
        crop = _recoloured(rng, crop)
    crop = np.rot90(crop, rng.integers(4))
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    gain = 1 + _TINT * rng.uniform(-1, 1, 3)
    return np.clip(crop * gain.astype(np.float32) + _SHIFT * rng.uniform(-1, 1), 0, 1)


def _crop(rng: np.random.Generator, name: str, side: int) -> Image.Image:
    """A random square of a photograph, scaled with antialiasing."""
    shorter = min(_picture(name).size)
    share = rng.uniform(max(_SMALLEST, min(_FEWEST / shorter, _LARGEST)), _LARGEST)
    # A shrunken copy that still has twice the pixels is several times faster and looks the same.
    picture = _picture(name, 2 ** int(np.log2(max(1, share * shorter / side / 2))))
    size = share * min(picture.size)
    left, top = (rng.uniform(0, length - size) for length in picture.size)
    return picture.resize((side, side), Image.Resampling.BICUBIC, box=(left, top, left + size, top + size))


def _recoloured(rng: np.random.Generator, crop: np.ndarray) -> np.ndarray:
    """The crop with another colour for dark, light and what lies between, and a share of its own colours, exchanged."""
    grey = crop.mean(-1, keepdims=True)
    dark, light = (rng.uniform(low, low + 0.5, 3).astype(np.float32) for low in (0, 0.5))
    if rng.random() < 0.3:
        dark, light = light, dark
    own = (crop - grey)[..., rng.permutation(3)] * rng.uniform(-1, 2)
    return np.clip(dark + (light - dark) * grey ** rng.uniform(0.6, 1.6) + own, 0, 1)
