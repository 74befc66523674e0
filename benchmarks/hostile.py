"""Damaged and hostile files: ``python -m benchmarks.hostile``.

Every case is made from its seed and tried in a worker process with a limit of memory and one of time. A worker that
dies or hangs is replaced, and its case counted. Right are "loaded" and "refused": with a ``BankError`` (of texts a
``ValueError``, of manifests a ``DataError``, of cards a ``CardError``) of less than 2 KB that names the file; and what
is loaded makes no NaN.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import tempfile
from collections import Counter
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path

import torch

from ._hostile_cases import CHECKS, Verdict
from ._measure import print_table

# Beyond what a process takes that has loaded torch and a sound bank; the banks are of a few kilobytes.
MEMORY = 2 * 2**30
SECONDS = 30
OUTCOMES = ("loaded", "refused", "crash", "hang", "other exception", "long message", "unnamed", "NaN")
RIGHT = ("loaded", "refused")
# A forked worker needs no second to load torch.
PROCESSES = multiprocessing.get_context("fork" if "fork" in multiprocessing.get_all_start_methods() else None)


def serve(kind: str, seeds: Connection) -> None:
    """The worker: a verdict for every seed that comes."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    _limit_memory()
    with tempfile.TemporaryDirectory() as folder:
        while (seed := seeds.recv()) is not None:
            seeds.send(CHECKS[kind](seed, Path(folder)))


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 2**20
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


class Worker:
    """A process that judges one case after the other."""

    def __init__(self, kind: str):
        self.connection, other = multiprocessing.Pipe()
        self.process = PROCESSES.Process(target=serve, args=(kind, other), daemon=True)
        self.process.start()
        other.close()

    def judge(self, seed: int) -> Verdict:
        """The verdict of one case; a crash or a hang ends the process."""
        self.connection.send(seed)
        if not wait([self.connection], SECONDS):
            self.stop()
            return Verdict("hang", f"more than {SECONDS} s")
        try:
            return self.connection.recv()
        except EOFError:
            self.process.join()
            return Verdict("crash", f"exit status {self.process.exitcode}")

    def stop(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.join()


def judge_all(kind: str, seeds: range) -> Iterator[tuple[int, Verdict]]:
    """(seed, verdict) of every case."""
    worker = Worker(kind)
    for seed in seeds:
        verdict = worker.judge(seed)
        yield seed, verdict
        if not worker.process.is_alive():
            worker = Worker(kind)
    worker.stop()


def main() -> None:
    """Print the table, and every case that is not right."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=10_000, help="of each kind")
    parser.add_argument("--kinds", nargs="+", default=list(CHECKS), choices=list(CHECKS))
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    options = parser.parse_args()
    rows = []
    for kind in options.kinds:
        counts: Counter[str] = Counter()
        for seed, verdict in judge_all(kind, range(options.first, options.first + options.cases)):
            counts[verdict.outcome] += 1
            if verdict.outcome not in RIGHT:
                print(ascii(f"{kind} {seed}: {verdict.outcome}: {verdict.detail}"), flush=True)
        rows.append((kind, options.cases, *(counts[outcome] for outcome in OUTCOMES)))
    print_table("Damaged and hostile files", ("kind", "cases", *OUTCOMES), rows)


if __name__ == "__main__":
    main()
