"""What preparing a source will take, and the caches of it: counted and timed on a sample before the work starts."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..hashing import text_key
from .errors import DataError
from .sources import BadItem, Candidate, Found
from .units import duration, size
from .validate import CheckedPair, check_all

SAMPLE = 64
# Beyond this many prompts they are not told apart any more, to bound memory.
MAX_PROMPTS = 65536
# Bytes of one cached item for FLUX.1-Kontext: a projected CLIP embedding in float32 for each of two images a pair;
# 512 T5 tokens x 4096 and a pooled 768 in bfloat16 a prompt; latents of two canvases, 16 channels at an eighth of
# 512 x 512 pixels, in bfloat16 an analogy.
IMAGE_EMBEDDING_BYTES = 768 * 4
TEXT_EMBEDDING_BYTES = (512 * 4096 + 768) * 2
LATENT_BYTES = 2 * 16 * 64 * 64 * 2
LATENT_ANALOGIES = 10_000


@dataclass(frozen=True)
class Survey:
    """What a listing of the source holds, before anything is decoded.

    Attributes:
        items: pairs and bad items together.
        prompts: distinct prompts, counted up to ``MAX_PROMPTS``.
        sample: some of the pairs, drawn evenly.
    """

    items: int
    tasks: int
    prompts: int
    sample: list[Candidate]


@dataclass(frozen=True)
class Estimate:
    """Seconds and bytes for the whole source."""

    survey: Survey
    seconds: float
    manifest_bytes: int
    workers: int

    def describe(self) -> str:
        """The estimate in three lines."""
        survey = self.survey
        prompts = f"{survey.prompts:,}{' or more' if survey.prompts >= MAX_PROMPTS else ''}"
        caches = (
            f"image embeddings {size(2 * survey.items * IMAGE_EMBEDDING_BYTES)}",
            f"text embeddings {size(survey.prompts * TEXT_EMBEDDING_BYTES)} ({prompts} prompts)",
            f"latents of {LATENT_ANALOGIES:,} analogies at 512 pixels {size(LATENT_ANALOGIES * LATENT_BYTES)}",
        )
        return (
            f"{survey.items:,} items in {survey.tasks:,} tasks\n"
            f"estimate: {duration(self.seconds)} with {self.workers} workers, manifest {size(self.manifest_bytes)}\n"
            f"caches that training may add, for FLUX.1-Kontext: {', '.join(caches)}"
        )


def survey(found: Iterable[Found], seed: int = 0) -> Survey:
    """Count a listing and draw a sample from it, in one pass (reservoir sampling)."""
    generator = random.Random(seed)
    items, pairs, tasks, prompts, sample = 0, 0, set(), set(), []
    for item in found:
        items += 1
        if isinstance(item, BadItem):
            continue
        pairs += 1
        tasks.add(item.task)
        if len(prompts) < MAX_PROMPTS:
            prompts.add(text_key(item.prompt))
        place = generator.randrange(pairs)
        if len(sample) < SAMPLE:
            sample.append(item)
        elif place < SAMPLE:
            sample[place] = item
    return Survey(items, len(tasks), len(prompts), sample)


def estimate(counted: Survey, out: Path, workers: int, quick: bool = False) -> Estimate:
    """Time the check of the sample and scale it up.

    Raises:
        DataError: when the disk of ``out`` has less room than the manifest needs.
    """
    started = time.perf_counter()
    checked = [item for item in check_all(counted.sample, workers, quick) if isinstance(item, CheckedPair)]
    seconds = time.perf_counter() - started
    lines = [len(json.dumps(item.line(out.parent.resolve()), ensure_ascii=False).encode()) + 1 for item in checked]
    mean_line = sum(lines) / max(1, len(lines))
    result = Estimate(
        survey=counted,
        seconds=seconds * counted.items / max(1, len(counted.sample)),
        manifest_bytes=int(mean_line * counted.items),
        workers=workers,
    )
    free = shutil.disk_usage(out.parent).free
    if free < result.manifest_bytes:
        raise DataError(
            f"{out.parent}: the manifest needs {size(result.manifest_bytes)}, but only {size(free)} are free"
        )
    return result
