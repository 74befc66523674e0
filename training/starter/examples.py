"""The analogies that come with the starter: of every family of edits one, by a fixed seed before any was seen, and
those that graphs of 0.1 name, which were drawn alike.

Their photographs are those of the wheels that training never sees, for the examples ship, and fetched ones must not.
Their scenes are drawn like training's, from other seeds.
"""

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from ..pictures import photographs
from ..pictures.edits import EDITS, FAMILIES, TRAINING_EDITS, Edit
from ..pictures.edits.edit import eight_bits, finished

logger = logging.getLogger(__name__)

SIDE = 128
_SEED = 2026
_NAMED_BY_GRAPHS = (
    "background_yellow", "circle_black", "darken", "insert_blue_square", "insert_red_disc", "invert", "letterbox",
    "night_vision", "sketch", "tint_blue", "zoom_out",
)  # fmt: skip
_IMAGES = ("a", "a_prime", "b", "b_prime")


def write_examples(folder: Path) -> None:
    """Write a, a', b and the true b' of every example as ``<folder>/<edit>/<image>.png``.

    Raises:
        ValueError: when a photograph is not there.
    """
    there = dict(examples())
    for name, images in there.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for image, pixels in images.items():
            Image.fromarray(eight_bits(pixels)).save(folder / name / f"{image}.png", optimize=True)
    logger.info("%s: %d analogies", folder, len(there))


def examples() -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """(edit, its images a, a_prime, b and b_prime as float32 [128, 128, 3] in 0..1) of every example."""
    for number, family in enumerate((*FAMILIES, *_NAMED_BY_GRAPHS)):
        rng = np.random.default_rng((_SEED, number))
        names = [name for name in TRAINING_EDITS if family in (name, EDITS[name].family)]
        edit = EDITS[rng.choice(names)]
        yield edit.name, dict(zip(_IMAGES, (image for pair in _pairs(edit, rng) for image in pair)))


def _pairs(edit: Edit, rng: np.random.Generator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The example pair, and b with its answer."""
    parameters = edit.parameters(rng)
    for subject in rng.choice(photographs.HELD_OUT_IN_WHEELS, 2, replace=False):
        if edit.apply is None:
            yield edit.pair(rng, parameters, SIDE, photographs.HELD_OUT_IN_WHEELS)
        else:
            before = middle(subject)
            yield before, edit.apply(before, parameters)


def middle(name: str) -> np.ndarray:
    """The middle square of a photograph, float32 [128, 128, 3] in 0..1."""
    picture = Image.fromarray(photographs.load(name))
    side = min(picture.size)
    left, top = ((length - side) / 2 for length in picture.size)
    box = (left, top, left + side, top + side)
    return finished(np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS, box)) / 255)
