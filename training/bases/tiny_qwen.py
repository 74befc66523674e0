"""A Qwen-Image-Edit-Plus small enough for a CPU: a complete pipeline of the real classes with random weights."""

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImageEditPlusPipeline,
    QwenImageTransformer2DModel,
)
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

from .tiny import HEAD_WIDTH
from .tiny_klein import byte_tokenizer

_WIDTH = 64  # of the text encoder
_LOOK = 56 * 56  # pixels of an image as the text encoder sees it: four tokens, where the real one's has 196
_VISION = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")


def make_qwen(folder: Path, seed: int = 0) -> Path:
    """Write a random Qwen-Image-Edit-Plus pipeline: two heads, two blocks, a text encoder that sees images."""
    tokenizer = _tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        pipeline = QwenImageEditPlusPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
            vae=_vae(),
            text_encoder=_qwen_vl(tokenizer),
            tokenizer=tokenizer,
            processor=_processor(tokenizer),
            transformer=QwenImageTransformer2DModel(
                num_layers=2, attention_head_dim=HEAD_WIDTH, num_attention_heads=2, joint_attention_dim=_WIDTH
            ),
        )
    pipeline.save_pretrained(folder)
    return folder


def _tokenizer() -> Qwen2Tokenizer:
    """One that knows the words of the pipeline's own prompt, of which it cuts off a fixed number of tokens."""
    words = QwenImageEditPlusPipeline(*[None] * 6).prompt_template_encode
    return byte_tokenizer(*_VISION).train_new_from_iterator([words], vocab_size=700)


def _processor(tokenizer: Qwen2Tokenizer) -> Qwen2VLProcessor:
    size = {"shortest_edge": _LOOK, "longest_edge": _LOOK}
    return Qwen2VLProcessor(Qwen2VLImageProcessor(size=size), tokenizer, Qwen2VLVideoProcessor(size=size))


def _qwen_vl(tokenizer: Qwen2Tokenizer) -> Qwen2_5_VLForConditionalGeneration:
    start, end, image, video = tokenizer.convert_tokens_to_ids(_VISION)
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            text_config={
                "vocab_size": len(tokenizer), "hidden_size": _WIDTH, "intermediate_size": 64, "num_hidden_layers": 2,
                "num_attention_heads": 4, "num_key_value_heads": 2,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
            },
            vision_config={
                "depth": 2, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": _WIDTH,
                "fullatt_block_indexes": [1],
            },
            vision_start_token_id=start, vision_end_token_id=end, image_token_id=image, video_token_id=video,
        )
    )  # fmt: skip


def _vae() -> AutoencoderKLQwenImage:
    channels = range(16)
    return AutoencoderKLQwenImage(
        base_dim=8, num_res_blocks=1, dim_mult=[1, 1, 1, 1],
        # Other ones for every channel, and about what the latents of random weights have.
        latents_mean=[0.02 * n - 0.15 for n in channels], latents_std=[0.13 + 0.005 * n for n in channels],
    )  # fmt: skip
