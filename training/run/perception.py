"""How unlike the truth an estimated b' looks: LPIPS of what both decode to, as a term of an objective."""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from lorweb_core.canvas import LATENT_SHRINK

from ..config import ObjectiveConfig
from ..lpips_weights import load_lpips

_MARGIN = 1  # latents of its neighbours that b' is decoded with, because the autoencoder looks over edges


class Perception:
    """LPIPS of b' in estimated canvases, through the decoder.

    Args:
        lpips: see ``load_lpips``.
        decode: latents [B, 16, h, w] -> images [B, 3, 8 h, 8 w], about 0..1; gradients must pass.
    """

    def __init__(self, lpips: nn.Module, decode: Callable[[Tensor], Tensor]):
        self.lpips, self.decode = lpips, decode

    def __call__(self, estimate: Tensor, target: Tensor) -> Tensor:
        """LPIPS [B] between b' of the estimated and of the true canvases, latents [B, 16, h, w] both."""
        with torch.no_grad():
            truth = self.answer(target)
        return self.compare(self.answer(estimate), truth)

    def of_share(self, estimate: Tensor, target: Tensor, share: float) -> Tensor:
        """Mean LPIPS of the first ``share`` of a batch, at least one of it."""
        seen = math.ceil(share * len(estimate))
        return self(estimate[:seen], target[:seen]).mean()

    def answer(self, canvases: Tensor) -> Tensor:
        """b' [B, 3, H, W], about 0..1, of latent canvases."""
        top, left = (side // 2 - _MARGIN for side in canvases.shape[-2:])
        edge = _MARGIN * LATENT_SHRINK
        return self.decode(canvases[..., top:, left:])[..., edge:, edge:]

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
