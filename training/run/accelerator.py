"""The processes of a run, their devices and their precision."""

import logging
import os
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from ..bases.loading import check_quantisation
from ..config import Config
from ..device import warn_of_slow_bf16
from .optim import check_optimizer

logger = logging.getLogger(__name__)

# Processes wait for the main one while it fills the caches, which is longer than the ten minutes that NCCL allows.
_PATIENCE = timedelta(days=2)


def make_accelerator(config: Config, trackers: list) -> Accelerator:
    """The processes and the precision of the run.

    Raises:
        ValueError: for what cannot work on this machine or with this launcher, before anything long starts.
    """
    accelerator = Accelerator(
        mixed_precision=config.train.precision,
        gradient_accumulation_steps=config.train.accumulate,
        log_with=trackers,
        project_dir=config.run,
        cpu=not torch.accelerator.is_available(),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)],
    )
    logger.info(
        "%d process(es), %s, %s", accelerator.num_processes, accelerator.distributed_type.value, accelerator.device
    )
    if config.train.precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError("train.precision=fp16 needs a GPU; on a CPU there are no and bf16")
    if accelerator.num_processes > 1:
        check_several(config)
    if config.train.precision == "bf16":
        warn_of_slow_bf16(accelerator.device, "train.precision=no")
    check_sharding(config, accelerator)
    check_quantisation(config.base)
    check_optimizer(config.optimizer, accelerator.is_fsdp2)
    return accelerator


def check_several(config: Config) -> None:
    """Refuse what several processes cannot do.

    Raises:
        ValueError: with what to set instead.
    """
    if config.train.minutes:
        raise ValueError("train.minutes limits a single process, whose clock all would need; set train.steps instead")
    if config.base.quantise == "torchao-int8":
        raise ValueError("several processes cannot share a base that torchao quantised; set base.quantise=int8 or nf4")


def check_sharding(config: Config, accelerator: Accelerator) -> None:
    """Set FSDP up where the launch asks for it.

    Raises:
        ValueError: when it cannot be had, or not with a base like that.
    """
    if not accelerator.is_fsdp2:
        if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
            raise ValueError(
                "this launch asks for FSDP, which is version 2 on GPUs here, not"
                f" {accelerator.num_processes} process(es) on {accelerator.device.type};"
                " launch with training/configs/accelerate_ddp.yaml"
            )
        return
    if config.base.quantise != "none":
        raise ValueError(f"FSDP shards a base of full precision, not {config.base.quantise}; set base.quantise=none")
    # Autocast rounds the products, as without FSDP, which would round mixing and gradients as well.
    accelerator.state.fsdp_plugin.mixed_precision_policy = None
