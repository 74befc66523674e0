"""The frozen encoders around the model: images to embeddings, prompts to embeddings, canvases to latents."""

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, FluxKontextPipeline
from diffusers.models.unets.unet_2d_blocks import AutoencoderTinyBlock
from diffusers.pipelines.flux.pipeline_flux_kontext import retrieve_latents
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, AutoImageProcessor, CLIPVisionModelWithProjection, SiglipVisionModel

from lorweb_core.canvas import fit_image
from lorweb_core.query import QueryMode

EMBEDDED_PROMPTS = "prompts.safetensors"
_HUB_NAME = re.compile(r"\w[\w.-]*", re.ASCII)


def locate(name: str, what: str) -> dict:
    """Arguments of ``from_pretrained`` for a local folder, or for a hub id that the user named.

    A name whose first part is like a folder that is here is meant as a path, and not asked of the hub.

    Raises:
        ValueError: for a path that is neither.
    """
    if name and Path(name).expanduser().is_dir():
        return {"pretrained_model_name_or_path": str(Path(name).expanduser()), "local_files_only": True}
    owner, _, model = name.partition("/")
    if not _HUB_NAME.fullmatch(owner) or not _HUB_NAME.fullmatch(model):
        raise ValueError(f"{what}: there is no folder {name}, and it is no hub id of the form owner/name")
    here = sorted(path.name for path in Path().iterdir() if path.is_dir())
    for folder in difflib.get_close_matches(owner, here, n=1, cutoff=0.8):
        inside = sorted(path.name for path in Path(folder).iterdir() if path.is_dir())
        raise ValueError(
            f"{what}: there is no folder {name}, but {folder}/ is here with {', '.join(inside[:8]) or 'no folders'};"
            " name one of these, or another place"
        )
    return {"pretrained_model_name_or_path": name}


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


class PromptEncoder:
    """CLIP-L and T5 of a FLUX pipeline.

    Args:
        max_tokens: length T that T5's input is padded to; FLUX.1 was trained with 512.
    """

    def __init__(self, base: str, device: torch.device | str, dtype: torch.dtype, max_tokens: int):
        self.max_tokens = max_tokens
        pipeline = FluxKontextPipeline.from_pretrained(
            **locate(base, "base.path"), transformer=None, vae=None, dtype=dtype, use_safetensors=True
        )
        self.pipeline = pipeline.to(device)

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(token embeddings [B, T, D], pooled embedding [B, P]) of prompts, as the pipeline itself makes them."""
        tokens, pooled, _ = self.pipeline.encode_prompt(list(prompts), None, max_sequence_length=self.max_tokens)
        return tokens, pooled


class EmbeddedPrompts:
    """Prompts that a base brings already embedded, in place of text encoders: ``prompts.safetensors`` in its folder.

    The file holds ``tokens`` [n, T, D], ``pooled`` [n, P], and the n prompts as a JSON list in its header.
    """

    def __init__(self, path: Path):
        self.path = path
        with safe_open(path, framework="pt") as file:
            self.rows = {prompt: row for row, prompt in enumerate(json.loads(file.metadata()["prompts"]))}
            self.tokens, self.pooled = file.get_tensor("tokens"), file.get_tensor("pooled")

    def __call__(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(token embeddings [B, T, D], pooled embedding [B, P]).

        Raises:
            ValueError: for a prompt that the file lacks.
        """
        unknown = [prompt for prompt in prompts if prompt not in self.rows]
        if unknown:
            raise ValueError(f"{self.path} knows {len(self.rows)} prompts, and {unknown[0]!r} is none of them")
        rows = [self.rows[prompt] for prompt in prompts]
        return self.tokens[rows], self.pooled[rows]


def prompt_encoder(base: str, device: torch.device | str, dtype: torch.dtype, max_tokens: int):
    """What embeds the prompts of a base: its text encoders, or the embedded prompts that it brings instead."""
    embedded = Path(base).expanduser() / EMBEDDED_PROMPTS
    return EmbeddedPrompts(embedded) if embedded.is_file() else PromptEncoder(base, device, dtype, max_tokens)


def _skip_identities(vae: AutoencoderTiny) -> AutoencoderTiny:
    """The same function without the work of blocks that were never trained: their last weights are zero."""
    for half in (vae.encoder, vae.decoder):
        for number, layer in enumerate(half.layers):
            if isinstance(layer, AutoencoderTinyBlock) and not any(p.any() for p in layer.conv[-1].parameters()):
                half.layers[number] = layer.fuse
    return vae


class LatentCoder:
    """The autoencoder: canvases [B, H, W, 3] in 0..1 to normalised latents [B, 16, H/8, W/8] and back."""

    def __init__(self, base: str, device: torch.device | str, dtype: torch.dtype):
        where = {**locate(base, "base.path"), "subfolder": "vae"}
        tiny = AutoencoderTiny.load_config(**where)["_class_name"] == "AutoencoderTiny"
        vae = (AutoencoderTiny if tiny else AutoencoderKL).from_pretrained(**where, dtype=dtype, use_safetensors=True)
        # Images come with their channels last, and convolutions are a quarter faster that way.
        vae = (_skip_identities(vae) if tiny else vae).to(device, memory_format=torch.channels_last)
        self.vae = vae.eval().requires_grad_(False)

    def encode_pair(self, columns: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """(reference, target) latents of collated analogies."""
        return self.encode(columns["reference"]), self.encode(columns["target"])

    @torch.no_grad()
    def encode(self, canvases: Tensor) -> Tensor:
        """The mode of the posterior, as the Kontext pipeline encodes its reference image."""
        pixels = canvases.movedim(-1, 1).to(self.vae.device, self.vae.dtype) * 2 - 1
        latents = retrieve_latents(self.vae.encode(pixels), sample_mode="argmax")
        return ((latents - self.vae.config.shift_factor) * self.vae.config.scaling_factor).contiguous()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Canvases [B, H, W, 3] in 0..1, float32 on the CPU, as the Kontext pipeline decodes what it sampled."""
        return self.pixels(latents).clamp(0, 1).movedim(1, -1).cpu()

    def pixels(self, latents: Tensor) -> Tensor:
        """Images [B, 3, H, W] of latents, about 0..1, float32 where the autoencoder is; gradients pass."""
        latents = latents.to(self.vae.device, self.vae.dtype)
        decoded = self.vae.decode(latents / self.vae.config.scaling_factor + self.vae.config.shift_factor).sample
        return (decoded / 2 + 0.5).float()
