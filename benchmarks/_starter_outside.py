"""The bank on edits that others wrote, on photographs that no training sees."""

import numpy as np
import torch

from lorweb_core.canvas import stack_quadrants
from training.hashing import random_words
from training.pictures import photographs
from training.pictures.edits import eight_bits

from ._starter_coefficients import example_item
from ._starter_quality import measure, report_contestants, report_groups
from ._starter_setting import Setting
from ._starter_transformations import TRANSFORMATIONS, transform

ANALOGIES_EACH = 4
_NAME = "outside"


def outside(setting: Setting) -> None:
    """Transformations of albumentations: all, those that are like no edit of the generator, and each."""
    dataset = OutsideSet(setting.config().data.canvas // 2)
    count = min(setting.analogies, len(dataset))
    found = measure(setting.evaluation(*setting.single), _NAME, dataset, count, bounded=True)
    title = f"{_NAME}: {count} analogies, {len(TRANSFORMATIONS)} transformations"
    title += f", {len(photographs.HELD_OUT)} photographs"
    report_contestants(setting, f"quality-{_NAME}", title, found)
    title = f"{_NAME}: the shipped bank by likeness to the generator's edits"
    report_groups(setting, f"likeness-{_NAME}", title, "transformations", likeness, found)
    title = f"{_NAME}: the shipped bank by transformation"
    report_groups(setting, f"transformations-{_NAME}", title, "transformation", name_of, found)


def likeness(task: str) -> str:
    """Whether the generator has an edit like a transformation."""
    return "like an edit of the generator" if TRANSFORMATIONS[name_of(task)].like else "like none"


def name_of(task: str) -> str:
    """The transformation that a task shows."""
    return task.removeprefix(f"{_NAME}/")


class OutsideSet:
    """Analogies by number, the transformations in turn; example and answer show different photographs.

    Args:
        side: of an image, in pixels.
    """

    def __init__(self, side: int):
        self.side = side

    def __len__(self) -> int:
        return ANALOGIES_EACH * len(TRANSFORMATIONS)

    def __getitem__(self, number: int) -> dict:
        """The analogy as the evaluation takes it; see ``AnalogyDataset``."""
        turn, place = divmod(number, len(TRANSFORMATIONS))
        name = list(TRANSFORMATIONS)[place]
        rng = np.random.default_rng(random_words(_NAME, name))
        subjects = rng.permutation(photographs.HELD_OUT)
        chosen = [subjects[(2 * turn + which) % len(subjects)] for which in (0, 1)]
        (a, a_prime), (b, b_prime) = (pair_of(name, str(subject), turn, self.side) for subject in chosen)
        target = stack_quadrants(*(torch.from_numpy(image)[None] for image in (a, a_prime, b, b_prime)))[0]
        return example_item(a, a_prime, b) | {"target": target, "task": f"{_NAME}/{name}", "prompt": ""}


def pair_of(name: str, subject: str, turn: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """A crop of a photograph before and after: two float32 [side, side, 3] in 0..1, of 8 bits as in files."""
    rng = np.random.default_rng(random_words(_NAME, name, subject, turn))
    before = eight_bits(photographs.random_crop(rng, subject, side))
    return tuple((image / 255).astype(np.float32) for image in (before, transform(name, before)))
