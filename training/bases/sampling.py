"""Sampling canvases with diffusers' own Kontext pipeline."""

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxKontextPipeline
from torch import Tensor, nn

from ..hub import locate
from .coding import LatentCoder


def make_pipeline(base: str, transformer: nn.Module, coder: LatentCoder) -> FluxKontextPipeline:
    """The Kontext pipeline around a transformer that is already loaded; prompts come as embeddings."""
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(**locate(base, "base.path"), subfolder="scheduler")
    pipeline = FluxKontextPipeline(
        scheduler=scheduler, vae=coder.vae, transformer=transformer, text_encoder=None, tokenizer=None,
        text_encoder_2=None, tokenizer_2=None,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@torch.no_grad()
def sample_canvas(
    pipeline: FluxKontextPipeline,
    reference: Tensor,
    prompt: Tensor,
    pooled: Tensor,
    steps: int,
    guidance: float,
    seed: int,
) -> Tensor:
    """Denoise a canvas next to its reference.

    Args:
        reference: normalised latent of the reference canvas [1, 16, h, w].
        prompt: [1, T, D]. pooled: [1, P].
        seed: of the noise, drawn on the CPU so that every device starts alike.

    Returns:
        The canvas [H, W, 3] in 0..1, float32 on the CPU.
    """
    height, width = (side * pipeline.vae_scale_factor for side in reference.shape[-2:])
    image = pipeline(
        image=reference,
        prompt_embeds=prompt,
        pooled_prompt_embeds=pooled,
        height=height,
        width=width,
        max_area=height * width,  # keeps the pipeline from scaling the canvas to a megapixel
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=torch.Generator().manual_seed(seed),
        output_type="pt",
    ).images[0]
    return image.movedim(0, -1).float().cpu()
