"""What the starter's base makes, as it looks: through a decoder that learns to decode just that."""

import torch
from diffusers import AutoencoderTiny
from torch import Tensor, nn

from lorweb_core.canvas import LATENT_SHRINK

from ..perception import Perception
from .autoencoder import Trained, unlikeness


class Appearance(nn.Module):
    """How unlike the truth what a base makes looks through a decoder, which is trained with it.

    Args:
        model: the autoencoder; its encoder stays as it is, and so does every latent.
        lpips: see ``load_lpips``. perceptual: its weight.
    """

    def __init__(self, model: AutoencoderTiny, lpips: nn.Module, perceptual: float):
        super().__init__()
        self.autoencoder, self.perceptual = Trained(model.to(memory_format=torch.channels_last)), perceptual
        self.autoencoder.encoder.requires_grad_(False)
        self.perception = Perception(lpips, self.autoencoder.pixels)

    def forward(self, estimate: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """(loss, LPIPS) of estimated latents against the true b' [B, 3, H, W] in 0..1.

        Args:
            estimate: of b' alone [B, 16, H/8, W/8], or of the canvas that it is a quadrant of.
        """
        is_alone = estimate.shape[-1] * LATENT_SHRINK == truth.shape[-1]
        images = self.autoencoder.pixels(estimate) if is_alone else self.perception.answer(estimate)
        lpips = self.perception.compare(images, truth).mean()
        return unlikeness(images, truth) + self.perceptual * lpips, lpips
