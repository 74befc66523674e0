"""Train the parts of the starter: ``python -m training.starter autoencoder|encoder|base key=value ...``.

Every part is written into its own folder below ``run``; the same command goes on where a run was interrupted. The bank
is trained like any other: ``python -m training.train --config training/configs/starter.yaml``.
"""

import argparse
import logging
import sys
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .autoencoder import AutoencoderSettings, train_autoencoder
from .base import BaseSettings, train_base
from .encoder import EncoderSettings, train_encoder

logger = logging.getLogger(__name__)


@dataclass
class StarterSettings:
    """Every part's settings."""

    run: str = "runs/starter"
    manifest: str = "runs/starter/data/training.jsonl"
    autoencoder: AutoencoderSettings = field(default_factory=AutoencoderSettings)
    encoder: EncoderSettings = field(default_factory=EncoderSettings)
    base: BaseSettings = field(default_factory=BaseSettings)


def load_settings(overrides: list[str]) -> StarterSettings:
    """The defaults with ``key=value`` overrides.

    Raises:
        ValueError: naming a key or value that does not fit.
    """
    try:
        tree = OmegaConf.merge(OmegaConf.structured(StarterSettings), OmegaConf.from_dotlist(overrides))
    except OmegaConfBaseException as error:
        raise ValueError(f"{error.full_key}: {str(error).splitlines()[0]}") from error
    return OmegaConf.to_object(tree)


def main(arguments: list[str] | None = None) -> int:
    """Command line entry."""
    parser = argparse.ArgumentParser(prog="python -m training.starter", description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("autoencoder", "encoder", "base"))
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, such as base.loop.steps=100")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    try:
        settings = load_settings(options.overrides)
        run = Path(settings.run)
        if options.part == "autoencoder":
            train_autoencoder(run / "autoencoder", settings.autoencoder)
        elif options.part == "encoder":
            train_encoder(run / "encoder", settings.encoder)
        else:
            train_base(run, Path(settings.manifest), settings.base)
    except (ValueError, OSError) as error:
        logger.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
