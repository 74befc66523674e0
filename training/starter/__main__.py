"""Train the parts of the starter: ``python -m training.starter PART key=value ...``.

``photographs`` fetches what pairs are drawn of, beyond the few photographs that come inside wheels, and ``draw`` draws
pairs into ``run/pool``. Autoencoder, encoder, base and bank learn from them, each in its own folder below ``run``;
``together`` does all of it in the time that there is. The same command goes on where a run was interrupted. ``export``
puts what there is, and examples, into ``out``.
"""

import argparse
import logging
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..config import check_values, parse_overrides
from ..device import prefer_speed, warn_of_slow_bf16
from .autoencoder import AutoencoderSettings, train_autoencoder
from .bank import BankSettings, train_bank
from .base import BaseSettings, train_base
from .encoder import EncoderSettings, train_encoder
from .export import export
from .photograph_packages import fetch_photographs
from .pool import Workshop
from .shards import DrawSettings, draw_shards
from .together import TogetherSettings, train_together

logger = logging.getLogger(__name__)

_TRAINERS: dict[str, Callable[..., Path]] = {
    "autoencoder": train_autoencoder, "encoder": train_encoder, "base": train_base, "bank": train_bank
}  # fmt: skip


@dataclass
class StarterSettings:
    """Every part's settings."""

    run: str = "runs/starter"
    out: str = "starter"
    draw: DrawSettings = field(default_factory=DrawSettings)
    autoencoder: AutoencoderSettings = field(default_factory=AutoencoderSettings)
    encoder: EncoderSettings = field(default_factory=EncoderSettings)
    base: BaseSettings = field(default_factory=BaseSettings)
    bank: BankSettings = field(default_factory=BankSettings)
    together: TogetherSettings = field(default_factory=TogetherSettings)


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


def train(part: str, shop: Workshop, own: Any) -> None:
    """Train a part, with its settings saved in its folder."""
    (shop.run / part).mkdir(parents=True, exist_ok=True)
    OmegaConf.save(OmegaConf.structured(own), shop.run / part / "settings.yaml")
    if getattr(own, "bf16", False):
        warn_of_slow_bf16(shop.device, f"{part}.bf16=false")
    prefer_speed()
    _TRAINERS[part](shop, own)


def limited(own: Any, minutes: float) -> Any:
    """The settings of a part that ends after so many minutes."""
    if isinstance(own, BankSettings):
        return replace(own, set=[*own.set, f"train.minutes={minutes}"])
    return replace(own, loop=replace(own.loop, minutes=minutes))


def run(part: str, overrides: list[str]) -> None:
    """Do what the command line says.

    Raises:
        ValueError, OSError: what the parts raise.
    """
    settings = load_settings(overrides)
    shop = Workshop(Path(settings.run), settings.draw)
    if part == "photographs":
        fetch_photographs()
    elif part == "export":
        export(shop.run, Path(settings.out))
    elif part == "draw":
        draw_shards(shop.run / "pool", settings.draw)
    elif part == "together":
        train_together(
            settings.together,
            overrides,
            lambda part, minutes: train(part, shop, limited(getattr(settings, part), minutes)),
        )
    else:
        train(part, shop, getattr(settings, part))


def main(arguments: list[str] | None = None) -> int:
    """Command line entry."""
    parser = argparse.ArgumentParser(prog="python -m training.starter", description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("photographs", "draw", *_TRAINERS, "together", "export"))
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, such as base.loop.steps=100")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    try:
        run(options.part, options.overrides)
    except (ValueError, OSError) as error:
        logger.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    # An orderly end, which takes the processes that draw along.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(main())
