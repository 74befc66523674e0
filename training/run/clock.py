"""How far a run is: by its steps, or by the clock where its time is limited."""

import time

_WHOLE = 1 - 1e-9


class Clock:
    """The share of a run that is done.

    Without a limit it follows the steps. With one the run ends when its minutes are over, and whatever follows the
    share, such as the learning rate, is at its end then; ``steps`` only bounds it.

    Args:
        steps: of the whole run. minutes: limit from now on; 0 for none.
        done: share that was done before now, of a run that goes on.
    """

    def __init__(self, steps: int, minutes: float = 0.0, done: float = 0.0):
        self.steps, self.seconds, self.done = steps, 60 * minutes, done
        self.started = time.perf_counter()

    def share(self, step: int) -> float:
        """What is done when ``step`` steps are, 0..1."""
        by_steps = min(1.0, step / self.steps)
        if not self.seconds:
            return by_steps
        elapsed = (time.perf_counter() - self.started) / self.seconds
        return max(by_steps, min(1.0, self.done + (1 - self.done) * elapsed))

    def is_over(self, step: int) -> bool:
        """Whether the run ends after ``step`` steps."""
        return self.share(step) > _WHOLE
