"""Refining, on a model whose loss and best coefficients are known."""

from dataclasses import replace

import pytest
import torch

from lorweb_core import MixingCoefficients
from lorweb_core.refine import (
    Settings,
    in_coefficients,
    in_logits,
    in_query,
    refine,
    refine_pairs,
    settings_for,
    surely_less,
)
from lorweb_core.tasks import Pair, changes, from_one, leave_one_out

LAYERS = ("first", "second")


def settled(**settings):
    """Four draws a step and four for the judge, which asks every fifth step, for losses that are made up."""
    return Settings(**{"steps": 30, "draws": 4, "rate": 0.2, "every": 5, "judged": 4, "joining": 0, **settings})


def coefficients(logits, softmax=True):
    values = torch.tensor(logits).softmax(-1) if softmax else torch.tensor(logits).tanh()
    return MixingCoefficients(values, LAYERS, softmax)


GUESS = coefficients([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
BEST = coefficients([[2.0, 0.0, -1.0], [0.0, 1.0, 0.0]])


def pair(seed, shape=(8, 8, 3)):
    generator = torch.Generator().manual_seed(seed)
    return Pair(*(torch.rand(shape, generator=generator) for _ in range(2)))


class Quadratic:
    """The loss is the distance from coefficients that are best for a task, and noise by the seed."""

    def __init__(self, best, noise=0.0):
        self.best, self.noise = best, noise

    def losses(self, values, tasks, seed):
        generator = torch.Generator().manual_seed(seed + 1000)
        noise = 1 + self.noise * torch.randn(len(tasks), generator=generator)
        return noise * torch.stack([(values - self.best(task)).square().sum() for task in tasks])

    def answer(self, values, example, picture):
        return 1 - picture


def to_the_best(task):
    return BEST.values


@pytest.fixture
def tasks():
    return leave_one_out([pair(0), pair(1), pair(2)], GUESS.values, Quadratic(to_the_best))


def test_it_finds_the_coefficients_that_the_tasks_call_for(tasks):
    settings = settled(steps=100, rate=0.1, patience=60)
    refined = refine(GUESS, Quadratic(to_the_best, 0.1), tasks.fitted, tasks.held_out, settings)
    assert torch.allclose(refined.coefficients.values, BEST.values, atol=0.02)
    assert torch.allclose(refined.coefficients.values.sum(-1), torch.ones(2))
    assert refined.coefficients.layers == LAYERS and refined.step and refined.gain > 0.99
    assert "fell by" in refined.report()


def test_the_same_seed_gives_the_same_edit(tasks):
    runs = [
        refine(GUESS, Quadratic(to_the_best, 0.5), tasks.fitted, tasks.held_out, settled(steps=5, seed=seed))
        for seed in (1, 1, 2)
    ]
    values = [refined.coefficients.values for refined in runs]
    assert torch.equal(values[0], values[1]) and runs[0].history[1:] == runs[1].history[1:]


def test_it_works_inside_inference_mode(tasks):
    with torch.inference_mode():
        refined = refine(GUESS.mean(), Quadratic(to_the_best), tasks.fitted, tasks.held_out, settled(steps=5))
    assert refined.step == 5 and not refined.coefficients.values.requires_grad


def test_the_guess_is_kept_where_the_judge_prefers_it(tasks):
    """What is fitted calls for another edit than what is held out."""
    (held_out,) = {task.answer for task in tasks.held_out}

    def best(task):
        return GUESS.values if task.answer is held_out else BEST.values

    refined = refine(GUESS, Quadratic(best), tasks.fitted, tasks.held_out, settled(steps=60, patience=2))
    assert refined.kept_guess and torch.equal(refined.coefficients.values, GUESS.values)
    assert refined.history[-1].step == 10, "it stops when two judgements in a row brought nothing better"
    assert "the guess was kept" in refined.report() and refined.gain == 0


def test_the_best_by_the_judge_comes_out_not_the_last(tasks):
    (held_out,) = {task.answer for task in tasks.held_out}
    half = in_logits(GUESS).start * 0.5 + in_logits(BEST).start * 0.5

    def best(task):
        return half.softmax(-1) if task.answer is held_out else BEST.values

    refined = refine(GUESS, Quadratic(best), tasks.fitted, tasks.held_out, settled(steps=60, patience=60))
    losses = {record.step: record.held_out for record in refined.history}
    assert 0 < refined.step < 60 and losses[refined.step] == min(losses.values())


def of_the_held_out(tasks, values):
    """A model whose best coefficients are others for what is held out."""
    (held_out,) = {task.answer for task in tasks.held_out}
    return Quadratic(lambda task: values if task.answer is held_out else BEST.values)


def test_what_was_held_out_joins_once_the_best_is_known(tasks):
    aside = coefficients([[2.0, 0.0, -1.0], [0.5, 0.5, 2.0]]).values
    model, settings = of_the_held_out(tasks, aside), settled(steps=100, rate=0.05, patience=60)
    alone, joined = (
        refine(GUESS, model, tasks.fitted, tasks.held_out, replace(settings, joining=joining)) for joining in (0, 0.8)
    )
    assert joined.step == alone.step and joined.history[1:] == alone.history[1:]
    assert (alone.joined, joined.joined) == (0, 80) and "; 80 more steps fitted that, too" in joined.report()
    distance = [(refined.coefficients.values - aside).norm() for refined in (alone, joined)]
    assert distance[1] < 0.9 * distance[0]


def test_joining_is_undone_where_the_judge_likes_it_less(tasks):
    passed = refine(GUESS, Quadratic(to_the_best), tasks.fitted, tasks.held_out, settled(steps=10)).coefficients.values
    model = of_the_held_out(tasks, passed)
    alone, undone = (
        refine(GUESS, model, tasks.fitted, tasks.held_out, settled(steps=60, patience=60, joining=joining))
        for joining in (0, 1.5)
    )
    assert undone.joined == 0 and torch.equal(undone.coefficients.values, alone.coefficients.values)


def test_it_stops_when_told_to_with_the_best_so_far(tasks):
    steps = []

    def stop(record):
        steps.append(record.step)
        return record.step < 10

    settings = settled(steps=50, rate=0.05, joining=0.4)
    refined = refine(GUESS, Quadratic(to_the_best), tasks.fitted, tasks.held_out, settings, on_record=stop)
    assert steps == [0, 5, 10] and (refined.step, refined.joined) == (10, 0)


def test_a_tie_keeps_it_near_the_guess(tasks):
    far, near = (
        refine(GUESS, Quadratic(to_the_best), tasks.fitted, tasks.held_out, settled(steps=40, tie=tie)).coefficients
        for tie in (0.0, 5.0)
    )
    distance = [(c.values - GUESS.values).norm() for c in (far, near)]
    assert 0 < distance[1] < 0.7 * distance[0]


def test_a_share_of_the_guess_is_kept(tasks):
    settings = settled(steps=150, rate=0.1, patience=60, keep=0.25)
    refined = refine(GUESS, Quadratic(to_the_best), tasks.fitted, tasks.held_out, settings)
    assert torch.allclose(refined.coefficients.values, 0.75 * BEST.values + 0.25 * GUESS.values, atol=0.1)
    assert refined.step, "and the judge still prefers it to the guess"


def test_one_pair_keeps_half_of_the_guess_and_tells_of_its_changes():
    inverted = Pair(pair(3).before, 1 - pair(3).before)
    refined = refine_pairs(GUESS, Quadratic(to_the_best), [inverted], settled(steps=100, rate=0.05, patience=60))
    assert torch.allclose(refined.coefficients.values, 0.5 * BEST.values + 0.5 * GUESS.values, atol=0.02)
    assert set(refined.allowed) == set(changes(inverted)) and "mirrored" in refined.report()
    several = refine_pairs(GUESS, Quadratic(to_the_best), [inverted, pair(4)], settled(steps=2))
    assert several.allowed is None
    with pytest.raises(ValueError, match="at least one example pair"):
        refine_pairs(GUESS, Quadratic(to_the_best), [])


def test_a_loss_that_is_not_finite_is_refused(tasks):
    def model(spoilt):
        return Quadratic(lambda task: BEST.values * (float("nan") if any(task is one for one in spoilt) else 1.0))

    for spoilt, which in ((tasks.fitted, "at step 1"), (tasks.held_out, "judged by")):
        with pytest.raises(ValueError, match=f"{which} is not finite; refine at a higher precision"):
            refine(GUESS, model(spoilt), tasks.fitted, tasks.held_out)


@pytest.mark.parametrize("settings", [{"steps": 0}, {"rate": 0.0}, {"tie": -1.0}, {"keep": 1.0}, {"joining": -1.0}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        Settings(**settings)


def test_logits_start_at_the_guess_and_keep_the_total_of_a_layer():
    guess = MixingCoefficients(torch.tensor([[0.5, 0.0, 1.0], [0.2, 0.2, 0.0]]), LAYERS)
    space = in_logits(guess)
    assert torch.allclose(space.values(space.start), guess.values, atol=1e-5)
    moved = space.start + torch.tensor([1.0, 2.0, -1.0])
    assert torch.allclose(space.values(moved).sum(-1), torch.tensor([1.5, 0.4]))
    assert space.distance(space.start).abs() < 1e-6
    p, q = moved.softmax(-1), space.start.softmax(-1)
    assert torch.allclose(space.distance(moved), (p * (p / q).log()).sum(-1).mean())


def test_logits_of_tanh_are_its_inverse():
    guess = coefficients([[-2.0, 0.5, 0.0]] * 2, softmax=False)
    space = in_logits(guess)
    assert torch.allclose(space.start, torch.tensor([[-2.0, 0.5, 0.0]] * 2), atol=1e-5)
    assert torch.allclose(space.values(space.start + 1), (space.start + 1).tanh())
    assert space.distance(space.start + 2) == pytest.approx(4)


@pytest.mark.parametrize("guess", [coefficients([[0.5] * 3] * 2, False), GUESS])
def test_what_are_no_shares_moves_freely(guess):
    guess = guess.override([("first", 0, -1.5)])
    space = in_logits(guess)
    assert torch.equal(space.values(space.start), guess.values)
    assert torch.equal(space.values(space.start - 1), guess.values - 1)
    assert space.distance(space.start - 1) == in_coefficients(guess).distance(space.start - 1) == pytest.approx(1)


def test_a_query_is_moved_through_the_bank(tasks):
    weight = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    space = in_query(torch.ones(4), lambda z: (z @ weight.T).unflatten(-1, (2, 3)).softmax(-1))
    guess = MixingCoefficients(space.values(space.start), LAYERS)
    settings = settled(steps=60, patience=60)
    refined = refine(guess, Quadratic(to_the_best), tasks.fitted, tasks.held_out, settings, space)
    assert refined.gain > 0.5


def test_surely_less_asks_for_more_than_the_noise():
    losses = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert surely_less(losses - 0.1, losses, 2.0)
    assert not surely_less(losses + torch.tensor([0.5, -0.6, 0.5, -0.6]), losses, 1.0)
    assert not surely_less(losses, losses, 0.0)


class Known:
    """Losses of answers that are known, whatever the coefficients and the example."""

    def __init__(self, pairs, losses):
        self.known = {id(pair): loss for pair, loss in zip(pairs, losses)}

    def losses(self, values, tasks, seed):
        return torch.tensor([float(self.known[id(task.answer)]) for task in tasks])


@pytest.mark.parametrize(
    ("losses", "judge"), [([3.0, 1.0], 0), ([1.0, 3.0, 2.0], 2), ([0.1, 9.0, 2.0, 3.0], 3), ([5, 4, 3, 2, 1, 0], 2)]
)
def test_pairs_answer_each_other_and_one_that_is_neither_easiest_nor_hardest_judges(losses, judge):
    pairs = [pair(seed) for seed in range(len(losses))]
    tasks = leave_one_out(pairs, GUESS.values, Known(pairs, losses))
    assert all(task.example is not task.answer for task in tasks.fitted + tasks.held_out)
    assert {id(task.answer) for task in tasks.held_out} == {id(pairs[judge])}
    others = min(3, len(pairs) - 1)
    assert len({id(task.example) for task in tasks.held_out}) == len(tasks.held_out) == others
    answers = [id(task.answer) for task in tasks.fitted]
    assert all(answers.count(id(one)) == others * (one is not pairs[judge]) for one in pairs)


def test_one_pair_is_no_pairs():
    with pytest.raises(ValueError, match="at least two"):
        leave_one_out([pair(0)], GUESS.values, Quadratic(to_the_best))


def test_a_single_pair_takes_half_the_steps():
    assert settings_for(2, Settings(steps=5)) == Settings(steps=5)
    assert Settings().joined == 16 and Settings(steps=1).joined == 0
    assert settings_for(1, Settings(steps=32, patience=4)) == Settings(steps=16, patience=2, keep=0.5, joining=0)
    assert settings_for(1, Settings(steps=1, patience=1)) == Settings(steps=1, patience=1, keep=0.5, joining=0)


def test_a_single_pair_is_never_its_own_example():
    """The edit inverts a picture but for a mark that stays on the left, so no change that moves it is allowed."""
    before = pair(3).before
    left = torch.zeros(8, 8, 1)
    left[:, :4] = 1

    class Marking(Quadratic):
        def losses(self, values, tasks, seed):
            wanted = [(1 - task.answer.before) * (1 - left) for task in tasks]
            return torch.stack([(t.answer.after - w).square().mean() + 1e-3 for t, w in zip(tasks, wanted)])

        def answer(self, values, example, picture):
            return (1 - picture) * (1 - left)

    own = Pair(before, (1 - before) * (1 - left))
    tasks = from_one(own, GUESS.values, Marking(to_the_best), [pair(4).before])
    assert "upside down" in tasks.allowed and "mirrored" not in tasks.allowed and "turned left" not in tasks.allowed
    for task in tasks.fitted:
        assert not any(x is y for x in task.example for y in task.answer)
    made_up = tasks.fitted[0]
    assert torch.equal(made_up.answer.after, own.after)
    assert torch.equal(made_up.example.after, (1 - pair(4).before) * (1 - left))


def test_changes_keep_the_shape_and_quarter_turns_are_for_squares():
    for shape, number in (((8, 8, 3), 9), ((8, 12, 3), 7)):
        found = changes(pair(0, shape))
        assert len(found) == number
        assert all(change(pair(0, shape).before).shape == shape for change in found.values())
    turned = changes(pair(0))["turned left"](pair(0).before)
    assert torch.equal(turned, torch.rot90(pair(0).before, 1, (0, 1)))
