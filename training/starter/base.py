"""Train the starter's base: ``python -m training.starter base``.

A small FLUX that edits its reference canvas, Kontext style. It is told the edit, or the family of edits, by a learned
embedding in place of a pooled text embedding; how strong the edit is and where, it reads off the example in the canvas.
Told nothing, it makes *some* edit of b: its example then shows another edit, so that the marginal over edits is all
that it can learn there. A bank has something to say to such a base, and nothing to unlearn.
"""

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from safetensors.torch import save_file
from torch import Tensor, nn

from lorweb_core.canvas import stack_quadrants

from ..caches import describe_weights
from ..config import ObjectiveConfig, OptimizerConfig
from ..data import EmbeddingCache, Manifest, load_quadrants, square_canvas
from ..data.hashing import random_words
from ..encoders import LatentCoder
from ..objective import Conditioning, Noise, draw_noise, flow_loss
from .edits import EDITS
from .loop import LoopSettings, fit

logger = logging.getLogger(__name__)

NOTHING = ""  # the instruction that tells nothing
CONTEXT = 64  # width of the one text token, which stays zero


@dataclass
class BaseSettings:
    """A run of the base.

    Attributes:
        heads: of width 128. double, single: numbers of blocks.
        told_edit, told_family: how often the edit, or only its family, is told; else nothing is.
    """

    canvas: int = 128
    heads: int = 1
    double: int = 2
    single: int = 4
    instruction: int = 128
    told_edit: float = 0.5
    told_family: float = 0.3
    loop: LoopSettings = field(default_factory=lambda: LoopSettings(steps=6000, batch=24))
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(lr=1e-3, weight_decay=0.01, schedule="cosine", warmup=200)
    )
    objective: ObjectiveConfig = field(
        default_factory=lambda: ObjectiveConfig(weighting="none", timesteps="logit_normal", canvas_weight=0.2)
    )


class Base(nn.Module):
    """The transformer, and an embedding for every instruction.

    Args:
        instructions: names; "" is among them.
    """

    def __init__(self, settings: BaseSettings, instructions: Sequence[str]):
        super().__init__()
        torch.manual_seed(settings.loop.seed)
        self.transformer = FluxTransformer2DModel(
            in_channels=64,
            num_layers=settings.double,
            num_single_layers=settings.single,
            attention_head_dim=128,
            num_attention_heads=settings.heads,
            joint_attention_dim=CONTEXT,
            pooled_projection_dim=settings.instruction,
            guidance_embeds=False,
        )
        self.numbers = {name: number for number, name in enumerate(instructions)}
        self.instructions = nn.Embedding(len(instructions), settings.instruction)

    def tell(self, names: Sequence[str], reference: Tensor) -> Conditioning:
        """The conditioning of a batch with these instructions and reference latents [B, 16, h, w]."""
        pooled = self.instructions(torch.tensor([self.numbers[name] for name in names]))
        prompt = torch.zeros(len(names), 1, CONTEXT)
        return Conditioning(reference=reference, prompt=prompt, pooled=pooled, query=None, guidance=None)

    def save(self, folder: Path) -> None:
        """Write the transformer, its scheduler, and the instructions as embedded prompts."""
        self.transformer.save_pretrained(folder / "transformer")
        FlowMatchEulerDiscreteScheduler(shift=1.0).save_pretrained(folder / "scheduler")
        pooled = self.instructions.weight.detach()
        prompts = {"tokens": torch.zeros(len(pooled), 1, CONTEXT), "pooled": pooled.contiguous()}
        save_file(prompts, folder / "prompts.safetensors", {"prompts": json.dumps(list(self.numbers))})


class LatentPool:
    """Latents of every pair in every quadrant where it can stand, so that any two pairs of a task make a canvas.

    A quadrant is encoded inside a whole canvas, because the autoencoder looks over its edges.

    Args:
        manifest: pairs whose tasks are named ``<edit>/<draw>``.
        coder: the autoencoder. cache: folder that keeps the latents.
    """

    def __init__(self, manifest: Manifest, coder: LatentCoder, canvas: int, cache: Path, fingerprint: Mapping):
        self.manifest, self.coder, self.geometry = manifest, coder, square_canvas(canvas)
        store = EmbeddingCache(cache, {**fingerprint, "canvas": canvas})
        keys = {f"{pair.before.key} {pair.after.key}": pair for pair in map(manifest.__getitem__, range(len(manifest)))}
        store.get_or_build(keys.items(), self._encode, batch_size=16, label="encoding pairs")
        rows = store.stack(list(keys))
        self.reference, self.target = rows["reference"], rows["target"]
        self.tasks = {name: list(numbers) for name, numbers in manifest.tasks.items()}

    def _encode(self, pairs: list) -> dict[str, Tensor]:
        before, after = (
            load_quadrants([getattr(pair, side) for pair in pairs], self.geometry) for side in ("before", "after")
        )
        canvases = stack_quadrants(before, after, before, before), stack_quadrants(before, after, before, after)
        return dict(zip(("reference", "target"), map(self.coder.encode, canvases)))

    def canvases(self, examples: list[int], answers: list[int]) -> tuple[Tensor, Tensor]:
        """(reference, target) latents [B, 16, h, w] of analogies between pairs given by number."""
        reference, target = self.reference[answers].clone(), self.target[answers].clone()
        half = reference.shape[-2] // 2
        reference[:, :, :half] = self.reference[examples][:, :, :half]
        target[:, :, :half] = self.target[examples][:, :, :half]
        return reference, target


@dataclass
class Lesson:
    """One sample: pair numbers of the example and the answer, and what the base is told."""

    example: int
    answer: int
    instruction: str


class Curriculum:
    """Lesson i of a seed, for any i.

    Args:
        tasks: task name ``<edit>/<draw>`` -> pair numbers. families: edit -> family.
    """

    def __init__(self, tasks: Mapping[str, list[int]], families: Mapping[str, str], settings: BaseSettings):
        self.settings, self.families = settings, families
        self.tasks: dict[str, list[list[int]]] = {}
        for name, numbers in tasks.items():
            self.tasks.setdefault(edit_of(name), []).append(numbers)
        self.edits = sorted(self.tasks)

    def __getitem__(self, index: int) -> Lesson:
        seed = self.settings.loop.seed
        which, draw, first, second = random_words("lesson", seed, index)
        edit = self.edits[which % len(self.edits)]
        numbers = self.tasks[edit][draw % len(self.tasks[edit])]
        place = first % len(numbers)
        other = (place + 1 + second % (len(numbers) - 1)) % len(numbers)
        coin, *words = random_words("telling", seed, index)
        coin = coin / 2**64
        if coin < self.settings.told_edit:
            return Lesson(numbers[other], numbers[place], edit)
        if coin < self.settings.told_edit + self.settings.told_family:
            return Lesson(numbers[other], numbers[place], self.families[edit])
        return Lesson(self._any_pair(*words), numbers[place], NOTHING)

    def _any_pair(self, which: int, draw: int, place: int) -> int:
        tasks = self.tasks[self.edits[which % len(self.edits)]]
        numbers = tasks[draw % len(tasks)]
        return numbers[place % len(numbers)]


def edit_of(task: str) -> str:
    """The edit that a task ``<edit>/<draw>`` shows."""
    return task.rsplit("/", 1)[0]


def lessons_of(curriculum: Curriculum, size: int, step: int) -> list[Lesson]:
    """The lessons of a step."""
    return [curriculum[index] for index in range(step * size, (step + 1) * size)]


def train_base(run: Path, manifest: Path, settings: BaseSettings) -> Base:
    """Train on a manifest of procedural pairs, and write the base as a diffusers folder ``run/base``.

    The autoencoder is that of ``run/autoencoder``.

    Raises:
        ValueError: when there is no autoencoder yet.
        DataError: for a manifest that cannot be used.
    """
    vae = run / "autoencoder" / "vae"
    if not vae.is_dir():
        raise ValueError(f"{vae}: there is no autoencoder; train it with `python -m training.starter autoencoder`")
    coder = LatentCoder(str(vae.parent), "cpu", torch.float32)
    fingerprint = {"weights": describe_weights(str(vae.parent), "vae")}
    pool = LatentPool(Manifest.load(manifest), coder, settings.canvas, run / "latents", fingerprint)
    families = {edit_of(task): EDITS[edit_of(task)].family for task in pool.tasks}
    base = fit_base(run / "base_training", pool, families, settings)
    base.save(run / "base")
    shutil.copytree(vae, run / "base" / "vae", dirs_exist_ok=True)
    return base


def fit_base(run: Path, pool: LatentPool, families: Mapping[str, str], settings: BaseSettings) -> Base:
    """Train a base on a pool of latents."""
    curriculum = Curriculum(pool.tasks, families, settings)
    edits = curriculum.edits
    base = Base(settings, [NOTHING, *sorted({families[edit] for edit in edits}), *edits])

    def losses(step: int) -> dict[str, Tensor]:
        lessons = lessons_of(curriculum, settings.loop.batch, step)
        reference, target = pool.canvases([x.example for x in lessons], [x.answer for x in lessons])
        condition = base.tell([lesson.instruction for lesson in lessons], reference)
        draw = noise_of(settings, target, step)
        loss = flow_loss(base.transformer, target, draw, condition, settings.objective)
        told = torch.tensor([lesson.instruction != NOTHING for lesson in lessons])
        return {"loss": loss.mean(), "told": loss[told].mean(), "untold": loss[~told].mean()}

    fit(run, base, losses, settings.loop, settings.optimizer)
    return base


def noise_of(settings: BaseSettings, target: Tensor, step: int) -> Noise:
    """Noise and timesteps of a step for latents [B, 16, h, w]."""
    generators = [
        torch.Generator().manual_seed(random_words("noise", settings.loop.seed, step, i)[0] >> 1)
        for i in range(len(target))
    ]
    return draw_noise(tuple(target.shape[1:]), generators, settings.objective)
