"""Train the starter's base: ``python -m training.starter base``.

A small FLUX that edits its reference canvas, Kontext style. It is told the edit, or the family of edits, by learned
embeddings in place of a pooled text embedding; how strong the edit is and where, it reads off the example in the
canvas, or is told as well where there is none. Told nothing, it cannot trust the example: half of the time that shows
another edit than the answer. So it knows how an edit is read off an example, and *some* edit of b is all that it is
sure of. A bank has something to say to such a base, and nothing to unlearn.

It learns to edit on images alone first, one quadrant instead of a canvas: four times the edits for the same work.
"""

import json
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, ModelMixin
from safetensors.torch import save_file
from torch import Tensor, nn

from lorweb_core.canvas import MULTIPLE
from lorweb_core.packing import PACKED

from ..bases import KONTEXT, Conditioning
from ..bases.kontext import EMBEDDED_PROMPTS, EmbeddedPrompts
from ..bases.loading import load_transformer
from ..config import BaseConfig, ObjectiveConfig, OptimizerConfig
from ..data.layouts import CANVAS
from ..run.objective import flow_loss, noise_from
from ..run.perception import Perception, perceptual_network
from .beginning import begin
from .lessons import Curriculum, Lessons, LessonSettings
from .loop import LoopSettings, fit
from .pool import REFRESH, Encoded, Workshop, generator_of
from .telling import Vocabulary

CONTEXT = 64  # width of the one text token, which stays zero
_LOUDNESS = 8.0  # of a name's embedding at first: the louder, the sooner edits come apart


@dataclass
class BaseSettings:
    """A run of the base.

    Attributes:
        start: folder of a base to begin with, such as the shipped one, whatever its shape; empty begins with a fresh
            one. What it was told about parameters is not saved with a base, so that it learns on canvases only.
        heads: of width 128. double, single: numbers of blocks.
        alone: which share of the run, the first one, is on images alone, and ``alone_batch`` how many a step takes.
        lessons: what it is told.
        first: shards of pairs to wait for before the first step.
        compile: compile the blocks; worth the half minute that it takes on a GPU.
        bf16: run the products in bfloat16, which takes two thirds of the time on processors that have it.
    """

    start: str = ""
    heads: int = 3
    double: int = 1
    single: int = 5
    instruction: int = 128
    alone: float = 0.15
    alone_batch: int = 384
    lessons: LessonSettings = field(default_factory=LessonSettings)
    first: int = 1
    compile: bool = False
    bf16: bool = True
    loop: LoopSettings = field(default_factory=lambda: LoopSettings(steps=20_000, batch=128))
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(lr=1.5e-3, weight_decay=0.01, schedule="cosine", warmup=200)
    )
    objective: ObjectiveConfig = field(
        default_factory=lambda: ObjectiveConfig(
            weighting="none", timesteps="logit_normal", shift=15.0, canvas_weight=0.2, perceptual_share=0.2, changed=1.0
        )
    )


def make_transformer(settings: BaseSettings, side: int) -> ModelMixin:
    """The transformer that the settings begin with, for quadrants of a side in pixels.

    Raises:
        ValueError: when they name one that is not there.
    """
    if settings.start:
        start = BaseConfig(path=settings.start, dtype="float32", gradient_checkpointing=False)
        return load_transformer(start, torch.device("cpu")).requires_grad_(True)
    transformer = KONTEXT.transformer(
        in_channels=64,
        num_layers=settings.double,
        num_single_layers=settings.single,
        attention_head_dim=128,
        num_attention_heads=settings.heads,
        joint_attention_dim=CONTEXT,
        pooled_projection_dim=settings.instruction,
        guidance_embeds=False,
    )
    begin(transformer, quadrant=side // MULTIPLE)
    return transformer


def told(reference: Tensor, pooled: Tensor) -> Conditioning:
    """What the starter's base is told: reference latents [B, 16, h, w], and a pooled text embedding [B, P] alone."""
    text = {"tokens": reference.new_zeros(len(reference), 1, CONTEXT), "pooled": pooled}
    return Conditioning(KONTEXT, CANVAS, (reference,), text)


class Base(nn.Module):
    """The transformer, and an embedding for every name that can be told.

    What it is told is a weighted sum over names; NOTHING is always among them.
    """

    def __init__(self, settings: BaseSettings, vocabulary: Vocabulary, side: int):
        super().__init__()
        torch.manual_seed(settings.loop.seed)
        self.transformer, self.vocabulary = make_transformer(settings, side), vocabulary
        self.instructions = nn.Embedding(len(vocabulary.names), self.transformer.config.pooled_projection_dim)
        nn.init.normal_(self.instructions.weight, std=_LOUDNESS)

    def pooled(self, spelled: Tensor) -> Tensor:
        """Sums of the embeddings of names, spelled [B, names] -> [B, P]."""
        return spelled @ self.instructions.weight

    def tell(self, spelled: Tensor, reference: Tensor) -> Conditioning:
        """The conditioning of a batch that is told these names, with reference latents [B, 16, h, w]."""
        return told(reference, self.pooled(spelled))

    @torch.no_grad()
    def learn(self, folder: Path) -> None:
        """Take over the names' embeddings from a saved base that can be told the same prompts.

        Raises:
            ValueError: when it can be told others.
        """
        saved, prompts = EmbeddedPrompts(folder / EMBEDDED_PROMPTS), self.vocabulary.prompts()
        if strange := sorted(saved.rows.keys() ^ prompts.keys()):
            raise ValueError(f"{saved.path}: these prompts are either only there or only in this catalogue: {strange}")
        pooled = torch.stack([row["pooled"] for row in saved(list(prompts))])
        spelled = self.vocabulary.spell(list(prompts.values()))
        known = spelled.any(0)
        # Every prompt says one name that no prompt before it says, so the sums tell the summands.
        self.instructions.weight[known] = torch.linalg.solve(spelled[:, known], pooled.float())

    @torch.no_grad()
    def save(self, folder: Path, shift: float) -> None:
        """Write a diffusers folder: the transformer, a scheduler with this shift, and prompts as embeddings."""
        self.transformer.save_pretrained(folder / "transformer")
        (folder / "transformer" / PACKED).unlink(missing_ok=True)  # of the base that this one began with
        FlowMatchEulerDiscreteScheduler(shift=shift).save_pretrained(folder / "scheduler")
        prompts = self.vocabulary.prompts()
        spelled = self.vocabulary.spell(list(prompts.values()))
        pooled = self.pooled(spelled.to(self.instructions.weight.device)).cpu().contiguous()
        tensors = {"tokens": torch.zeros(len(pooled), 1, CONTEXT), "pooled": pooled}
        save_file(tensors, folder / EMBEDDED_PROMPTS, {"prompts": json.dumps(list(prompts))})


def train_base(shop: Workshop, settings: BaseSettings) -> Path:
    """Train on drawn pairs, and write the base as a diffusers folder ``run/base/base``, which is returned.

    Raises:
        ValueError: when there is no autoencoder yet, the pairs are others, or LPIPS weights cannot be read.
    """
    encoded, folder = shop.encoded, shop.run / "base"
    lpips = perceptual_network(settings.objective, shop.run)
    training = BaseTraining(encoded, settings, lpips and Perception(lpips.to(shop.device), encoded.coder.pixels))
    fit(folder, training.base, training.losses, settings.loop, settings.optimizer)
    training.base.save(folder / "base", settings.objective.shift)
    shutil.copytree(shop.run / "autoencoder" / "vae", folder / "base" / "vae", dirs_exist_ok=True)
    return folder / "base"


class BaseTraining:
    """What a step of the base's training is, where the pairs lie."""

    def __init__(self, encoded: Encoded, settings: BaseSettings, perception: Perception | None = None):
        self.encoded, self.pool, self.settings, self.perception = encoded, encoded.pool, settings, perception
        self.curriculum = Curriculum(self.pool, Vocabulary(), settings.lessons)
        self.base = Base(settings, self.curriculum.vocabulary, self.pool.settings.side)
        if settings.start:
            self.base.learn(Path(settings.start))
        self.base.to(self.pool.device)
        if settings.compile:
            self.base.transformer.compile_repeated_blocks(dynamic=False)
        self.refresh(settings.first)

    def refresh(self, first: int = 0) -> None:
        """Take the pairs that were drawn since."""
        self.encoded.refresh(first)
        self.curriculum.refresh()

    def losses(self, step: int, share: float) -> dict[str, Tensor]:
        """Of a step when a share of the run is done."""
        if step % REFRESH == 0:
            self.refresh()
        generator = generator_of(self.settings.loop.seed, step, self.pool.device)
        if share < self.settings.alone and not self.settings.start:
            return self._alone(generator)
        lessons = self.curriculum.canvases(self.settings.loop.batch, generator)
        return self._losses(lessons, *self.encoded.canvases(lessons.examples, lessons.answers), generator)

    def _alone(self, generator: torch.Generator) -> dict[str, Tensor]:
        """On images alone, where no quadrant counts less and nobody looks."""
        lessons = self.curriculum.images(self.settings.alone_batch, generator)
        latents = self.encoded.images(lessons.answers)
        objective = replace(self.settings.objective, canvas_weight=1.0, perceptual=0.0)
        return self._losses(lessons, *latents, generator, objective)

    def _losses(
        self, lessons: Lessons, reference: Tensor, target: Tensor, generator: torch.Generator,
        objective: ObjectiveConfig | None = None,
    ) -> dict[str, Tensor]:  # fmt: skip
        objective = objective or self.settings.objective
        condition = self.base.tell(lessons.spelled, reference)
        noise = noise_from(generator, tuple(target.shape), objective)
        with torch.autocast(target.device.type, torch.bfloat16, enabled=self.settings.bf16):
            flow, estimate = flow_loss(self.base.transformer, target, noise, condition, objective)
            lpips = flow.new_zeros(())
            if objective.perceptual:
                lpips = self.perception.of_share(estimate, target, objective.perceptual_share)
        told, untold = (_mean(flow, which) for which in (lessons.told, 1 - lessons.told))
        return {"loss": flow.mean() + objective.perceptual * lpips, "told": told, "untold": untold, "lpips": lpips}


def _mean(values: Tensor, which: Tensor) -> Tensor:
    """Mean of some values [B], 0 of none."""
    return (values * which).sum() / which.sum().clamp(min=1)
