"""Weights in a quarter of float32's size, for the small model that ships: int8 with a scale a row.

A symmetric scale per output channel costs less than fp8 of the same size: of Gaussian rows the error is about one
percent of a weight, of e4m3 two to three.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

PACKED = "packed.safetensors"  # the file's name in the place of diffusers' own
_SCALE = ".scale"
_STEPS = 127
_SMALL = 2**14  # elements under which a matrix stays in half precision


def pack(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Large matrices [out, in] as int8 beside ``<name>.scale`` [out, 1]; everything else in half precision."""
    packed: dict[str, Tensor] = {}
    for name, weight in weights.items():
        if weight.dim() == 2 and weight.numel() >= _SMALL:
            scale = weight.float().abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / _STEPS
            packed[name] = (weight.float() / scale).round().to(torch.int8)
            packed[name + _SCALE] = scale
        else:
            packed[name] = weight.to(torch.float16)
    return packed


def unpack(packed: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The weights of ``pack``.

    Raises:
        ValueError: naming a matrix whose scale is missing or of another shape.
    """
    weights = {}
    for name, weight in packed.items():
        if name.endswith(_SCALE) and name.removesuffix(_SCALE) in packed:
            continue
        if weight.dtype == torch.int8:
            scale = packed.get(name + _SCALE)
            if scale is None or scale.shape != (weight.shape[0], 1):
                found = "missing" if scale is None else list(scale.shape)
                raise ValueError(f"{name}{_SCALE} is {found}; expected [{weight.shape[0]}, 1]: the file is damaged")
            weight = weight * scale
        weights[name] = weight.to(dtype)
    return weights
