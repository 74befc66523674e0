"""FLUX.2-klein: several reference images told apart by a time coordinate, Qwen3 text of the prompt alone."""

from collections.abc import Sequence

import torch
from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline, Flux2Transformer2DModel
from diffusers.pipelines.flux2.pipeline_flux2_klein import retrieve_latents
from torch import Tensor, nn

from ..hub import locate
from .family import Coder, Conditioning, Family, PromptEncoder, Sampler, Told, load_pipeline
from .referring import Referring


class KleinCoder(Coder):
    """FLUX.2's: 32 channels at an eighth, of which 2 x 2 are one latent of 128, normalised by batch statistics."""

    shrink, channels = 16, 128

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """See ``Coder``."""
        latents = retrieve_latents(self.vae.encode(pixels), sample_mode="argmax")
        mean, std = self._statistics(latents)
        return (Flux2KleinPipeline._patchify_latents(latents) - mean) / std

    def decode_pixels(self, latents: Tensor) -> Tensor:
        """See ``Coder``."""
        mean, std = self._statistics(latents)
        return self.vae.decode(Flux2KleinPipeline._unpatchify_latents(latents * std + mean)).sample

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [1, 128, 1, 1] of latents."""
        mean, variance = (x.view(1, -1, 1, 1).to(like) for x in (self.vae.bn.running_mean, self.vae.bn.running_var))
        return mean, (variance + self.vae.config.batch_norm_eps).sqrt()


class Klein(Family):
    """FLUX.2-klein in 4 B and 9 B, distilled and not."""

    name = "FLUX.2-klein"
    transformer, pipeline, coder = Flux2Transformer2DModel, Flux2KleinPipeline, KleinCoder
    # Every linear inside the blocks: 100 in 4B. Their modulations are one for all blocks, and stay out.
    targets = (
        r"transformer_blocks\.\d+\.(attn\.(to_[qkv]|add_[qkv]_proj|to_out\.0|to_add_out)|ff(_context)?\.linear_(in|out))"
        r"|single_transformer_blocks\.\d+\.attn\.(to_qkv_mlp_proj|to_out)"
    )
    layouts, negative = ("separate", "canvas"), ""
    recipe, guidance = "training/configs/klein.yaml", 4.0

    def load_coder(self, base: str, device: torch.device | str, dtype: torch.dtype) -> Coder:
        """See ``Family``."""
        where = {**locate(base, "base.path"), "subfolder": "vae"}
        return KleinCoder(AutoencoderKLFlux2.from_pretrained(**where, dtype=dtype, use_safetensors=True), device)

    def load_prompts(self, base: str, device: torch.device | str, dtype: torch.dtype, max_tokens: int) -> PromptEncoder:
        """See ``Family``: three hidden states of Qwen3 side by side."""
        pipeline = load_pipeline(self.pipeline, base, transformer=None, vae=None, dtype=dtype).to(device)

        @torch.no_grad()
        def encode(prompts: Sequence[str], images: Sequence[Sequence[Tensor]] = ()) -> list[Told]:
            tokens, _ = pipeline.encode_prompt(list(prompts), max_sequence_length=max_tokens)
            return [{"tokens": one} for one in tokens]

        return encode

    def velocity(self, model: nn.Module, x_t: Tensor, t: Tensor, condition: Conditioning) -> Tensor:
        """See ``Family``: references ride along at times 10, 20 and 30, what is made at time 0."""
        tokens = condition.text["tokens"]
        beside = torch.cat([_packed(latents) for latents in condition.references], dim=1)
        here = _packed(x_t)
        places = [Flux2KleinPipeline._prepare_latent_ids(x_t[:1])]
        places.append(Flux2KleinPipeline._prepare_image_ids([latents[:1] for latents in condition.references]))
        output = model(
            hidden_states=torch.cat((here.to(beside.dtype), beside), dim=1),
            timestep=t,
            guidance=condition.guidance,
            encoder_hidden_states=tokens,
            txt_ids=Flux2KleinPipeline._prepare_text_ids(tokens[:1]).to(x_t.device),
            img_ids=torch.cat(places, dim=1).to(x_t.device),
            return_dict=False,
            **({} if condition.query is None else {"query": condition.query}),
        )[0]
        return _unpacked(output[:, : here.shape[1]], tuple(x_t.shape[-2:]))

    def sampler(self, base: str, model: nn.Module, coder: Coder) -> Sampler:
        """See ``Family``: guided against the empty prompt, unless the model is distilled."""
        scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(**locate(base, "base.path"), subfolder="scheduler")
        distilled = self.pipeline.load_config(**locate(base, "base.path")).get("is_distilled", False)
        referring = Referring(model, _packed, _unpacked)
        pipeline = self.pipeline(
            scheduler=scheduler, vae=coder.vae, transformer=referring, text_encoder=None, tokenizer=None,
            is_distilled=distilled,
        )  # fmt: skip
        pipeline.set_progress_bar_config(disable=True)

        def sample(condition: Conditioning, steps: int, guidance: float, seed: int) -> Tensor:
            referring.condition = condition
            height, width = (side * coder.shrink for side in condition.references[-1].shape[-2:])
            image = pipeline(
                prompt_embeds=condition.text["tokens"],
                negative_prompt_embeds=condition.negative["tokens"],
                height=height,
                width=width,
                num_inference_steps=steps,
                guidance_scale=1.0 if distilled else guidance,
                generator=torch.Generator().manual_seed(seed),
                output_type="pt",
            ).images[0]
            return image.movedim(0, -1).float().cpu()

        return sample


def _packed(latents: Tensor) -> Tensor:
    """Tokens [B, h * w, C] of latents [B, C, h, w]."""
    return Flux2KleinPipeline._pack_latents(latents)


def _unpacked(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """Latents [B, C, h, w] of tokens [B, h * w, C]."""
    return tokens.transpose(1, 2).unflatten(2, size)
