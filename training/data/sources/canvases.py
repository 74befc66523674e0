"""Finished canvases: every image is a 2x2 canvas a | a' over b | b', its caption ``<name>.txt``.

Each canvas becomes a task of two pairs, its rows, for which task it was made from is not known. Where the canvases lie
in folders ``control`` and ``target``, those of ``target`` are read: the control canvas lacks b'. This layout looks like
any folder of images, so it is never guessed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .control_target import CONTROL, TARGET
from .found import Candidate, Found, captioned, image_names, read_caption, walk

LAYOUT = "images that are 2x2 canvases a | a' over b | b' (only when asked for by name)"


def recognises(source: Path) -> bool:
    """Never: nothing tells a canvas from a photograph."""
    return False


def read(source: Path) -> Iterator[Found]:
    """Both rows of every canvas."""
    for folder, subfolders in walk(source):
        if TARGET in subfolders and CONTROL in subfolders:
            subfolders.remove(CONTROL)
        for name in image_names(folder):
            yield from _rows(source, folder / name)


def _rows(source: Path, image: Path) -> Iterator[Found]:
    task = image.relative_to(source).with_suffix("").as_posix()
    for row in ("top", "bottom"):
        candidate = Candidate(task, image, image, halves=True, row=row)
        yield captioned(candidate, lambda: read_caption(image.with_suffix(".txt")))
