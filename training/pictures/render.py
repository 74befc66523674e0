"""``python -m training.pictures.render RECIPE.yaml``: draw the pairs of a recipe into files.

``<edit>/<draw>/before/000.png`` and ``after/000.png`` below the recipe's folder of images, or below ``--out``. What is
there already is kept, so an interrupted run goes on. With ``--sheet`` one picture shows a few pairs of every edit.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from itertools import groupby
from pathlib import Path

import numpy as np
import yaml
from PIL import Image, ImageDraw
from tqdm.auto import tqdm

from lorweb_core.atomic import replacing

from .edits import eight_bits
from .recipe import Recipe, Task, task_named, tasks

SIDES = ("before", "after")
NOTE = "recipe.yaml"  # what the images of a folder were drawn from
_FREE = ("images", "edits", "draws_per_edit", "pairs_per_draw")  # what may change without changing any image

_BUSY = 32  # tasks to draw that are worth a process: it needs as long to start as to draw some pairs
_TOLERANCE = 1.0  # grey levels of 255 on average: other versions of the libraries round otherwise
_COLUMNS, _EXAMPLES, _LABEL, _GAP = 4, 4, 14, 10


def render(recipe: Recipe, folder: Path) -> Iterator[tuple[Task, Path, Path]]:
    """Draw what is missing of a recipe; yields every pair with its files as soon as they are there.

    Raises:
        ValueError: when the folder holds the images of another recipe.
    """
    _take(recipe, folder)
    wanted = tasks(recipe)
    with tqdm(total=len(wanted) * recipe.pairs_per_draw, unit="pair", desc="drawing pairs") as progress:
        for task in _drawn(wanted, recipe, folder):
            yield from ((task, *paths) for paths in _files(task, folder))
            progress.update(recipe.pairs_per_draw)


def _files(task: Task, folder: Path) -> list[tuple[Path, ...]]:
    """(before, after) of every pair of a task."""
    numbers = range(task.recipe.pairs_per_draw)
    return [tuple(folder / task.name / side / f"{number:03d}.png" for side in SIDES) for number in numbers]


def _drawn(wanted: list[Task], recipe: Recipe, folder: Path) -> Iterator[Task]:
    """The tasks in order, each once all its files are there; processes share the work where there is much."""
    missing = sum(not all(map(_are_there, _files(task, folder))) for task in wanted)
    draw, names = partial(_draw, recipe, folder), [task.name for task in wanted]
    workers = min(os.cpu_count() or 1, missing // _BUSY)
    if workers < 2:
        yield from (task for task, _ in zip(wanted, map(draw, names)))
        return
    with ProcessPoolExecutor(workers) as processes:
        yield from (task for task, _ in zip(wanted, processes.map(draw, names)))


def _draw(recipe: Recipe, folder: Path, name: str) -> None:
    """Draw what is missing of a task, which travels to other processes as its name."""
    task = task_named(name, recipe)
    for number, paths in enumerate(_files(task, folder)):
        if not _are_there(paths):
            for path, image in zip(paths, task.pair(number)):
                _write(path, image)


def _are_there(paths: tuple[Path, ...]) -> bool:
    return all(path.exists() for path in paths)


def _take(recipe: Recipe, folder: Path) -> None:
    """Note the recipe in its folder, or check that the images there are its own."""
    note, facts = folder / NOTE, {name: value for name, value in asdict(recipe).items() if name not in _FREE}
    if not note.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(note) as path:
            path.write_text(yaml.safe_dump(facts), encoding="utf-8")
        return
    found = yaml.safe_load(note.read_text(encoding="utf-8"))
    if found != facts:
        raise ValueError(f"{folder} holds images of {found}, not of {facts}; name another folder, or delete it")
    _refuse_stale(recipe, folder)


def _refuse_stale(recipe: Recipe, folder: Path) -> None:
    """Draw one image of every edit anew: an edit that changed since would make two edits of one task."""
    first = {task.edit.name: task for task in reversed(tasks(recipe))}
    for task in first.values():
        path = folder / task.name / SIDES[1] / "000.png"
        if path.exists():
            drawn, stored = (np.asarray(image, dtype=float) for image in (_picture(task.pair(0)[1]), Image.open(path)))
            if drawn.shape != stored.shape or abs(drawn - stored).mean() > _TOLERANCE:
                raise ValueError(f"{path} was drawn by another version of {task.edit.name}; delete {folder}")


def _write(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        _picture(image).save(temporary, format="PNG")


def _picture(image: np.ndarray) -> Image.Image:
    return Image.fromarray(eight_bits(image))


def sheet(recipe: Recipe) -> Image.Image:
    """A contact sheet: for every edit its name and a few pairs, before | after, each with other parameters."""
    edits = [list(group) for _, group in groupby(tasks(recipe), key=lambda task: task.edit.name)]
    blocks = [_block(drawn) for drawn in tqdm(edits, unit="edit", desc="drawing examples")]
    width, height = blocks[0].width + _GAP, blocks[0].height + _GAP
    page = Image.new("RGB", (_COLUMNS * width, -(-len(blocks) // _COLUMNS) * height), "white")
    for number, block in enumerate(blocks):
        page.paste(block, (number % _COLUMNS * width, number // _COLUMNS * height))
    return page


def _block(drawn: list[Task]) -> Image.Image:
    """The examples of one edit in a row, below its name."""
    side = drawn[0].recipe.side
    block = Image.new("RGB", (_EXAMPLES * (2 * side + 4), side + _LABEL), "white")
    ImageDraw.Draw(block).text((0, 0), f"{drawn[0].edit.name} ({drawn[0].edit.family})", fill="black")
    for number in range(_EXAMPLES):
        pair = np.concatenate(drawn[number % len(drawn)].pair(number), axis=1)
        block.paste(_picture(pair), (number * (2 * side + 4), _LABEL))
    return block


def main(arguments: list[str] | None = None) -> int:
    """Command line entry."""
    parser = argparse.ArgumentParser(prog="python -m training.pictures.render", description=__doc__.splitlines()[0])
    parser.add_argument("recipe", type=Path, help="a .yaml file, such as training/starter/recipes/training.yaml")
    parser.add_argument("--out", type=Path, help="folder for the images, instead of the recipe's")
    parser.add_argument("--sheet", type=Path, help="draw this one picture of examples, and no files")
    options = parser.parse_args(arguments)
    try:
        recipe = Recipe.load(options.recipe)
        if options.sheet:
            options.sheet.parent.mkdir(parents=True, exist_ok=True)
            sheet(recipe).save(options.sheet)
        else:
            for _ in render(recipe, options.out or Path(recipe.images)):
                pass
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
