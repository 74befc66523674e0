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
from ..manifest import check_texts, parts_of
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
        if fields.get("halves"):
            fields.setdefault("after", fields["before"])
        _check(fields)
    except KeyError as error:
        return BadItem(f"{source}, line {number}", f"the field {error} is missing")
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        return BadItem(f"{source}, line {number}", f"not a pair in JSON ({error})")
    before, after = (source.parent / fields[side] for side in ("before", "after"))
    optional = {"prompt": fields.get("prompt", ""), "halves": bool(fields.get("halves")), "row": fields.get("row", "")}
    return Candidate(fields["task"], before, after, **optional)


def _check(fields: dict[str, Any]) -> None:
    check_texts(fields)
    parts_of(bool(fields.get("halves")), fields.get("row", ""))
    if fields.get("halves") and fields["before"] != fields["after"]:
        raise ValueError('"halves": true means one file, but before and after differ')
