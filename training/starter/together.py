"""Train all parts of the starter in the time that there is: ``python -m training.starter together``.

Pairs are drawn by processes of their own from the first second on, the image encoder learns beside autoencoder and
base, and the bank follows on both. What a part has reached when its time is over is what the next one takes; every part
is written to its folder as soon as it is done.
"""

import logging
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch

logger = logging.getLogger(__name__)


@dataclass
class TogetherSettings:
    """When each part ends, as a share of ``minutes`` from the start; 0 leaves a part of the run as it is.

    Attributes:
        autoencoder, base, bank: one after the other. encoder: beside them, done before the bank begins.
    """

    minutes: float = 9.0
    autoencoder: float = 0.18
    encoder: float = 0.45
    base: float = 0.58
    bank: float = 0.97


class Timetable:
    """How many minutes are left until a part has to end."""

    def __init__(self, settings: TogetherSettings):
        self.settings, self.started = settings, time.monotonic()

    def minutes_of(self, part: str) -> float:
        """Minutes from now until the end of a part.

        Raises:
            ValueError: when its time is over before it began.
        """
        share = getattr(self.settings, part)
        left = share * self.settings.minutes - (time.monotonic() - self.started) / 60
        if left <= 0:
            raise ValueError(f"the time of {part} is over before it began; give more minutes, or it a larger share")
        return left


def train_together(settings: TogetherSettings, overrides: Sequence[str], train: Callable[[str, float], None]) -> None:
    """Train all parts.

    Args:
        overrides: the settings of all of them, for the processes that are started.
        train: trains a part, here, for so many minutes.

    Raises:
        ValueError: when a part fails.
    """
    timetable = Timetable(settings)
    with _beside("draw", overrides), beside_encoder(overrides, timetable) as encoder:
        for part in ("autoencoder", "base"):
            train_here(train, part, timetable)
        if encoder is not None and encoder.wait():
            raise ValueError("the image encoder's training failed; its messages are above")
        train_here(train, "bank", timetable)


def beside_encoder(overrides: Sequence[str], timetable: Timetable) -> AbstractContextManager[subprocess.Popen | None]:
    """The image encoder's training, where it has a share of the time."""
    if not timetable.settings.encoder:
        return nullcontext()
    return _beside("encoder", [*overrides, f"encoder.loop.minutes={timetable.minutes_of('encoder')}"])


def train_here(train: Callable[[str, float], None], part: str, timetable: Timetable) -> None:
    """Train a part in this process, where it has a share of the time."""
    if not getattr(timetable.settings, part):
        return
    minutes = timetable.minutes_of(part)
    logger.info("%s: %.1f minutes", part, minutes)
    train(part, minutes)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def _beside(part: str, overrides: Sequence[str]) -> Iterator[subprocess.Popen]:
    """A part in a process of its own, which ends with the block at the latest."""
    process = subprocess.Popen([sys.executable, "-m", "training.starter", part, *overrides])
    try:
        yield process
    finally:
        process.terminate()
        process.wait()
