"""Recipes of procedural pairs: their images are drawn into the recipe's folder first, where they are not there yet."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..errors import DataError
from .found import Candidate, Found

LAYOUT = "a .yaml recipe of edits to draw, such as training/starter/recipes/training.yaml"


def recognises(source: Path) -> bool:
    """Whether the source is a file with the right suffix."""
    return source.is_file() and source.suffix.lower() in (".yaml", ".yml")


def read(source: Path) -> Iterator[Found]:
    """All pairs of the recipe, task by task.

    Raises:
        DataError: for a recipe that is not one, or a folder with the images of another.
    """
    from ...pictures.recipe import Recipe  # the generator's libraries concern nobody who brings images
    from ...pictures.render import render

    try:
        recipe = Recipe.load(source)
        for task, before, after in render(recipe, Path(recipe.images)):
            yield Candidate(task.name, before, after)
    except (ValueError, OSError) as error:
        raise DataError(str(error)) from error
