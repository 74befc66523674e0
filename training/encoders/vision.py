"""The image encoder of the analogy query: CLIP or SigLIP, run by transformers."""

import torch
from torch import Tensor
from transformers import AutoConfig, AutoImageProcessor, CLIPVisionModelWithProjection, SiglipVisionModel

from lorweb_core.canvas import fit_image
from lorweb_core.query import QueryMode

from ..hub import locate


class VisionEncoder:
    """The core's ``ImageEncoder`` around a CLIP or SigLIP vision model of transformers.

    Args:
        name: folder or hub id of the encoder.
        device: where it runs, in float32: one small model, and its embeddings decide every coefficient.
    """

    def __init__(self, name: str, device: torch.device | str = "cpu"):
        where = locate(name, "bank.encoder")
        self.crops = AutoConfig.from_pretrained(**where).model_type.startswith("clip")  # SigLIP squeezes
        family = CLIPVisionModelWithProjection if self.crops else SiglipVisionModel
        model = family.from_pretrained(**where, dtype=torch.float32, use_safetensors=True)
        self.model = model.to(device).eval().requires_grad_(False)
        processor = AutoImageProcessor.from_pretrained(**where)
        self.side = self.model.config.image_size
        self.mean, self.std = (
            torch.tensor(list(values), device=device) for values in (processor.image_mean, processor.image_std)
        )

    @torch.no_grad()
    def pooled(self, images: Tensor, stretch: bool = False) -> Tensor:
        """Projected embedding [B, e] of images [B, H, W, 3] in 0..1."""
        output = self.model(pixel_values=self._prepare(images, stretch))
        return output.image_embeds if "image_embeds" in output else output.pooler_output

    @torch.no_grad()
    def tokens(self, images: Tensor, hidden: tuple[int, ...]) -> Tensor:
        """Un-pooled tokens of the named hidden states, [B, T * len(hidden), width]."""
        states = self.model(pixel_values=self._prepare(images, False), output_hidden_states=True).hidden_states
        return torch.cat([states[i] for i in hidden], dim=1)

    def _prepare(self, images: Tensor, stretch: bool) -> Tensor:
        images, stretch = images.to(self.mean.device), stretch or not self.crops
        return prepare_pixels(images, self.side, self.mean, self.std, stretch)


def prepare_pixels(images: Tensor, side: int, mean: Tensor, std: Tensor, stretch: bool) -> Tensor:
    """What a vision model sees of images [B, H, W, 3] in 0..1: [B, 3, side, side], as its own preprocessing.

    Resized, centre-cropped (or squeezed, with ``stretch``), rounded to 8 bits and normalised by mean and std [3].
    """
    squares = fit_image(images, side, side, "stretch" if stretch else "crop")
    return ((squares.mul(255).round().div(255) - mean) / std).movedim(-1, 1)


def embedding_width(name: str, spec: QueryMode) -> int:
    """Numbers that an encoder gives for one image of a mode, from its configuration alone.

    Raises:
        ValueError: as ``locate``. OSError: when there is no configuration.
    """
    config = AutoConfig.from_pretrained(**locate(name, "bank.encoder"))
    clip, vision = config.model_type.startswith("clip"), getattr(config, "vision_config", config)
    if spec.hidden is None:
        return vision.projection_dim if clip else vision.hidden_size
    tokens = (vision.image_size // vision.patch_size) ** 2 + clip  # CLIP has one more, of the whole image
    return tokens * len(spec.hidden) * vision.hidden_size
