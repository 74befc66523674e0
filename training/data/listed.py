"""Analogies that are listed and not drawn from pairs: folders of four images, and the authors' evaluation set."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from lorweb_core.canvas import CanvasGeometry

from .errors import DataError
from .images import read_image
from .layouts import CANVAS, Layout
from .sources.found import image_names, walk

logger = logging.getLogger(__name__)

ORIGINAL = "original"


@dataclass(frozen=True)
class Listed:
    """The files of an analogy; the true b' may be unknown."""

    task: str
    prompt: str
    a: Path
    a_prime: Path
    b: Path
    b_prime: Path | None = None


class ListedAnalogies(Dataset):
    """Listed analogies as the items of ``AnalogyDataset``; without a true b' they have no ``target``.

    Args:
        geometry: one for all items. fit: how images of another shape come into a quadrant.
        layout: what the base is shown, and makes.
    """

    def __init__(
        self, analogies: Sequence[Listed], geometry: CanvasGeometry, fit: str = "crop", layout: Layout = CANVAS
    ):
        self.analogies, self.geometry, self.fit, self.layout = analogies, geometry, fit, layout

    def __len__(self) -> int:
        return len(self.analogies)

    def prompt(self, index: int) -> str:
        """The prompt of the item at a position."""
        return self.analogies[index].prompt

    def files(self, index: int) -> dict[str, str]:
        """Which files the images of an item are of."""
        listed = self.analogies[index]
        return {name: str(getattr(listed, name)) for name in ("a", "a_prime", "b", "b_prime") if getattr(listed, name)}

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The item at a position.

        Raises:
            ImageError: naming the file that is missing or broken.
        """
        listed = self.analogies[index]
        paths = (listed.a, listed.a_prime, listed.b, listed.b_prime)
        images = (None if path is None else self._quadrant(path) for path in paths)
        item = {"index": index, "task": listed.task, "prompt": listed.prompt}
        return item | self.layout.arrange(*images)

    def _quadrant(self, path: Path) -> Tensor:
        return self.geometry.quadrant(read_image(path)[None], self.fit)[0]


def read_examples(folder: Path) -> list[Listed]:
    """Analogies ``<name>/a.*, a_prime.*, b.*`` and, where it is known, ``b_prime.*``; the prompt is in ``prompt.txt``.

    Raises:
        DataError: when there is none.
    """
    found = []
    for place, _ in walk(folder):
        images = {Path(name).stem: place / name for name in image_names(place)}
        if {"a", "a_prime", "b"} <= images.keys():
            text = place / "prompt.txt"
            prompt = text.read_text(encoding="utf-8-sig").strip() if text.is_file() else ""
            task = place.relative_to(folder).as_posix()
            found.append(Listed(task, prompt, images["a"], images["a_prime"], images["b"], images.get("b_prime")))
    if not found:
        raise DataError(f"{folder}: no analogies are found here; expected <name>/a.*, a_prime.*, b.* and b_prime.*")
    return found


def read_evalset(folder: Path) -> list[Listed]:
    """The analogies of the authors' evaluation set, every answer as an example once.

    Originals lie in ``original/<category>/NAME.*``, answers anywhere else as
    ``.../<category>/<Instruction_with_underscores>/NAME_<n>.*``: a' of NAME, and the true b' where NAME is b. b is the
    next original of a's folder that has an answer to the instruction, or just the next where none has.

    Raises:
        DataError: when the folder is laid out otherwise.
    """
    root = next((place for place, below in walk(folder) if ORIGINAL in below), None)
    if root is None:
        raise DataError(f"{folder}: there is no folder {ORIGINAL!r} in it, which holds the evaluation set's originals")
    originals: dict[str, list[Path]] = {}
    for path in _images(root / ORIGINAL):
        originals.setdefault(path.stem, []).append(path)
    tasks, strays = _answers(root, originals)
    if strays:
        logger.warning("%d images have no original of their name and are left out, such as %s", len(strays), strays[0])
    found = [listed for task, answers in tasks.items() for listed in _analogies(root, task, answers, originals)]
    if not found:
        raise DataError(
            f"{root}: no answers are found; expected .../<category>/<Instruction_with_underscores>/<original>_<n>.*"
        )
    return found


def _images(folder: Path) -> Iterator[Path]:
    return (place / name for place, _ in walk(folder) for name in image_names(place))


def _answers(root: Path, originals: dict[str, list[Path]]) -> tuple[dict[Path, dict[str, list[Path]]], list[Path]]:
    """(folder of an instruction -> name of the original -> its answers, images that answer to no original)."""
    tasks: dict[Path, dict[str, list[Path]]] = {}
    strays = []
    for path in _images(root):
        if path.is_relative_to(root / ORIGINAL):
            continue
        name, _, number = path.stem.rpartition("_")
        if name in originals and number.isdecimal():
            tasks.setdefault(path.parent, {}).setdefault(name, []).append(path)
        else:
            strays.append(path)
    return tasks, strays


def _analogies(
    root: Path, task: Path, answers: dict[str, list[Path]], originals: dict[str, list[Path]]
) -> Iterator[Listed]:
    category, instruction = task.parent.name, task.name.replace("_", " ")
    for name, made in answers.items():
        a = _of_category(originals[name], category)
        others = [path for path in sorted(a.parent.iterdir()) if path.stem in originals and path.stem != name]
        known = [path for path in others if path.stem in answers]
        b = next((path for path in known or others if path.stem > name), next(iter(known or others), None))
        if b is None:
            continue
        for number, a_prime in enumerate(made):
            truths = answers.get(b.stem)
            truth = truths[min(number, len(truths) - 1)] if truths else None
            yield Listed(task.relative_to(root).as_posix(), instruction, a, a_prime, b, truth)


def _of_category(paths: list[Path], category: str) -> Path:
    """Of originals of one name, that of the category: animals lie in unsplash_animals."""
    return next((path for path in paths if path.parent.name.endswith(category)), paths[0])
