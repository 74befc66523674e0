"""The frozen transformer and the tuner on it."""

import logging

import torch
from diffusers import BitsAndBytesConfig, FluxTransformer2DModel, TorchAoConfig

from .config import BaseConfig
from .encoders import locate

logger = logging.getLogger(__name__)


def load_transformer(config: BaseConfig, device: torch.device) -> FluxTransformer2DModel:
    """The FLUX transformer of a diffusers folder or hub id, frozen, on the device, quantised if asked for.

    Raises:
        ValueError: when the quantisation library is not installed, or the folder holds no FLUX transformer.
    """
    dtype = getattr(torch, config.dtype)
    try:
        model = FluxTransformer2DModel.from_pretrained(
            **locate(config.path, "base.path"),
            subfolder="transformer",
            dtype=dtype,
            quantization_config=_quantisation(config.quantise, dtype),
        )
    except ImportError as error:
        raise ValueError(f"base.quantise is {config.quantise!r}, but its library is missing: {error}") from error
    except OSError as error:
        raise ValueError(
            f"base.path: {config.path} holds no transformer of a diffusers FLUX pipeline ({error})"
        ) from error
    model.requires_grad_(False)
    if config.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    return model if config.quantise in ("nf4", "int8") else model.to(device)


def _quantisation(name: str, dtype: torch.dtype) -> BitsAndBytesConfig | TorchAoConfig | None:
    if name == "nf4":
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    if name == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    if name == "torchao-int8":
        from torchao.quantization import Int8WeightOnlyConfig

        return TorchAoConfig(Int8WeightOnlyConfig())
    return None
