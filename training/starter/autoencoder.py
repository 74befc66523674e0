"""Train the starter's autoencoder: ``python -m training.starter autoencoder``.

TAESD's architecture with FLUX's 16 latent channels, because ComfyUI's own VAE loader and diffusers' ``AutoencoderTiny``
both read it.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch import Tensor, nn
from torch.nn import functional as F

from lorweb_core.canvas import LATENT_SHRINK, stack_quadrants

from ..config import OptimizerConfig
from ..lpips_weights import load_lpips
from ..pictures import photographs
from ..pictures.edits import EDITS, TRAINING_EDITS
from ..pictures.edits.edit import subject
from .loop import LoopSettings, fit
from .pool import LATENT_CHANNELS, REFRESH, Workshop, generator_of

_LATENT_NOISE = 0.1


@dataclass
class AutoencoderSettings:
    """A run of the autoencoder.

    Attributes:
        start: folder of an autoencoder to begin with, such as the shipped one; empty begins with a fresh one.
        local: weight of how much latents change when the rest of the canvas does.
        lpips: the weights that ``training.lpips_weights`` reads; empty leaves LPIPS out of the loss.
        perceptual: weight of LPIPS in the loss.
        held_out: pictures of held-out photographs that each checkpoint is evaluated on.
        first: shards of pairs to wait for before the first step.
        bf16: run the products in bfloat16, which takes half the time on processors that have it.
    """

    start: str = ""
    held_out: int = 64
    first: int = 1
    local: float = 0.05
    lpips: str = ""
    perceptual: float = 0.05
    bf16: bool = True
    loop: LoopSettings = field(default_factory=lambda: LoopSettings(steps=6000, batch=64, checkpoint=500))
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(lr=2e-3, weight_decay=0.0, schedule="cosine", warmup=50)
    )


def make_autoencoder(seed: int) -> AutoencoderTiny:
    """A fresh autoencoder whose blocks all begin as identities."""
    torch.manual_seed(seed)
    model = AutoencoderTiny(latent_channels=LATENT_CHANNELS)
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
            if name.endswith("conv.4"):
                nn.init.zeros_(layer.weight)
    return model


class Trained(nn.Module):
    """The part of the autoencoder that is trained.

    The encoder's block at full resolution, and the first of those at half of it, stay identities: they would be two
    thirds of the encoder's time.
    """

    def __init__(
        self, model: AutoencoderTiny, perceive: nn.Module | None = None, perceptual: float = 0.0, local: float = 0.0
    ):
        super().__init__()
        self._perceive = [perceive]  # in a list, so that its weights are none of this module's
        self.perceptual, self.local = perceptual, local
        self.encoder, self.decoder = _without(model.encoder.layers, (1, 4)), model.decoder.layers

    def losses(self, images: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """Reconstruction of images [4 B, 3, H, W] in 0..1, four on a canvas, from latents that are a little noisy, as a
        sampler's are.

        Args:
            noise: for the latents, of variance 1 and their shape [4 B, 16, H/8, W/8].
        """
        latents = self.encode(images)
        disturbed = latents + _LATENT_NOISE * noise
        decoded = self.decode(disturbed)
        leak = self.leak(images, latents)
        loss = unlikeness(decoded, images) + 0.01 * spread(latents) + self.local * leak
        loss = loss + self.perceptual * self.difference(decoded, images)
        return {"loss": loss, "psnr": psnr(decoded, images).mean(), "leak": leak}

    def encode(self, images: Tensor) -> Tensor:
        """Latents [4 B, 16, H/8, W/8] of images that lie on canvases of four, in the order of the batch."""
        return split_canvases(self.encoder(make_canvases(images)))

    def decode(self, latents: Tensor) -> Tensor:
        """Images of latents that lie on canvases of four."""
        return split_canvases(self.pixels(make_canvases(latents)))

    def pixels(self, latents: Tensor) -> Tensor:
        """Images [B, 3, H, W] of latents [B, 16, H/8, W/8], each by itself."""
        return self.decoder(torch.tanh(latents / 3) * 3).float()

    def leak(self, images: Tensor, latents: Tensor) -> Tensor:
        """Mean squared change of the latents of images when other images lie beside them."""
        return (self.encode(images.roll(1, 0)).roll(-1, 0) - latents).square().mean()

    def difference(self, decoded: Tensor, images: Tensor) -> Tensor:
        """Mean LPIPS of images [B, 3, H, W] in 0..1; 0 without its weights."""
        (perceive,) = self._perceive
        return images.new_zeros(()) if perceive is None else perceive(decoded, images, normalize=True).mean()


def make_canvases(images: Tensor) -> Tensor:
    """Images [4 B, C, H, W] on 2x2 canvases [B, C, 2 H, 2 W], from left to right and from top to bottom."""
    quadrants = images.movedim(1, -1).unflatten(0, (-1, 4)).unbind(1)
    return stack_quadrants(*quadrants).movedim(-1, 1)


def split_canvases(canvases: Tensor) -> Tensor:
    """What ``make_canvases`` joined."""
    quadrants = canvases.unflatten(3, (2, -1)).unflatten(2, (2, -1))
    return quadrants.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)


def _without(layers: nn.Sequential, resting: tuple[int, ...]) -> nn.Sequential:
    """The layers with some blocks replaced by what they are while their last weights are zero."""
    return nn.Sequential(*(nn.ReLU() if number in resting else layer for number, layer in enumerate(layers)))


def spread(latents: Tensor) -> Tensor:
    """How far the channels of latents [B, C, h, w] are from mean 0 and variance 1: what flow matching expects."""
    channels = latents.transpose(0, 1).flatten(1)
    return (channels.mean(1) ** 2 + (channels.std(1) - 1) ** 2).mean()


def unlikeness(images: Tensor, truth: Tensor) -> Tensor:
    """How far images are from the truth by their pixels."""
    return F.mse_loss(images, truth) + 0.1 * F.l1_loss(images, truth)


def psnr(images: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB per image [B, ...] in 0..1."""
    return -10 * (images.clamp(0, 1) - truth).square().flatten(1).mean(1).log10()


def draw_images(seed: int, names: tuple[str, ...], count: int, side: int) -> Tensor:
    """Pictures such as a canvas holds: photographs, scenes, and both after an edit; [count, 3, side, side]."""
    rng = np.random.default_rng(seed)
    return torch.stack([torch.from_numpy(_draw_image(rng, names, side)).movedim(-1, 0) for _ in range(count)])


def _draw_image(rng: np.random.Generator, names: tuple[str, ...], side: int) -> np.ndarray:
    if rng.random() < 0.5:
        return subject(rng, side, names)
    edit = EDITS[TRAINING_EDITS[rng.integers(len(TRAINING_EDITS))]]
    return edit.pair(rng, edit.parameters(rng), side, names)[1]


def train_autoencoder(shop: Workshop, settings: AutoencoderSettings) -> Path:
    """Train on drawn pairs, and write the autoencoder as a diffusers folder, which is returned.

    Raises:
        ValueError: for a batch that does not fill its canvases, or LPIPS weights that cannot be read.
        OSError: when there is no autoencoder to begin with where the settings say.
    """
    if settings.loop.batch % 4:
        raise ValueError(f"the batch is {settings.loop.batch}; a canvas holds four pictures: make it a multiple of 4")
    start = settings.start
    model = (
        AutoencoderTiny.from_pretrained(start, use_safetensors=True) if start else make_autoencoder(settings.loop.seed)
    )
    device, pool, folder = shop.device, shop.pool, shop.run / "autoencoder"
    model = model.to(device, memory_format=torch.channels_last).requires_grad_(True)
    perceive = load_lpips(Path(settings.lpips), shop.run).to(device) if settings.lpips else None
    trained = Trained(model, perceive, settings.perceptual, settings.local)
    held_out = draw_images(1, photographs.HELD_OUT, settings.held_out, shop.drawn.side).to(device)
    pool.refresh(wait_for=settings.first)

    def losses(step: int, share: float) -> dict[str, Tensor]:
        if step % REFRESH == 0:
            pool.refresh()
        generator = generator_of(settings.loop.seed, step, device)
        images = pool.pictures(settings.loop.batch, generator)
        side = shop.drawn.side // LATENT_SHRINK
        noise = torch.randn(len(images), LATENT_CHANNELS, side, side, generator=generator, device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.bf16):
            return trained.losses(images, noise)

    @torch.no_grad()
    def evaluate() -> dict[str, float]:
        latents = trained.encode(held_out)
        decoded = trained.decode(latents)
        return {
            "held_out_psnr": psnr(decoded, held_out).mean().item(),
            "held_out_lpips": trained.difference(decoded, held_out).item(),
            "held_out_leak": trained.leak(held_out, latents).item(),
            "latent_std": latents.std().item(),
        }

    fit(folder, trained, losses, settings.loop, settings.optimizer, evaluate)
    model.save_pretrained(folder / "vae")
    return folder / "vae"
