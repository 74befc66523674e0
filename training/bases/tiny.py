"""A base small enough for a CPU: a complete FLUX.1-Kontext pipeline with random weights, and a random image encoder."""

import string
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxKontextPipeline,
    FluxTransformer2DModel,
)
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

# Head width and embedding widths are FLUX.1's and CLIP ViT-L/14's own, so that every shape rule holds as at full size.
HEAD_WIDTH = 128
EMBEDDING = 768
_PROJECTION_GAIN = 0.35  # embeddings of about the length of ViT-L/14's: coefficients then start as they do there
_LETTERS = list(string.ascii_lowercase + string.digits)


def make_base(folder: Path, seed: int = 0) -> Path:
    """Write a random FLUX.1-Kontext pipeline: two heads, two double and two single blocks."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        pipeline = FluxKontextPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
            vae=_vae(),
            text_encoder=_clip_text(),
            tokenizer=_clip_tokenizer(),
            text_encoder_2=_t5(),
            tokenizer_2=_t5_tokenizer(),
            transformer=_transformer(),
        )
    pipeline.save_pretrained(folder)
    return folder


def make_encoder(folder: Path, seed: int = 1) -> Path:
    """Write a random CLIP vision model whose projected embedding is as wide as CLIP ViT-L/14's."""
    config = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8,
        projection_dim=EMBEDDING,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CLIPVisionModelWithProjection(config)
    model.visual_projection.weight.data *= _PROJECTION_GAIN
    model.save_pretrained(folder)
    size = {"height": 32, "width": 32}
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size).save_pretrained(folder)
    return folder


def _transformer() -> FluxTransformer2DModel:
    return FluxTransformer2DModel(
        in_channels=64, num_layers=2, num_single_layers=2, attention_head_dim=HEAD_WIDTH, num_attention_heads=2,
        joint_attention_dim=EMBEDDING, pooled_projection_dim=EMBEDDING, guidance_embeds=True,
    )  # fmt: skip


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8), norm_num_groups=4, latent_channels=16, use_quant_conv=False,
        use_post_quant_conv=False, scaling_factor=3.0, shift_factor=0.0,
    )  # fmt: skip


def _clip_text() -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=2 * len(_LETTERS) + 2, hidden_size=EMBEDDING, intermediate_size=64, num_hidden_layers=1,
            num_attention_heads=4, max_position_embeddings=77, bos_token_id=72, eos_token_id=73,
        )
    )  # fmt: skip


def _clip_tokenizer() -> CLIPTokenizer:
    pieces = [*_LETTERS, *(f"{letter}</w>" for letter in _LETTERS), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], model_max_length=77)


def _t5() -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(
            vocab_size=64,
            d_model=EMBEDDING,
            d_kv=32,
            d_ff=64,
            num_layers=1,
            num_heads=4,
            feed_forward_proj="gated-gelu",
        )
    )


def _t5_tokenizer() -> T5Tokenizer:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -10.0), *((piece, -2.0) for piece in ["\u2581", *_LETTERS])]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)
