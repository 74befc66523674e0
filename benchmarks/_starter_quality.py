"""How near answers come to the true b': the shipped bank, its rivals, copying b, and what bounds them all."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from lorweb_core import BasisBank
from lorweb_core.checkpoint import BankFile
from training.data import AnalogyDataset, collate
from training.data.layouts import CANVAS
from training.evaluate import COPY, Evaluation
from training.judge.intervals import mean, ratio, share
from training.pictures.edits import TRAINING_EDITS
from training.pictures.recipe import edit_of

from ._starter_setting import LPIPS_VGG, SETS, SHIPPED, SINGLE, Setting, family_of

TOLD, DECODED = "the base, told the edit", "the true b', decoded"
ASKED = f"{SHIPPED}, asked for the edit from b to the true b'"
# The claims are about these two.
_CLAIMED = SETS[:2]
_ANSWERS = "nearer than b", "PSNR (dB)", "LPIPS", "LPIPS / copying b", "by VGG"
# Part of the starter -> what would be answered if this part, and those before it, made no mistake.
_BOUNDS = {"image encoder": ASKED, "bank": TOLD, "base": DECODED}
_CLOSE = 0.5  # dB
_DUEL = f"better than {SINGLE}", f"dB over {SINGLE}"


@dataclass(frozen=True)
class Analogy:
    """What every contestant made of one analogy: contestant -> metric -> value."""

    task: str
    answers: dict[str, dict[str, float | None]]


def quality(setting: Setting) -> None:
    """The shipped bank and the single LoRA against copying b, between what bounds them; one table a set."""
    evaluation = setting.evaluation(*setting.single)
    for name in SETS:
        count = setting.analogies if name in _CLAIMED else setting.fewer
        found = measure(evaluation, name, setting.dataset(name), count, bounded=True)
        report_contestants(setting, f"quality-{name}", f"{name}: {count} analogies", found)
        title = f"{name}: the shipped bank by family"
        report_groups(setting, f"families-{name}", title, "family", family_of, found)
        if TOLD in found[0].answers:
            report_misses(setting, name, found)


def report_contestants(setting: Setting, measured: str, title: str, found: list[Analogy]) -> None:
    """Everyone's answers, with every figure of every analogy kept in the report."""
    rows = [(who, *row) for who, row in contestants(found).items()]
    setting.report(measured, title, ("who", *_ANSWERS, *_DUEL), rows, list(map(asdict, found)))


def report_groups(
    setting: Setting, measured: str, title: str, column: str, group_of: Callable[[str], str], found: list[Analogy]
) -> None:
    """The shipped bank's answers by what ``group_of`` says of a task."""
    groups = {}
    for analogy in found:
        groups.setdefault(group_of(analogy.task), []).append(analogy)
    rows = [
        (
            group,
            len(members),
            *_answers(members, SHIPPED),
            *(f"{_average(members, who):.2f}" for who in (COPY, DECODED)),
        )
        for group, members in sorted(groups.items())
        if len(members) > 1
    ]
    header = (column, "analogies", *_ANSWERS, "PSNR of copying b (dB)", "PSNR of the decoded b' (dB)")
    setting.report(measured, title, header, rows, None)


def report_misses(setting: Setting, name: str, found: list[Analogy]) -> None:
    """Which part to better where the shipped bank is no nearer than b."""
    causes = [cause_of_miss(analogy) for analogy in found]
    rows = []
    for part in (*_BOUNDS, "autoencoder"):
        leads = [_lead(analogy, SHIPPED) for analogy, cause in zip(found, causes) if cause == part]
        rows.append((part, len(leads), _percent(cause == part for cause in causes), sum(x > -_CLOSE for x in leads)))
    header = ("part", "misses", "of all analogies", f"by less than {_CLOSE} dB")
    setting.report(f"misses-{name}", f"{name}: what the shipped bank's misses are due to", header, rows, None)


def cause_of_miss(analogy: Analogy) -> str | None:
    """The first part without whose faults the answer would be nearer than b; None where the shipped bank's is."""
    if _lead(analogy, SHIPPED) > 0:
        return None
    return next((part for part, bound in _BOUNDS.items() if _lead(analogy, bound) > 0), "autoencoder")


def ablations(setting: Setting) -> None:
    """The shipped bank and every rival: the number of basis LoRAs, their rank, softmax and tanh."""
    evaluation = setting.evaluation(*setting.banks)
    facts = {contestant.name: describe(contestant.bank) for contestant in evaluation.contestants}
    header = ("bank", "N", "rank", "activation", "parameters", "steps", *_ANSWERS, *_DUEL)
    for name in _CLAIMED:
        found = measure(evaluation, name, setting.dataset(name), setting.fewer)
        table = contestants(found)
        rows = [(bank, *facts[bank], *table[bank]) for bank in facts]
        title = f"Ablations on {name}: {setting.fewer} analogies"
        setting.report(f"ablations-{name}", title, header, rows, list(map(asdict, found)))


def describe(bank: BasisBank) -> tuple:
    """N, rank, activation, number of parameters and training steps of a bank."""
    file, config = BankFile(bank.path), bank.config
    parameters = sum(torch.Size(file.describe(name)[0]).numel() for name in file.names)
    activation = "softmax" if config.softmax else "tanh"
    return config.num_loras, config.rank, activation, f"{parameters:,}", bank.extra.get("step", "?")


def measure(
    evaluation: Evaluation, name: str, dataset: AnalogyDataset, count: int, bounded: bool = False
) -> list[Analogy]:
    """The first analogies of a set, answered by all contestants and, if asked for, by the upper bounds."""
    found = []
    for number in tqdm(range(count), desc=name, unit="analogy"):
        item = dataset[number]
        answers = {COPY: item["b"], **evaluation.answers(item, number)}
        if bounded:
            answers |= bounds(evaluation, item, number)
        judged = {result.contestant: result.metrics for result in evaluation.judge(name, item, answers)}
        found.append(Analogy(item["task"], judged))
    return found


def bounds(evaluation: Evaluation, item: dict, seed: int) -> dict[str, Tensor]:
    """What each part leaves: the autoencoder of the true b'; the bank where the image encoder need not carry the edit
    over to another picture; the base where it is told a trained edit by name.
    """
    coder, edit = evaluation.encoding.coder, edit_of(item["task"])
    answers = {DECODED: CANVAS.answer(coder.decode(coder.encode(item["target"][None]))[0])}
    bank = evaluation.contestants[0]
    query = evaluation.encoding.query(collate([{**item, "a": item["b"], "a_prime": CANVAS.answer(item["target"])}]))
    bank.wear(bank.bank.mix(query[0]))
    answers[ASKED] = evaluation.sample(evaluation.tell(item, item["prompt"]), seed)
    if edit in TRAINING_EDITS:
        transformer = bank.transformer
        transformer.disable_adapters()
        answers[TOLD] = evaluation.sample(evaluation.tell(item, edit), seed)
        transformer.enable_adapters()
    return answers


def contestants(found: list[Analogy]) -> dict[str, tuple[str, ...]]:
    """Contestant -> its figures, of those who answered every analogy."""
    names = [name for name in found[0].answers if all(name in analogy.answers for analogy in found)]
    return {name: (*_answers(found, name), *_duel(found, name)) for name in names}


def _answers(found: list[Analogy], name: str) -> tuple[str, ...]:
    psnr = _values(found, name, "psnr")
    nearer = "–" if name == COPY else _percent(_lead(analogy, name) > 0 for analogy in found)
    lpips = _values(found, name, "lpips")
    seen = "–" if None in lpips else f"{mean(lpips):.3f}"
    return nearer, f"{mean(psnr):.2f}", seen, *(_of_copying(found, name, metric) for metric in ("lpips", LPIPS_VGG))


def _of_copying(found: list[Analogy], name: str, metric: str) -> str:
    """The ratio of a distance to that of copying b."""
    values, copied = _values(found, name, metric), _values(found, COPY, metric)
    return "–" if None in values else "1" if name == COPY else f"{ratio(values, copied):.2f}"


def _duel(found: list[Analogy], name: str) -> tuple[str, str]:
    """How often, and by how much, an answer is nearer than the single LoRA's."""
    if name == SINGLE or SINGLE not in found[0].answers:
        return "–", "–"
    leads = [_lead(analogy, name, SINGLE) for analogy in found]
    return _percent(lead > 0 for lead in leads), f"{mean(leads):+.2f}"


def _lead(analogy: Analogy, name: str, over: str = COPY) -> float:
    """By how many dB an answer is nearer to the true b' than another is."""
    return analogy.answers[name]["psnr"] - analogy.answers[over]["psnr"]


def _average(found: list[Analogy], name: str) -> float:
    values = _values(found, name, "psnr")
    return sum(values) / len(values)


def _values(found: list[Analogy], name: str, metric: str) -> list:
    return [analogy.answers[name][metric] for analogy in found]


def _percent(outcomes: Iterable[bool]) -> str:
    return f"{share(list(outcomes)):.1%}"
