"""What a base model must tell: the contract that every family of models fulfils in a file of its own."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ..data.layouts import Layout
from ..hub import locate

Told = dict[str, Tensor]  # what text encoders say, by name: of one prompt, or of a batch of them [B, ...]
# Prompts, and the reference images of each where the family's text encoder sees them -> what is said about each.
PromptEncoder = Callable[[Sequence[str], Sequence[Sequence[Tensor]]], list[Told]]


@dataclass
class Conditioning:
    """What the model is told about a batch.

    Attributes:
        family, layout: of the base, and how it is shown the analogy.
        references: latents [B, C, h, w] of the reference images; the last holds b, and is as large as the answer.
        text: of the prompts.
        query: analogy query z [B, q]; None for a model without a bank.
        guidance: [B] for a guidance-distilled model, else None.
        negative: text of what guidance leads away from, where something is sampled that needs it.
    """

    family: "Family"
    layout: Layout
    references: tuple[Tensor, ...]
    text: Told
    query: Tensor | None = None
    guidance: Tensor | None = None
    negative: Told | None = None


class Coder(ABC):
    """An autoencoder: images [B, H, W, 3] in 0..1 to normalised latents [B, C, h, w] of about variance 1, and back.

    Attributes:
        shrink: pixels of a side of a latent. channels: C.
        memory_format: of the weights. Images come with their channels last, and convolutions are a quarter faster
            that way.
    """

    shrink: ClassVar[int]
    channels: ClassVar[int]
    memory_format: ClassVar[torch.memory_format] = torch.channels_last

    def __init__(self, vae: ModelMixin, device: torch.device | str):
        self.vae = vae.to(device, memory_format=self.memory_format).eval().requires_grad_(False)

    @abstractmethod
    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Latents [B, C, h, w] of pixels [B, 3, H, W] in -1..1."""

    @abstractmethod
    def decode_pixels(self, latents: Tensor) -> Tensor:
        """Pixels [B, 3, H, W], about -1..1, of latents; gradients pass."""

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """The mode of the posterior, as the family's pipeline encodes its reference images."""
        pixels = images.movedim(-1, 1).to(self.vae.device, self.vae.dtype) * 2 - 1
        return self.encode_pixels(pixels).contiguous()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Images [B, H, W, 3] in 0..1, float32 on the CPU, as the family's pipeline decodes what it sampled."""
        return self.pixels(latents).clamp(0, 1).movedim(1, -1).cpu()

    def pixels(self, latents: Tensor) -> Tensor:
        """Images [B, 3, H, W] of latents, about 0..1, float32 where the autoencoder is; gradients pass."""
        return (self.decode_pixels(latents.to(self.vae.device, self.vae.dtype)) / 2 + 0.5).float()


class Family(ABC):
    """A family of models.

    Attributes:
        name: for people.
        transformer, pipeline: diffusers' classes; the name of the first in a base's configuration tells the family.
        coder: its autoencoder's.
        targets: regular expression of the layers that get a basis, by their whole module path.
        layouts: names of those that it was trained for.
        image_tokens: about how many its text encoder makes of a reference image; 0 where it sees the prompt alone.
        idle: whether some of the targets do nothing, and never get a gradient.
        negative: the prompt that guidance leads away from; None for a model whose guidance is embedded.
        recipe: the configuration that is meant for it.
        guidance: that images are made with where nobody says otherwise.
    """

    name: ClassVar[str]
    transformer: ClassVar[type[ModelMixin]]
    pipeline: ClassVar[type[DiffusionPipeline]]
    coder: ClassVar[type[Coder]]
    targets: ClassVar[str]
    layouts: ClassVar[tuple[str, ...]]
    image_tokens: ClassVar[int] = 0
    idle: ClassVar[bool] = False
    negative: ClassVar[str | None] = None
    recipe: ClassVar[str]
    guidance: ClassVar[float]

    @property
    def sees_images(self) -> bool:
        """Whether its text encoder sees the reference images, so that text is of an item and not of a prompt."""
        return self.image_tokens > 0

    @abstractmethod
    def load_coder(self, base: str, device: torch.device | str, dtype: torch.dtype) -> Coder:
        """The autoencoder of a diffusers folder or hub id."""

    @abstractmethod
    def load_prompts(self, base: str, device: torch.device | str, dtype: torch.dtype, max_tokens: int) -> PromptEncoder:
        """The text encoders of a diffusers folder or hub id.

        Args:
            max_tokens: length that text is padded to, where the family pads it.
        """

    @abstractmethod
    def velocity(self, model: nn.Module, x_t: Tensor, t: Tensor, condition: Conditioning) -> Tensor:
        """The model's velocity [B, C, h, w] for noisy latents x_t at times t [B] in 0..1 (1 is noise)."""

    @abstractmethod
    def sampler(self, base: str, model: nn.Module, coder: Coder) -> "Sampler":
        """The family's own pipeline around a transformer that is already loaded."""

    def check_layout(self, layout: Layout) -> None:
        """Refuse a layout that this family cannot be shown.

        Raises:
            ValueError: naming those that it can.
        """
        if layout.name not in self.layouts:
            raise ValueError(
                f"bank.layout is {layout.name!r}, which {self.name} has no place for; expected"
                f" {' or '.join(self.layouts)}"
            )


# (condition of one analogy, steps, guidance, seed of the noise, which is drawn on the CPU so that every device starts
# alike) -> the answer's image [H, W, 3] in 0..1, float32 on the CPU.
Sampler = Callable[[Conditioning, int, float, int], Tensor]


def load_pipeline(pipeline: type[DiffusionPipeline], base: str, **parts: Any) -> DiffusionPipeline:
    """A pipeline of a diffusers folder or hub id, with some parts replaced or left out (None)."""
    loaded = pipeline.from_pretrained(**locate(base, "base.path"), use_safetensors=True, **parts)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def joined(told: Sequence[Told]) -> Told:
    """Text of several prompts as one batch; shorter ones are padded with zeros, and a ``mask`` [B, T] says where."""
    text = {name: pad_sequence([one[name] for one in told], batch_first=True) for name in told[0]}
    lengths = torch.tensor([len(one["tokens"]) for one in told])
    if lengths.min() < lengths.max():
        text["mask"] = torch.arange(int(lengths.max())) < lengths[:, None]
    return text


def moved(text: Mapping[str, Tensor], device: torch.device | str, dtype: torch.dtype) -> Told:
    """Text on a device; all but masks in a type."""
    return {name: value.to(device, value.dtype if value.dtype == torch.bool else dtype) for name, value in text.items()}
