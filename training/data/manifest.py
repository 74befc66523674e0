"""The manifest: one JSON line per pair of images.

    {"task": "snow", "before": "snow/1.jpg", "after": "snow/1.jpg", "halves": true, "prompt": "make it snow",
     "size": [512, 512], "hashes": ["<before>", "<after>"]}

``before`` and ``after`` are relative to the manifest. ``halves``: one file holds before | after side by side; with
``row`` ("top" or "bottom") they are the halves of that row of a 2x2 canvas. ``size`` is (width, height) of one image,
``hashes`` are content hashes of the two files. ``python -m training.prepare`` writes it.
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

from .errors import DataError
from .hashing import content_hash
from .images import ImageRef

ROWS = ("", "top", "bottom")
_LINES = re.compile(rb"^[ \t\r]*\S", re.MULTILINE)


@dataclass(frozen=True)
class Pair:
    """One image before and after an edit.

    Attributes:
        task: the edit; pairs of one task show the same one.
        prompt: the edit in words, or "".
        size: (width, height) of each image in pixels.
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
            self.tasks.setdefault(self[number].task, array("Q")).append(number)

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
        start = self._starts[number]
        end = self._text.find(b"\n", start)
        line = self._text[start : end if end >= 0 else None]
        try:
            return _parse(json.loads(line), self.path.parent)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            line_number = self._text.count(b"\n", 0, start) + 1
            raise DataError(
                f"{self.path}, line {line_number}: not a line that prepare writes"
                f" ({type(error).__name__}: {error}); run `python -m training.prepare {self.path} --out NEW.jsonl`"
            ) from error

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


def _parse(line: Mapping[str, Any], folder: Path) -> Pair:
    width, height = line["size"]
    before_hash, after_hash = map(str, line["hashes"])
    parts = parts_of(bool(line.get("halves", False)), line.get("row", ""))
    return Pair(
        task=_text_field(line, "task"),
        before=ImageRef(folder / _text_field(line, "before"), before_hash, parts[0]),
        after=ImageRef(folder / _text_field(line, "after"), after_hash, parts[1]),
        prompt=line.get("prompt", ""),
        size=(int(width), int(height)),
    )


def _text_field(line: Mapping[str, Any], name: str) -> str:
    value = line[name]
    if not isinstance(value, str) or not value:
        raise ValueError(f"{name!r} is {value!r}, expected text")
    return value


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
