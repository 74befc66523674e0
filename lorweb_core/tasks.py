"""What an edit can be fitted to and judged by: analogies with known answers, made of its example pairs.

Several pairs answer each other. A single pair cannot be its own example, which would show the answer. Its example is
made up instead: the model edits another picture, and that picture and its edit are the example for answering a with a'.
Changed copies of the pair (mirrored, turned, enlarged) serve too, but only those that this very edit allows: a badge in
a corner does not turn with the picture, a tint does. The model says which, by its loss under the guess.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F


class Pair(NamedTuple):
    """A picture before and after the edit, [H, W, 3] each in 0..1."""

    before: Tensor
    after: Tensor


class Task(NamedTuple):
    """An analogy whose answer is known."""

    example: Pair
    answer: Pair


class Model(Protocol):
    """What refining needs of a model with a basis on it."""

    def losses(self, values: Tensor, tasks: Sequence[Task], seed: int) -> Tensor:
        """The flow loss of the b' quadrant of every task: [tasks], differentiable in the coefficients [L, N].

        Args:
            seed: of noise and timesteps, which are the same for the same seed and place.
        """
        ...

    def answer(self, values: Tensor, example: Pair, picture: Tensor) -> Tensor:
        """What the model makes of a picture [H, W, 3]: b' [H, W, 3]."""
        ...


@dataclass(frozen=True)
class Tasks:
    """What a fit sees, and what it is judged by.

    Attributes:
        allowed: for a single pair, the changes of it that the edit allows. Without any there is nothing to hold out,
            and the judge sees what is fitted, with noise of its own.
    """

    fitted: list[Task]
    held_out: list[Task]
    allowed: tuple[str, ...] = ()


# Examples for an answer: with each for each, thirty pairs would make nearly a thousand tasks.
_EXAMPLES = 3


def answered(pairs: Sequence[Pair]) -> list[list[Task]]:
    """For every pair, the tasks that it is the answer of: with the next ones as examples, all others of four pairs."""
    count, most = len(pairs), min(_EXAMPLES, len(pairs) - 1)
    return [[Task(pairs[(n + i) % count], answer) for i in range(1, most + 1)] for n, answer in enumerate(pairs)]


def leave_one_out(pairs: Sequence[Pair], values: Tensor, model: Model, draws: int = 2) -> Tasks:
    """Every pair but one answered with others as its example; the judge asks for that one.

    It is the pair in the middle by the loss under the guess. A pair that the edit hardly changes is answered by any
    guess, so it would prefer the guess to every fit; and one that nothing answers would tell nothing apart.

    Args:
        values: coefficients of the guess.
        draws: of noise, for these losses.

    Raises:
        ValueError: for fewer than two pairs.
    """
    if len(pairs) < 2:
        raise ValueError("leaving one out takes at least two pairs")
    tasks = answered(pairs)
    with torch.no_grad():
        losses = [sum(model.losses(values, asked, -1 - d).mean().item() for d in range(draws)) for asked in tasks]
    held_out = tasks.pop(sorted(range(len(pairs)), key=losses.__getitem__)[len(pairs) // 2])
    return Tasks([task for asked in tasks for task in asked], held_out)


Change = Callable[[Tensor], Tensor]

# Of pictures [H, W, 3]. Turns by a quarter are for square ones.
_FLIPS: Mapping[str, Change] = {
    "mirrored": lambda x: x.flip(1),
    "upside down": lambda x: x.flip(0),
    "turned by half": lambda x: x.flip(0, 1),
}
_TURNS: Mapping[str, Change] = {
    "turned left": lambda x: x.transpose(0, 1).flip(0),
    "turned right": lambda x: x.transpose(0, 1).flip(1),
}
_ZOOM = 0.75


def _enlarged(top: bool, left: bool) -> Change:
    def change(x: Tensor) -> Tensor:
        height, width = (round(_ZOOM * side) for side in x.shape[:2])
        part = (x[:height] if top else x[-height:])[:, slice(width) if left else slice(-width, None)]
        part = part.movedim(-1, 0)[None]
        return F.interpolate(part, x.shape[:2], mode="bilinear", antialias=True)[0].movedim(0, -1)

    return change


_ZOOMS: Mapping[str, Change] = {
    f"enlarged {'top' if top else 'bottom'} {'left' if left else 'right'}": _enlarged(top, left)
    for top, left in ((True, True), (False, False), (True, False), (False, True))
}


def changes(pair: Pair) -> dict[str, Change]:
    """Changes of a picture that may go with its edit, by name."""
    square = pair.before.shape[0] == pair.before.shape[1]
    return {**_FLIPS, **(_TURNS if square else {}), **_ZOOMS}


def from_one(
    pair: Pair, values: Tensor, model: Model, pictures: Sequence[Tensor] = (), slack: float = 0.25, draws: int = 4
) -> Tasks:
    """Tasks of a single pair: made-up examples, and those changes of the pair that the edit allows.

    Args:
        values: coefficients of the guess, with which the model makes the examples up and judges the changes.
        pictures: others to make examples of, such as the one to edit; without any, the pair's own, turned over.
        slack: a change is allowed when the changed pair's loss is above the pair's own by no more than this share.
        draws: of noise, for these losses.
    """
    pictures = list(pictures) or [pair.before.flip(0, 1)]
    with torch.no_grad():
        made_up = [Pair(picture, model.answer(values, pair, picture)) for picture in pictures]
        changed = {name: Pair(change(pair.before), change(pair.after)) for name, change in changes(pair).items()}
        asked = [Task(made_up[0], pair), *(Task(made_up[0], other) for other in changed.values())]
        losses = torch.stack([model.losses(values, asked, -1 - draw) for draw in range(draws)]).mean(0).tolist()
    allowed = [name for name, loss in zip(changed, losses[1:]) if loss <= (1 + slack) * losses[0]]
    judging = [name for name in allowed if name in _ZOOMS] or allowed[-1:]
    fitted = [Task(example, pair) for example in made_up]
    fitted += [Task(example, changed[name]) for name in allowed if name not in judging for example in (*made_up, pair)]
    held_out = [Task(pair, changed[name]) for name in judging]
    return Tasks(fitted, held_out or fitted, tuple(allowed))
