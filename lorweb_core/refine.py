"""Refining: the mixing coefficients of one edit, fitted to its example pairs before it is used. No weight changes.

The image encoder guesses the coefficients at a glance. Here the model is held, and the coefficients move so that the
flow loss on the examples falls, judged all along on what the fit does not see. No publication describes this; related
are test-time training with leave-one-out tasks (arXiv 2411.07279) and LoraHub (arXiv 2307.13269).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from .coefficients import MixingCoefficients
from .tasks import Model, Pair, Task, from_one, leave_one_out

# Shares are kept this far from 0, where their logits would be infinite and their gradients 0.
_SMALLEST = 1e-6


@dataclass(frozen=True)
class Space:
    """What is moved in place of the coefficients.

    Attributes:
        start: where the guess is.
        values: point -> coefficients [L, N], differentiable.
        distance: point -> how far it is from the guess, which the tie weighs.
        unit: what the rate of a fit is counted in.
    """

    start: Tensor
    values: Callable[[Tensor], Tensor]
    distance: Callable[[Tensor], Tensor]
    unit: float = 1.0


def in_logits(guess: MixingCoefficients) -> Space:
    """Logits whose softmax (or tanh) the coefficients are; the distance is a KL divergence per layer, in nats.

    Softmax shares keep each layer's total, so that scaled and blended guesses stay what they are. Of tanh coefficients
    the distance is the mean square. What was taken beyond both, as by extrapolation, is moved as it is.
    """
    values = guess.values.clone()
    if not guess.softmax and (values.abs() <= 1).all():
        start = values.clamp(_SMALLEST - 1, 1 - _SMALLEST).atanh()
        return Space(start, torch.tanh, lambda point: (point - start).square().mean())
    if not guess.softmax or (values < 0).any():
        return in_coefficients(guess)
    total = values.sum(-1, keepdim=True)
    start = (values / total.clamp_min(_SMALLEST)).clamp_min(_SMALLEST).log().log_softmax(-1)

    def divergence(point: Tensor) -> Tensor:
        logs = point.log_softmax(-1)
        return (logs.exp() * (logs - start)).sum(-1).mean()

    return Space(start, lambda point: point.softmax(-1) * total, divergence)


def in_coefficients(guess: MixingCoefficients) -> Space:
    """The coefficients themselves, free of every bound; the distance is their mean square."""
    start = guess.values.clone()
    return Space(start, lambda point: point, lambda point: (point - start).square().mean(), unit=0.1)


def in_query(query: Tensor, mix: Callable[[Tensor], Tensor]) -> Space:
    """The analogy query [q], from which the bank mixes; the distance is the mean square in units of the query's."""
    start = query.clone()
    power = start.square().mean()
    return Space(start, mix, lambda point: (point - start).square().mean() / power, unit=0.25 * power.sqrt().item())


@dataclass(frozen=True)
class Settings:
    """How to fit.

    Attributes:
        steps: at most. draws: tasks a step. rate: of Adam, in the space's unit.
        tie: weight of the distance from the guess, in units of the guess's held-out loss.
        keep: share of the guess in every result: what a single pair cannot tell stays as it was.
        every: steps between two judgements. patience: judgements without a better one before it stops.
        joining: so many of ``steps`` more, from the best on, in which what was held out is fitted too.
        judged: draws of noise for every task of the judge. margin: standard errors by which the judge must prefer the
            result to the guess.
        seed: of everything random.
    """

    steps: int = 32
    draws: int = 2
    rate: float = 0.4
    tie: float = 0.0
    keep: float = 0.0
    every: int = 4
    patience: int = 4
    joining: float = 0.5
    judged: int = 2
    margin: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "draws", "every", "patience", "judged"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not self.rate > 0 or not self.tie >= 0 or not 0 <= self.keep < 1 or not self.joining >= 0:
            raise ValueError(
                f"rate is {self.rate}, tie {self.tie}, joining {self.joining} and keep {self.keep}; expected above 0,"
                " at least 0, at least 0, and 0 to 1"
            )

    @property
    def joined(self) -> int:
        """Steps in which what was held out is fitted too."""
        return int(self.joining * self.steps)


class Record(NamedTuple):
    """A judgement: after how many steps, the mean loss of the steps since the last one, the loss held out."""

    step: int
    fitted: float
    held_out: float


@dataclass(frozen=True)
class Refined:
    """An edit, and how it came about.

    Attributes:
        coefficients: the refined ones, or the guess where the judge preferred nothing to it.
        step: that they are of, by the judge; 0 for the guess.
        history: the judgements, the guess's first.
        allowed: of a single pair, the changes that the edit allows; see ``tasks``.
        joined: steps after that, in which what was held out was fitted too.
        gain: by how much the held-out loss fell, as a share of the guess's.
    """

    coefficients: MixingCoefficients
    step: int
    history: tuple[Record, ...]
    allowed: tuple[str, ...] | None = None
    joined: int = 0

    @property
    def kept_guess(self) -> bool:
        return self.step == 0

    @property
    def record(self) -> Record:
        """The judgement of what came out."""
        return next(record for record in self.history if record.step == self.step)

    @property
    def gain(self) -> float:
        before = self.history[0].held_out
        return 1 - self.record.held_out / before if before > 0 else 0.0

    def report(self) -> str:
        """What happened, in a sentence."""
        if self.kept_guess:
            text = f"the guess was kept: {self.history[-1].step} steps brought nothing better on what was held out"
        else:
            text = f"refined in {self.step} steps: the loss on what was held out fell by {self.gain:.0%}"
            text += f"; {self.joined} more steps fitted that, too" if self.joined else ""
        if self.allowed is None:
            return text
        return f"{text}; of the single pair, the edit allows {', '.join(self.allowed) or 'no change'}"


def refine(
    guess: MixingCoefficients,
    model: Model,
    fitted: Sequence[Task],
    held_out: Sequence[Task],
    settings: Settings | None = None,
    space: Space | None = None,
    on_record: Callable[[Record], bool | None] | None = None,
) -> Refined:
    """Fit the coefficients to tasks, judged by others; the best by the judge is what comes out, the guess included.

    Args:
        guess: where it begins.
        space: what is moved; logits by default.
        on_record: told of every judgement; False stops there, with the best so far.

    Raises:
        ValueError: for a batch of coefficients, no tasks, or a loss that is not finite.
    """
    guess.require_single("Refining")
    if not fitted or not held_out:
        raise ValueError("refining needs tasks to fit and others to judge by")
    with torch.inference_mode(False), torch.enable_grad():
        # Values that were made in inference mode could not be part of a graph.
        guess = replace(guess, values=guess.values.detach().clone())
        return _Search(guess, model, fitted, held_out, settings or Settings(), space or in_logits(guess)).run(on_record)


# What a single pair tells of an edit is half of what it is taken to tell, and half of the steps find it out.
_OF_ONE = 0.5


def refine_pairs(
    guess: MixingCoefficients,
    model: Model,
    pairs: Sequence[Pair],
    settings: Settings | None = None,
    pictures: Sequence[Tensor] = (),
    on_record: Callable[[Record], bool | None] | None = None,
    space: Space | None = None,
) -> Refined:
    """Refine the edit that example pairs show: several answer each other, a single one is turned into tasks.

    Args:
        pictures: others, such as the one to edit, that a single pair has examples made up of.

    Raises:
        ValueError: for no pairs, and as ``refine``.
    """
    settings = settings_for(len(pairs), settings or Settings())
    guess.require_single("Refining")
    if not pairs:
        raise ValueError("refining needs at least one example pair")
    if len(pairs) > 1:
        tasks = leave_one_out(pairs, guess.values, model)
        return refine(guess, model, tasks.fitted, tasks.held_out, settings, space, on_record)
    tasks = from_one(pairs[0], guess.values, model, pictures)
    refined = refine(guess, model, tasks.fitted, tasks.held_out, settings, space, on_record)
    return replace(refined, allowed=tasks.allowed)


def settings_for(pairs: int, settings: Settings) -> Settings:
    """How to fit to so many pairs: several as the settings say, a single one, held out by changing it, by half."""
    if pairs > 1:
        return settings
    steps, patience = (max(1, round(_OF_ONE * number)) for number in (settings.steps, settings.patience))
    return replace(settings, keep=_OF_ONE, steps=steps, patience=patience, joining=0)


class _Found(NamedTuple):
    """Where a search has been: the losses of the judge there, and the coefficients."""

    step: int
    losses: Tensor
    values: Tensor
    point: Tensor


class _Search:
    """The state of one fit."""

    def __init__(self, guess, model: Model, fitted, held_out, settings: Settings, space: Space):
        self.guess, self.model, self.settings, self.space = guess, model, settings, space
        self.fitted, self.held_out = list(fitted), list(held_out)
        self.point = space.start.clone().requires_grad_()
        self.adam = torch.optim.Adam([self.point], lr=settings.rate * space.unit)
        self.random = random.Random(settings.seed)

    def run(self, on_record: Callable[[Record], bool | None] | None) -> Refined:
        guess = _Found(0, self.judge(self.guess.values), self.guess.values, self.space.start)
        history = [Record(0, float("nan"), guess.losses.mean().item())]
        best, go_on = self._best(guess, history, on_record)
        if not surely_less(best.losses, guess.losses, self.settings.margin):
            best = guess
        values = self._joined(best, guess) if best.step and go_on else None
        joined = 0 if values is None else self.settings.joined
        values = best.values if values is None else values
        return Refined(replace(self.guess, values=values), best.step, tuple(history), joined=joined)

    def _best(self, guess: _Found, history: list[Record], on_record) -> tuple[_Found, bool]:
        """The best by the judge, the guess included; whether nobody has ended the search."""
        best, recent, unit = guess, [], guess.losses.mean().item()
        if not _tell(on_record, history[0]):
            return best, False
        for step in range(1, self.settings.steps + 1):
            recent.append(self.step(step, unit))
            if step % self.settings.every and step < self.settings.steps:
                continue
            values = self.values()
            found = _Found(step, self.judge(values), values, self.point.detach().clone())
            history.append(Record(step, sum(recent) / len(recent), found.losses.mean().item()))
            recent = []
            if found.losses.mean() < best.losses.mean():
                best = found
            if not _tell(on_record, history[-1]):
                return best, False
            if (step - best.step) // self.settings.every >= self.settings.patience:
                break
        return best, True

    def _joined(self, best: _Found, guess: _Found) -> Tensor | None:
        """The best after more steps in which what was held out joins; None where it then fits that no better."""
        if not self.settings.joined:
            return None
        tasks, unit = [*self.fitted, *self.held_out], guess.losses.mean().item()
        search = _Search(self.guess, self.model, tasks, self.held_out, self.settings, self.space)
        search.point.data.copy_(best.point)
        for number in range(1, self.settings.joined + 1):
            search.step(self.settings.steps + number, unit)
        values = search.values()
        return values if self.judge(values).mean() < best.losses.mean() else None

    def step(self, number: int, unit: float) -> float:
        """One step of Adam; returns the loss before it."""
        tasks = self.random.choices(self.fitted, k=self.settings.draws)
        loss = self.model.losses(self.space.values(self.point), tasks, number).mean()
        _require_finite(loss, f"at step {number}")
        self.adam.zero_grad()
        (loss + self.settings.tie * unit * self.space.distance(self.point)).backward()
        self.adam.step()
        return loss.item()

    @torch.no_grad()
    def values(self) -> Tensor:
        """The coefficients where the fit is, with the share of the guess that is kept."""
        return torch.lerp(self.space.values(self.point), self.guess.values, self.settings.keep)

    @torch.no_grad()
    def judge(self, values: Tensor) -> Tensor:
        """Losses on what is held out, [draws * tasks], with the same noise every time."""
        # Seeds below 0 are those of no step.
        draws = range(-self.settings.judged, 0)
        losses = torch.cat([self.model.losses(values, self.held_out, seed).detach().cpu() for seed in draws])
        _require_finite(losses, "that the refined edit is judged by")
        return losses


def _require_finite(losses: Tensor, which: str) -> None:
    if not losses.isfinite().all():
        raise ValueError(
            f"the loss {which} is not finite; refine at a higher precision of the model, and see that prompt and"
            " pictures hold no NaN"
        )


def surely_less(losses: Tensor, than: Tensor, margin: float) -> bool:
    """Whether losses [n] are less than others of the same noise, by ``margin`` standard errors of the difference."""
    less = than - losses
    error = less.std() / len(less) ** 0.5 if len(less) > 1 else less.new_zeros(())
    return bool(less.mean() > margin * error)


def _tell(on_record: Callable[[Record], bool | None] | None, record: Record) -> bool:
    return on_record is None or on_record(record) is not False
