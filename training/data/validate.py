"""Check pairs: do both images decode, and do they go together?"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from .errors import ImageError
from .images import FileFacts, inspect_file
from .sources import BadItem, Candidate, Found

_IN_FLIGHT_PER_WORKER = 8
_SAME_SHAPE = (
    0.02  # how far the aspects of two images may differ that show the same, as after rounding to 8 or 16 pixels
)
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class CheckedPair:
    """A pair that can be trained on.

    Attributes:
        size: (width, height) of the image before.
        hashes: content hashes of the files that hold before and after.
    """

    candidate: Candidate
    size: tuple[int, int]
    hashes: tuple[str, str]

    def line(self, folder: Path) -> dict[str, Any]:
        """The pair as a manifest in ``folder`` writes it."""
        found = self.candidate
        fields = {
            "task": found.task,
            "before": _relative(found.before, folder),
            "after": _relative(found.after, folder),
            "prompt": found.prompt,
        }
        if found.halves:
            fields["halves"] = True
        if found.row:
            fields["row"] = found.row
        return fields | {"size": self.size, "hashes": self.hashes}


def _relative(path: Path, folder: Path) -> str:
    path = Path(os.path.abspath(path))
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # Windows: on another drive
        return path.as_posix()


def check(found: Found, quick: bool = False) -> CheckedPair | BadItem:
    """Decode a candidate's images, or read their headers when ``quick``; bad items pass through."""
    if isinstance(found, BadItem):
        return found
    path = found.before
    try:
        before = after = inspect_file(path, quick)
        if not found.halves:
            path = found.after
            after = inspect_file(path, quick)
    except ImageError as error:
        return BadItem(str(path), error.reason)
    return _check_halves(found, before) if found.halves else _check_sizes(found, before, after)


def _check_halves(found: Candidate, facts: FileFacts) -> CheckedPair | BadItem:
    (width, height), rows = facts.size, 2 if found.row else 1
    if width % 2 or height % rows:
        side, pixels = ("height", height) if width % 2 == 0 else ("width", width)
        return BadItem(str(found.before), f"its {side} is odd ({pixels} pixels), so it has no two equal halves")
    return CheckedPair(found, (width // 2, height // rows), (facts.hash, facts.hash))


def _check_sizes(found: Candidate, before: FileFacts, after: FileFacts) -> CheckedPair | BadItem:
    (w, h), (w2, h2) = before.size, after.size
    if abs(w * h2 / (w2 * h) - 1) > _SAME_SHAPE:
        reason = f"its size is {w2} x {h2}, but {found.before} is {w} x {h}: of another shape; crop both to one shape"
        return BadItem(str(found.after), reason)
    if before.hash == after.hash:
        return BadItem(str(found.after), f"it is byte for byte {found.before}, so the pair shows no edit")
    return CheckedPair(found, before.size, (before.hash, after.hash))


def check_all(items: Iterable[Found], workers: int, quick: bool = False) -> Iterator[CheckedPair | BadItem]:
    """``check`` in threads (decoding releases the interpreter), in order, a few items ahead of the reader."""
    return _map_ahead(lambda found: check(found, quick), items, workers)


def _map_ahead(function: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[R]:
    """Like the executor's ``map``, which would hold every item of an endless source at once."""
    pending: deque = deque()
    with ThreadPoolExecutor(workers) as executor:
        try:
            for item in items:
                pending.append(executor.submit(function, item))
                if len(pending) >= workers * _IN_FLIGHT_PER_WORKER:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            executor.shutdown(cancel_futures=True)
