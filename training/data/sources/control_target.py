"""Control/target folders: ``control/<stem>.*`` is before, ``target/<stem>.*`` is after, ``<stem>.txt`` the prompt.

A folder that holds ``control`` and ``target`` is one task; subfolders of ``control`` that repeat under ``target`` are
tasks of their own. The caption lies beside the target image or, failing that, beside the control image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from .found import Found, Side, below_sides, image_names, match_partners, read_caption, task_name, walk

LAYOUT = "control/<name>.* and target/<name>.* with captions <name>.txt"
CONTROL, TARGET = "control", "target"


def recognises(source: Path) -> bool:
    """Whether a folder with both subfolders is there."""
    return any({CONTROL, TARGET} <= set(names) for _, names in walk(source)) if source.is_dir() else False


def read(source: Path) -> Iterator[Found]:
    """All pairs, folder by folder."""
    for root in _roots(source):
        for below in below_sides(root, (CONTROL, TARGET)):
            control, target = root / CONTROL / below, root / TARGET / below
            sides = (Side(folder, image_names(folder)) for folder in (control, target))
            yield from match_partners(task_name(source, root / below), *sides, caption=_captions(control, target))


def _roots(source: Path) -> Iterator[Path]:
    """Folders with either side, so that a side that is missing is reported."""
    yield from (folder for folder, names in walk(source) if CONTROL in names or TARGET in names)


def _captions(control: Path, target: Path) -> Callable[[str], str]:
    return lambda stem: read_caption(target / f"{stem}.txt", control / f"{stem}.txt")
