"""A recipe: which edits of which photographs a data set holds. Every pair of it is a pure function of the recipe."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..hashing import random_words
from . import photographs
from .edits import COMPOSITIONS, EDITS, HELD_OUT_EDITS, IDENTITY, TRAINING_EDITS, Edit, Parameters

# Textures make up for photographs: half of the training's subjects where there are only eleven, a sixth of hundreds.
_CLOUDS = max(4, len(photographs.TRAINING) // 15)
TRAINING_SUBJECTS = (*photographs.TRAINING, *(2 * _CLOUDS * ("leaves",)), *(_CLOUDS * ("clouds",)))
PHOTOGRAPHS = {"training": TRAINING_SUBJECTS, "held-out": photographs.HELD_OUT}
# "changing" leaves out the edit that changes nothing: there is no answer to it that is nearer than b.
_EDITS = {
    "training": TRAINING_EDITS,
    "changing": tuple(name for name in TRAINING_EDITS if name != IDENTITY),
    "held-out": HELD_OUT_EDITS,
    "compositions": tuple(COMPOSITIONS),
}
_KNOWN = EDITS | COMPOSITIONS


@dataclass(frozen=True)
class Recipe:
    """What a recipe file says.

    Attributes:
        images: folder of the rendered images, relative to the current one.
        seed: of all parameters and subjects. side: of an image, in pixels.
        edits: "training", "changing", "held-out", "compositions", or a list of names.
        photographs: "training" or "held-out".
        held_parameters: draw from the ranges that training never uses; edits without such a range are left out.
        draws_per_edit: tasks of an edit, each with parameters of its own. pairs_per_draw: pairs of a task.
    """

    images: str = "???"
    seed: int = 0
    side: int = 128
    edits: Any = "training"
    photographs: str = "training"
    held_parameters: bool = False
    draws_per_edit: int = 8
    pairs_per_draw: int = 24

    @classmethod
    def load(cls, path: Path) -> "Recipe":
        """Read and check a recipe.

        Raises:
            ValueError: naming the file, and the key or the value that does not fit.
        """
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
            recipe = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(cls), _checked_keys(content)))
            recipe._check()
        except OmegaConfBaseException as error:
            raise ValueError(f"{path}: {error.full_key}: {str(error).splitlines()[0]}") from error
        except (ValueError, yaml.YAMLError) as error:
            raise ValueError(f"{path}: {error}") from error
        return recipe

    def _check(self) -> None:
        if self.photographs not in PHOTOGRAPHS:
            raise ValueError(f"photographs is {self.photographs!r}; expected one of {', '.join(PHOTOGRAPHS)}")
        if min(self.side, self.draws_per_edit) < 1 or self.pairs_per_draw < 2:
            raise ValueError("side and draws_per_edit must be at least 1, pairs_per_draw at least 2")
        self.edit_names()

    def edit_names(self) -> tuple[str, ...]:
        """Names of its edits.

        Raises:
            ValueError: naming one that is not known, and the nearest one that is.
        """
        if isinstance(self.edits, str):
            if self.edits not in _EDITS:
                raise ValueError(f"edits is {self.edits!r}; expected {', '.join(_EDITS)}, or a list of names")
            names = _EDITS[self.edits]
        else:
            names = tuple(self.edits)
        for name in names:
            refuse_unknown("edit", name, _KNOWN)
        return tuple(name for name in names if _KNOWN[name].spans or not self.held_parameters)


@dataclass(frozen=True)
class Task:
    """An edit with fixed parameters: any two pairs of it make an analogy.

    Attributes:
        name: ``<edit>/<number of the draw>``.
        recipe: where seed, side and photographs come from.
    """

    name: str
    edit: Edit
    parameters: Parameters
    recipe: Recipe

    def pair(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """(before, after) of pair ``number``: float32 [side, side, 3] in 0..1."""
        recipe = self.recipe
        rng = np.random.default_rng(random_words("pair", recipe.seed, self.name, number))
        return self.edit.pair(rng, self.parameters, recipe.side, PHOTOGRAPHS[recipe.photographs])


def tasks(recipe: Recipe) -> list[Task]:
    """All tasks of a recipe, edit by edit."""
    names = (f"{name}/{draw:02d}" for name in recipe.edit_names() for draw in range(recipe.draws_per_edit))
    return [task_named(name, recipe) for name in names]


def task_named(name: str, recipe: Recipe) -> Task:
    """The task ``<edit>/<draw>`` of a recipe."""
    edit = _KNOWN[name.partition("/")[0]]
    rng = np.random.default_rng(random_words("parameters", recipe.seed, name))
    return Task(name, edit, edit.parameters(rng, recipe.held_parameters), recipe)


def edit_of(task: str) -> str:
    """The edit that a task ``<edit>/<draw>`` shows."""
    return task.rsplit("/", 1)[0]


def _checked_keys(content: Any) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise ValueError("a recipe is a mapping of settings, such as `side: 64`")
    known = [field.name for field in fields(Recipe)]
    for key in content:
        refuse_unknown("key", str(key), known)
    return content


def refuse_unknown(kind: str, name: str, known: Sequence[str]) -> None:
    """Check that a name is known.

    Args:
        kind: what it is a name of.

    Raises:
        ValueError: naming it, and the nearest one that is known.
    """
    if name not in known:
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
        raise ValueError(f"there is no {kind} {name!r}; did you mean {nearest!r}?")
