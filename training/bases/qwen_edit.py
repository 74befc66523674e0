"""Qwen-Image-Edit-Plus (2509, 2511): several reference images, and text of a model that sees them beside the prompt."""

from collections.abc import Sequence

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImageEditPlusPipeline,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as edit_plus
from PIL.Image import Image
from torch import Tensor, nn

from ..hub import locate
from .family import Coder, Conditioning, Family, PromptEncoder, Sampler, Told, load_pipeline
from .referring import Referring

_MOST_TOKENS = 1024  # of text, in QwenImagePipeline


class QwenCoder(Coder):
    """Of videos, here of one frame: 16 channels at an eighth, each normalised by its mean and standard deviation."""

    shrink, channels = 8, 16
    memory_format = torch.contiguous_format  # some of its convolutions go over frames as well

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """See ``Coder``."""
        latents = edit_plus.retrieve_latents(self.vae.encode(pixels.unsqueeze(2)), sample_mode="argmax").squeeze(2)
        mean, std = self._statistics(latents)
        return (latents - mean) / std

    def decode_pixels(self, latents: Tensor) -> Tensor:
        """See ``Coder``."""
        mean, std = self._statistics(latents)
        return self.vae.decode((latents * std + mean).unsqueeze(2)).sample.squeeze(2)

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [1, 16, 1, 1] of latents."""
        of = self.vae.config
        mean, std = (like.new_tensor(values).view(1, -1, 1, 1) for values in (of.latents_mean, of.latents_std))
        return mean, std


class QwenEdit(Family):
    """Qwen-Image-Edit-2509 and 2511, and bases of their make."""

    name = "Qwen-Image-Edit-Plus"
    transformer, pipeline, coder = QwenImageTransformer2DModel, QwenImageEditPlusPipeline, QwenCoder
    # Every linear inside the blocks but their modulations: 720. What the last block makes of the text goes nowhere.
    targets = (
        r"transformer_blocks\.\d+\.(attn\.(to_[qkv]|add_[qkv]_proj|to_out\.0|to_add_out)"
        r"|(img|txt)_mlp\.net\.(0\.proj|2))"
    )
    layouts, idle, negative, guidance = ("separate", "canvas"), True, " ", 4.0
    image_tokens = 212  # 14 x 14 of its patches, and a share of the words around them
    recipe = "training/configs/qwen_edit.yaml"

    def load_coder(self, base: str, device: torch.device | str, dtype: torch.dtype) -> Coder:
        """See ``Family``."""
        where = {**locate(base, "base.path"), "subfolder": "vae"}
        return QwenCoder(AutoencoderKLQwenImage.from_pretrained(**where, dtype=dtype, use_safetensors=True), device)

    def load_prompts(self, base: str, device: torch.device | str, dtype: torch.dtype, max_tokens: int) -> PromptEncoder:
        """See ``Family``: Qwen2.5-VL of the reference images, each in about 384 x 384 pixels, and the prompt.

        Nothing is padded, so ``max_tokens`` says nothing here.
        """
        pipeline = load_pipeline(self.pipeline, base, transformer=None, vae=None, dtype=dtype).to(device)

        @torch.no_grad()
        def encode(prompts: Sequence[str], images: Sequence[Sequence[Tensor]] = ()) -> list[Told]:
            return [_seen(pipeline, *each) for each in zip(prompts, images, strict=True)]

        return encode

    def velocity(self, model: nn.Module, x_t: Tensor, t: Tensor, condition: Conditioning) -> Tensor:
        """See ``Family``: references ride along, told apart by their number."""
        shown, text = (x_t, *condition.references), condition.text
        here, *beside = map(_packed, shown)
        output = model(
            hidden_states=torch.cat((here.to(beside[0].dtype), *beside), dim=1),
            timestep=t,
            encoder_hidden_states=text["tokens"],
            encoder_hidden_states_mask=text.get("mask"),
            img_shapes=[[(1, each.shape[-2] // 2, each.shape[-1] // 2) for each in shown]] * len(x_t),
            return_dict=False,
            **({} if condition.query is None else {"query": condition.query}),
        )[0]
        return _unpacked(output[:, : here.shape[1]], tuple(x_t.shape[-2:]))

    def sampler(self, base: str, model: nn.Module, coder: Coder) -> Sampler:
        """See ``Family``: guided against a prompt of one blank, with the norm of the velocity kept."""
        scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(**locate(base, "base.path"), subfolder="scheduler")
        referring = Referring(model, _packed, _unpacked)
        pipeline = QwenImagePipeline(
            scheduler=scheduler, vae=coder.vae, transformer=referring, text_encoder=None, tokenizer=None
        )
        pipeline.set_progress_bar_config(disable=True)

        def sample(condition: Conditioning, steps: int, guidance: float, seed: int) -> Tensor:
            referring.condition = condition
            height, width = (side * coder.shrink for side in condition.references[-1].shape[-2:])
            image = pipeline(
                **_told("prompt", condition.text),
                **(_told("negative_prompt", condition.negative) if guidance > 1 else {}),
                height=height,
                width=width,
                num_inference_steps=steps,
                true_cfg_scale=guidance,
                max_sequence_length=_MOST_TOKENS,
                generator=torch.Generator().manual_seed(seed),
                output_type="pt",
            ).images[0]
            return image.movedim(0, -1).float().cpu()

        return sample


def _seen(pipeline: QwenImageEditPlusPipeline, prompt: str, images: Sequence[Tensor]) -> Told:
    """What is said of a prompt and its images [H, W, 3].

    Raises:
        ValueError: when that is more than the pipeline's text may be long.
    """
    (tokens,), _ = pipeline.encode_prompt([prompt], [_shown(pipeline, image) for image in images])
    if len(tokens) > _MOST_TOKENS:
        raise ValueError(
            f"a prompt and its {len(images)} images are {len(tokens)} tokens; expected at most {_MOST_TOKENS}: shorten"
            f" the prompt that begins with {prompt[:60]!r}"
        )
    return {"tokens": tokens}


def _shown(pipeline: QwenImageEditPlusPipeline, image: Tensor) -> Image:
    """An image [H, W, 3] as the pipeline shows it to the text encoder."""
    height, width = image.shape[:2]
    width, height = edit_plus.calculate_dimensions(edit_plus.CONDITION_IMAGE_SIZE, width / height)
    (picture,) = pipeline.image_processor.numpy_to_pil(image.float().cpu().numpy())
    return pipeline.image_processor.resize(picture, height, width)


def _told(kind: str, text: Told) -> dict[str, Tensor]:
    """Text as the pipeline takes it, all of it valid."""
    tokens = text["tokens"]
    return {f"{kind}_embeds": tokens, f"{kind}_embeds_mask": tokens.new_ones(tokens.shape[:2], dtype=torch.bool)}


def _packed(latents: Tensor) -> Tensor:
    """Tokens [B, h/2 * w/2, 4 C] of latents [B, C, h, w]."""
    return QwenImagePipeline._pack_latents(latents, *latents.shape)


def _unpacked(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """Latents [B, C, h, w] of tokens [B, h/2 * w/2, 4 C]."""
    return QwenImagePipeline._unpack_latents(tokens, *size, vae_scale_factor=1).squeeze(2)
