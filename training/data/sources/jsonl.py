"""JSONL: one pair a line, {"task", "before", "after", "prompt", "halves", "row"}; paths are relative to the file.

``prompt`` may be missing; with ``"halves": true`` so may ``after``. Any other field is ignored, so a finished manifest
can be read, checked and written anew.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..manifest import parts_of
from .found import BadItem, Candidate, Found

LAYOUT = "a .jsonl file of {task, before, after, prompt}"


def recognises(source: Path) -> bool:
    """Whether the source is a file with the right suffix."""
    return source.is_file() and source.suffix.lower() in (".jsonl", ".ndjson")


def read(source: Path) -> Iterator[Found]:
    """All lines in order.

    Raises:
        DataError: when the file cannot be read.
    """
    try:
        with open(source, "rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _candidate(source, number, line)
    except OSError as error:
        raise DataError(f"{source}: cannot be read ({error.strerror})") from error


def _candidate(source: Path, number: int, line: bytes) -> Found:
    try:
        fields = json.loads(line)
        before = fields["before"]
        after = fields.get("after", before) if fields.get("halves") else fields["after"]
        _check(fields, before, after)
    except KeyError as error:
        return BadItem(f"{source}, line {number}", f"the field {error} is missing")
    except (ValueError, TypeError, AttributeError) as error:
        return BadItem(f"{source}, line {number}", f"not a pair in JSON ({error})")
    optional = {"prompt": fields.get("prompt", ""), "halves": bool(fields.get("halves")), "row": fields.get("row", "")}
    return Candidate(fields["task"], source.parent / before, source.parent / after, **optional)


def _check(fields: dict[str, Any], before: Any, after: Any) -> None:
    texts = {"task": fields["task"], "before": before, "after": after, "prompt": fields.get("prompt", "")}
    for name, value in texts.items():
        if not isinstance(value, str) or not (value or name == "prompt"):
            raise ValueError(f"{name!r} is {value!r}, expected text")
    parts_of(bool(fields.get("halves")), fields.get("row", ""))
    if fields.get("halves") and before != after:
        raise ValueError('"halves": true means one file, but before and after differ')
