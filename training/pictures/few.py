"""A small data set of before/after pairs cut from scikit-image's photographs, for runs that need no download."""

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from .photographs import load_from_wheel

# Photographs that come inside scikit-image's wheel.
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field", "immunohistochemistry")

EDITS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "negative": ImageOps.invert,
    "mirror": ImageOps.mirror,
    "grey": lambda image: ImageOps.grayscale(image).convert("RGB"),
    "blur": lambda image: image.filter(ImageFilter.GaussianBlur(image.width / 24)),
    "sepia": lambda image: ImageOps.colorize(ImageOps.grayscale(image), "#2b1a0d", "#f4e4c1"),
    "posterise": lambda image: ImageOps.posterize(image, 2),
}


def make_photographs(folder: Path, side: int = 64, per_task: int = 12, seed: int = 0) -> Path:
    """Write ``task/before/*.png`` and ``task/after/*.png``: square crops of photographs and their edited versions."""
    crops = _crops(side, np.random.default_rng(seed))
    for task, edit in EDITS.items():
        for number, image in enumerate(islice(crops, per_task)):
            for state, picture in (("before", image), ("after", edit(image))):
                path = folder / task / state / f"{number:02d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                picture.save(path)
    return folder


def _crops(side: int, rng: np.random.Generator) -> Iterator[Image.Image]:
    """Random square crops of the photographs in turn, at least a third of each, scaled to side x side."""
    photographs = [Image.fromarray(load_from_wheel(name)) for name in PHOTOGRAPHS]
    while True:
        for photograph in photographs:
            size = int(rng.integers(min(photograph.size) // 3, min(photograph.size)))
            left, top = (int(rng.integers(length - size + 1)) for length in photograph.size)
            yield photograph.crop((left, top, left + size, top + size)).resize((side, side), Image.Resampling.LANCZOS)
