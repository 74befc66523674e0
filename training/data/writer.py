"""Write a manifest from what a reader found, in one pass over the data."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from tqdm import tqdm

from lorweb_core.atomic import replacing
from lorweb_core.wording import clipped

from ..hashing import Seen
from .errors import DataError
from .sources import BadItem, Found
from .validate import CheckedPair, check_all

_LONGEST = 1000  # letters of a name or a reason in the list of bad items


@dataclass
class Summary:
    """How many pairs and tasks a manifest got, how many items were bad, how many different captions a task has."""

    pairs: int = 0
    tasks: int = 0
    bad: int = 0
    captions: Counter[str] = field(default_factory=Counter)


def bad_items_path(manifest: Path) -> Path:
    """Where the bad items of a manifest are listed."""
    return manifest.with_suffix(".bad.jsonl")


def write_manifest(
    found: Iterable[Found], out: Path, workers: int, quick: bool = False, strict: bool = False, total: int | None = None
) -> Summary:
    """Check everything; write the usable pairs to ``out`` and the rest to ``bad_items_path(out)``.

    Memory holds the names of the tasks, one pair for each task that has only one so far, some bytes for every pair and
    caption, and what the workers are at. Both files appear when they are complete; a list of bad items from an earlier
    run goes.

    Args:
        strict: keep ``out`` as it was when anything is bad.
        total: number of items, for the progress bar.

    Raises:
        DataError: when nothing is usable, or anything is bad under ``strict``; the list of bad items is written. When a
            file that is no such list has its name.
    """
    refusal = None
    bad_items = bad_items_path(out)
    check_ours(bad_items, {"file", "reason"}, "list of bad items")
    with replacing(bad_items) as bad_name, open(bad_name, "w", encoding="utf-8") as bad_file:
        try:
            with replacing(out) as good_name, open(good_name, "w", encoding="utf-8") as good_file:
                writer = _Writer(out.parent.resolve(), good_file, bad_file)
                _run(writer, check_all(found, workers, quick), total)
                _refuse_unusable(writer.summary, out, strict)
        except UnusableSource as error:
            refusal = error
    if not writer.summary.bad:
        bad_items.unlink()
    if refusal:
        raise refusal
    return writer.summary


def check_ours(path: Path, fields: set[str], kind: str) -> None:
    """Refuse to replace a file that was not written by prepare.

    Args:
        fields: that every line of ours has.

    Raises:
        DataError: naming the file.
    """
    try:
        with open(path, "rb") as file:
            first = file.readline()
        ours = not first.strip() or fields <= json.loads(first).keys()
    except FileNotFoundError:
        return
    except (ValueError, AttributeError, RecursionError):
        ours = False
    if not ours:
        raise DataError(f"{path}: this is no {kind} that prepare wrote; move it, or give another --out")


class UnusableSource(DataError):
    """The source holds nothing to train on, or bad items although none were allowed."""


class _Writer:
    """Sorts checked items into the manifest and the list of bad ones; a task's first pair waits for a second."""

    def __init__(self, folder: Path, good_file: IO[str], bad_file: IO[str]):
        self.summary = Summary()
        self._folder, self._good_file, self._bad_file = folder, good_file, bad_file
        self._waiting: dict[str, CheckedPair] = {}
        self._tasks: set[str] = set()
        self._pairs, self._captions = Seen(), Seen()

    def add(self, item: CheckedPair | BadItem) -> None:
        if isinstance(item, BadItem):
            self._reject(item)
            return
        task = item.candidate.task
        if not self._pairs.add(json.dumps([task, item.hashes, item.candidate.row])):
            reason = (
                f"task {task!r} has this pair already, of the same two images; an analogy needs two different pairs"
            )
            self._reject(BadItem(str(item.candidate.before), reason))
            return
        if task in self._tasks:
            self._accept(item)
        elif task in self._waiting:
            self._tasks.add(task)
            self.summary.tasks += 1
            self._accept(self._waiting.pop(task))
            self._accept(item)
        else:
            self._waiting[task] = item

    def finish(self) -> None:
        """What still waits has no second pair."""
        for task, item in self._waiting.items():
            reason = f"the only usable pair of task {task!r}; an analogy needs two"
            self._reject(BadItem(str(item.candidate.before), reason))

    def _accept(self, item: CheckedPair) -> None:
        found = item.candidate
        self.summary.captions[found.task] += self._captions.add(json.dumps([found.task, found.prompt]))
        self._good_file.write(json.dumps(item.line(self._folder), ensure_ascii=False) + "\n")
        self.summary.pairs += 1

    def _reject(self, item: BadItem) -> None:
        line = json.dumps(
            {"file": clipped(item.file, _LONGEST), "reason": clipped(item.reason, _LONGEST)}, ensure_ascii=False
        )
        self._bad_file.write(line.encode(errors="backslashreplace").decode() + "\n")  # names need not be UTF-8
        self.summary.bad += 1


def _run(writer: _Writer, items: Iterable[CheckedPair | BadItem], total: int | None) -> None:
    with tqdm(items, total=total, unit="pair", desc="checking") as progress:
        for item in progress:
            writer.add(item)
            progress.set_postfix(bad=writer.summary.bad, refresh=False)
    writer.finish()


def _refuse_unusable(summary: Summary, out: Path, strict: bool) -> None:
    if not summary.pairs:
        raise UnusableSource(f"no task has two usable pairs, so {out} is not written")
    if strict and summary.bad:
        raise UnusableSource(f"{summary.bad:,} bad items and --strict, so {out} is not written")
