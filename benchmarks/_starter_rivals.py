"""The banks that the shipped one is compared with: same base, data, seed and steps, one setting changed."""

import logging
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lorweb_core import BasisBank
from training.config import load_config

from ._starter_setting import CONFIG, SINGLE, Setting

logger = logging.getLogger(__name__)

# Name -> overrides of training/configs/starter.yaml, which says N = 16, r = 4, softmax. N times r decides the number
# of parameters of a basis; keys and query projections are small beside it.
RIVALS: dict[str, tuple[str, ...]] = {
    "n16": (),  # the shipped bank's own shape, for a budget other than its own
    SINGLE: ("bank.num_loras=1", "bank.rank=64"),
    "n4": ("bank.num_loras=4", "bank.rank=16"),
    "n32": ("bank.num_loras=32", "bank.rank=2"),
    "tanh": ("bank.softmax=false",),
    "rank2": ("bank.rank=2",),
    "rank8": ("bank.rank=8",),
}


def train_rivals(setting: Setting, steps: int | None, together: int) -> None:
    """Train those that are not there yet; an interrupted one goes on.

    Args:
        steps: the budget of each; None for the configuration's.
        together: how many at a time; more than one once the shipped bank's training has left its caches.

    Raises:
        ValueError: when a training fails.
    """
    budget = [] if steps is None else [f"train.steps={steps}"]
    wanted = load_config(CONFIG, [*setting.parts, *budget]).train.steps

    def train(name: str) -> None:
        run = setting.run / "banks" / name
        if trained_steps(run / "bank.safetensors") >= wanted:
            logger.info("%s: trained already", run)
            return
        # A process each: what accelerate and the trackers set up is for one run.
        command = [sys.executable, "-m", "training.train", "--config", str(CONFIG), f"run={run}"]
        if subprocess.run([*command, *setting.parts, *budget, *RIVALS[name]]).returncode:
            raise ValueError(f"{run}: the training failed; the same command goes on where it stopped")

    with ThreadPoolExecutor(together) as threads:
        list(threads.map(train, RIVALS))


def trained_steps(bank: Path) -> int:
    """Steps that a bank file was trained for, 0 when it is not there."""
    return int(BasisBank.load(bank).extra.get("step", 0)) if bank.is_file() else 0
