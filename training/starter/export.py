"""Put the trained parts into one folder as they are shipped: ``python -m training.starter export``."""

import logging
import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from lorweb_core.packing import PACKED, pack

from .examples import write_examples

logger = logging.getLogger(__name__)

# Folder or file of the run -> where it goes.
_PARTS = {
    "base/base": "base",
    "encoder/encoder": "encoder",
    "bank/bank.safetensors": "bank.safetensors",
}
_LOGS = ("settings.yaml", "config.yaml", "metrics.csv", "evaluation.csv")


def export(run: Path, out: Path) -> None:
    """Copy what there is of base, image encoder and bank, with the transformer's weights packed and others in half
    precision, and the logs of all parts; beside them the examples.

    Args:
        run: folder of the runs ``autoencoder``, ``encoder``, ``base`` and ``bank``.

    Raises:
        ValueError: when there is nothing to export.
    """
    there = {run / part: out / name for part, name in _PARTS.items() if (run / part).exists()}
    if not there:
        raise ValueError(f"{run}: there is no trained part ({', '.join(_PARTS)})")
    for source, target in there.items():
        files = [path for path in source.rglob("*") if path.is_file()] if source.is_dir() else [source]
        for path in files:
            _copy(path, target / path.relative_to(source) if source.is_dir() else target)
        logger.info("%s: %.1f MB", target, sum(path.stat().st_size for path in files) / 1e6)
    for log in (path for name in _LOGS for path in run.glob(f"*/{name}")):
        _copy(log, out / "logs" / log.relative_to(run))
    write_examples(out / "examples")


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.suffix != ".safetensors":
        shutil.copyfile(source, target)
        return
    with safe_open(source, framework="pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    if source.parent.name == "transformer":
        save_file(pack(tensors), target.with_name(PACKED), metadata)
        return
    halved = {
        name: tensor.to(torch.float16) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()
    }
    save_file(halved, target, metadata)
