"""Plain folders: ``<task>/before/<name>.*`` and ``<task>/after/<name>.*``, or ``<task>/*_before.*`` and ``*_after.*``.

The prompt is ``<name>.txt`` beside the after image, else ``<task>/prompt.txt``, else empty.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from .found import BadItem, Found, Side, image_names, match_partners, read_caption, task_name, walk

LAYOUT = "<task>/before/* with <task>/after/*, or <task>/*_before.* with <task>/*_after.*"
BEFORE, AFTER = "before", "after"
TASK_PROMPT = "prompt.txt"


def recognises(source: Path) -> bool:
    """Whether any folder holds both sides of a task, in one of the two shapes."""
    if not source.is_dir():
        return False
    return any({BEFORE, AFTER} <= set(names) or _has_suffixed(folder) for folder, names in walk(source))


def read(source: Path) -> Iterator[Found]:
    """All pairs, task by task; images that are no side of any pair are bad items."""
    for folder, subfolders in walk(source):
        task = task_name(source, folder)
        if BEFORE in subfolders or AFTER in subfolders:
            before, after = (Side(folder / name, image_names(folder / name)) for name in (BEFORE, AFTER))
            yield from match_partners(task, before, after, caption=_captions(folder, after))
            subfolders[:] = [name for name in subfolders if name not in (BEFORE, AFTER)]
        before, after = _suffixed(folder)
        yield from match_partners(task, before, after, caption=_captions(folder, after))
        yield from _strays(folder)


def _has_suffixed(folder: Path) -> bool:
    before, after = _suffixed(folder)
    return bool(before.stems() and after.stems())


def _suffixed(folder: Path) -> tuple[Side, Side]:
    """The sides that lie in one folder, told apart by the endings of their names."""
    names = image_names(folder)
    return Side(folder, names, f"_{BEFORE}"), Side(folder, names, f"_{AFTER}")


def _strays(folder: Path) -> Iterator[BadItem]:
    strays = [name for name in image_names(folder) if not Path(name).stem.endswith((f"_{BEFORE}", f"_{AFTER}"))]
    if strays:
        yield BadItem(
            str(folder / strays[0]),
            f"{len(strays)} images in this folder belong to no pair; expected {LAYOUT}",
        )


def _captions(folder: Path, after: Side) -> Callable[[str], str]:
    return lambda stem: read_caption(after.folder / f"{stem}.txt", folder / TASK_PROMPT)
