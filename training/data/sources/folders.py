"""Plain folders: ``<task>/before/<name>.*`` and ``<task>/after/<name>.*``, or ``<task>/*_before.*`` and ``*_after.*``.

Subfolders of ``before`` that repeat under ``after`` are tasks of their own. The prompt is ``<name>.txt`` beside the
after image, else ``<task>/prompt.txt``, else empty.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from .found import Found, Side, below_sides, image_names, match_partners, read_caption, task_name, walk

LAYOUT = "<task>/before/* with <task>/after/*, or <task>/*_before.* with <task>/*_after.*"
BEFORE, AFTER = "before", "after"
TASK_PROMPT = "prompt.txt"


def recognises(source: Path) -> bool:
    """Whether any folder holds both sides of a task, in one of the two shapes."""
    if not source.is_dir():
        return False
    return any({BEFORE, AFTER} <= set(names) or _has_suffixed(folder) for folder, names in walk(source))


def read(source: Path) -> Iterator[Found]:
    """All pairs, task by task."""
    for folder, subfolders in walk(source):
        for below in below_sides(folder, (BEFORE, AFTER)):
            before, after = (
                Side(side, image_names(side)) for side in (folder / BEFORE / below, folder / AFTER / below)
            )
            task = task_name(source, folder / below)
            yield from match_partners(task, before, after, caption=_captions(folder, after))
        subfolders[:] = [name for name in subfolders if name not in (BEFORE, AFTER)]
        before, after = _suffixed(folder)
        yield from match_partners(task_name(source, folder), before, after, caption=_captions(folder, after))


def _has_suffixed(folder: Path) -> bool:
    before, after = _suffixed(folder)
    return bool(before.stems() and after.stems())


def _suffixed(folder: Path) -> tuple[Side, Side]:
    """The sides that lie in one folder, told apart by the endings of their names."""
    names = image_names(folder)
    return Side(folder, names, f"_{BEFORE}"), Side(folder, names, f"_{AFTER}")


def _captions(folder: Path, after: Side) -> Callable[[str], str]:
    return lambda stem: read_caption(after.folder / f"{stem}.txt", folder / TASK_PROMPT)
