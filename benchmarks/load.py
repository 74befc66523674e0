"""Loading the released size: time and resident memory against ``safetensors.torch.load_file``.

``load_file`` maps the file and reads nothing; ``BasisBank.load`` also reads every tensor once to refuse NaN, and folds
keys and projections. So a third candidate is ``load_file`` followed by the extremes of every tensor, which reads the
same bytes. Each run is a process of its own, since memory is what a process holds.
"""

import json
import statistics
import subprocess
import sys
from pathlib import Path

from ._measure import print_table
from .mix import released_size_bank

CANDIDATES = {
    "BasisBank.load": "from lorweb_core import BasisBank; held = BasisBank.load(path)",
    "load_file": "from safetensors.torch import load_file; held = load_file(path)",
    "load_file, all tensors read": (
        "from safetensors.torch import load_file; held = load_file(path); [t.aminmax() for t in held.values()]"
    ),
}
# Modules that a candidate imports are loaded before the clock starts; resident memory is what loading added.
PROGRAM = """
import gc, json, sys, time
import psutil, torch
import lorweb_core, safetensors.torch
path = sys.argv[1]
torch.randn(64, 64) @ torch.randn(64, 64)
process = psutil.Process()
before, start = process.memory_info().rss, time.perf_counter()
{statement}
seconds = time.perf_counter() - start
gc.collect()
print(json.dumps([seconds, process.memory_info().rss - before]))
"""
REPEATS = 5


def run(statement: str, path: Path) -> tuple[float, int]:
    """(seconds, resident bytes added) of one fresh process."""
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM.format(statement=statement), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return tuple(json.loads(done.stdout))


def main() -> None:
    """Print the table."""
    path = released_size_bank()
    size = path.stat().st_size
    results = {name: [] for name in CANDIDATES}
    for _ in range(REPEATS + 1):
        for name, statement in CANDIDATES.items():
            results[name].append(run(statement, path))
    rows = []
    for name, runs in results.items():
        seconds, resident = zip(*runs[1:])
        memory = statistics.median(resident)
        rows.append((name, f"{statistics.median(seconds):.2f} s", f"{memory / 2**20:.0f} MiB", f"{memory / size:.2f}"))
    print_table(
        f"Loading a bank of the released size ({size / 2**20:.0f} MiB)",
        ("candidate", "time", "resident memory added", "of the file"),
        rows,
    )


if __name__ == "__main__":
    main()
