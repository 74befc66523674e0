"""Train a basis bank: ``python -m training.train --config training/configs/<name>.yaml key=value ...``."""

import argparse
import logging
import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from .base import check_quantisation, load_transformer
from .batches import Batches, Share
from .checkpointing import Checkpoints, checkpoint_folder
from .config import Config, flat, load_config
from .device import warn_of_slow_bf16
from .loop import BANK_NAME, Trainer
from .optim import check_optimizer
from .perception import Perception, perceptual_network
from .setup import analogies, load_data, make_encoding, prepare_run, training_items, validation_sets
from .start import check_resumed, check_start
from .tracking import make_trackers
from .validation import Validator

logger = logging.getLogger(__name__)

# Processes wait for the main one while it fills the caches, which is longer than the ten minutes that NCCL allows.
_PATIENCE = timedelta(days=2)


def main(arguments: list[str] | None = None) -> int:
    """Command line entry."""
    parser = argparse.ArgumentParser(prog="python -m training.train", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="a YAML file, such as training/configs/paper.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace those of the file")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        train(load_config(options.config, options.overrides))
    except (ValueError, OSError) as error:
        logger.error("%s", error)
        return 1
    return 0


def train(config: Config) -> Path:
    """Run a configuration to its end, from the newest checkpoint if there is one; returns the bank's path.

    Raises:
        ValueError: for settings or data that cannot be used.
        OSError: when a checkpoint or the bank cannot be written.
    """
    run = Path(config.run)
    resumed = _resumed_step(config)
    if config.bank.start and not resumed:
        check_start(config)
    trackers, tracker_arguments = make_trackers(config.log.trackers, run, resumed)
    accelerator = make_accelerator(config, trackers)
    with accelerator.main_process_first():
        prepare_run(config, accelerator.is_main_process)
        lpips = perceptual_network(config.objective, run)
    manifest, splits = load_data(config)
    dataset, held_out = analogies(config, splits.train, config.data.swap), validation_sets(config, splits)
    with accelerator.main_process_first():
        encoding = make_encoding(config, accelerator.device, manifest, dataset)
    transformer = load_transformer(config.base, accelerator.device)
    perception = lpips and Perception(lpips.to(accelerator.device), encoding.coder.pixels)
    header = {"data_hash": splits.train.digest, "canvas": str(config.data.canvas)}
    trainer = Trainer(config, accelerator, transformer, encoding.bank, header, perception)
    batches = Batches(
        config,
        training_items(config, dataset, encoding),
        encoding,
        Share(accelerator.process_index, accelerator.num_processes, config.train.batch, config.train.accumulate),
        accelerator.device,
        config.objective.guidance if transformer.config.guidance_embeds else None,
    )
    validator = Validator(config, accelerator, batches, held_out, trainer.tuner)
    accelerator.init_trackers(config.log.project, flat(config), tracker_arguments)
    trainer.train(batches.from_step(trainer.step), validator)
    accelerator.end_training()
    return run / BANK_NAME


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
    if config.train.minutes and accelerator.num_processes > 1:
        raise ValueError("train.minutes limits a single process, whose clock all would need; set train.steps instead")
    if config.train.precision == "bf16":
        warn_of_slow_bf16(accelerator.device, "train.precision=no")
    check_sharding(config, accelerator)
    check_quantisation(config.base)
    check_optimizer(config.optimizer, accelerator.is_fsdp2)
    return accelerator


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


def _resumed_step(config: Config) -> int:
    """Step of the newest checkpoint, 0 without one.

    Raises:
        ValueError: when there is one and the run is not to be resumed, or not with this configuration.
    """
    checkpoints = Checkpoints(checkpoint_folder(config), config.checkpoint.keep)
    steps = checkpoints.steps()
    if not steps:
        return 0
    if not config.checkpoint.resume:
        raise ValueError(f"{config.run} holds a run that reached step {steps[-1]}; give another run=..., or resume it")
    check_resumed(config, checkpoints.state(steps[-1]))
    return steps[-1]


if __name__ == "__main__":
    sys.exit(main())
