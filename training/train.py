"""Train a basis bank: ``python -m training.train --config training/configs/<name>.yaml key=value ...``."""

import argparse
import logging
import signal
import sys
from pathlib import Path

import torch
from accelerate import Accelerator

from lorweb_core.query import QUERY_MODES

from .bases import family_of
from .bases.loading import load_transformer
from .config import Config, flat, load_config
from .data import Manifest
from .encoders.encoding import bank_config
from .encoders.vision import embedding_width
from .noise import hide_loading_bars
from .run.accelerator import make_accelerator
from .run.batches import Batches, Share
from .run.checkpointing import Checkpoints, checkpoint_folder
from .run.locking import locked
from .run.loop import BANK_NAME, Trainer
from .run.perception import Perception, perceptual_network
from .run.setup import analogies, load_data, make_encoding, prepare_run, save_settings, training_items, validation_sets
from .run.sizes import announce, is_out_of_memory, target_layers, what_to_lower
from .run.start import DATA_HASH, check_resumed, check_start, check_start_fits, data_before, joined_hashes
from .run.stopping import Stopped
from .run.tracking import make_trackers
from .run.validation import Validator

logger = logging.getLogger(__name__)


def main(arguments: list[str] | None = None) -> int:
    """Command line entry."""
    parser = argparse.ArgumentParser(prog="python -m training.train", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="a YAML file, such as training/configs/paper.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace those of the file")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    hide_loading_bars()
    try:
        config = load_config(options.config, options.overrides)
    except (ValueError, OSError) as error:
        logger.error("%s", error)
        return 1
    return _run(config)


def _run(config: Config) -> int:
    """Train; the exit status, as a shell has it where a signal ended the run."""
    try:
        train(config)
    except Stopped as stopped:
        logger.warning("%s", stopped)
        return 128 + stopped.signal
    except KeyboardInterrupt:
        logger.warning("stopped; the same command goes on from the last checkpoint, and with what is cached")
        return 128 + signal.SIGINT
    except Exception as error:
        if is_out_of_memory(error):
            logger.error("out of memory (%s). Lower: %s", str(error).splitlines()[0], what_to_lower(config))
        elif isinstance(error, ValueError | OSError):
            logger.error("%s", error)
        else:
            raise
        return 1
    return 0


def train(config: Config) -> Path:
    """Run a configuration to its end, from the newest good checkpoint if there is one; returns the bank's path.

    Raises:
        ValueError: for settings or data that cannot be used, or when another training has the run's folder.
        OSError: when a checkpoint or the bank cannot be written.
        Stopped: by Ctrl-C or SIGTERM, when the step that was under way is saved.
    """
    run = Path(config.run)
    checkpoints = Checkpoints(checkpoint_folder(config), config.checkpoint.keep)
    _check_resumable(config, checkpoints)
    if config.bank.start and not checkpoints.resumable:
        check_start(config)
    trackers, tracker_arguments = make_trackers(config.log.trackers, run, checkpoints.resumable)
    accelerator = make_accelerator(config, trackers)
    with locked(run, accelerator.is_main_process):
        _train(config, accelerator, checkpoints, tracker_arguments)
    return run / BANK_NAME


def _train(config: Config, accelerator: Accelerator, checkpoints: Checkpoints, tracker_arguments: dict) -> None:
    run = Path(config.run)
    with accelerator.main_process_first():
        prepare_run(config, accelerator.is_main_process)
        lpips = perceptual_network(config.objective, run)
    manifest, splits = load_data(config)
    dataset, held_out = analogies(config, splits.train, config.data.swap), validation_sets(config, splits)
    check_bank(config, checkpoints.resumable, manifest)
    if accelerator.is_main_process:
        save_settings(config)
    with accelerator.main_process_first():
        encoding = make_encoding(config, accelerator.device, manifest, dataset, list(held_out.values()))
    # What is to be sharded may be too large for one card: FSDP moves it there block by block.
    transformer = load_transformer(config.base, torch.device("cpu") if accelerator.is_fsdp2 else accelerator.device)
    perception = lpips and Perception(lpips.to(accelerator.device), encoding.coder.pixels, config.layout)
    header = make_header(config, splits.train.digest)
    trainer = Trainer(config, accelerator, transformer, encoding.bank, header, perception, checkpoints)
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
    try:
        trainer.train(batches.from_step(trainer.step), validator)
    except Stopped:
        accelerator.end_training()
        raise
    accelerator.end_training()


def check_bank(config: Config, resumed: int, manifest: Manifest) -> None:
    """Say what the bank that is to be trained takes, and check the one that it begins with, before anything is cached.

    Raises:
        ValueError: when ``bank.targets`` names no layers of the base, ``bank.layout`` is nothing for it, or
            ``bank.start`` is of another shape or base.
    """
    family_of(config.base.path).check_layout(config.layout)
    width = embedding_width(config.bank.encoder, QUERY_MODES[config.bank.query_mode])
    bank = bank_config(config, width)
    layers, token_width = target_layers(config)
    if config.bank.start and not resumed:
        check_start_fits(Path(config.bank.start), bank, layers, config.data.canvas)
    announce(config, bank, layers, manifest, token_width)


def make_header(config: Config, digest: str) -> dict[str, str]:
    """What the bank's header says of its data: a bank that began with another was trained on that one's as well."""
    hashes = joined_hashes(data_before(Path(config.bank.start)), digest) if config.bank.start else digest
    return {DATA_HASH: hashes, "canvas": str(config.data.canvas)}


def _check_resumable(config: Config, checkpoints: Checkpoints) -> None:
    """Check that a run that is there can go on.

    Raises:
        ValueError: when it is not to be resumed, not with this configuration, or not from damaged checkpoints.
    """
    steps = checkpoints.steps()
    if steps and not config.checkpoint.resume:
        raise ValueError(f"{config.run} holds a run that reached step {steps[-1]}; give another run=..., or resume it")
    if checkpoints.resumable:
        check_resumed(config, checkpoints.state(checkpoints.resumable))


if __name__ == "__main__":
    sys.exit(main())
