"""``python -m benchmarks.data_throughput``: how fast data is prepared and analogies are sampled, decoding included.

A data set in the layout of Relation252K is made from scikit-image's photographs: side-by-side JPEGs, of which a few
hundred differ and the rest are links to them. It lies in the page cache, so a slow disk is not part of the figures.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from skimage import data
from torch.utils.data import DataLoader

from training.data import AnalogyDataset, AnalogySampler, Manifest, collate, square_canvas
from training.data.sources import relation252k
from training.data.writer import write_manifest

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field")
DISTINCT = 200
TASKS = 218
BATCH = 6


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=3000, help="pairs to prepare; Relation252K has 33274")
    parser.add_argument("--side", type=int, default=512, help="pixels of an image, before and after each")
    parser.add_argument("--canvas", type=int, default=512, help="pixels of a training canvas")
    parser.add_argument("--batches", type=int, default=40, help=f"batches of {BATCH} analogies to draw")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="DataLoader workers to compare")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "set", Path(folder) / "manifest.jsonl"
        make_relation(source, options.pairs, options.side)
        rows = [*preparing(source, out, options.pairs), *sampling(out, options)]
    print_table(
        rows, f"{options.pairs} pairs of {options.side} px, canvases of {options.canvas} px, {os.cpu_count()} CPUs"
    )


def make_relation(folder: Path, pairs: int, side: int) -> None:
    """Relation252K's layout with as many pairs as asked for, in up to 218 tasks."""
    distinct = make_images(folder.with_name("images"), min(pairs, DISTINCT), side)
    tasks = min(TASKS, pairs // 2)
    for task in range(tasks):
        group = folder / f"task{task:03d}" / "Group1"
        group.mkdir(parents=True)
        names = [f"{i}.jpg" for i in range(len(range(task, pairs, tasks)))]
        for i, name in enumerate(names):
            os.link(distinct[(task + i * tasks) % len(distinct)], group / name)
        labels = [{"img_name": name, "edit_instruction": f"do edit {task}"} for name in names]
        (group / "labels.json").write_text(json.dumps(labels))


def make_images(folder: Path, count: int, side: int) -> list[Path]:
    """Side-by-side JPEGs: crops of photographs, and their negatives."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    photographs = [Image.fromarray(getattr(data, name)()).convert("RGB") for name in PHOTOGRAPHS]
    paths = [folder / f"{i}.jpg" for i in range(count)]
    for path, photograph in zip(paths, itertools.cycle(photographs)):
        left, top = (int(rng.integers(length - 256)) for length in photograph.size)
        image = photograph.crop((left, top, left + 256, top + 256)).resize((side, side), Image.Resampling.LANCZOS)
        both = Image.new("RGB", (2 * side, side))
        both.paste(image, (0, 0))
        both.paste(ImageOps.invert(image), (side, 0))
        both.save(path, quality=92)
    return paths


def preparing(source: Path, out: Path, pairs: int) -> Iterator[tuple[str, float, str]]:
    """Pairs a second of prepare, headers only and in full; the manifest of the latter stays."""
    for workers, quick in ((1, True), (1, False), (os.cpu_count() or 1, False)):
        what = "headers only" if quick else "decoding"
        seconds = timed(lambda w=workers, q=quick: write_manifest(relation252k.read(source), out, w, q))
        yield f"prepare, {what}, {workers} threads", pairs / seconds, "pairs/s"


def sampling(path: Path, options: argparse.Namespace) -> Iterator[tuple[str, float, str]]:
    """Loading the manifest, drawing analogies, and the whole way to canvases."""
    yield "load the manifest", options.pairs / timed(lambda: Manifest.load(path)), "pairs/s"
    sampler = AnalogySampler(Manifest.load(path), swap=0.5)
    draws = 20_000
    yield "draw analogies, no pixels", draws / timed(lambda: [sampler[i] for i in range(draws)]), "analogies/s"
    dataset = AnalogyDataset(sampler, square_canvas(options.canvas))
    for workers in options.workers:
        speed = options.batches * BATCH / loading_time(dataset, workers, options.batches)
        yield f"analogies to canvases, {workers} workers", speed, "analogies/s"


def loading_time(dataset: AnalogyDataset, workers: int, batches: int) -> float:
    """Seconds for a number of batches, after a first one that starts the workers."""
    positions = [range(i * BATCH, (i + 1) * BATCH) for i in range(batches + 1 + 2 * workers)]
    loader = iter(DataLoader(dataset, batch_sampler=positions, num_workers=workers, collate_fn=collate))
    for _ in range(1 + 2 * workers):  # what the workers had ready before the clock starts
        next(loader)
    return timed(lambda: [next(loader)["index"] for _ in range(batches)])


def timed(function: Callable[[], Any]) -> float:
    """Seconds that a call takes."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def print_table(rows: list[tuple[str, float, str]], title: str) -> None:
    """A Markdown table of name, figure, unit."""
    print(f"\n{title}\n\n| what | speed | unit |\n| --- | ---: | --- |")
    for name, speed, unit in rows:
        print(f"| {name} | {speed:,.1f} | {unit} |")


if __name__ == "__main__":
    torch.set_num_threads(1)  # one process, one core: what a training process has left for its data
    main()
