"""ComfyUI's progress bar and interrupt for long work in the core."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import comfy.model_management
import comfy.utils

T = TypeVar("T")


def progress_bar(phases: int = 1) -> Callable[[int, int], None]:
    """A ``progress(done, total)`` callback that fills ComfyUI's bar and stops when the user interrupts.

    Args:
        phases: how many times the work counts from the start to a total; each fills an equal part of the bar.
    """
    bar, phase = None, 0

    def report(done: int, total: int) -> None:
        nonlocal bar, phase
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar = bar or comfy.utils.ProgressBar(phases * total)
        bar.update_absolute(round((phase + done / total) * bar.total / phases))
        phase += done == total

    return report


def no_bar(done: int, total: int) -> None:
    """A ``progress(done, total)`` of work too short for a bar, which stops when the user interrupts."""
    comfy.model_management.throw_exception_if_processing_interrupted()


def interruptible(items: Iterable[T]) -> Iterator[T]:
    """The items, until the user interrupts."""
    for item in items:
        comfy.model_management.throw_exception_if_processing_interrupted()
        yield item
