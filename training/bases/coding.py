"""What stands around the transformer of a base: prompts to embeddings, canvases to latents."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, FluxKontextPipeline
from diffusers.models.unets.unet_2d_blocks import AutoencoderTinyBlock
from diffusers.pipelines.flux.pipeline_flux_kontext import retrieve_latents
from safetensors import safe_open
from torch import Tensor

from ..hub import locate

EMBEDDED_PROMPTS = "prompts.safetensors"


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
