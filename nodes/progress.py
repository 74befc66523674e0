"""ComfyUI's progress bar and interrupt for long work in the core."""

from collections.abc import Callable

import comfy.model_management
import comfy.utils


def progress_bar(phases: int = 1) -> Callable[[int, int], None]:
    """A ``progress(done, total)`` callback that fills ComfyUI's bar and stops when the user interrupts.

    Args:
        phases: how many times the work counts from the start to its total.
    """
    bar, finished = None, 0

    def report(done: int, total: int) -> None:
        nonlocal bar, finished
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar = bar or comfy.utils.ProgressBar(phases * total)
        bar.update_absolute(finished + done)
        finished += total if done == total else 0

    return report
