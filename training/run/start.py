"""Begin the training of a bank with a bank that is there: a released one, or one of an earlier run."""

import logging
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from lorweb_core import BankConfig, BasisBank
from lorweb_core.checkpoint import BIAS, KEYS, LORA_A, LORA_B, PREFIX, TO_Q, BankFile, Shapes, read_config

from ..config import Config
from ..encoders.encoding import same_model
from ..tuner import LoRWeBModel
from .checkpointing import checkpoint_folder

logger = logging.getLogger(__name__)

DATA_HASH = "data_hash"  # header entry: hashes of all the data that a bank was trained on, one after the other


def check_start(config: Config) -> None:
    """Check the bank file that a run is to begin with, as far as can be told before anything is encoded.

    Raises:
        ValueError: when it cannot be read, or its bank has another shape or mixing.
    """
    path = Path(config.bank.start)
    check_shape(path, _but_width(read_config(path)), _wanted(config))


def check_start_fits(path: Path, wanted: BankConfig, layers: Mapping[str, tuple[int, int]], canvas: int) -> None:
    """Check all that a bank's header tells against the bank that is to be trained, and say what will not be taken.

    Args:
        layers: module path -> (in, out) of the layers that will be trained.
        canvas: side of the canvases that it will be trained on.

    Raises:
        ValueError: when its bank has another shape, mixing or set of layers.
    """
    found = read_config(path)
    check_shape(path, found, wanted)
    file = BankFile(path)
    check_layers(path, file.layout().layers, layers)
    before = file.metadata.get("canvas", str(canvas))
    if before != str(canvas):
        logger.warning("%s was trained on canvases of %s pixels, and goes on with data.canvas=%d", path, before, canvas)
    if found.query_mode != wanted.query_mode:
        logger.warning(
            "%s was trained with queries %s, not %s: its LoRAs are taken, keys and projections begin at random",
            path, found.query_mode, wanted.query_mode,
        )  # fmt: skip
    if not same_model(found.encoder, wanted.encoder):
        logger.warning("%s was trained with the encoder %s, and goes on with %s", path, found.encoder, wanted.encoder)


def data_before(path: Path) -> str:
    """Hashes of the data that a bank was trained on, as far as its header tells."""
    return BankFile(path).metadata.get(DATA_HASH, "unknown")


def joined_hashes(before: str, now: str) -> str:
    """Hashes of data, each once, in the order in which it was trained on."""
    return " ".join(dict.fromkeys([*before.split(), *now.split()]))


def check_resumed(config: Config, state: Mapping[str, Any], wanted: BankConfig | None = None) -> None:
    """Check that a checkpoint is of such a bank and optimiser as the configuration asks for.

    Args:
        state: of the checkpoint.
        wanted: the bank to train; None before the width of its query is known.

    Raises:
        ValueError: naming the setting in which they differ.
    """
    folder = checkpoint_folder(config)
    try:
        found = BankConfig(**state["bank"])
        before = found.query_mode, state["optimizer"]["name"]
    except (LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{folder}: not a checkpoint of this version's training of banks ({error})") from error
    found, wanted = (found, wanted) if wanted else (_but_width(found), _wanted(config))
    check_shape(folder, found, wanted)
    now = wanted.query_mode, config.optimizer.name
    if before != now:
        raise ValueError(
            f"{folder}: this run trains with queries {before[0]} and {before[1]}, and cannot go on with {now[0]} and"
            f" {now[1]}; give another run=..., which can begin with this one's bank (bank.start=...)"
        )


def _wanted(config: Config) -> BankConfig:
    bank = replace(config.bank, projection="linear")
    return _but_width(bank.resolve(1, config.base.path, config.bank.encoder))


def _but_width(bank: BankConfig) -> BankConfig:
    """A bank whatever the width of its query, which the encoder tells."""
    return replace(bank, query_dim=1, projection="linear")


def begin_with(tuner: LoRWeBModel, path: Path) -> None:
    """Put the tensors of a bank file in place of the tuner's own.

    Of a bank with another query mode the LoRAs alone: its keys and projections mean nothing to other queries.

    Raises:
        ValueError: when the file cannot be read, or its bank has another shape or mixing; see ``check_start_fits``.
    """
    bank, wanted = BasisBank.load(path), tuner.bank_config
    check_shape(path, bank.config, wanted)
    keys = _keys(bank) if bank.config.query_mode == wanted.query_mode else {}
    own = tuner.bank_tensors(tuner.adapter_state_dict())
    tensors = {layer: {**own[layer], **_loras(bank, layer), **keys.get(layer, {})} for layer in own}
    tuner.load_adapter_state_dict(tuner.adapter_state(tensors))


def put_loras(tuner: LoRWeBModel, bank: BasisBank) -> None:
    """Put a bank's LoRAs on a tuner of its shape, for coefficients that are set from outside: keys mean nothing then.

    Raises:
        ValueError: when it has other layers, or biases.
    """
    widths = {name: (layer.in_features, layer.out_features) for name, layer in tuner.tuner_layers.items()}
    check_layers(bank.path, bank.file.layout().layers, widths)
    own = tuner.bank_tensors(tuner.adapter_state_dict())
    tuner.load_adapter_state_dict(tuner.adapter_state({layer: {**own[layer], **_loras(bank, layer)} for layer in own}))


def check_shape(path: Path, found: BankConfig, wanted: BankConfig) -> None:
    """Check that a bank is like the one that the configuration describes, whatever encoder and base it names.

    The width of the query matters only where the query mode is the same.

    Raises:
        ValueError: naming the first setting in which they differ.
    """
    free = {"encoder", "base_model", "query_mode"}
    free |= set() if found.query_mode == wanted.query_mode else {"query_dim"}
    for setting in (field.name for field in fields(BankConfig) if field.name not in free):
        value, expected = getattr(found, setting), getattr(wanted, setting)
        if value != expected:
            raise ValueError(f"{path}: its {setting} is {value!r}, but this run trains a bank with {expected!r}")


def check_layers(path: Path, found: Mapping[str, Shapes], wanted: Mapping[str, tuple[int, int]]) -> None:
    """Check that a bank has the layers that are trained, of their widths and without biases.

    Raises:
        ValueError: naming a layer that differs.
    """
    odd = sorted(found.keys() ^ wanted.keys())
    if odd:
        raise ValueError(f"{path}: {len(odd)} layers are in this bank or in bank.targets only, such as {odd[0]}")
    for name, expected in wanted.items():
        widths = found[name][LORA_A][1], found[name][LORA_B][2]
        if widths != expected:
            raise ValueError(
                f"{path}: layer {name} maps {widths[0]} features to {widths[1]}, but this base's"
                f" {expected[0]} to {expected[1]}; name the bank of this base"
            )
    biased = [name for name, shapes in found.items() if BIAS in shapes]
    if biased:
        raise ValueError(f"{path}: {len(biased)} layers have biases, such as {biased[0]}, which are not trained here")


def _loras(bank: BasisBank, layer: str) -> dict[str, Tensor]:
    return {LORA_A: bank.layers[layer].A, LORA_B: bank.layers[layer].B}


def _keys(bank: BasisBank) -> dict[str, dict[str, Tensor]]:
    """Module path -> keys and projection as the file has them: a loaded bank holds them folded."""
    names = (KEYS, TO_Q) if bank.config.projection == "linear" else (KEYS,)
    return {layer: {name: bank.file.tensor(f"{PREFIX}{layer}.{name}") for name in names} for layer in bank.layers}
