"""What readers yield, and what they share: folder listings, captions, partners by name."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import DataError
from ..images import SUFFIXES


@dataclass(frozen=True)
class Candidate:
    """A pair as the source lists it; the fields are those of the manifest."""

    task: str
    before: Path
    after: Path
    prompt: str = ""
    halves: bool = False
    row: str = ""


@dataclass(frozen=True)
class BadItem:
    """Something that cannot be used: the file (or task), and why.

    Attributes:
        others: further files that the reason speaks of.
    """

    file: str
    reason: str
    others: tuple[str, ...] = ()


Found = Candidate | BadItem


def walk(source: Path) -> Iterator[tuple[Path, list[str]]]:
    """Every folder below and including ``source`` in a stable order, with the names of its subfolders.

    Names that the caller removes from the list are not entered.
    """

    def fail(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be listed ({error.strerror})") from error

    for name, subfolders, _ in os.walk(source, followlinks=True, onerror=fail):
        folder = Path(name)
        subfolders[:] = sorted(n for n in subfolders if not n.startswith(".") and not _leads_back(folder / n))
        yield folder, subfolders


def _leads_back(folder: Path) -> bool:
    """Whether a link points at a folder above itself, which would never end."""
    return folder.is_symlink() and folder.parent.resolve().is_relative_to(folder.resolve())


def task_name(source: Path, folder: Path) -> str:
    """A task is called like its folder, seen from the source; the source itself by its own name."""
    relative = folder.relative_to(source).as_posix()
    return source.resolve().name if relative == "." else relative


def image_names(folder: Path, suffixes: frozenset[str] = SUFFIXES) -> list[str]:
    """Names of the images in a folder, sorted; none where there is no folder. Hidden files are no images."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        names = (entry.name for entry in entries if not entry.name.startswith("."))
        return sorted(name for name in names if os.path.splitext(name)[1].lower() in suffixes)


def below_sides(root: Path, names: tuple[str, str]) -> list[Path]:
    """Folders with images below the two sides of a root, as seen from there."""
    sides = [root / name for name in names if (root / name).is_dir()]
    return sorted({folder.relative_to(side) for side in sides for folder, _ in walk(side) if image_names(folder)})


class Side:
    """The images of one side of a task's pairs, by the stem that both sides share."""

    def __init__(self, folder: Path, names: list[str], ending: str = ""):
        self.folder, self.ending = folder, ending
        self._names: dict[str, list[str]] = {}
        for name in names:
            stem = os.path.splitext(name)[0]
            if stem.endswith(ending):
                self._names.setdefault(stem.removesuffix(ending), []).append(name)

    def stems(self) -> set[str]:
        """All stems of this side."""
        return set(self._names)

    def files(self, stem: str) -> list[Path]:
        """Files of a stem: one, unless the folder is ambiguous or lacks it."""
        return [self.folder / name for name in self._names.get(stem, ())]

    def expected(self, stem: str) -> str:
        """How the file of a stem would be called."""
        return f"{self.folder.name}/{stem}{self.ending}.*"


def match_partners(
    task: str, before: Side, after: Side, caption: Callable[[str], str] = lambda stem: ""
) -> Iterator[Found]:
    """Pairs of equal stems; what has no partner, or more than one, is bad."""
    for stem in sorted(before.stems() | after.stems()):
        befores, afters = before.files(stem), after.files(stem)
        if len(befores) == len(afters) == 1:
            yield captioned(Candidate(task, befores[0], afters[0]), lambda stem=stem: caption(stem))
        elif not befores or not afters:
            found, missing = (befores, after) if befores else (afters, before)
            yield BadItem(str(found[0]), f"its partner is missing: no {missing.expected(stem)}")
        else:
            several = befores if len(befores) > 1 else afters
            names = " and ".join(path.name for path in several)
            reason = f"{names} have the same name, so the partner is not clear; keep one"
            yield BadItem(str(several[0]), reason, tuple(map(str, (*befores, *afters))))


def captioned(candidate: Candidate, caption: Callable[[], str]) -> Found:
    """The candidate with its caption, or the bad item that its caption is."""
    try:
        return replace(candidate, prompt=caption())
    except UnreadableCaption as error:
        return BadItem(str(candidate.after), str(error), (str(candidate.before),))


class UnreadableCaption(DataError):
    """A caption file exists and cannot be read as text."""


def read_caption(*files: Path) -> str:
    """The text of the first file that exists, or "".

    Raises:
        UnreadableCaption: when it cannot be read, or is not UTF-8.
    """
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        return ""
    try:
        return file.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UnreadableCaption(f"its caption {file} cannot be read as UTF-8 text ({error})") from error
