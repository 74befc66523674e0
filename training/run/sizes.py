"""What a run takes, said before it starts; and what to lower where it is too much."""

import logging
import re
import shutil
from pathlib import Path

import torch
from torch import nn

from lorweb_core import BankConfig
from lorweb_core.query import QUERY_MODES

from ..bases import Family, family_of, targets_of
from ..config import Config
from ..data import Manifest
from ..data.units import size
from ..hub import locate

logger = logging.getLogger(__name__)

# Bytes of optimiser state for one trained parameter of four bytes.
_STATE_BYTES = {"adamw": 8, "adamw8bit": 2, "prodigy": 16}
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")

Layers = dict[str, tuple[int, int]]


def target_layers(config: Config) -> tuple[Layers, int]:
    """What the base's configuration alone tells.

    Returns:
        Module path -> (in, out) of every linear layer that ``bank.targets`` names; the width of the token embeddings.

    Raises:
        ValueError: when there is none, or one is not linear.
    """
    family = family_of(config.base.path)
    settings = family.transformer.load_config(**locate(config.base.path, "base.path"), subfolder="transformer")
    with torch.device("meta"):
        model = family.transformer.from_config(settings)
    targets = targets_of(config)
    named = {name: module for name, module in model.named_modules() if re.fullmatch(targets, name)}
    for name, module in named.items():
        if not isinstance(module, nn.Linear):
            raise ValueError(f"bank.targets: {name} is a {type(module).__name__}; a basis needs a linear layer")
    if not named:
        raise ValueError(f"bank.targets: no layer of {config.base.path} matches {targets!r}")
    return {name: (m.in_features, m.out_features) for name, m in named.items()}, model.config.joint_attention_dim


def count_parameters(bank: BankConfig, layers: Layers) -> int:
    """Trained numbers of a bank on layers (in, out)."""
    mixer = bank.num_loras * bank.key_dim + (bank.key_dim * bank.query_dim if bank.projection == "linear" else 0)
    return sum(bank.num_loras * bank.rank * (wide + out) + mixer for wide, out in layers.values())


def describe_run(config: Config, bank: BankConfig, layers: Layers) -> str:
    """What the bank and its training take, in a line, from the numbers of parameters."""
    count, name = count_parameters(bank, layers), config.optimizer.name
    state, average = count * _STATE_BYTES[name], 4 * count * (config.optimizer.ema > 0)
    saved = 4 * count + state + average
    return (
        f"{len(layers)} layers, {count:,} parameters: {size(4 * count)} of weights, as much of gradients,"
        f" {size(state + average)} of {name}'s state; a bank file of {size(count * config.bank.bytes_each)},"
        f" checkpoints of {size(saved)} ({config.checkpoint.keep + 1} at most)"
    )


def describe_caches(config: Config, bank: BankConfig, manifest: Manifest, width: int) -> str:
    """What the caches of a run take on disk once they are complete, in a line.

    Args:
        width: of the base's token embeddings.
    """
    spec, family = QUERY_MODES[bank.query_mode], family_of(config.base.path)
    each = getattr(torch, config.base.dtype).itemsize
    seen = len(manifest) if spec.composite else len(manifest.images())
    parts = {"prompts": text_tokens(family, config, manifest) * width * each}
    if spec.cacheable:
        parts["embeddings"] = seen * bank.embedding_dim * 4
    if config.data.cache_latents:
        parts["latents"] = config.data.cache_latents * latent_bytes(family, config, each)
    return f"{config.data.cache} will hold " + ", ".join(f"{name} {size(value)}" for name, value in parts.items())


def text_tokens(family: Family, config: Config, manifest: Manifest) -> int:
    """Cached tokens of all prompts; of the cached analogies, about, where the text encoder sees their images."""
    if not family.image_tokens:
        return len({"", *manifest.prompts()}) * config.data.prompt_tokens
    prompts = config.data.cache_latents * (2 if config.objective.caption_dropout else 1)
    return prompts * (_images(config) - 1) * family.image_tokens


def latent_bytes(family: Family, config: Config, each: int) -> int:
    """Bytes of the latents of an analogy: of its references, all as large as b or the canvas, and of its target."""
    return _images(config) * family.coder.channels * (config.data.canvas // family.coder.shrink) ** 2 * each


def _images(config: Config) -> int:
    """References of an analogy, and its target."""
    return 2 if config.layout.quadrants > 1 else 4


def announce(config: Config, bank: BankConfig, layers: Layers, manifest: Manifest, width: int) -> None:
    """Log both lines; warn where the run's disk has no room for them.

    Args:
        manifest: all pairs. width: of the base's token embeddings.
    """
    logger.info(describe_run(config, bank, layers))
    if config.data.cache:
        logger.info(describe_caches(config, bank, manifest, width))
    count = count_parameters(bank, layers)
    needed, free = count * (4 + _STATE_BYTES[config.optimizer.name]), shutil.disk_usage(config.run).free
    if needed > free:
        logger.warning("%s: a checkpoint takes %s, but %s are free", Path(config.run), size(needed), size(free))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device or the machine has no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _OUT_OF_MEMORY)


def what_to_lower(config: Config) -> str:
    """The settings that save memory and are not at their end yet, those that cost least first."""
    base, data, train = config.base, config.data, config.train
    whole = train.batch * train.accumulate
    choices = {
        f"train.batch=1 train.accumulate={whole} (the same steps)": train.batch > 1,
        "base.gradient_checkpointing=true": not base.gradient_checkpointing,
        "data.cache=FOLDER (frees the encoders)": not data.cache,
        "optimizer.name=adamw8bit": config.optimizer.name != "adamw8bit",
        "base.quantise=nf4 (needs a GPU)": base.quantise == "none",
        "objective.perceptual=0": config.objective.perceptual > 0,
        "data.prompt_tokens=128": data.prompt_tokens > 128,
        "validation.every=0": config.validation.every > 0,
        f"data.canvas={data.canvas // 64 * 32}": data.canvas >= 128,
        f"bank.num_loras={config.bank.num_loras // 2}": config.bank.num_loras > 1,
    }
    return ", ".join(choice for choice, applies in choices.items() if applies)
