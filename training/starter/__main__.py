"""Train the parts of the starter: ``python -m training.starter autoencoder|encoder|base|export key=value ...``.

``photographs`` fetches what they are trained on beyond the few photographs that come inside wheels.

Every part is written into its own folder below ``run``; the same command goes on where a run was interrupted.
``export`` puts what there is, and examples, into ``out``. The bank is trained on the exported parts, like any other
bank, with ``python -m training.train --config training/configs/starter.yaml``; another ``export`` then adds it.
"""

import argparse
import logging
import sys
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..config import check_values, parse_overrides
from ..device import pick_device, warn_of_slow_bf16
from .autoencoder import AutoencoderSettings, train_autoencoder
from .base import BaseSettings, train_base
from .encoder import EncoderSettings, train_encoder
from .export import export
from .photograph_packages import fetch_photographs

logger = logging.getLogger(__name__)


@dataclass
class StarterSettings:
    """Every part's settings."""

    run: str = "runs/starter"
    out: str = "starter"
    manifest: str = "runs/starter/data/training.jsonl"
    recipe: str = "training/starter/recipes/training.yaml"
    autoencoder: AutoencoderSettings = field(default_factory=AutoencoderSettings)
    encoder: EncoderSettings = field(default_factory=EncoderSettings)
    base: BaseSettings = field(default_factory=BaseSettings)


def load_settings(overrides: list[str]) -> StarterSettings:
    """The defaults with ``key=value`` overrides.

    Raises:
        ValueError: naming a key or value that does not fit.
    """
    try:
        tree = OmegaConf.merge(OmegaConf.structured(StarterSettings), parse_overrides(overrides))
    except OmegaConfBaseException as error:
        raise ValueError(f"{error.full_key}: {str(error).splitlines()[0]}") from error
    for part in ("autoencoder", "encoder", "base"):
        check_values(tree[part], f"{part}.")
    return OmegaConf.to_object(tree)


def train(part: str, settings: StarterSettings) -> None:
    """Train a part, with its settings saved in its folder."""
    run = Path(settings.run)
    (run / part).mkdir(parents=True, exist_ok=True)
    OmegaConf.save(OmegaConf.structured(getattr(settings, part)), run / part / "settings.yaml")
    if getattr(settings, part).bf16:
        warn_of_slow_bf16(pick_device(), f"{part}.bf16=false")
    if part == "autoencoder":
        train_autoencoder(run / part, settings.autoencoder)
    elif part == "encoder":
        train_encoder(run / part, settings.encoder)
    else:
        train_base(run, Path(settings.manifest), Path(settings.recipe), settings.base)


def main(arguments: list[str] | None = None) -> int:
    """Command line entry."""
    parser = argparse.ArgumentParser(prog="python -m training.starter", description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("photographs", "autoencoder", "encoder", "base", "export"))
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, such as base.loop.steps=100")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    try:
        settings = load_settings(options.overrides)
        if options.part == "photographs":
            fetch_photographs()
        elif options.part == "export":
            export(Path(settings.run), Path(settings.out))
        else:
            train(options.part, settings)
    except (ValueError, OSError) as error:
        logger.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
