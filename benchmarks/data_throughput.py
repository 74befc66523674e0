"""``python -m benchmarks.data_throughput``: is data prepared and sampled faster than training takes it?

The data set is made from scikit-image's photographs and lies in the page cache, so a slow disk is not part of the
figures. Sampling is measured with pixels (decoding, resizing, canvases) and from caches of latents and embeddings that
are as large as FLUX.1-Kontext's, and compared with the analogies a second that training steps take. Steps of small
bases are measured on this machine. Of FLUX.1 itself the operations are counted and divided by the most that a card can
do, so that training on such a card takes less.
"""

from __future__ import annotations

import training  # noqa: F401  # isort: skip  (makes diffusers importable, so it comes first)

import argparse
import os
import tempfile
from collections.abc import Iterator, Set
from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from lorweb_core.query import QUERY_MODES
from training.bases import KONTEXT
from training.config import Config, ObjectiveConfig, load_config
from training.data import AnalogyDataset, AnalogySampler, EmbeddingCache, Manifest, collate, square_canvas, text_key
from training.data.layouts import CANVAS
from training.data.sources import relation252k
from training.data.writer import write_manifest
from training.encoders.encoding import CachedLatents, CachedQuery, Encoding, Repeated
from training.encoders.text import CachedPrompts
from training.run.batches import Batches, Share
from training.run.objective import flow_loss

from ._measure import print_table, timed
from ._relation import make_relation
from .train_step import Plain, Step, lorweb, make_base, make_batch

CONFIG = "training/configs/kontext_24gb.yaml"
BATCH = 6
CACHED = 120  # analogies in the caches
TERA = 1e12


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3000, help="pairs to prepare; Relation252K has 33274")
    parser.add_argument("--side", type=int, default=512, help="pixels of an image, before and after each")
    parser.add_argument("--batches", type=int, default=20, help=f"batches of {BATCH} analogies to draw")
    parser.add_argument("--teraflops", type=float, default=989.0, help="of a card at its peak; an H100 has 989")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source, manifest = Path(folder) / "set", Path(folder) / "manifest.jsonl"
        make_relation(source, options.pairs, options.side)
        rows = [*preparing(source, manifest, options.pairs), *drawing(manifest, options.pairs)]
        print_table(f"Preparing {options.pairs} pairs of {options.side} px", ("what", "speed"), rows)
        rows = [row for step in steps(options.teraflops) for row in compare(manifest, options.batches, *step)]
    header = ("training step", "takes", "canvas", "sampling from", "gives", "gives / takes")
    print_table("Sampling against the appetite of training, analogies a second", header, rows)


def preparing(source: Path, out: Path, pairs: int) -> Iterator[tuple[str, str]]:
    """Pairs a second of prepare, headers only and in full; the manifest of the latter stays."""
    for workers, quick in ((1, True), (1, False), (os.cpu_count() or 1, False)):
        what = "headers only" if quick else "decoding"
        seconds = timed(lambda w=workers, q=quick: write_manifest(relation252k.read(source), out, w, q))
        yield f"prepare, {what}, {workers} threads", f"{pairs / seconds:,.0f} pairs/s"


def drawing(manifest: Path, pairs: int, draws: int = 20_000) -> Iterator[tuple[str, str]]:
    """Loading the manifest, and drawing analogies without their pixels."""
    yield "load the manifest", f"{pairs / timed(lambda: Manifest.load(manifest)):,.0f} pairs/s"
    sampler = AnalogySampler(Manifest.load(manifest), swap=0.5)
    yield "draw analogies", f"{draws / timed(lambda: [sampler[i] for i in range(draws)]):,.0f} analogies/s"


def steps(teraflops: float) -> Iterator[tuple[str, float, int]]:
    """(name, analogies a second that it takes, pixels of its canvas) of training steps."""
    for heads, double, single, canvas, batch in ((2, 2, 2, 64, 4), (6, 2, 4, 256, 1)):
        speed = batch / step_seconds((heads, double, single), canvas, batch)
        yield f"FLUX of width {128 * heads}, {double} + {single} blocks, measured", speed, canvas
    canvas = load_config(CONFIG, ["run=none", "data.manifest=none"]).data.canvas
    yield f"FLUX.1 at {teraflops:g} TFLOP/s, counted", teraflops * TERA / step_operations(canvas), canvas


def step_seconds(size: tuple[int, int, int], canvas: int, batch: int, repeats: int = 3) -> float:
    """Seconds of a training step, the best of some.

    Args:
        size: heads, double and single blocks.
    """
    base = make_base(*size)
    step = Step(lorweb(base), make_batch(base, batch, canvas // 8, text=32), base.device.type)
    step()
    return min(timed(step) for _ in range(repeats))


def step_operations(canvas: int, text: int = 128) -> int:
    """Floating-point operations of a step of FLUX.1 on one analogy: forward, recomputed and backward."""
    with torch.device("meta"):
        base = FluxTransformer2DModel(guidance_embeds=True).requires_grad_(False)
        base.enable_gradient_checkpointing()
        tuner = lorweb(base).train()
        # Mixing is less than a ten-thousandth of the whole, and runs on real devices only.
        tuner.set_coefficients(torch.ones(1, len(tuner.tuner_layers), tuner.bank_config.num_loras))
        batch = make_batch(base, 1, canvas // 8, text)
    with FlopCounterMode(display=False) as counter:
        flow_loss(Plain(tuner), *batch, ObjectiveConfig()).loss.mean().backward()
    return counter.get_total_flops()


def compare(manifest: Path, batches: int, name: str, taken: float, canvas: int) -> Iterator[tuple[str, ...]]:
    """What each way of sampling gives for a step that takes so much."""
    sampler = AnalogySampler(Manifest.load(manifest))
    for way, given in (
        ("images, training process", pixel_speed(sampler, canvas, 0, batches)),
        ("images, 2 workers", pixel_speed(sampler, canvas, 2, batches)),
        ("caches", cache_speed(manifest, canvas, batches)),
    ):
        yield name, f"{taken:,.2f}", f"{canvas} px", way, f"{given:,.1f}", f"{given / taken:,.1f}"


def pixel_speed(sampler: AnalogySampler, canvas: int, workers: int, batches: int) -> float:
    """Analogies a second from files to canvases."""
    dataset, ready = AnalogyDataset(sampler, square_canvas(canvas)), 1 + 2 * workers
    positions = [range(i * BATCH, (i + 1) * BATCH) for i in range(batches + ready)]
    loader = iter(DataLoader(dataset, batch_sampler=positions, num_workers=workers, collate_fn=collate))
    for _ in range(ready):  # what the workers have ready before the clock starts
        next(loader)
    return batches * BATCH / timed(lambda: [next(loader)["index"] for _ in range(batches)])


def cache_speed(manifest: Path, canvas: int, batches: int) -> float:
    """Analogies a second from caches to all that a training step needs."""
    with tempfile.TemporaryDirectory() as folder:
        overrides = ["run=none", f"data.manifest={manifest}", f"data.canvas={canvas}", f"data.cache={folder}"]
        drawn = cached_batches(load_config(CONFIG, [*overrides, f"train.batch={BATCH}"])).from_step(0)
        next(drawn)
        return batches * BATCH / timed(lambda: [next(drawn) for _ in range(batches)])


def cached_batches(config: Config) -> Batches:
    """Batches from caches of random tensors that are as large as what FLUX.1-Kontext's encoders make."""
    sampler = AnalogySampler(Manifest.load(config.data.manifest))
    dataset = AnalogyDataset(sampler, square_canvas(config.data.canvas), pixels=False)
    items, folder, side = [dataset[i] for i in range(CACHED)], Path(config.data.cache), config.data.canvas // 8
    images = {key for item in items for key in item["image_keys"]}
    prompts = {text_key(prompt) for prompt in ("", *(item["prompt"] for item in items))}
    analogies, shape, tokens = {item["analogy_key"] for item in items}, (16, side, side), config.data.prompt_tokens
    encoding = Encoding(
        KONTEXT,
        CANVAS,
        torch.device("cpu"),
        torch.bfloat16,
        query=CachedQuery(QUERY_MODES[config.bank.query_mode], fill(folder / "images", images, embedding=(768,))),
        prompts=CachedPrompts(fill(folder / "prompts", prompts, tokens=(tokens, 4096), pooled=(768,))),
        latents=CachedLatents(fill(folder / "latents", analogies, references=(1, *shape), target=shape), live=None),
        bank=config.bank.resolve(768, "", ""),
        coder=None,
        needs_pixels=False,
    )
    share = Share(process=0, processes=1, batch=config.train.batch, accumulate=1)
    return Batches(config, Repeated(dataset, CACHED), encoding, share, torch.device("cpu"), config.objective.guidance)


def fill(folder: Path, keys: Set[str], **shapes: tuple[int, ...]) -> EmbeddingCache:
    """A cache of random bfloat16 tensors."""

    def compute(batch: list[None]) -> dict[str, torch.Tensor]:
        return {name: torch.randn(len(batch), *shape, dtype=torch.bfloat16) for name, shape in shapes.items()}

    return EmbeddingCache(folder, {}).get_or_build(dict.fromkeys(sorted(keys)).items(), compute)


if __name__ == "__main__":
    torch.set_num_threads(1)  # one process, one core: what a training process has left for its data
    main()
