"""What the benchmarks share: timing candidates in turn, and tables."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Sequence

import torch

GIB = 2**30


def alternate(candidates: dict[str, Callable[[], object]], repeats: int, warmup: int = 1) -> dict[str, list[float]]:
    """Seconds of each candidate, run A B A B ..., so that a machine whose speed drifts is fair to all.

    Args:
        repeats: counted runs of each.
        warmup: uncounted runs of each, first.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for round_number in range(-warmup, repeats):
        for name, run in candidates.items():
            elapsed = timed(run)
            if round_number >= 0:
                seconds[name].append(elapsed)
    return seconds


def timed(run: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds that one call takes by a clock, the GPU's work included."""
    synchronize()
    start = clock()
    run()
    synchronize()
    return clock() - start


def synchronize() -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def median_ratio(seconds: dict[str, list[float]], first: str, second: str) -> float:
    """Median over the rounds of first / second."""
    return statistics.median(a / b for a, b in zip(seconds[first], seconds[second], strict=True))


def device_name() -> str:
    """The GPU's name, or the CPU's with the number of threads."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a Markdown table under the name of the device."""
    print(f"\n### {title}\n\n{device_name()}, torch {torch.__version__}\n")
    print("| " + " | ".join(header) + " |")
    print("|" + " --- |" * len(header))
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |")


def milliseconds(values: Sequence[float]) -> str:
    """Median in milliseconds."""
    return f"{1000 * statistics.median(values):.1f} ms"
