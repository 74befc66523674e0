"""Readers of the layouts that pairs come in. A reader only lists, one folder at a time; nothing is decoded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from ..errors import DataError
from . import canvases, control_target, folders, jsonl, procedural, relation252k
from .found import BadItem, Candidate, Found

Reader = Callable[[Path], Iterator[Found]]

# Name -> module with a docstring, recognises(source) and read(source). Order is the order of recognition.
FORMATS = {
    "jsonl": jsonl,
    "procedural": procedural,
    "relation252k": relation252k,
    "control_target": control_target,
    "folders": folders,
    "canvases": canvases,
}


def reader_of(source: Path, name: str = "auto") -> tuple[str, Reader]:
    """The name and the reader of a source's layout.

    Raises:
        DataError: when the source does not exist, or "auto" recognises no layout.
    """
    if not source.exists():
        raise DataError(f"{source}: there is no such file or folder")
    if name == "auto":
        name = next((n for n, module in FORMATS.items() if module.recognises(source)), "")
    if not name:
        layouts = "; ".join(f"{n}: {module.LAYOUT}" for n, module in FORMATS.items())
        raise DataError(f"{source}: no known layout is found here. Known are {layouts}")
    return name, FORMATS[name].read


__all__ = ["FORMATS", "BadItem", "Candidate", "Found", "Reader", "reader_of"]
