"""A bank that goes on with a few edits of a few pairs: what it learns, and what it forgets."""

import logging
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lorweb_core.canvas import stack_quadrants
from training import prepare
from training.evaluate import COPY
from training.hashing import random_words
from training.judge.intervals import mean
from training.pictures import photographs

from ._starter_coefficients import example_item
from ._starter_outside import pair_of
from ._starter_quality import Analogy, measure
from ._starter_setting import CONFIG, SETS, SHIPPED, Setting
from ._starter_transformations import TRANSFORMATIONS

logger = logging.getLogger(__name__)

PAIRS, ANALOGIES_EACH = 12, 8
EDITS = [name for name, transformation in TRANSFORMATIONS.items() if not transformation.like][::5]
TRAINING = (
    "data.cache_latents=1000",
    "data.hold_pairs=2",
    "train.steps=160",
    "train.precision=no",
    "optimizer.warmup=10",
    "checkpoint.every=40",
    "validation.every=80",
)
_NAME, _WENT_ON = "few", "went on"


def few(setting: Setting) -> None:
    """Eight edits that others wrote, 12 pairs of each: the shipped bank before and after it goes on with them.

    Raises:
        ValueError: when the photographs are not there, or the training fails.
    """
    if len(photographs.HELD_OUT) < PAIRS + 2:
        raise ValueError(f"{photographs.FOLDER}: the photographs are not there; fetch them with: {photographs.COMMAND}")
    setting = replace(setting, banks={_WENT_ON: _trained(setting)})
    evaluation = setting.evaluation(_WENT_ON)
    side = setting.config().data.canvas // 2
    sets = {"the new edits": (NewPhotographs(side), ANALOGIES_EACH * len(EDITS))}
    sets |= {name: (setting.dataset(name), setting.fewer) for name in SETS[:1]}
    rows, facts = [], {}
    for name, (dataset, count) in sets.items():
        found = measure(evaluation, name, dataset, count)
        rows.append((name, count, *_row(found)))
        facts[name] = list(map(asdict, found))
    header = ("set", "analogies", "copying b (dB)", "shipped (dB)", "went on (dB)", "by (dB)")
    setting.report(_NAME, f"{len(EDITS)} edits of {PAIRS} pairs: {', '.join(EDITS)}", header, rows, facts)


def write_pairs(folder: Path, side: int) -> None:
    """The pairs to train on, as ``<edit>/before/*`` and ``<edit>/after/*``."""
    for name in EDITS:
        for subject in _subjects(name)[:PAIRS]:
            for where, picture in zip(("before", "after"), pair_of(name, subject, 0, side)):
                path = folder / name / where / f"{subject}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.round(picture * 255).astype(np.uint8)).save(path)


class NewPhotographs:
    """Analogies of the edits in turn; example and answer show photographs that are in none of the pairs.

    Args:
        side: of an image, in pixels.
    """

    def __init__(self, side: int):
        self.side = side

    def __getitem__(self, number: int) -> dict:
        """The analogy as the evaluation takes it; see ``AnalogyDataset``."""
        turn, place = divmod(number, len(EDITS))
        name = EDITS[place]
        subjects = _subjects(name)[PAIRS:]
        example, asked = (subjects[(2 * turn + which) % len(subjects)] for which in (0, 1))
        (a, a_prime), (b, b_prime) = (pair_of(name, subject, turn, self.side) for subject in (example, asked))
        target = stack_quadrants(*(torch.from_numpy(image)[None] for image in (a, a_prime, b, b_prime)))[0]
        return example_item(a, a_prime, b) | {"target": target, "task": f"{_NAME}/{name}", "prompt": ""}


def _subjects(name: str) -> list[str]:
    """The photographs that no training of the starter sees, in an order of the edit's own."""
    return list(map(str, np.random.default_rng(random_words(_NAME, name)).permutation(photographs.HELD_OUT)))


def _trained(setting: Setting) -> Path:
    """The bank after its training with the pairs, by the command that the README shows.

    Raises:
        ValueError: when the training fails.
    """
    run = setting.run / _NAME
    if (run / "bank.safetensors").is_file():
        logger.info("%s: trained already", run)
        return run / "bank.safetensors"
    shutil.rmtree(run / "pairs", ignore_errors=True)
    write_pairs(run / "pairs", setting.config().data.canvas // 2)
    manifest = run / "pairs.jsonl"
    if prepare.main([str(run / "pairs"), "--out", str(manifest)]):
        raise ValueError(f"{run / 'pairs'}: no manifest could be made of these pairs")
    own = [f"run={run}", f"data.manifest={manifest}", f"data.cache={run / 'cache'}"]
    own += [f"bank.start={setting.starter / 'bank.safetensors'}", f"data.canvas={setting.config().data.canvas}"]
    command = [sys.executable, "-m", "training.train", "--config", str(CONFIG), *own, *TRAINING, *setting.parts]
    if subprocess.run(command).returncode:
        raise ValueError(f"{run}: the training failed; the same command goes on where it stopped")
    return run / "bank.safetensors"


def _row(found: list[Analogy]) -> tuple[str, ...]:
    """Mean PSNR of copying b and of both banks, and the paired difference of the banks."""
    copied, before, after = ([analogy.answers[who]["psnr"] for analogy in found] for who in (COPY, SHIPPED, _WENT_ON))
    means = (f"{mean(values):.1f}" for values in (copied, before, after))
    return *means, f"{mean([y - x for x, y in zip(before, after)]):+.2f}"
