"""Train the starter's image encoder: ``python -m training.starter encoder``.

A small CLIP vision model that learns, by contrast, to say what an edit did: the difference of the embeddings after and
before an edit agrees between any two images that got the same edit with the same parameters, and with no other edit of
the batch. Some of the edits are compositions of two, so that the space of differences is more than a list of names.
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from ..config import OptimizerConfig
from ..device import pick_device
from . import photographs
from .edits import EDITS, TRAINING_EDITS, compose
from .loop import LoopSettings, fit
from .recipe import TRAINING_SUBJECTS

logger = logging.getLogger(__name__)

_ATTENTION = "eager"  # on a CPU in bfloat16, the fused one goes backward at half the speed
_TEMPERATURE = 0.1
_COMPOSED = 0.3
_FOLLOWING = [name for name in TRAINING_EDITS if EDITS[name].apply is not None]


@dataclass
class EncoderSettings:
    """A run of the image encoder; ``loop.batch`` counts edits, of four images each.

    Attributes:
        start: folder of an encoder to begin with, such as the shipped one, whatever its shape; empty begins with a
            fresh one.
        bf16: run the products in bfloat16, which takes half the time on processors that have it.
    """

    side: int = 64
    start: str = ""
    patch: int = 8
    width: int = 128
    depth: int = 4
    embedding: int = 128
    bf16: bool = True
    loop: LoopSettings = field(default_factory=lambda: LoopSettings(steps=2200, batch=48))
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(lr=1e-3, weight_decay=0.05, schedule="cosine", warmup=100)
    )


def make_encoder(settings: EncoderSettings) -> CLIPVisionModelWithProjection:
    """The encoder that the settings begin with.

    Raises:
        OSError: when they name one that is not there.
    """
    if settings.start:
        return CLIPVisionModelWithProjection.from_pretrained(
            settings.start, dtype=torch.float32, attn_implementation=_ATTENTION
        )
    torch.manual_seed(settings.loop.seed)
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=settings.width,
            intermediate_size=4 * settings.width,
            num_hidden_layers=settings.depth,
            num_attention_heads=settings.width // 32,
            image_size=settings.side,
            patch_size=settings.patch,
            projection_dim=settings.embedding,
            attn_implementation=_ATTENTION,
        )
    )


def contrast(first: Tensor, second: Tensor) -> dict[str, Tensor]:
    """How well differences [K, e] of one image tell which of the K differences of other images shows the same edit."""
    cosines = F.normalize(first, dim=1) @ F.normalize(second, dim=1).T
    truth = torch.arange(len(first), device=first.device)
    loss = (F.cross_entropy(cosines / _TEMPERATURE, truth) + F.cross_entropy(cosines.T / _TEMPERATURE, truth)) / 2
    power = torch.cat((first, second)).square().mean()
    # A length of about one per entry: mixing coefficients then begin spread out, neither uniform nor one-hot.
    return {
        "loss": loss + 0.1 * (power - 1) ** 2,
        "found": (cosines.argmax(1) == truth).float().mean(),
        "power": power,
    }


def draw_examples(seed: int, names: tuple[str, ...], count: int, side: int) -> Tensor:
    """``count`` edits, each on two subjects, before and after: [count, 4, 3, side, side] as a, a', b, b'."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(np.stack([_draw_example(rng, names, side) for _ in range(count)])).movedim(-1, 2)


def _draw_example(rng: np.random.Generator, names: tuple[str, ...], side: int) -> np.ndarray:
    edit = EDITS[rng.choice(TRAINING_EDITS)]
    if rng.random() < _COMPOSED:
        edit = compose(edit, EDITS[rng.choice(_FOLLOWING)])
    parameters = edit.parameters(rng)
    return np.stack([*edit.pair(rng, parameters, side, names), *edit.pair(rng, parameters, side, names)])


def train_encoder(run: Path, settings: EncoderSettings) -> nn.Module:
    """Train, and write the encoder as a transformers folder ``run/encoder``.

    Raises:
        OSError: when there is no encoder to begin with where the settings say.
    """
    device, loop = pick_device(), settings.loop
    encoder = make_encoder(settings).to(device)
    processor = CLIPImageProcessor(
        size={"shortest_edge": settings.side}, crop_size={"height": settings.side, "width": settings.side}
    )
    mean, std = (torch.tensor(v, device=device).view(3, 1, 1) for v in (processor.image_mean, processor.image_std))

    def differences(examples: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.bf16):
            embeddings = encoder(pixel_values=(examples.flatten(0, 1) - mean) / std).image_embeds
        a, a_prime, b, b_prime = embeddings.float().unflatten(0, (-1, 4)).unbind(1)
        return a_prime - a, b_prime - b

    held_out = draw_examples(1, photographs.HELD_OUT, 256, settings.side).to(device)

    @torch.no_grad()
    def evaluate() -> dict[str, float]:
        return {"held_out_found": contrast(*differences(held_out))["found"].item()}

    def sample(step: int) -> Tensor:
        return draw_examples((loop.seed << 32) + step + 2, TRAINING_SUBJECTS, loop.batch, settings.side)

    def losses(examples: Tensor) -> dict[str, Tensor]:
        return contrast(*differences(examples))

    fit(run, encoder, sample, losses, loop, settings.optimizer, evaluate)
    encoder.save_pretrained(run / "encoder")
    processor.save_pretrained(run / "encoder")
    return encoder
