"""Refining on the starter: what fitting the coefficients to one and to four example pairs brings, and where."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial

import torch
from torch import Tensor
from tqdm import tqdm

from lorweb_core import MixingCoefficients
from lorweb_core.refine import Refined, Settings, in_coefficients, in_logits, in_query, refine, refine_pairs
from lorweb_core.tasks import Pair, Task
from training.data import AnalogyDataset, load_quadrant
from training.device import pick_device
from training.evaluate import COPY
from training.judge.intervals import mean, share
from training.judge.metrics import fidelity
from training.refine import TunedModel
from training.run.validation import answer_of

from ._starter_setting import SETS, SHIPPED, Setting, family_of

PAIRS, MOST = 4, 200
MEASURED = (SETS[1], SETS[0])
GUESS, MEAN, ONE = "the guess, 1 pair", f"mean of the guesses, {PAIRS} pairs", "refined, 1 pair"
LOGITS, TIED = f"refined in logits, {PAIRS} pairs", f"refined in logits with a tie, {PAIRS} pairs"
FREE, QUERY = f"refined in coefficients, {PAIRS} pairs", f"refined in the query, {PAIRS} pairs"
ORACLE = "oracle, fitted to b and the true b'"
# Refined arms -> what they are better or worse than.
_BEGUN_FROM = {ONE: GUESS, LOGITS: MEAN, TIED: MEAN, FREE: MEAN, QUERY: MEAN}
_WORSE = 0.5  # dB

FIT = Settings()
_TIE = 0.1


@dataclass
class Analogy:
    """What every arm made of one analogy: PSNR in dB; seconds of the fits; arms that kept the guess."""

    task: str
    psnr: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    kept: list[str] = field(default_factory=list)


def refining(setting: Setting) -> None:
    """Guess, mean of guesses, refined and oracle, on edits that were never trained and on trained ones."""
    setting = replace(setting, overrides=(*setting.overrides, "objective.canvas_weight=0"))
    model = TunedModel(setting.config(), setting.bank(SHIPPED), pick_device())
    for name in MEASURED:
        dataset, count = setting.dataset(name), min(setting.analogies, MOST)
        found = [measure(model, dataset, number) for number in tqdm(range(count), desc=name, unit="analogy")]
        header = ("who", "PSNR (dB)", "nearer than b", "dB over its start", f"worse by {_WORSE} dB", "kept", "seconds")
        title = f"Refining on {name}: {count} analogies"
        setting.report(f"refining-{name}", title, header, list(rows(found)), list(map(asdict, found)))
        report_families(setting, name, found)


def measure(model: TunedModel, dataset: AnalogyDataset, number: int) -> Analogy:
    """Every arm on one analogy of a set; the pairs of its task that stand in for its own are drawn with it."""
    item, analogy = dataset[number], dataset.sampler[number]
    b, truth = item["b"], answer_of(item["target"])
    pairs = [
        Pair(*(load_quadrant(image, dataset.geometry, dataset.fit) for image in (pair.before, pair.after)))
        for pair in sorted(dataset.sampler.examples(number, PAIRS), key=lambda pair: pair != analogy.example)
    ]
    found = Analogy(item["task"], {COPY: fidelity(truth, b)["psnr"]})

    def judge(arm: str, values: Tensor) -> None:
        found.psnr[arm] = fidelity(truth, model.answer(values, pairs[0], b, number))["psnr"]

    for arm, make in arms(model, pairs, b, truth):
        start = time.perf_counter()
        refined = make()
        found.seconds[arm] = time.perf_counter() - start
        judge(arm, refined.coefficients.values if isinstance(refined, Refined) else refined.values)
        found.kept += [arm] if isinstance(refined, Refined) and refined.kept_guess else []
    return found


def arms(model: TunedModel, pairs: list[Pair], b: Tensor, truth: Tensor) -> Iterator[tuple[str, Callable]]:
    """(arm, what makes its coefficients)."""
    queries = torch.cat([model.query(pair, b) for pair in pairs])
    guess, middle = model.bank.mix(queries[0]), model.bank.mix(queries).mean()
    yield GUESS, lambda: guess
    yield MEAN, lambda: middle
    yield ONE, lambda: refine_pairs(guess, model, pairs[:1], FIT, [b])
    for arm, (start, space, settings) in several(model, queries, middle).items():
        yield arm, partial(refine_pairs, start, model, pairs, settings, [b], space=space)
    shown = [Task(pairs[0], Pair(b, truth))]
    yield ORACLE, lambda: refine(guess, model, shown, shown, replace(FIT, patience=FIT.steps))


def several(model: TunedModel, queries: Tensor, middle: MixingCoefficients) -> dict[str, tuple]:
    """Arm of several pairs -> its guess, what it moves, its settings; the query begins with the mean query's guess."""
    query = queries.mean(0)
    return {
        LOGITS: (middle, in_logits(middle), FIT),
        TIED: (middle, in_logits(middle), replace(FIT, tie=_TIE)),
        FREE: (middle, in_coefficients(middle), FIT),
        QUERY: (model.bank.mix(query), in_query(query, model.bank.values), FIT),
    }


def rows(found: list[Analogy]) -> Iterator[tuple]:
    """The table, arm by arm."""
    for arm in found[0].psnr:
        psnr = [analogy.psnr[arm] for analogy in found]
        nearer = "–" if arm == COPY else f"{share([a.psnr[arm] > a.psnr[COPY] for a in found]):.1%}"
        gains = [a.psnr[arm] - a.psnr[_BEGUN_FROM[arm]] for a in found] if arm in _BEGUN_FROM else []
        duel = (f"{mean(gains):+.2f}", f"{share([gain < -_WORSE for gain in gains]):.1%}") if gains else ("–", "–")
        kept = f"{share([arm in a.kept for a in found]).value:.0%}" if gains else "–"
        seconds = [a.seconds[arm] for a in found] if arm in found[0].seconds else []
        yield arm, f"{mean(psnr):.2f}", nearer, *duel, kept, f"{sum(seconds) / len(seconds):.1f}" if seconds else "–"


def report_families(setting: Setting, name: str, found: list[Analogy]) -> None:
    """What refining brings by family of edits."""
    table = []
    for family in sorted({family_of(analogy.task) for analogy in found}):
        group = [analogy for analogy in found if family_of(analogy.task) == family]
        means = (sum(a.psnr[arm] for a in group) / len(group) for arm in (COPY, GUESS, ONE, MEAN, LOGITS, ORACLE))
        table.append((family, len(group), *(f"{value:.2f}" for value in means)))
    header = ("family", "analogies", COPY, GUESS, ONE, MEAN, LOGITS, ORACLE)
    setting.report(f"refining-families-{name}", f"Refining on {name} by family: PSNR in dB", header, table, None)
