"""Train the parts of the starter: ``python -m training.starter PART key=value ...``.

``photographs`` fetches what pairs are drawn of, beyond the few photographs that come inside wheels, and ``draw`` draws
pairs into ``run/pool``. Autoencoder, encoder, base and bank learn from them, each in its own folder below ``run``;
``together`` does all of it in the time that there is. The same command goes on where a run was interrupted. ``export``
puts what there is, and examples, into ``out``.
"""

import argparse
import logging
import shutil
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
from ..pictures.photograph_packages import fetch_photographs
from .autoencoder import AutoencoderSettings, train_autoencoder
from .bank import BankSettings, train_bank
from .base import BaseSettings, train_base
from .encoder import EncoderSettings, train_encoder
from .export import export
from .pool import Workshop
from .shards import DrawSettings, draw_shards
from .together import TogetherSettings, train_together

logger = logging.getLogger(__name__)

_PERCEPTUAL = 0.3  # weight of LPIPS in the objectives of base and bank
_TRAINERS: dict[str, Callable[..., Path]] = {
    "autoencoder": train_autoencoder, "encoder": train_encoder, "base": train_base, "bank": train_bank
}  # fmt: skip


@dataclass
class StarterSettings:
    """Every part's settings.

    Attributes:
        run: folder of all parts. out: what ``export`` writes.
        start: folder of a starter, as ``export`` writes it, that every part begins with, and that parts which the run
            lacks are taken from; empty begins anew.
        lpips: weights of LPIPS, which every part but the image encoder then learns with; empty for none.
    """

    run: str = "runs/starter"
    out: str = "starter"
    start: str = ""
    lpips: str = ""
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
    return spread(OmegaConf.to_object(tree))


def spread(settings: StarterSettings) -> StarterSettings:
    """The settings with what is said of all parts said of each."""
    if start := settings.start and Path(settings.start):
        settings.autoencoder.start = settings.autoencoder.start or str(start / "base" / "vae")
        settings.encoder.start = settings.encoder.start or str(start / "encoder")
        settings.base.start = settings.base.start or str(start / "base")
        settings.bank.set = [f"bank.start={start / 'bank.safetensors'}", *settings.bank.set]
    if lpips := settings.lpips:
        settings.autoencoder.lpips = settings.autoencoder.lpips or lpips
        looking = {"lpips": lpips, "perceptual": settings.base.objective.perceptual or _PERCEPTUAL}
        settings.base.objective = replace(settings.base.objective, **looking)
        settings.bank.set = [*(f"objective.{name}={value}" for name, value in looking.items()), *settings.bank.set]
    return settings


def begin_with(run: Path, start: Path) -> None:
    """Take the parts that a run lacks from a starter.

    Raises:
        FileNotFoundError: when it lacks one of them, too.
    """
    for own, there in (("autoencoder/vae", "base/vae"), ("encoder/encoder", "encoder"), ("base/base", "base")):
        if not (run / own).is_dir():
            shutil.copytree(start / there, run / own)


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
    if settings.start and part in (*_TRAINERS, "together"):
        begin_with(Path(settings.run), Path(settings.start))
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
