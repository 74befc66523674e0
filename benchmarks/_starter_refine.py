"""Refining on the starter: what fitting the coefficients to one and to four example pairs brings, and where."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from lorweb_core.refine import Refined, Settings, in_coefficients, in_logits, in_query, refine, refine_pairs
from lorweb_core.tasks import Pair, Task
from training.data import AnalogyDataset, load_quadrant
from training.data.layouts import CANVAS
from training.device import pick_device
from training.evaluate import COPY
from training.judge.intervals import mean, share
from training.judge.metrics import fidelity
from training.refine import TunedModel

from ._starter_setting import SETS, SHIPPED, Setting, family_of

PAIRS, MOST, FEWER = 4, 200, 30
FRESH = 100  # analogies after those, by which nothing about refining was chosen
MEASURED = (SETS[1], SETS[0])
GUESS, MEAN, ONE = "the guess, 1 pair", f"mean of the guesses, {PAIRS} pairs", "refined, 1 pair"
LOGITS, TIED = f"refined, {PAIRS} pairs", f"refined in logits with a tie, {PAIRS} pairs"
FREE, QUERY = f"refined in coefficients, {PAIRS} pairs", f"refined in the query, {PAIRS} pairs"
ORACLE = "oracle, fitted to b and the true b'"
MAIN = (COPY, GUESS, ONE, MEAN, LOGITS, ORACLE)
# Other ways to refine several pairs, measured on fewer analogies.
WAYS = (TIED, FREE, QUERY)
# Refined arms -> what they are better or worse than.
_BEGUN_FROM = {ONE: GUESS, **dict.fromkeys((LOGITS, *WAYS), MEAN)}
_WORSE = 0.5  # dB

FIT = Settings()
_TIE = 0.1


@dataclass(frozen=True)
class Answer:
    """What one arm made of one analogy.

    Attributes:
        number: of the analogy in its set. task: that it shows.
        psnr: of b' in dB. seconds: of the processor, for the fit. kept: whether the guess was.
    """

    number: int
    task: str
    arm: str
    psnr: float
    seconds: float = 0.0
    kept: bool = False


Table = dict[int, dict[str, Answer]]  # number of the analogy -> arm -> answer


def refining(setting: Setting) -> None:
    """Guess, mean of guesses, refined and oracle, on edits that were never trained and on trained ones."""
    setting = replace(setting, overrides=(*setting.overrides, "objective.canvas_weight=0"))
    model = TunedModel(setting.config(), setting.bank(SHIPPED), pick_device())
    for name in MEASURED:
        first = range(min(setting.analogies, MOST))
        asked = {number: (*MAIN, *WAYS) if number < FEWER else MAIN for number in first}
        found = answers(setting, model, name, asked)
        facts = [asdict(answer) for arms in found.values() for answer in arms.values()]
        setting.report(
            f"refining-{name}", f"Refining on {name}: {len(found)} analogies", HEADER, rows(found, MAIN), facts
        )
        report_families(setting, name, found)
        few = {number: arms for number, arms in found.items() if set(WAYS) <= set(arms)}
        title = f"Ways to refine on {name}: {len(few)} analogies"
        setting.report(f"refining-ways-{name}", title, HEADER, rows(few, (*MAIN, *WAYS)), None)
    report_fresh(setting, model, MEASURED[0])


def report_fresh(setting: Setting, model: TunedModel, name: str) -> None:
    """What refining brings on further analogies of a set."""
    numbers = range(MOST, min(setting.analogies, MOST + FRESH))
    if numbers:
        found = answers(setting, model, name, dict.fromkeys(numbers, (COPY, MEAN, LOGITS)))
        title = f"Refining on {name}: {len(found)} further analogies"
        setting.report(f"refining-fresh-{name}", title, HEADER, rows(found, (COPY, MEAN, LOGITS)), None)


def answers(setting: Setting, model: TunedModel, name: str, asked: Mapping[int, Sequence[str]]) -> Table:
    """The answers of a set. Each is written down as it comes, so that a run that was ended goes on where it was.

    Args:
        asked: number of an analogy -> arms.
    """
    path = setting.run / "results" / f"refining-{name}.jsonl"
    found, dataset = read(path), setting.dataset(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for number, arms in tqdm(asked.items(), desc=name, unit="analogy"):
            there = found.setdefault(number, {})
            missing = [arm for arm in arms if arm not in there]
            for answer in measure(model, dataset, number, missing) if missing else ():
                there[answer.arm] = answer
                file.write(json.dumps(asdict(answer)) + "\n")
                file.flush()
    return {number: found[number] for number in asked}


def read(path: Path) -> Table:
    """The answers of an earlier run."""
    found: Table = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        answer = Answer(**json.loads(line))
        found.setdefault(answer.number, {})[answer.arm] = answer
    return found


def measure(model: TunedModel, dataset: AnalogyDataset, number: int, wanted: Sequence[str]) -> Iterator[Answer]:
    """Arms on one analogy of a set; the pairs of its task that stand in for its own are drawn with it."""
    item, pairs = dataset[number], example_pairs(dataset, number)
    b, truth = item["b"], CANVAS.answer(item["target"])
    makers = {COPY: None, **arms(model, pairs, b, truth)}
    for arm in wanted:
        if arm == COPY:
            yield Answer(number, item["task"], COPY, fidelity(truth, b)["psnr"])
            continue
        start = time.process_time()
        made = makers[arm]()
        seconds = time.process_time() - start
        refined = made.coefficients if isinstance(made, Refined) else made
        psnr = fidelity(truth, model.answer(refined.values, pairs[0], b, number))["psnr"]
        yield Answer(number, item["task"], arm, psnr, seconds, isinstance(made, Refined) and made.kept_guess)


def example_pairs(dataset: AnalogyDataset, number: int) -> list[Pair]:
    """Pairs of an analogy's task, its own example first."""
    own = dataset.sampler[number].example
    return [
        Pair(*(load_quadrant(image, dataset.geometry, dataset.fit) for image in (pair.before, pair.after)))
        for pair in sorted(dataset.sampler.examples(number, PAIRS), key=lambda pair: pair != own)
    ]


def arms(model: TunedModel, pairs: list[Pair], b: Tensor, truth: Tensor) -> dict[str, Callable]:
    """Arm -> what makes its coefficients; the query begins with the mean query's guess."""
    queries = torch.cat([model.query(pair, b) for pair in pairs])
    guess, middle, query = model.bank.mix(queries[0]), model.bank.mix(queries).mean(), queries.mean(0)
    shown, several = [Task(pairs[0], Pair(b, truth))], partial(refine_pairs, model=model, pairs=pairs, pictures=[b])
    return {
        GUESS: lambda: guess,
        MEAN: lambda: middle,
        ONE: partial(refine_pairs, guess, model, pairs[:1], FIT, [b]),
        LOGITS: partial(several, middle, settings=FIT),
        TIED: partial(several, middle, settings=replace(FIT, tie=_TIE), space=in_logits(middle)),
        FREE: partial(several, middle, settings=FIT, space=in_coefficients(middle)),
        QUERY: partial(several, model.bank.mix(query), settings=FIT, space=in_query(query, model.bank.values)),
        ORACLE: partial(refine, guess, model, shown, shown, replace(FIT, patience=FIT.steps, joining=0)),
    }


HEADER = ("who", "PSNR (dB)", "nearer than b", "dB over its start", f"worse by {_WORSE} dB", "kept", "seconds")


def rows(found: Table, arms: Sequence[str]) -> list[tuple]:
    """The table of some analogies, arm by arm."""
    return [(arm, *_row(arm, list(found.values()))) for arm in arms]


def _row(arm: str, found: list[dict[str, Answer]]) -> tuple:
    psnr = f"{mean([answers[arm].psnr for answers in found]):.2f}"
    if arm == COPY:
        return psnr, "–", "–", "–", "–", "–"
    nearer = f"{share([answers[arm].psnr > answers[COPY].psnr for answers in found]):.1%}"
    if arm not in _BEGUN_FROM:
        return psnr, nearer, "–", "–", "–", f"{_average(a[arm].seconds for a in found):.1f}"
    gains = [answers[arm].psnr - answers[_BEGUN_FROM[arm]].psnr for answers in found]
    worse, kept = share([gain < -_WORSE for gain in gains]), _average(a[arm].kept for a in found)
    seconds = _average(a[arm].seconds for a in found)
    return psnr, nearer, f"{mean(gains):+.2f}", f"{worse:.1%}", f"{kept:.0%}", f"{seconds:.1f}"


def _average(values: Iterator[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)


def report_families(setting: Setting, name: str, found: Table) -> None:
    """What refining brings by family of edits."""
    groups: dict[str, list[dict[str, Answer]]] = {}
    for answers in found.values():
        groups.setdefault(family_of(answers[COPY].task), []).append(answers)
    table = [
        (family, len(group), *(f"{_average(answers[arm].psnr for answers in group):.2f}" for arm in MAIN))
        for family, group in sorted(groups.items())
    ]
    title = f"Refining on {name} by family: PSNR in dB"
    setting.report(f"refining-families-{name}", title, ("family", "analogies", *MAIN), table, None)
