"""Optimisers and schedules by name."""

import importlib
from collections.abc import Mapping

from diffusers.optimization import SchedulerType, get_scheduler
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from .config import OptimizerConfig
from .packages import require

_CLASSES = {
    "adamw": ("torch.optim", "AdamW"),
    "adamw8bit": ("bitsandbytes.optim", "AdamW8bit"),
    "prodigy": ("prodigyopt", "Prodigy"),
}


def check_optimizer(config: OptimizerConfig, sharded: bool) -> None:
    """Refuse an optimiser that cannot work, before anything long starts.

    Args:
        sharded: whether FSDP shards the parameters.

    Raises:
        ValueError: when its package is missing, or the settings do not go together.
    """
    require(_CLASSES[config.name][0].split(".")[0], f"optimizer.name={config.name}")
    if config.name == "prodigy" and config.mixer_lr not in (None, config.lr):
        raise ValueError(
            f"prodigy finds one learning rate for everything, but optimizer.mixer_lr is {config.mixer_lr} and"
            f" optimizer.lr {config.lr}; set optimizer.mixer_lr=null"
        )
    if sharded and config.name == "adamw8bit":
        raise ValueError("bitsandbytes' 8-bit Adam cannot step FSDP's sharded parameters; set optimizer.name=adamw")
    if sharded and config.ema:
        raise ValueError("optimizer.ema does not work with FSDP's sharded parameters; set it to 0")


def make_optimizer(config: OptimizerConfig, named: Mapping[str, nn.Parameter]) -> Optimizer:
    """The named optimiser, with the mixer's keys and projections as a second group."""
    module, name = _CLASSES[config.name]
    optimizer = getattr(importlib.import_module(module), name)
    mixer = [p for name, p in named.items() if name.startswith("mixer.")]
    factors = [p for name, p in named.items() if not name.startswith("mixer.")]
    mixer_lr = config.lr if config.mixer_lr is None else config.mixer_lr
    return optimizer(
        [{"params": factors}, {"params": mixer, "lr": mixer_lr}],
        lr=config.lr,
        betas=tuple(config.betas),
        eps=config.eps,
        weight_decay=config.weight_decay,
    )


def make_schedule(config: OptimizerConfig, optimizer: Optimizer, steps: int) -> LRScheduler:
    """The named learning-rate schedule of diffusers over a whole run.

    Raises:
        ValueError: when there is no schedule of that name.
    """
    names = [kind.value for kind in SchedulerType if kind.value != "piecewise_constant"]
    if config.schedule not in names:
        raise ValueError(f"optimizer.schedule is {config.schedule!r}; expected one of {', '.join(names)}")
    name = "constant_with_warmup" if config.schedule == "constant" and config.warmup else config.schedule
    return get_scheduler(name, optimizer, num_warmup_steps=config.warmup, num_training_steps=steps)
