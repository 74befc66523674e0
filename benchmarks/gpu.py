"""Everything that only a GPU shows, in one command that ends by itself: ``python -m benchmarks.gpu --out FOLDER``.

The parts run in an order of worth, each in a process of its own with a time limit. ``results.json`` and ``results.md``
are written anew after every single result, so that a run that is cut off keeps what it had; ``log.txt`` has the rest of
what the parts print. FLUX at full size and a bank of the released size are made of random numbers on the card.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TextIO

from ._gpu.words import MACHINE, PART, RESULT

ROOT = Path(__file__).resolve().parent.parent
PARTS = {
    "tests": "tests of core and nodes on the card",
    "analogy": "a new analogy ready",
    "step": "a sampling step",
    "memory": "memory, and weights that are streamed",
    "refining": "a loss of Refine Edit and its gradient",
    "compiled": "torch.compile",
    "training": "a training step",
}
# How the time is divided; what a part leaves goes to those after it.
SHARES = {"tests": 2, "analogy": 3, "step": 2, "memory": 5, "refining": 2, "compiled": 2, "training": 3}
SHORTEST = 10  # seconds that are worth starting a part for


class Row(NamedTuple):
    """One result. ``goal`` is the most that it should be."""

    part: str
    what: str
    value: float | str
    unit: str = ""
    goal: float | None = None


class Results:
    """Rows, written to the folder as they come."""

    def __init__(self, folder: Path, dry: bool):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.dry = folder, dry
        self.machine: dict[str, str] = {}
        self.rows: list[Row] = []

    def take(self, part: str, line: str) -> str:
        """Take up what a line of a part's output tells; returns the part that the next line belongs to."""
        kind, _, text = line.partition(" ")
        if kind == PART:
            return text
        if kind == MACHINE:
            self.machine = json.loads(text)
            self.write()
        if kind == RESULT:
            self.add(Row(part, **json.loads(text)))
        return part

    def add(self, row: Row) -> None:
        """Add a row, and say it."""
        self.rows.append(row)
        print(f"{row.part}: {row.what}: {words(row.value)} {row.unit}".rstrip(), flush=True)
        self.write()

    def write(self) -> None:
        """Write both files."""
        content = {"dry": self.dry, "machine": self.machine, "results": [row._asdict() for row in self.rows]}
        (self.folder / "results.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        (self.folder / "results.md").write_text(self.markdown(), encoding="utf-8")

    def markdown(self) -> str:
        """A table for every part, under what it was measured on."""
        lines = ["Toy sizes, to try the suite out: no measurement." * self.dry]
        lines += [", ".join(f"{name} {value}" for name, value in self.machine.items()) + "."]
        for part in dict.fromkeys(row.part for row in self.rows):
            lines += ["", f"### {PARTS[part]}", "", "| what | value | goal |", "| --- | --- | --- |"]
            lines += [table_line(row) for row in self.rows if row.part == part]
        return "\n".join(lines).strip() + "\n"


def table_line(row: Row) -> str:
    """A row in Markdown."""
    goal = ""
    if row.goal is not None:
        reached = "reached" if row.value <= row.goal else "missed"
        goal = f"at most {words(row.goal)}: {reached}"
    return f"| {row.what} | {words(row.value)} {row.unit} | {goal} |"


def words(value: float | str) -> str:
    """A number with four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def run_parts(parts: Sequence[str], command: Sequence[str], limit: float, results: Results, log: TextIO) -> None:
    """Run parts in one process; end it after ``limit`` seconds. How it ended, if not well, is a result."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    if results.dry:
        environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    clock = threading.Timer(limit, process.kill)
    clock.start()
    part, last = parts[0], ""
    for line in process.stdout:
        log.write(line)
        log.flush()
        last = line.strip() or last
        part = results.take(part, line.rstrip("\n"))
    status = process.wait()
    cut_off = not clock.is_alive()
    clock.cancel()
    if cut_off:
        results.add(Row(part, "cut off", f"after {limit:.0f} s"))
    elif status:
        results.add(Row(part, "failed", last[:200]))


def has_gpu() -> bool:
    """Whether torch finds a CUDA device."""
    import torch

    return torch.cuda.is_available()


def share(seconds: float, groups: Sequence[Sequence[str]]) -> float:
    """What the first of several groups of parts gets of the seconds left."""
    weights = [sum(SHARES[part] for part in group) for group in groups]
    return seconds * weights[0] / sum(weights)


def main() -> int:
    """Run the parts; 0 when all of them ended well."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=9.0, help="for all of it (default: %(default)g)")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="NAME", help=", ".join(PARTS))
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "gpu", help="folder (default: runs/gpu)")
    parser.add_argument("--dry", action="store_true", help="toy sizes on the CPU, as without a GPU, in one process")
    chosen = parser.parse_args()
    chosen.dry = chosen.dry or not has_gpu()
    end = time.monotonic() + 60 * chosen.minutes
    results = Results(chosen.out, chosen.dry)
    with tempfile.TemporaryDirectory() as shared, (chosen.out / "log.txt").open("w", encoding="utf-8") as log:
        groups = [chosen.only] if chosen.dry else [[part] for part in chosen.only]
        for number, parts in enumerate(groups):
            limit = share(end - time.monotonic(), groups[number:])
            if limit < SHORTEST:
                results.add(Row(parts[0], "not run", "no time left"))
                continue
            command = [sys.executable, "-m", "benchmarks._gpu", "--folder", shared, *["--dry"] * chosen.dry, *parts]
            run_parts(parts, command, limit, results, log)
    return int(any(row.what in ("failed", "cut off", "not run") or row.value == "failed" for row in results.rows))


if __name__ == "__main__":
    sys.exit(main())
