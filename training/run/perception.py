"""How unlike the truth an estimated b' looks: LPIPS of what both decode to, as a term of an objective."""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from ..config import ObjectiveConfig
from ..data.layouts import CANVAS, Layout
from ..lpips_weights import load_lpips

_MARGIN = 1  # latents of its neighbours that b' is decoded with, because the autoencoder looks over edges


class Perception:
    """LPIPS of b' in what is estimated, through the decoder.

    Args:
        lpips: see ``load_lpips``.
        decode: latents [B, C, h, w] -> images [B, 3, s h, s w], about 0..1; gradients must pass.
    """

    def __init__(self, lpips: nn.Module, decode: Callable[[Tensor], Tensor], layout: Layout = CANVAS):
        self.lpips, self.decode, self.layout = lpips, decode, layout

    def __call__(self, estimate: Tensor, target: Tensor) -> Tensor:
        """LPIPS [B] between b' of the estimated and of the true latents [B, C, h, w]."""
        with torch.no_grad():
            truth = self.answer(target)
        return self.compare(self.answer(estimate), truth)

    def of_share(self, estimate: Tensor, target: Tensor, share: float) -> Tensor:
        """Mean LPIPS of the first ``share`` of a batch, at least one of it."""
        seen = math.ceil(share * len(estimate))
        return self(estimate[:seen], target[:seen]).mean()

    def answer(self, latents: Tensor) -> Tensor:
        """b' [B, 3, H, W], about 0..1, of latents of what the base makes."""
        top, left = (side * (self.layout.quadrants - 1) // self.layout.quadrants for side in latents.shape[-2:])
        margin = _MARGIN if self.layout.quadrants > 1 else 0
        seen = latents[..., top - margin :, left - margin :]
        images = self.decode(seen)
        edge = margin * images.shape[-1] // seen.shape[-1]
        return images[..., edge:, edge:]

    def compare(self, images: Tensor, truth: Tensor) -> Tensor:
        """LPIPS [B] of images [B, 3, H, W] in 0..1."""
        return self.lpips(images, truth, normalize=True).flatten()


def perceptual_network(config: ObjectiveConfig, cache: Path) -> nn.Module | None:
    """LPIPS where the objective asks for it, else None.

    Args:
        cache: folder that keeps what is made of the weights.

    Raises:
        ValueError: for weights that are missing or cannot be read.
    """
    if not config.perceptual:
        return None
    if not config.lpips:
        raise ValueError("objective.perceptual needs the weights of LPIPS; set objective.lpips")
    return load_lpips(Path(config.lpips), cache)
