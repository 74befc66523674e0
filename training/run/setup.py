"""What a run needs before its first step: its folder, its data, its analogies."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.utils.data import Dataset

from lorweb_core.atomic import replacing

from ..config import MADE_IN_RUN, Config, flat, load_config, save_config
from ..data.analogies import AnalogyDataset, AnalogySampler, geometry_of
from ..data.errors import DataError
from ..data.manifest import Manifest
from ..data.sources import folders
from ..data.splits import Splits, split
from ..data.writer import write_manifest
from ..encoders.encoding import Encoding, Repeated, cached_encoding, live_encoding

logger = logging.getLogger(__name__)

CONFIG_NAME = "config.yaml"


def prepare_run(config: Config, is_main: bool) -> None:
    """Make the run's folder, and in it the parts that a tiny run lacks.

    Every process gets the paths of those parts into its configuration; the main one, which comes first, makes them.
    """
    run = Path(config.run)
    if is_main:
        run.mkdir(parents=True, exist_ok=True)
    if config.tiny:
        _fill_in_tiny_parts(config, run / "tiny")


def save_settings(config: Config) -> None:
    """Save the resolved configuration in the run's folder, and say what of it has changed since the run began."""
    path = Path(config.run) / CONFIG_NAME
    if path.exists():
        before, now = flat(load_config(path)), flat(config)
        changed = [f"{key}: {before[key]} -> {now[key]}" for key in now if before[key] != now[key]]
        if changed:
            logger.warning("settings changed since this run began: %s", "; ".join(changed))
    with replacing(path) as temporary:
        save_config(config, temporary)


def _fill_in_tiny_parts(config: Config, folder: Path) -> None:
    """Replace every ``MADE_IN_RUN`` by a part made in the folder."""
    from ..bases.tiny import make_base, make_encoder
    from ..bases.tiny_klein import make_klein
    from ..bases.tiny_qwen import make_qwen
    from ..pictures.few import make_photographs

    bases = {MADE_IN_RUN: make_base, f"{MADE_IN_RUN}:klein": make_klein, f"{MADE_IN_RUN}:qwen": make_qwen}
    if config.base.path in bases:
        config.base.path = str(_once(folder / "base", bases[config.base.path]))
    if config.bank.encoder == MADE_IN_RUN:
        config.bank.encoder = str(_once(folder / "encoder", make_encoder))
    if config.data.cache == MADE_IN_RUN:
        config.data.cache = str(folder / "cache")
    if config.data.manifest == MADE_IN_RUN:
        photographs = _once(folder / "photographs", make_photographs)
        config.data.manifest = str(folder / "manifest.jsonl")
        if not Path(config.data.manifest).exists():
            write_manifest(folders.read(photographs), Path(config.data.manifest), workers=1)


def _once(path: Path, make) -> Path:
    """Make a folder under a temporary name unless it is there."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        make(path.with_suffix(".tmp")).rename(path)
    return path


def load_data(config: Config) -> tuple[Manifest, Splits]:
    """The manifest, and how it is split into what is trained on and what is held out."""
    data, manifest = config.data, Manifest.load(config.data.manifest)
    tasks = data.hold_task_names or data.hold_tasks
    return manifest, split(manifest, tasks, data.hold_images, config.train.seed, data.hold_pairs)


def analogies(config: Config, manifest: Manifest, swap: float = 0.0) -> AnalogyDataset:
    """Analogies of a manifest on square canvases of the run's size."""
    sampler = AnalogySampler(manifest, config.train.seed, swap, config.data.over)
    geometry = geometry_of(config.layout, config.data.canvas)
    return AnalogyDataset(sampler, geometry, config.data.fit, caption=config.data.caption, layout=config.layout)


def make_encoding(
    config: Config,
    device: torch.device,
    manifest: Manifest,
    training: AnalogyDataset,
    shown: Sequence[AnalogyDataset] = (),
) -> Encoding:
    """The encoding of a run: cached when it names a cache folder; see ``cached_encoding``."""
    if config.data.cache:
        return cached_encoding(config, device, manifest, training, shown)
    return live_encoding(config, device)


def training_items(config: Config, training: AnalogyDataset, encoding: Encoding) -> Dataset:
    """The items that are trained on, without images where caches make them needless."""
    items = AnalogyDataset(
        training.sampler, training.geometry, training.fit, encoding.needs_pixels, config.data.examples,
        training.caption, training.layout,
    )  # fmt: skip
    return Repeated(items, config.data.cache_latents) if config.data.cache_latents else items


def validation_sets(config: Config, splits: Splits) -> dict[str, AnalogyDataset]:
    """The held-out analogies by name; those of training when nothing is held out.

    Raises:
        DataError: when there is no analogy in what is held out.
    """
    sets = {"held-out-images": splits.held_out_images, "held-out-tasks": splits.held_out_tasks}
    held = {name: manifest for name, manifest in sets.items() if manifest is not None}
    return {name: _named(name, config, manifest) for name, manifest in (held or {"training": splits.train}).items()}


def _named(name: str, config: Config, manifest: Manifest) -> AnalogyDataset:
    try:
        return analogies(config, manifest)
    except DataError as error:
        raise DataError(f"{name}: {error}; hold out more, or nothing") from error
