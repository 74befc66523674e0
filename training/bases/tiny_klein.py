"""A FLUX.2-klein small enough for a CPU: a complete pipeline of the real classes with random weights."""

from pathlib import Path

import torch
from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline, Flux2Transformer2DModel
from tokenizers.pre_tokenizers import ByteLevel
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3ForCausalLM

from .tiny import HEAD_WIDTH

_WIDTH = 32  # of the text encoder; three of its hidden states are a token
_LAST_STATE = 27  # of those that the pipeline reads
# As Qwen's: a turn of the user, and the beginning of an answer.
_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_klein(folder: Path, seed: int = 0) -> Path:
    """Write a random FLUX.2-klein pipeline: two heads, one double and two single blocks, not distilled."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        pipeline = Flux2KleinPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
            vae=_vae(),
            text_encoder=_qwen3(),
            tokenizer=byte_tokenizer(),
            transformer=Flux2Transformer2DModel(
                in_channels=128, num_layers=1, num_single_layers=2, attention_head_dim=HEAD_WIDTH,
                num_attention_heads=2, joint_attention_dim=3 * _WIDTH, guidance_embeds=False,
            ),
        )  # fmt: skip
    pipeline.save_pretrained(folder)
    return folder


def byte_tokenizer(*special: str) -> Qwen2Tokenizer:
    """Qwen's tokenizer with a token for every byte, and special ones."""
    pieces = [*ByteLevel.alphabet(), "<|endoftext|>", "<|im_start|>", "<|im_end|>", *special]
    tokenizer = Qwen2Tokenizer(
        vocab={piece: number for number, piece in enumerate(pieces)}, merges=[], chat_template=_TEMPLATE,
        additional_special_tokens=["<|im_start|>", "<|im_end|>", *special],
    )  # fmt: skip
    tokenizer.model_max_length = 4096
    return tokenizer


def _qwen3() -> Qwen3ForCausalLM:
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=264, hidden_size=_WIDTH, intermediate_size=32, num_hidden_layers=_LAST_STATE,
            num_attention_heads=2, num_key_value_heads=1, head_dim=16,
        )
    )  # fmt: skip


def _vae() -> AutoencoderKLFlux2:
    vae = AutoencoderKLFlux2(block_out_channels=(32, 32, 32, 32), layers_per_block=1)
    vae.bn.running_mean.normal_(std=0.1)
    vae.bn.running_var.uniform_(0.02, 0.1)  # about what the latents of random weights have
    return vae
