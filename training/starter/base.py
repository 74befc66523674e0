"""Train the starter's base: ``python -m training.starter base``.

A small FLUX that edits its reference canvas, Kontext style. It is told the edit, or the family of edits, by learned
embeddings in place of a pooled text embedding; how strong the edit is and where, it reads off the example in the
canvas, or is told as well where there is none. Told nothing, it cannot trust the example: half of the time that shows
another edit than the answer. So it knows how an edit is read off an example, and *some* edit of b is all that it is
sure of. A bank has something to say to such a base, and nothing to unlearn.

It learns to edit on images alone first, one quadrant instead of a canvas: four times the edits for the same work.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import AutoencoderTiny, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from safetensors.torch import save_file
from torch import Tensor, nn

from lorweb_core.canvas import MULTIPLE

from ..caches import describe_weights
from ..config import ObjectiveConfig, OptimizerConfig
from ..data import Manifest
from ..data.hashing import as_fraction, random_words
from ..device import pick_device
from ..encoders import EMBEDDED_PROMPTS, EmbeddedPrompts, LatentCoder
from ..objective import Conditioning, Noise, draw_noise, flow_loss
from ..perception import perceptual_network
from .appearance import Appearance
from .beginning import begin
from .edits import EDITS, Edit, Parameters
from .loop import LoopSettings, fit
from .pool import LatentPool
from .recipe import Recipe, tasks

logger = logging.getLogger(__name__)

Told = Mapping[str, float]  # names, and how strongly each is said

NOTHING = ""  # the name that says nothing
CONTEXT = 64  # width of the one text token, which stays zero
_KNOTS = 3  # of a parameter's range: what is told about a value is interpolated between them
_LOUDNESS = 8.0  # of a name's embedding at first: the louder, the sooner edits come apart


@dataclass
class BaseSettings:
    """A run of the base.

    Attributes:
        start: folder of a base to begin with, such as the shipped one, whatever its shape; empty begins with a fresh
            one. What it was told about parameters is not saved with a base, so let ``alone`` be 0.
        heads: of width 128. double, single: numbers of blocks.
        alone: how many steps, the first ones, are on images alone, and ``alone_batch`` how many images one takes.
        alone_told_parameters: how often such an image is told its edit with its parameters, as no example shows them.
        told_edit, told_family: how often a canvas is told the edit, or only its family; else it is told nothing.
        untold_right: how often the example of a canvas that is told nothing shows its edit, rather than another one.
        objective: LPIPS in it is to the true picture, not to the decoded one, and trains the decoder as well: that
            learns to decode what the base makes.
        bf16: run the products in bfloat16, which takes two thirds of the time on processors that have it.
    """

    canvas: int = 128
    start: str = ""
    heads: int = 2
    double: int = 1
    single: int = 3
    instruction: int = 128
    alone: int = 4000
    alone_batch: int = 48
    alone_told_parameters: float = 0.75
    told_edit: float = 0.5
    told_family: float = 0.15
    untold_right: float = 0.5
    bf16: bool = True
    loop: LoopSettings = field(default_factory=lambda: LoopSettings(steps=20_000, batch=16))
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(lr=2e-3, weight_decay=0.01, schedule="cosine", warmup=200)
    )
    objective: ObjectiveConfig = field(
        default_factory=lambda: ObjectiveConfig(
            weighting="none", timesteps="logit_normal", shift=15.0, canvas_weight=0.2
        )
    )


def make_transformer(settings: BaseSettings) -> FluxTransformer2DModel:
    """The transformer that the settings begin with.

    Raises:
        OSError: when they name one that is not there.
    """
    if settings.start:
        return FluxTransformer2DModel.from_pretrained(
            settings.start, subfolder="transformer", local_files_only=True, dtype=torch.float32
        )
    transformer = FluxTransformer2DModel(
        in_channels=64,
        num_layers=settings.double,
        num_single_layers=settings.single,
        attention_head_dim=128,
        num_attention_heads=settings.heads,
        joint_attention_dim=CONTEXT,
        pooled_projection_dim=settings.instruction,
        guidance_embeds=False,
    )
    begin(transformer, quadrant=settings.canvas // 2 // MULTIPLE)
    return transformer


class Base(nn.Module):
    """The transformer, and an embedding for every name that can be told: families, edits and knots of parameters.

    What it is told is a weighted sum over names; NOTHING is always among them.
    """

    def __init__(self, settings: BaseSettings, names: Sequence[str]):
        super().__init__()
        torch.manual_seed(settings.loop.seed)
        self.transformer = make_transformer(settings)
        self.numbers = {name: number for number, name in enumerate(names)}
        self.instructions = nn.Embedding(len(names), self.transformer.config.pooled_projection_dim)
        nn.init.normal_(self.instructions.weight, std=_LOUDNESS)

    def spell(self, told: Sequence[Told]) -> Tensor:
        """How strongly each name is said: [B, names], on the CPU."""
        places = [(row, self.numbers[name]) for row, names in enumerate(told) for name in names]
        spelled = torch.zeros(len(told), len(self.numbers))
        spelled[tuple(zip(*places))] = torch.tensor([weight for names in told for weight in names.values()])
        return spelled

    def pooled(self, spelled: Tensor) -> Tensor:
        """Sums of the embeddings of names [B, P]."""
        return spelled @ self.instructions.weight

    def tell(self, spelled: Tensor, reference: Tensor) -> Conditioning:
        """The conditioning of a batch that is told these names, with reference latents [B, 16, h, w]."""
        prompt = reference.new_zeros(len(reference), 1, CONTEXT)
        return Conditioning(reference, prompt, self.pooled(spelled), query=None, guidance=None)

    @torch.no_grad()
    def learn(self, folder: Path, prompts: Mapping[str, Told]) -> None:
        """Take over the names' embeddings from a saved base that can be told the same prompts.

        Raises:
            ValueError: when it can be told others.
        """
        saved = EmbeddedPrompts(folder / EMBEDDED_PROMPTS)
        if strange := sorted(saved.rows.keys() ^ prompts.keys()):
            raise ValueError(
                f"{saved.path}: these prompts are either only there or only in this run's pairs: {strange}"
            )
        _, pooled = saved(list(prompts))
        spelled = self.spell(list(prompts.values()))
        known = spelled.any(0)
        # Every prompt says one name that no prompt before it says, so the sums tell the summands.
        self.instructions.weight[known] = torch.linalg.solve(spelled[:, known], pooled.float())

    @torch.no_grad()
    def save(self, folder: Path, prompts: Mapping[str, Told], shift: float) -> None:
        """Write a diffusers folder: the transformer, a scheduler with this shift, and prompts as embeddings.

        Args:
            prompts: what can be told by one word -> the names that it stands for.
        """
        self.transformer.save_pretrained(folder / "transformer")
        FlowMatchEulerDiscreteScheduler(shift=shift).save_pretrained(folder / "scheduler")
        spelled = self.spell(list(prompts.values()))
        pooled = self.pooled(spelled.to(self.instructions.weight.device)).cpu().contiguous()
        tensors = {"tokens": torch.zeros(len(pooled), 1, CONTEXT), "pooled": pooled}
        save_file(tensors, folder / EMBEDDED_PROMPTS, {"prompts": json.dumps(list(prompts))})


@dataclass
class Lesson:
    """One sample: pair numbers of the example and the answer, and what the base is told."""

    example: int
    answer: int
    told: Told


class Curriculum:
    """Lesson i of a seed, for any i.

    Args:
        tasks: task name ``<edit>/<draw>`` -> pair numbers. parameters: task name -> what can be told about them.
    """

    def __init__(self, tasks: Mapping[str, list[int]], parameters: Mapping[str, Told], settings: BaseSettings):
        self.settings, self.numbers, self.parameters = settings, tasks, parameters
        self.tasks: dict[str, list[str]] = {}
        for name in tasks:
            self.tasks.setdefault(edit_of(name), []).append(name)
        self.edits = sorted(self.tasks)

    def names(self) -> list[str]:
        """All names that may be told."""
        knots = {name: None for task in self.numbers for name in self.parameters[task]}
        return [NOTHING, *self._kinds(), *self.edits, *knots]

    def prompts(self) -> dict[str, Told]:
        """What the trained base can be told by one word: nothing, a family, an edit."""
        families = {family: plainly(NOTHING, family) for family in self._kinds()}
        return {NOTHING: plainly(NOTHING), **families, **{edit: plainly(*_about(edit)) for edit in self.edits}}

    def _kinds(self) -> list[str]:
        return sorted({EDITS[edit].family for edit in self.edits})

    def canvas(self, index: int) -> Lesson:
        """An analogy."""
        which, draw, first, second = random_words("lesson", self.settings.loop.seed, index)
        task = self._draw(which, draw)
        numbers, about = self.numbers[task], _about(edit_of(task))
        place = first % len(numbers)
        other = (place + 1 + second % (len(numbers) - 1)) % len(numbers)
        coin, *words = random_words("telling", self.settings.loop.seed, index)
        edit = self.settings.told_edit
        family = edit + self.settings.told_family
        nothing = family + self.settings.untold_right * (1 - family)
        for share, names in ((edit, about), (family, about[:2]), (nothing, about[:1])):
            if as_fraction(coin) < share:
                return Lesson(numbers[other], numbers[place], plainly(*names))
        strange = self.numbers[self._draw(*words[:2])]
        return Lesson(strange[words[2] % len(strange)], numbers[place], plainly(NOTHING))

    def image(self, index: int) -> Lesson:
        """An edit of an image alone."""
        which, draw, first, coin = random_words("image", self.settings.loop.seed, index)
        task = self._draw(which, draw)
        pair = self.numbers[task][first % len(self.numbers[task])]
        about = plainly(*_about(edit_of(task)))
        if as_fraction(coin) < self.settings.alone_told_parameters:
            about |= self.parameters[task]
        return Lesson(pair, pair, about)

    def _draw(self, which: int, draw: int) -> str:
        """A task of an edit."""
        tasks = self.tasks[self.edits[which % len(self.edits)]]
        return tasks[draw % len(tasks)]


def plainly(*names: str) -> dict[str, float]:
    """To be told these names as they are."""
    return dict.fromkeys(names, 1.0)


def _about(edit: str) -> tuple[str, str, str]:
    return NOTHING, EDITS[edit].family, edit


def about_parameters(edit: Edit, parameters: Parameters) -> dict[str, float]:
    """To be told the parameters of an edit: for each of them the two knots of its range that the value lies between."""
    told = {}
    for name, value in parameters.items():
        place = edit.spans[name].share(value) * (_KNOTS - 1)
        weights = {f"{edit.name}.{name}.{knot}": 1 - abs(place - knot) for knot in range(_KNOTS)}
        told |= {knot: weight for knot, weight in weights.items() if weight > 0}
    return told


def edit_of(task: str) -> str:
    """The edit that a task ``<edit>/<draw>`` shows."""
    return task.rsplit("/", 1)[0]


def train_base(run: Path, manifest: Path, recipe: Path, settings: BaseSettings) -> Base:
    """Train on a manifest of procedural pairs, and write the base as a diffusers folder ``run/base/base``.

    The autoencoder is that of ``run/autoencoder``.

    Args:
        recipe: what the pairs were drawn from; it knows their parameters.

    Raises:
        ValueError: when there is no autoencoder yet, the pairs are not the recipe's, or LPIPS weights cannot be read.
        DataError: for a manifest that cannot be used.
    """
    vae = run / "autoencoder" / "vae"
    if not vae.is_dir():
        raise ValueError(f"{vae}: there is no autoencoder; train it with `python -m training.starter autoencoder`")
    coder = LatentCoder(str(vae.parent), pick_device(), torch.float32)
    fingerprint = {"weights": describe_weights(str(vae.parent), "vae")}
    pool = LatentPool(Manifest.load(manifest), coder, settings.canvas, run / "latents", fingerprint)
    parameters = {task.name: about_parameters(task.edit, task.parameters) for task in tasks(Recipe.load(recipe))}
    if strange := next((task for task in pool.tasks if task not in parameters), None):
        raise ValueError(
            f"{manifest}: {recipe} does not draw its task {strange}; prepare the manifest from that recipe"
        )
    curriculum = Curriculum(pool.tasks, parameters, settings)
    autoencoder = AutoencoderTiny.from_pretrained(vae).to(coder.vae.device)
    lpips = perceptual_network(settings.objective, run)
    appearance = lpips and Appearance(autoencoder, lpips.to(coder.vae.device), settings.objective.perceptual)
    base = fit_base(run / "base", pool, curriculum, appearance)
    base.save(run / "base" / "base", curriculum.prompts(), settings.objective.shift)
    autoencoder.save_pretrained(run / "base" / "base" / "vae")
    return base


class Sample(NamedTuple):
    """What a step is made of: pair numbers [B], what is told, whether it is an edit or a family [B], noise.

    The true b' [B, 3, H, W] is empty where nothing looks at it.
    """

    examples: Tensor
    answers: Tensor
    spelled: Tensor
    told: Tensor
    noise: Tensor
    times: Tensor
    truth: Tensor


def fit_base(run: Path, pool: LatentPool, curriculum: Curriculum, appearance: Appearance | None = None) -> Base:
    """Train a base on a pool of latents, where they lie."""
    settings, device = curriculum.settings, pool.target.device
    base = Base(settings, curriculum.names())
    if settings.start:
        base.learn(Path(settings.start), curriculum.prompts())
    base.to(device)
    channels, height, width = pool.target.shape[1:]
    whole = replace(settings.objective, canvas_weight=1.0)

    def sample(step: int) -> Sample:
        if step < settings.alone:
            lessons = [curriculum.image(i) for i in _indices(step, settings.alone_batch)]
            shape = (channels, height // 2, width // 2)
        else:
            lessons = [curriculum.canvas(i) for i in _indices(step, settings.loop.batch)]
            shape = (channels, height, width)
        draw = noise_of(settings, shape, len(lessons), step)
        numbers = torch.tensor([(lesson.example, lesson.answer) for lesson in lessons])
        told = torch.tensor([float(len(lesson.told) > 1) for lesson in lessons])
        truth = torch.empty(0) if appearance is None else pool.pictures([lesson.answer for lesson in lessons])
        return Sample(*numbers.T, base.spell([lesson.told for lesson in lessons]), told, draw.noise, draw.t, truth)

    def losses(drawn: Sample) -> dict[str, Tensor]:
        is_alone = drawn.noise.shape[-1] < width
        latents = pool.images(drawn.answers) if is_alone else pool.canvases(drawn.examples, drawn.answers)
        reference, target = latents
        condition, draw = base.tell(drawn.spelled, reference), Noise(drawn.noise, drawn.times)
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.bf16):
            objective = whole if is_alone else settings.objective
            flow, estimate = flow_loss(base.transformer, target, draw, condition, objective)
            seen = None if appearance is None else appearance(estimate, drawn.truth)
        told, untold = ((flow * share).sum() / share.sum() for share in (drawn.told, 1 - drawn.told))
        values = {"loss": flow.mean(), "told": told, "untold": untold}
        if seen is not None:
            unlike, values["lpips"] = seen
            values["loss"] = values["loss"] + unlike
        return values

    trained = base if appearance is None else nn.ModuleList((base, appearance))
    fit(run, trained, sample, losses, settings.loop, settings.optimizer)
    return base


def _indices(step: int, size: int) -> range:
    return range(step * size, (step + 1) * size)


def noise_of(settings: BaseSettings, shape: tuple[int, ...], count: int, step: int) -> Noise:
    """Noise and timesteps of a step for as many latents of a shape [16, h, w]."""
    generators = [
        torch.Generator().manual_seed(random_words("noise", settings.loop.seed, step, i)[0] >> 1) for i in range(count)
    ]
    return draw_noise(shape, generators, settings.objective)
