"""Ctrl-C and SIGTERM: the step that is under way is finished and saved."""

import logging
import signal
import threading
from types import FrameType

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(Exception):
    """A run was told to stop, and has saved where it is.

    Attributes:
        signal: what told it.
    """

    def __init__(self, step: int, number: int):
        super().__init__(f"stopped after step {step}, which is saved; the same command goes on from there")
        self.signal = number


class StopSignals:
    """Inside, a first signal is remembered; a second one interrupts at once.

    Attributes:
        received: number of the signal, 0 before there is one.
    """

    def __init__(self) -> None:
        self.received = 0

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():  # nowhere else may handlers be set
            self._before = {number: signal.signal(number, self._remember) for number in _SIGNALS}
        else:
            self._before = {}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = number
        logger.warning("finishing this step, then saving; a second %s stops at once", signal.Signals(number).name)


def leave_to_parent(worker: int) -> None:
    """For data loading processes, which what is sent to the whole group reaches as well: their parent ends them."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
