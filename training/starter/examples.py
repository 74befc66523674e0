"""The analogies that come with the starter.

Their photographs are among those that training never sees; their scenes are drawn like training's, from other seeds.
"""

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from . import photographs
from .edits import EDITS
from .edits.edit import finished

logger = logging.getLogger(__name__)

SIDE = 64
# Name -> photograph, and left, top and side of its crop as shares of the photograph's height.
_CROPS = {
    "cat": ("chelsea", 0.36, 0.0, 0.8),
    "eyes": ("chelsea", 0.42, 0.18, 0.45),
    "flower": ("flower", 0.28, 0.12, 0.85),
    "petals": ("flower", 0.4, 0.3, 0.5),
}
# Edit, subject of a, subject of b; "" draws a scene.
_EXAMPLES = (
    ("tint_blue", "flower", "cat"),
    ("night_vision", "flower", "cat"),
    ("darken", "cat", "flower"),
    ("invert", "petals", "cat"),
    ("circle_black", "flower", "cat"),
    ("letterbox", "petals", "cat"),
    ("insert_red_disc", "flower", "cat"),
    ("insert_blue_square", "cat", "flower"),
    ("zoom_out", "flower", "cat"),
    ("sketch", "flower", "cat"),
    ("background_yellow", "", ""),
)


def write_examples(folder: Path) -> None:
    """Write a, a', b and the true b' of every example as ``<folder>/<edit>/<image>.png``."""
    for name, images in examples():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for image, pixels in images.items():
            Image.fromarray(np.round(pixels * 255).astype(np.uint8)).save(folder / name / f"{image}.png", optimize=True)
    logger.info("%s: %d analogies", folder, len(_EXAMPLES))


def examples() -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """(edit, its images a, a_prime, b and b_prime as float32 [64, 64, 3] in 0..1) of every example."""
    for number, (name, first, second) in enumerate(_EXAMPLES):
        rng = np.random.default_rng((SIDE, number))
        parameters = EDITS[name].parameters(rng)
        pairs = (_pair(name, subject, parameters, rng) for subject in (first, second))
        yield name, dict(zip(("a", "a_prime", "b", "b_prime"), (image for pair in pairs for image in pair)))


def _pair(name: str, subject: str, parameters, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    if not subject:
        return EDITS[name].pair(rng, parameters, SIDE, photographs.HELD_OUT)
    before = _crop(*_CROPS[subject])
    return before, EDITS[name].apply(before, parameters)


def _crop(name: str, left: float, top: float, side: float) -> np.ndarray:
    picture = Image.fromarray(photographs.load(name))
    box = tuple(round(share * picture.height) for share in (left, top, left + side, top + side))
    return finished(np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS, box)) / 255)
