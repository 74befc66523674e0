"""Relation252K: ``<task>/Group*/labels.json`` beside images that hold before | after side by side.

``labels.json`` is a list of {"img_name", "left_image_description", "right_image_description", "edit_instruction"}.
All groups of a task belong to it; labels directly in a task's folder are read as well. The prompt is the edit
instruction.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .found import BadItem, Candidate, Found, task_name, walk

LAYOUT = "<task>/Group*/labels.json with side-by-side images"
LABELS = "labels.json"


def recognises(source: Path) -> bool:
    """Whether a labels file lies where this layout has it."""
    return next(_groups(source), None) is not None


def read(source: Path) -> Iterator[Found]:
    """All labelled images, group by group."""
    for group in _groups(source):
        in_task = group.name.startswith("Group") and group != source
        task = task_name(source, group.parent if in_task else group)
        labels = _labels(group / LABELS)
        if isinstance(labels, BadItem):
            yield labels
        else:
            yield from (_candidate(group, task, number, label) for number, label in enumerate(labels))


def _groups(source: Path) -> Iterator[Path]:
    if source.is_dir():
        yield from (folder for folder, _ in walk(source) if (folder / LABELS).is_file())


def _labels(file: Path) -> list[Any] | BadItem:
    try:
        labels = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        return BadItem(str(file), f"not readable as JSON ({error}); its whole group is left out")
    if not isinstance(labels, list):
        return BadItem(str(file), f"holds a {type(labels).__name__}, expected a list; its whole group is left out")
    return labels


def _candidate(group: Path, task: str, number: int, label: Any) -> Found:
    name = label.get("img_name") if isinstance(label, dict) else None
    if not isinstance(name, str) or not name:
        return BadItem(str(group / LABELS), f"entry {number} has no img_name")
    image = group / name
    if not os.path.isfile(image):  # which takes names of any length and content
        return BadItem(str(image), f"named by {LABELS} (entry {number}), but there is no such file")
    return Candidate(task, image, image, str(label.get("edit_instruction") or "").strip(), halves=True)
