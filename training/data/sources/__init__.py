"""Readers of the layouts that pairs come in. A reader only lists, one folder at a time; nothing is decoded."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ...hashing import Seen
from ..errors import DataError
from ..images import UNREAD
from . import canvases, control_target, folders, jsonl, procedural, relation252k
from .found import BadItem, Candidate, Found, image_names, walk

Reader = Callable[[Path], Iterator[Found]]

# Name -> module with a docstring, recognises(source) and read(source). Order is the order of reading.
FORMATS = {
    "jsonl": jsonl,
    "procedural": procedural,
    "relation252k": relation252k,
    "control_target": control_target,
    "folders": folders,
    "canvases": canvases,
}
_METADATA = "analogy_metadata.json"


def reader_of(source: Path, name: str = "auto") -> tuple[str, Reader]:
    """The name and the reader of a source's layout; of all its layouts where it has several.

    Raises:
        DataError: when the source does not exist, "auto" recognises no layout, or it is one that cannot be read.
    """
    if not source.exists():
        raise DataError(f"{source}: there is no such file or folder")
    names = [n for n, module in FORMATS.items() if module.recognises(source)] if name == "auto" else [name]
    if not names:
        layouts = "; ".join(f"{n}: {module.LAYOUT}" for n, module in FORMATS.items())
        raise DataError(f"{source}: no known layout is found here. Known are {layouts}")
    if "control_target" in names:
        _refuse_strips(source)
    return " and ".join(names), lambda source: _read(source, names)


def _refuse_strips(source: Path) -> None:
    """The data that the released code makes for itself: every pair is cut up among many strips."""
    folder = next((folder for folder, _ in walk(source) if (folder / _METADATA).is_file()), None)
    if folder is not None:
        raise DataError(
            f"{folder}: {_METADATA} says that these are strips a | a' | b (control) and their b' (target), as the"
            " released code prepares them; name the Relation252K folder that they were made from instead"
        )


def _read(source: Path, names: Sequence[str]) -> Iterator[Found]:
    """What the readers find, and in folders the images that none of them took."""
    taken = Seen()
    for name in names:
        for item in FORMATS[name].read(source):
            for file in _files(item):
                taken.add(os.path.abspath(file))
            yield _sound(item)
    if source.is_dir() and "canvases" not in names:  # which takes every image but those that it leaves on purpose
        yield from _left_over(source, taken, "; or ".join(FORMATS[name].LAYOUT for name in names))


def _files(item: Found) -> tuple:
    return (item.file, *item.others) if isinstance(item, BadItem) else (item.before, item.after)


def _sound(item: Found) -> Found:
    """The item; a bad one when a name or a caption of it is no text that a manifest can hold."""
    if isinstance(item, BadItem):
        return item
    for what, text in {"name": f"{item.before} {item.after} {item.task}", "caption": item.prompt}.items():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            return BadItem(str(item.before), f"its {what} is not valid Unicode ({error.reason}); rename it")
    return item


def _left_over(source: Path, taken: Seen, layouts: str) -> Iterator[BadItem]:
    """A bad item for every folder with images of kinds that are not read, or that no pair and no bad item names."""
    for folder, _ in walk(source):
        if unread := image_names(folder, UNREAD):
            kinds = ", ".join(sorted({Path(name).suffix.lower() for name in unread}))
            yield BadItem(
                str(folder / unread[0]),
                f"{len(unread)} images in this folder are of a kind that is not read ({kinds}); convert them to"
                " PNG or JPEG",
            )
        strays = [name for name in image_names(folder) if os.path.abspath(folder / name) not in taken]
        if strays:
            yield BadItem(
                str(folder / strays[0]), f"{len(strays)} images in this folder belong to no pair; expected {layouts}"
            )


__all__ = ["FORMATS", "BadItem", "Candidate", "Found", "Reader", "reader_of"]
