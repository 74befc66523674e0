"""95 % confidence intervals, and how a table shows them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest, bootstrap

CONFIDENCE = 0.95
_SEED, _RESAMPLES = 0, 5000


@dataclass(frozen=True)
class Estimate:
    """A figure with the ends of its interval."""

    value: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        """``0.51 (0.40 to 0.62)``, every number by the same spec; a sign in it shows on all three."""
        return f"{self.value:{spec}} ({self.low:{spec}} to {self.high:{spec}})"


def share(outcomes: Sequence[bool]) -> Estimate:
    """Share of true outcomes, with Wilson's interval."""
    test = binomtest(int(np.sum(outcomes)), len(outcomes))
    interval = test.proportion_ci(CONFIDENCE, method="wilson")
    return Estimate(test.statistic, interval.low, interval.high)


def mean(values: Sequence[float]) -> Estimate:
    """Mean, with the percentile interval of a bootstrap; of paired differences when given those."""
    return _bootstrapped((np.asarray(values, dtype=float),), lambda x, axis: x.mean(axis))


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Estimate:
    """Ratio of two means of the same subjects, which are drawn together."""
    data = np.asarray(numerators, dtype=float), np.asarray(denominators, dtype=float)
    return _bootstrapped(data, lambda x, y, axis: x.mean(axis) / y.mean(axis))


def _bootstrapped(data: tuple[np.ndarray, ...], statistic: Callable[..., np.ndarray]) -> Estimate:
    if len(data[0]) < 2:
        raise ValueError("an interval needs at least two values")
    interval = bootstrap(
        data, statistic, n_resamples=_RESAMPLES, batch=500, paired=True, vectorized=True, method="percentile",
        confidence_level=CONFIDENCE, rng=np.random.default_rng(_SEED),
    ).confidence_interval  # fmt: skip
    return Estimate(*(float(x) for x in (statistic(*data, axis=-1), interval.low, interval.high)))
