"""FLUX.1-Kontext: one reference image beside what is sampled, CLIP and T5 text, an embedded guidance."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    FlowMatchEulerDiscreteScheduler,
    FluxKontextPipeline,
    FluxTransformer2DModel,
)
from diffusers.models.unets.unet_2d_blocks import AutoencoderTinyBlock
from diffusers.pipelines.flux.pipeline_flux_kontext import retrieve_latents
from safetensors import safe_open
from torch import Tensor, nn

from ..hub import locate
from .family import Coder, Conditioning, Family, PromptEncoder, Sampler, Told, load_pipeline

EMBEDDED_PROMPTS = "prompts.safetensors"


class KontextCoder(Coder):
    """AutoencoderKL, or AutoencoderTiny in its place."""

    shrink, channels = 8, 16

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """See ``Coder``."""
        latents = retrieve_latents(self.vae.encode(pixels), sample_mode="argmax")
        return (latents - self.vae.config.shift_factor) * self.vae.config.scaling_factor

    def decode_pixels(self, latents: Tensor) -> Tensor:
        """See ``Coder``."""
        return self.vae.decode(latents / self.vae.config.scaling_factor + self.vae.config.shift_factor).sample


class Kontext(Family):
    """FLUX.1-Kontext-dev, and bases of its make."""

    name = "FLUX.1-Kontext"
    transformer, pipeline, coder = FluxTransformer2DModel, FluxKontextPipeline, KontextCoder
    # Every linear inside the double- and single-stream blocks, modulations included: 494 in FLUX.1.
    targets = (
        r"transformer_blocks\.\d+\.(norm1(_context)?\.linear|attn\.(to_[qkv]|add_[qkv]_proj|to_out\.0|to_add_out)"
        r"|ff(_context)?\.net\.(0\.proj|2))"
        r"|single_transformer_blocks\.\d+\.(norm\.linear|proj_mlp|proj_out|attn\.to_[qkv])"
    )
    layouts, recipe, guidance = ("canvas",), "training/configs/paper.yaml", 2.5

    def load_coder(self, base: str, device: torch.device | str, dtype: torch.dtype) -> Coder:
        """See ``Family``."""
        where = {**locate(base, "base.path"), "subfolder": "vae"}
        tiny = AutoencoderTiny.load_config(**where)["_class_name"] == "AutoencoderTiny"
        vae = (AutoencoderTiny if tiny else AutoencoderKL).from_pretrained(**where, dtype=dtype, use_safetensors=True)
        return KontextCoder(_skip_identities(vae) if tiny else vae, device)

    def load_prompts(self, base: str, device: torch.device | str, dtype: torch.dtype, max_tokens: int) -> PromptEncoder:
        """Its text encoders, or the embedded prompts that a base brings instead."""
        embedded = Path(base).expanduser() / EMBEDDED_PROMPTS
        if embedded.is_file():
            return EmbeddedPrompts(embedded)
        pipeline = load_pipeline(self.pipeline, base, transformer=None, vae=None, dtype=dtype).to(device)

        @torch.no_grad()
        def encode(prompts: Sequence[str], images: Sequence[Sequence[Tensor]] = ()) -> list[Told]:
            tokens, pooled, _ = pipeline.encode_prompt(list(prompts), None, max_sequence_length=max_tokens)
            return rows_of(tokens, pooled)

        return encode

    def velocity(self, model: nn.Module, x_t: Tensor, t: Tensor, condition: Conditioning) -> Tensor:
        """See ``Family``: the reference rides along as tokens of image id 1."""
        (reference,), text = condition.references, condition.text
        tokens, beside = _packed(x_t), _packed(reference)
        output = model(
            hidden_states=torch.cat((tokens.to(beside.dtype), beside), dim=1),
            timestep=t,
            guidance=condition.guidance,
            pooled_projections=text["pooled"],
            encoder_hidden_states=text["tokens"],
            txt_ids=torch.zeros(text["tokens"].shape[1], 3, device=x_t.device),
            img_ids=_canvas_ids(*x_t.shape[-2:], x_t.device),
            return_dict=False,
            **({} if condition.query is None else {"query": condition.query}),
        )[0]
        return self.pipeline._unpack_latents(output[:, : tokens.shape[1]], *x_t.shape[-2:], vae_scale_factor=1)

    def sampler(self, base: str, model: nn.Module, coder: Coder) -> Sampler:
        """See ``Family``."""
        scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(**locate(base, "base.path"), subfolder="scheduler")
        absent = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
        pipeline = self.pipeline(scheduler=scheduler, vae=coder.vae, transformer=model, **absent)
        pipeline.set_progress_bar_config(disable=True)

        def sample(condition: Conditioning, steps: int, guidance: float, seed: int) -> Tensor:
            (reference,) = condition.references
            height, width = (side * coder.shrink for side in reference.shape[-2:])
            image = pipeline(
                image=reference,
                prompt_embeds=condition.text["tokens"],
                pooled_prompt_embeds=condition.text["pooled"],
                height=height,
                width=width,
                max_area=height * width,  # keeps the pipeline from scaling the canvas to a megapixel
                num_inference_steps=steps,
                guidance_scale=guidance,
                generator=torch.Generator().manual_seed(seed),
                output_type="pt",
            ).images[0]
            return image.movedim(0, -1).float().cpu()

        return sample


class EmbeddedPrompts:
    """Prompts that a base brings already embedded, in place of text encoders: ``prompts.safetensors`` in its folder.

    The file holds ``tokens`` [n, T, D], ``pooled`` [n, P], and the n prompts as a JSON list in its header.
    """

    def __init__(self, path: Path):
        self.path = path
        with safe_open(path, framework="pt") as file:
            self.rows = {prompt: row for row, prompt in enumerate(json.loads(file.metadata()["prompts"]))}
            self.tokens, self.pooled = file.get_tensor("tokens"), file.get_tensor("pooled")

    def __call__(self, prompts: Sequence[str], images: Sequence[Sequence[Tensor]] = ()) -> list[Told]:
        """What the file says about prompts.

        Raises:
            ValueError: for a prompt that the file lacks.
        """
        unknown = [prompt for prompt in prompts if prompt not in self.rows]
        if unknown:
            raise ValueError(f"{self.path} knows {len(self.rows)} prompts, and {unknown[0]!r} is none of them")
        rows = [self.rows[prompt] for prompt in prompts]
        return rows_of(self.tokens[rows], self.pooled[rows])


def rows_of(tokens: Tensor, pooled: Tensor) -> list[Told]:
    """Token embeddings [B, T, D] and pooled ones [B, P] as the text of each prompt."""
    return [{"tokens": one, "pooled": whole} for one, whole in zip(tokens, pooled)]


def _packed(latents: Tensor) -> Tensor:
    """Tokens [B, h/2 * w/2, 4 C] of latents [B, C, h, w]."""
    return FluxKontextPipeline._pack_latents(latents, *latents.shape)


def _canvas_ids(height: int, width: int, device: torch.device) -> Tensor:
    """Positions of canvas and reference tokens [2 * h/2 * w/2, 3]: the same grid twice, told apart by the image id."""
    canvas = FluxKontextPipeline._prepare_latent_image_ids(1, height // 2, width // 2, device, torch.float32)
    reference = canvas.clone()
    reference[..., 0] = 1
    return torch.cat((canvas, reference))


def _skip_identities(vae: AutoencoderTiny) -> AutoencoderTiny:
    """The same function without the work of blocks that were never trained: their last weights are zero."""
    for half in (vae.encoder, vae.decoder):
        for number, layer in enumerate(half.layers):
            if isinstance(layer, AutoencoderTinyBlock) and not any(p.any() for p in layer.conv[-1].parameters()):
                half.layers[number] = layer.fuse
    return vae
