"""Optimisers and schedules by name."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from diffusers.optimization import SchedulerType, get_scheduler
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ..config import OptimizerConfig
from ..packages import require
from .clock import Clock

_CLASSES = {
    "adamw": ("torch.optim", "AdamW"),
    "adamw8bit": ("bitsandbytes.optim", "AdamW8bit"),
    "prodigy": ("prodigyopt", "Prodigy"),
}


# Of diffusers' schedules, "piecewise_constant" alone needs rules that no setting gives.
SCHEDULES = tuple(kind.value for kind in SchedulerType if kind != SchedulerType.PIECEWISE_CONSTANT)
_SETTINGS = ("lr", "initial_lr", "betas", "eps", "weight_decay")


def check_optimizer(config: OptimizerConfig, sharded: bool) -> None:
    """Refuse an optimiser that cannot work, before anything long starts.

    Args:
        sharded: whether FSDP shards the parameters.

    Raises:
        ValueError: when its package is missing, there is no such schedule, or the settings do not go together.
    """
    require(_CLASSES[config.name][0].split(".")[0], f"optimizer.name={config.name}")
    if config.schedule not in SCHEDULES:
        raise ValueError(f"optimizer.schedule is {config.schedule!r}; expected one of {', '.join(SCHEDULES)}")
    if config.name == "prodigy" and config.mixer_lr not in (None, config.lr):
        raise ValueError(
            f"prodigy finds one learning rate for everything, but optimizer.mixer_lr is {config.mixer_lr} and"
            f" optimizer.lr {config.lr}; set optimizer.mixer_lr=null"
        )
    if sharded and config.name == "adamw8bit":
        raise ValueError("bitsandbytes' 8-bit Adam cannot step FSDP's sharded parameters; set optimizer.name=adamw")
    if sharded and config.name == "prodigy":
        raise ValueError("prodigy would find another rate for every card's part; with FSDP set optimizer.name=adamw")
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


def make_schedule(config: OptimizerConfig, optimizer: Optimizer, clock: Clock, done: int = 0) -> LRScheduler:
    """The named learning-rate schedule of diffusers over a whole run, from the step that ``done`` others precede.

    A run whose time is limited is as far in it as its clock says.
    """
    name = "constant_with_warmup" if config.schedule == "constant" and config.warmup else config.schedule
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    schedule = get_scheduler(
        name, optimizer, num_warmup_steps=config.warmup, num_training_steps=clock.steps, last_epoch=done - 1
    )
    if clock.seconds:
        schedule.lr_lambdas = [_by_clock(rate, clock, config.warmup) for rate in schedule.lr_lambdas]
    return schedule


def _by_clock(rate: Callable[[int], float], clock: Clock, warmup: int) -> Callable[[int], float]:
    """A schedule that is as far as the clock, but warms up step by step."""
    return lambda step: rate(step if step < warmup else max(warmup, round(clock.share(step) * clock.steps)))


def with_settings_of(groups: Sequence[Mapping[str, Any]], saved: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Saved parameter groups with the rates and settings of others: those that the configuration says now.

    What else an optimiser keeps in a group, such as Prodigy its estimate of the rate, stays as it was saved.
    """
    return [
        {**before, **{name: now[name] for name in _SETTINGS if name in now}}
        for now, before in zip(groups, saved, strict=True)
    ]
