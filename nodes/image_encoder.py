"""ComfyUI's CLIP_VISION as the image encoder of the query."""

from collections.abc import Iterator
from dataclasses import dataclass

import comfy.model_management
import torch
from torch import Tensor

from ..lorweb_core import BankConfig
from ..lorweb_core.canvas import pad_edges, resize
from ..lorweb_core.config import CLIP_VIT_L
from .progress import interruptible

ENCODER_CROPS = ("center", "pad", "stretch")
# Images a forward pass; bounds memory for large batches and lets an interrupt in between.
CHUNK = 16
SIGLIP_MEAN = [0.5, 0.5, 0.5]


@dataclass
class ClipVisionEncoder:
    """An ``ImageEncoder`` (see the core's query) around a CLIP_VISION object.

    Attributes:
        clip_vision: ComfyUI's encoder.
        config: the bank's configuration, against which the encoder's width is checked.
        crop: what happens to images that are not square: "center" is the encoder's own preprocessing (CLIP cuts the
            edges off, SigLIP squeezes the image), "pad" keeps the edges and repeats their colours, "stretch" squeezes.
    """

    clip_vision: object
    config: BankConfig
    crop: str = "center"

    def pooled(self, images: Tensor, stretch: bool = False) -> Tensor:
        """Projected embedding [B, e] of images [B, H, W, 3].

        Raises:
            ValueError: when the encoder is not of the family, or its embedding not of the width, that the bank was
                trained with.
        """
        self._check_family()
        squares = self._squares(images, stretch)
        embeddings = torch.cat([self.clip_vision.encode_image(chunk).image_embeds for chunk in _chunks(squares)])
        self._check_width(embeddings)
        return embeddings

    def tokens(self, images: Tensor, hidden: tuple[int, ...]) -> Tensor:
        """Un-pooled tokens of the named hidden states, [B, T * len(hidden), width].

        Raises:
            ValueError: as ``pooled``.
        """
        self._check_family()
        squares = self._squares(images, stretch=False)
        tokens = torch.cat([self._hidden_states(chunk)[:, list(hidden)] for chunk in _chunks(squares)]).flatten(1, 2)
        self._check_width(tokens.flatten(1))
        return tokens

    def _squares(self, images: Tensor, stretch: bool) -> Tensor:
        """Images at the encoder's own size, so that ComfyUI's preprocessing has nothing left to resize or crop.

        ComfyUI rounds the longer side where CLIP cuts it off, which shifts the crop by half a pixel. SigLIP's own
        preprocessing never crops.
        """
        side = self.clip_vision.image_size
        own = self.crop == "center" and "siglip" in self.config.encoder
        if stretch or own or self.crop == "stretch":
            return resize(images, side, side)
        if self.crop == "pad":
            longest = max(images.shape[1:3])
            return resize(pad_edges(images, longest, longest), side, side)
        return center_crop(images, side)

    def _hidden_states(self, squares: Tensor) -> Tensor:
        """All hidden states [B, layers, T, width]; ``encode_image`` gives the last two only."""
        encoder = self.clip_vision
        comfy.model_management.load_model_gpu(encoder.patcher)
        pixels = normalise(squares.to(encoder.load_device), encoder.image_mean, encoder.image_std)
        states = encoder.model(pixel_values=pixels, intermediate_output="all")[1]
        return states.to(comfy.model_management.intermediate_device())

    def _check_family(self) -> None:
        """CLIP ViT-L/14 and SigLIP 2 base give as many numbers; how they normalise pixels tells them apart."""
        needed, found = "siglip" in self.config.encoder.lower(), list(self.clip_vision.image_mean) == SIGLIP_MEAN
        if needed != found and (needed or self.config.encoder == CLIP_VIT_L):
            kind, loader = ("CLIP", "Load SigLIP 2 Vision (LoRWeB)") if needed else ("SigLIP", "Load CLIP Vision")
            raise ValueError(
                f"this CLIP_VISION is a {kind} model, but the bank was trained with {self.config.encoder}: load that"
                f" with {loader}"
            )

    def _check_width(self, embeddings: Tensor) -> None:
        needed, encoder = self.config.embedding_dim, self.config.encoder
        found = list(embeddings.shape[1:])
        if found != [needed]:
            raise ValueError(
                f"this CLIP_VISION gives {' x '.join(map(str, found))} numbers per image, but the bank was trained"
                f" with {needed} from {encoder}: {_where_to_get(encoder)}"
            )


def _where_to_get(encoder: str) -> str:
    if "/" not in encoder:  # no hub id, but the name of a folder
        return "connect that one; the starter's is the clip_vision of Load LoRWeB Starter"
    name = encoder.rsplit("/", 1)[-1]
    return f"put its model.safetensors into models/clip_vision as {name}.safetensors and choose it in the loader"


def normalise(squares: Tensor, mean: list[float], std: list[float]) -> Tensor:
    """Images [B, side, side, 3] in 0..1 as pixel values [B, 3, side, side], rounded to bytes as in files."""
    levels = squares[..., :3].float().mul(255).clamp(0, 255).round().div(255)
    return ((levels - levels.new_tensor(mean)) / levels.new_tensor(std)).movedim(-1, 1)


def center_crop(images: Tensor, side: int) -> Tensor:
    """CLIP's own preprocessing of images [B, H, W, C]: the shorter side to ``side``, then the centre square."""
    height, width = images.shape[1:3]
    shortest = min(height, width)
    images = resize(images, side * height // shortest, side * width // shortest)
    top, left = (images.shape[1] - side) // 2, (images.shape[2] - side) // 2
    return images[:, top : top + side, left : left + side]


def _chunks(images: Tensor) -> Iterator[Tensor]:
    return interruptible(images.split(CHUNK))
