"""What the starter's base can be told: nothing, families of edits, edits, and how strong they are."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..pictures.edits import EDITS, TRAINING_EDITS, Edit, Parameters
from .shards import Drawn

Told = Mapping[str, float]  # names, and how strongly each is said

NOTHING = ""  # the name that says nothing
_KNOTS = 3  # of a parameter's range: what is told about a value is interpolated between them


class Vocabulary:
    """The names that can be told, in order: NOTHING, families, edits, knots of the parameters."""

    def __init__(self, edits: Sequence[str] = TRAINING_EDITS):
        self.edits = tuple(edits)
        self.families = sorted({EDITS[edit].family for edit in self.edits})
        knots = [
            knot_of(edit, parameter, knot) for edit in self.edits for parameter in EDITS[edit].spans
            for knot in range(_KNOTS)
        ]  # fmt: skip
        self.names = [NOTHING, *self.families, *self.edits, *knots]
        self.numbers = {name: number for number, name in enumerate(self.names)}

    def spell(self, told: Sequence[Told]) -> Tensor:
        """How strongly each name is said: [B, names]."""
        spelled = torch.zeros(len(told), len(self.names))
        for row, names in enumerate(told):
            for name, weight in names.items():
                spelled[row, self.numbers[name]] = weight
        return spelled

    def prompts(self) -> dict[str, Told]:
        """What a trained base can be told by one word: nothing, a family, an edit."""
        families = {family: plainly(NOTHING, family) for family in self.families}
        edits = {edit: plainly(NOTHING, EDITS[edit].family, edit) for edit in self.edits}
        return {NOTHING: plainly(NOTHING), **families, **edits}


def plainly(*names: str) -> dict[str, float]:
    """To be told these names as they are."""
    return dict.fromkeys(names, 1.0)


def knot_of(edit: str, parameter: str, knot: int) -> str:
    """Name of a knot of a parameter's range."""
    return f"{edit}.{parameter}.{knot}"


def families_of(task: Drawn) -> dict[str, float]:
    """To be told the families of a task's edits."""
    return plainly(*(EDITS[name].family for name in task.edits))


def edits_of(task: Drawn) -> dict[str, float]:
    """To be told a task's edits."""
    return plainly(*task.edits)


def parameters_of(task: Drawn) -> dict[str, float]:
    """To be told the parameters of a task's edits."""
    told: dict[str, float] = {}
    for name, parameters in zip(task.edits, task.parameters):
        told |= about_parameters(EDITS[name], parameters)
    return told


def about_parameters(edit: Edit, parameters: Parameters) -> dict[str, float]:
    """To be told the parameters of an edit: for each of them the two knots of its range that the value lies between."""
    told = {}
    for name, value in parameters.items():
        place = edit.spans[name].share(value) * (_KNOTS - 1)
        weights = {knot_of(edit.name, name, knot): 1 - abs(place - knot) for knot in range(_KNOTS)}
        told |= {knot: weight for knot, weight in weights.items() if weight > 0}
    return told
