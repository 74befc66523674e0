"""The manifest: one JSON line per pair of images.

    {"task": "snow", "before": "snow/1.jpg", "after": "snow/1.jpg", "halves": true, "prompt": "make it snow",
     "size": [512, 512], "hashes": ["<before>", "<after>"]}

``before`` and ``after`` are relative to the manifest. ``halves``: one file holds before | after side by side; with
``row`` ("top" or "bottom") they are the halves of that row of a 2x2 canvas. ``size`` is (width, height) of the image
before, whose shape the one after has within 2 %; ``hashes`` are content hashes of the two files.
``python -m training.prepare`` writes it.
"""

from __future__ import annotations

import json
import os
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from lorweb_core.wording import clipped

from ..hashing import content_hash
from .errors import DataError
from .images import ImageRef

ROWS = ("", "top", "bottom")
_LINES = re.compile(rb"^[ \t\r]*\S", re.MULTILINE)


@dataclass(frozen=True)
class Pair:
    """One image before and after an edit.

    Attributes:
        task: the edit; pairs of one task show the same one.
        prompt: the edit in words, or "".
        size: (width, height) of the image before in pixels.
    """

    task: str
    before: ImageRef
    after: ImageRef
    prompt: str
    size: tuple[int, int]

    def swapped(self) -> Pair:
        """The edit undone. No words are known for that, so the prompt is empty."""
        return replace(self, before=self.after, after=self.before, prompt="")


class Manifest:
    """Pairs by number, grouped by task. Holds the file's text and three integers a pair, so workers share it cheaply.

    Attributes:
        path: the manifest file; images are found relative to its folder.
        tasks: task -> numbers of its pairs, in the order of the manifest.
    """

    def __init__(self, path: Path, text: bytes, starts: array):
        self.path, self._text, self._starts = path, text, starts
        self.tasks: dict[str, array] = {}
        for number in range(len(starts)):
            self.tasks.setdefault(self._fields(number)["task"], array("Q")).append(number)

    @classmethod
    def load(cls, path: str | os.PathLike) -> Manifest:
        """Read and check a manifest; no image is opened.

        Raises:
            DataError: when the file cannot be read, holds no pairs, or a line is not what prepare writes.
        """
        path = Path(path)
        try:
            text = path.read_bytes()
        except OSError as error:
            raise DataError(
                f"{path}: the manifest cannot be read ({error.strerror}); make one with `python -m training.prepare`"
            ) from error
        starts = array("Q", (line.start() for line in _LINES.finditer(text)))
        if not starts:
            raise DataError(f"{path}: the manifest holds no pairs; run `python -m training.prepare` again")
        return cls(path, text, starts)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, number: int) -> Pair:
        """Pair ``number``, counted from 0."""
        fields = self._fields(number)
        folder, parts = self.path.parent, parts_of(bool(fields.get("halves")), fields.get("row", ""))
        before, after = (
            ImageRef(folder / fields[side], fields["hashes"][i], parts[i]) for i, side in enumerate(("before", "after"))
        )
        return Pair(fields["task"], before, after, fields.get("prompt", ""), tuple(fields["size"]))

    def _fields(self, number: int) -> dict[str, Any]:
        """The checked fields of a line. Paths stay text here: making 66,000 of them is most of the time of a load."""
        start = self._starts[number]
        end = self._text.find(b"\n", start)
        try:
            fields = json.loads(self._text[start : end if end >= 0 else None])
            _check(fields)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            line_number = self._text.count(b"\n", 0, start) + 1
            raise DataError(
                f"{self.path}, line {line_number}: not a line that prepare writes"
                f" ({type(error).__name__}: {clipped(error)}); run"
                f" `python -m training.prepare {self.path} --out NEW.jsonl`"
            ) from error
        return fields

    def __iter__(self) -> Iterator[Pair]:
        return (self[number] for number in range(len(self)))

    def subset(self, numbers: Iterable[int]) -> Manifest:
        """The named pairs as a manifest of their own, sharing this one's memory."""
        return Manifest(self.path, self._text, array("Q", (self._starts[number] for number in numbers)))

    @cached_property
    def digest(self) -> str:
        """Hash of tasks, prompts and image contents in order; the same wherever the files lie."""
        facts = ([pair.task, pair.prompt, pair.before.key, pair.after.key] for pair in self)
        return content_hash(b"".join(json.dumps(fact).encode() + b"\n" for fact in facts))

    def images(self) -> dict[str, ImageRef]:
        """Every distinct image by its key."""
        return {image.key: image for pair in self for image in (pair.before, pair.after)}

    def prompts(self) -> list[str]:
        """Every distinct prompt, in order of first use."""
        return list(dict.fromkeys(pair.prompt for pair in self))


def _check(fields: Mapping[str, Any]) -> None:
    before_hash, after_hash = fields["hashes"]
    check_texts(fields | {"before hash": before_hash, "after hash": after_hash}, "before hash", "after hash")
    width, height = fields["size"]
    if min(width, height) < 1:
        raise ValueError(f"'size' is {fields['size']!r}, expected (width, height) in pixels")
    parts_of(bool(fields.get("halves")), fields.get("row", ""))


def check_texts(fields: Mapping[str, Any], *names: str) -> None:
    """Check that task, before, after and the named fields are text, and the prompt if there is one.

    Raises:
        ValueError: naming the field. KeyError: when one is missing.
    """
    for name in ("task", "before", "after", *names):
        if not isinstance(fields[name], str) or not fields[name]:
            raise ValueError(f"{name!r} is {fields[name]!r}, expected text")
    if not isinstance(fields.get("prompt", ""), str):
        raise ValueError(f"'prompt' is {fields['prompt']!r}, expected text")


def parts_of(halves: bool, row: str) -> tuple[str, str]:
    """Parts of the files that are before and after, as keys of ``images.PARTS``.

    Raises:
        ValueError: for an unknown row, or a row of images that are not halves.
    """
    if row not in ROWS or (row and not halves):
        raise ValueError(f"'row' is {row!r}; expected 'top' or 'bottom', together with \"halves\": true")
    if not halves:
        return "", ""
    return (f"{row}-left", f"{row}-right") if row else ("left", "right")
