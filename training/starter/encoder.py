"""Train the starter's image encoder: ``python -m training.starter encoder``.

A small CLIP vision model that learns, by contrast, to say what an edit did. It sees a pair a | a' as one picture, as
query mode ``caa'`` shows it; its embedding agrees between any two pairs that got the same edit with the same
parameters, and with no other pair of the batch. Some of the edits are compositions of two, so that the space of
embeddings is more than a list of names.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from lorweb_core.query import QUERY_MODES

from ..config import OptimizerConfig
from ..device import pick_device
from ..encoders.vision import prepare_pixels
from ..pictures import photographs
from ..pictures.edits import TRAINING_EDITS, eight_bits
from .beginning import begin_pairs
from .loop import LoopSettings, fit
from .pool import REFRESH, Workshop, generator_of
from .shards import as_one, draw_task

_TEMPERATURE = 0.1
_HEAD = 32  # width of an attention head
_AT_ONCE = 64  # edits in evaluation
_PAIR = QUERY_MODES["caa'"]


@dataclass
class EncoderSettings:
    """A run of the image encoder; ``loop.batch`` counts edits, of two pairs each.

    Attributes:
        start: folder of an encoder to begin with, such as the shipped one, whatever its shape; empty begins with a
            fresh one.
        patch: side of a patch of the picture of both images, which is a square of twice their side.
        held_out: edits of held-out photographs that each checkpoint is evaluated on.
        first: shards of pairs to wait for before the first step.
        bf16: run the products in bfloat16, which takes half the time on processors that have it.
    """

    start: str = ""
    held_out: int = 256
    first: int = 1
    patch: int = 16
    width: int = 224
    depth: int = 6
    embedding: int = 128
    bf16: bool = True
    loop: LoopSettings = field(default_factory=lambda: LoopSettings(steps=11_000, batch=256))
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(lr=1e-3, weight_decay=0.05, schedule="cosine", warmup=200)
    )


def make_encoder(settings: EncoderSettings, image: int) -> CLIPVisionModelWithProjection:
    """The encoder that the settings begin with, for pairs of images of a side in pixels.

    Raises:
        OSError: when they name one that is not there.
        ValueError: when they describe one that cannot be made.
    """
    if settings.start:
        return CLIPVisionModelWithProjection.from_pretrained(
            settings.start, dtype=torch.float32, attn_implementation=_attention(), use_safetensors=True
        )
    if settings.width < 3 * _HEAD or settings.width % _HEAD:
        raise ValueError(f"encoder.width is {settings.width}; it must be a multiple of {_HEAD}, at least {3 * _HEAD}")
    if image % settings.patch:
        raise ValueError(f"encoder.patch is {settings.patch}; it must divide the image's side of {image}")
    torch.manual_seed(settings.loop.seed)
    encoder = CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=settings.width,
            intermediate_size=4 * settings.width,
            num_hidden_layers=settings.depth,
            num_attention_heads=settings.width // _HEAD,
            image_size=2 * image,
            patch_size=settings.patch,
            projection_dim=settings.embedding,
            attn_implementation=_attention(),
        )
    )
    begin_pairs(encoder)
    return encoder


def _attention() -> str:
    """The fastest attention: on a CPU in bfloat16, the fused one goes backward at half the speed."""
    return "eager" if pick_device().type == "cpu" else "sdpa"


def contrast(first: Tensor, second: Tensor) -> dict[str, Tensor]:
    """How well embeddings [K, e] of K edits tell which of the K embeddings of other pairs shows the same edit."""
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


def draw_examples(seed: int, names: Sequence[str], count: int, side: int, composed: float) -> Tensor:
    """``count`` edits, each on two subjects, before and after: uint8 [count, 2, 2, side, side, 3].

    Args:
        names: of the subjects. composed: see ``DrawSettings``.
    """
    rng = np.random.default_rng(seed)
    examples = []
    for _ in range(count):
        edit, parameters = as_one(draw_task(rng, TRAINING_EDITS, composed))
        examples.append([np.stack(edit.pair(rng, parameters, side, names)) for _ in range(2)])
    return torch.from_numpy(eight_bits(np.array(examples)))


def train_encoder(shop: Workshop, settings: EncoderSettings) -> Path:
    """Train on drawn pairs, and write the encoder as a transformers folder, which is returned.

    Raises:
        OSError, ValueError: see ``make_encoder``.
    """
    device, drawn, pool, folder, loop = shop.device, shop.drawn, shop.pool, shop.run / "encoder", settings.loop
    encoder = make_encoder(settings, drawn.side).to(device)
    side = encoder.config.image_size
    processor = CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    mean, std = (torch.tensor(values, device=device) for values in (processor.image_mean, processor.image_std))

    def embeddings(examples: Tensor) -> tuple[Tensor, Tensor]:
        """Of the first and of the second pair of every edit: [K, e] each."""
        a, a_prime = (examples.flatten(0, 1) / 255).unbind(1)
        pictures = prepare_pixels(_PAIR.composite(a, a_prime), side, mean, std, _PAIR.stretch)
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.bf16):
            embedded = encoder(pixel_values=pictures).image_embeds
        return embedded.float().unflatten(0, (-1, 2)).unbind(1)

    held_out = draw_examples(1, photographs.HELD_OUT, settings.held_out, drawn.side, drawn.composed).to(device)

    @torch.no_grad()
    def evaluate() -> dict[str, float]:
        parts = zip(*(embeddings(some) for some in held_out.split(_AT_ONCE)))
        return {"held_out_found": contrast(*map(torch.cat, parts))["found"].item()}

    pool.refresh(wait_for=settings.first)

    def losses(step: int, share: float) -> dict[str, Tensor]:
        if step % REFRESH == 0:
            pool.refresh()
        return contrast(*embeddings(pool.examples(loop.batch, generator_of(loop.seed, step, device))))

    fit(folder, encoder, losses, loop, settings.optimizer, evaluate)
    encoder.save_pretrained(folder / "encoder")
    processor.save_pretrained(folder / "encoder")
    return folder / "encoder"
