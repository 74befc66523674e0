"""The frozen transformer and the tuner on it."""

from pathlib import Path

import torch
from diffusers import BitsAndBytesConfig, ModelMixin, TorchAoConfig
from diffusers.quantizers.auto import DiffusersAutoQuantizer
from safetensors import SafetensorError
from safetensors.torch import load_file

from lorweb_core.packing import PACKED, unpack

from ..config import BaseConfig
from ..hub import locate
from ..packages import require
from . import family_of

_PACKAGES = {"nf4": "bitsandbytes", "int8": "bitsandbytes", "torchao-int8": "torchao"}


def check_quantisation(config: BaseConfig) -> None:
    """Ask diffusers whether it can quantise on this machine, before anything long starts.

    Raises:
        ValueError: when the library or the device that it takes is missing.
    """
    if config.quantise == "none":
        return
    require(_PACKAGES[config.quantise], f"base.quantise={config.quantise}")
    try:
        DiffusersAutoQuantizer.from_config(_quantisation(config)).validate_environment()
    except (ImportError, RuntimeError) as error:
        raise ValueError(
            f"base.quantise is {config.quantise!r}, which diffusers cannot do here: {error} Without a GPU there are"
            " none and torchao-int8"
        ) from error


def load_transformer(config: BaseConfig, device: torch.device) -> ModelMixin:
    """The transformer of a diffusers folder or hub id, frozen, on the device, quantised if asked for.

    Raises:
        ValueError: when it cannot be quantised here, or the folder holds no transformer of a known family.
    """
    check_quantisation(config)
    transformer = family_of(config.path).transformer
    by_bitsandbytes = _PACKAGES.get(config.quantise) == "bitsandbytes"  # which quantises layer by layer on the device
    packed = Path(config.path).expanduser() / "transformer" / PACKED
    if packed.is_file():
        return _frozen(unpack_transformer(transformer, packed, getattr(torch, config.dtype)), config).to(device)
    try:
        model = transformer.from_pretrained(
            **locate(config.path, "base.path"),
            subfolder="transformer",
            dtype=getattr(torch, config.dtype),
            quantization_config=_quantisation(config),
            use_safetensors=True,
            device_map={"": device} if by_bitsandbytes else None,
        )
    except OSError as error:
        raise ValueError(f"base.path: the transformer of {config.path} cannot be read ({error})") from error
    model = _frozen(model, config)
    return model if by_bitsandbytes else model.to(device)


def unpack_transformer(transformer: type[ModelMixin], packed: Path, dtype: torch.dtype) -> ModelMixin:
    """A transformer whose weights are stored as ``lorweb_core.packing`` stores them, beside its configuration.

    Raises:
        ValueError: naming the file, when it cannot be read.
    """
    try:
        weights = unpack(load_file(packed), dtype)
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{packed}: {error}") from error
    model = transformer.from_config(transformer.load_config(packed.parent)).to(dtype)
    model.load_state_dict(weights)
    return model


def _frozen(model: ModelMixin, config: BaseConfig) -> ModelMixin:
    model.requires_grad_(False)
    if config.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    return model


def _quantisation(config: BaseConfig) -> BitsAndBytesConfig | TorchAoConfig | None:
    if config.quantise == "nf4":
        compute = getattr(torch, config.dtype)
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute)
    if config.quantise == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    if config.quantise == "torchao-int8":
        from torchao.quantization import Int8WeightOnlyConfig

        return TorchAoConfig(Int8WeightOnlyConfig())
    return None
