"""What the starter's base is asked in one step: which pairs, and what it is told about them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .pool import Pool
from .telling import NOTHING, Vocabulary, edits_of, families_of, parameters_of


@dataclass
class LessonSettings:
    """What the base is told.

    Attributes:
        told_edit, told_family: how often a canvas is told the edit, or only its family; else it is told nothing.
        untold_right: how often the example of a canvas that is told nothing shows its edit, rather than another one.
        alone_told_parameters: how often an image alone is told its edit with its parameters, as no example shows them.
    """

    told_edit: float = 0.4
    told_family: float = 0.15
    untold_right: float = 0.6
    alone_told_parameters: float = 0.75


@dataclass
class Lessons:
    """A batch: numbers of the pairs of examples and answers [B], and how strongly each name is said [B, names].

    Attributes:
        told: whether each is told an edit or a family [B].
    """

    examples: Tensor
    answers: Tensor
    spelled: Tensor
    told: Tensor


class Curriculum:
    """Lessons from the pairs of a pool."""

    def __init__(self, pool: Pool, vocabulary: Vocabulary, settings: LessonSettings):
        self.pool, self.vocabulary, self.settings = pool, vocabulary, settings
        shape = 3, pool.capacity // pool.settings.pairs, len(vocabulary.names)
        self.families, self.edits, self.parameters = torch.zeros(shape, dtype=torch.half, device=pool.device)
        self.known = 0

    def refresh(self) -> None:
        """Learn what can be told about the tasks that came into the pool."""
        new = self.pool.tasks[self.known :]
        here = slice(self.known, len(self.pool.tasks))
        kinds = (self.families, families_of), (self.edits, edits_of), (self.parameters, parameters_of)
        for spelled, about in kinds:
            spelled[here] = self.vocabulary.spell([about(task) for task in new]).to(spelled)
        self.known = len(self.pool.tasks)

    def canvases(self, count: int, generator: torch.Generator) -> Lessons:
        """Analogies."""
        settings, device = self.settings, self.pool.device
        examples, answers, tasks = self.pool.analogies(count, generator)
        coin, trust = torch.rand(2, count, generator=generator, device=device)
        strange = torch.randint(len(self.pool), (count,), generator=generator, device=device)
        edit, told = coin < settings.told_edit, coin < settings.told_edit + settings.told_family
        examples = torch.where(told | (trust < settings.untold_right), examples, strange)
        spelled = self._nothing(count) + told[:, None] * self.families[tasks] + edit[:, None] * self.edits[tasks]
        return Lessons(examples, answers, spelled.float(), told.float())

    def images(self, count: int, generator: torch.Generator) -> Lessons:
        """Edits of images alone."""
        _, answers, tasks = self.pool.analogies(count, generator)
        coin = torch.rand(count, generator=generator, device=self.pool.device)
        spelled = self._nothing(count) + self.families[tasks] + self.edits[tasks]
        spelled = spelled + (coin < self.settings.alone_told_parameters)[:, None] * self.parameters[tasks]
        return Lessons(answers, answers, spelled.float(), torch.ones(count, device=self.pool.device))

    def _nothing(self, count: int) -> Tensor:
        spelled = self.families.new_zeros(count, len(self.vocabulary.names))
        spelled[:, self.vocabulary.numbers[NOTHING]] = 1
        return spelled
