"""Plain LoRA files from a composed LoRA, in the two namings that other tools read."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from .checkpoint import PREFIX, Progress, iterate_with_progress, save_atomically
from .layers import fused_modules, nearest_family

FORMATS = ("diffusers", "comfyui")


class LoRA(Protocol):
    """An ordinary LoRA: per layer ``delta = up @ down``, scale already in."""

    @property
    def names(self) -> tuple[str, ...]: ...

    def factors(self, name: str) -> tuple[Tensor, Tensor]: ...

    def bias(self, name: str) -> Tensor | None: ...


def save_lora(
    lora: LoRA, path: str | os.PathLike, format: str = "diffusers", dtype: torch.dtype = torch.float32,
    metadata: Mapping[str, str] | None = None, progress: Progress | None = None, replace: bool = True,
) -> None:  # fmt: skip
    """Write a plain LoRA file.

    Args:
        format: "diffusers": ``transformer.<module path>.lora_A/lora_B.weight``, PEFT's names, which diffusers and
            ComfyUI load. "comfyui": ComfyUI's own modules (see ``layers.py``) under ``lora_unet_...``, which ComfyUI
            (its bypass loader too) and other interfaces load; FLUX's q, k, v share one block-diagonal pair there.
        dtype: float32, bfloat16 or float16. In the half types the factors are balanced first, since coefficients times
            B fall below what float16 resolves.
        metadata: further header entries.
        replace: False never replaces a file.

    Raises:
        ValueError: for an unknown format, a layer of no known family, bias deltas in "diffusers" format, which
            ComfyUI would drop in silence, or factors that the type does not hold.
        FileExistsError: when there is a file of that name and it must not be replaced.
        OSError: when it cannot be written.
    """
    if format not in FORMATS:
        raise ValueError(f"format is {format!r}; expected one of {', '.join(FORMATS)}")
    write = _diffusers_tensors if format == "diffusers" else _comfyui_tensors
    tensors: dict[str, Tensor] = {}
    for part in write(lora, dtype, progress):
        # alpha stays in float32: bfloat16 has no 261.
        part = {name: t.to(dtype if t.dim() else torch.float32).contiguous() for name, t in part.items()}
        _check_finite(part, path)
        tensors |= part
    save_atomically(tensors, path, {"format": "pt", **(metadata or {})}, replace)


def names_of(layers: Sequence[str], format: str) -> str:
    """Whose names a file of the format has, and who reads them, in a sentence for people."""
    family = nearest_family(layers)
    if format == "comfyui":
        return f"ComfyUI's names of {family.name}: ComfyUI reads them, so do other interfaces and diffusers"
    text = f"diffusers' names of {family.name}: diffusers reads them, and so does ComfyUI"
    return text + (f" from {family.since} on; for an older one save as comfyui" if family.since else "")


def _check_finite(tensors: Mapping[str, Tensor], path: str | os.PathLike) -> None:
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(
                f"{path}: {str(tensor.dtype).removeprefix('torch.')} does not hold {name}, which would be NaN or"
                " infinite; save as bfloat16 or float32, or lower block scales, overrides or blend"
            )


def _diffusers_tensors(lora: LoRA, dtype: torch.dtype, progress: Progress | None) -> Iterator[dict[str, Tensor]]:
    for name in iterate_with_progress(lora.names, progress, len(lora.names)):
        if lora.bias(name) is not None:
            raise ValueError(f"format 'diffusers' has no place for the bias delta of layer {name}; save as 'comfyui'")
        down, up = balance(*lora.factors(name), dtype)
        yield {f"{PREFIX}{name}.lora_A.weight": down, f"{PREFIX}{name}.lora_B.weight": up}


def _comfyui_tensors(lora: LoRA, dtype: torch.dtype, progress: Progress | None) -> Iterator[dict[str, Tensor]]:
    modules = fused_modules(lora.names)
    for module, names in iterate_with_progress(modules.items(), progress, len(modules)):
        downs, ups = zip(*(balance(*lora.factors(name), dtype) for name in names), strict=True)
        key = f"lora_unet_{module.replace('.', '_')}"
        yield {
            f"{key}.lora_down.weight": torch.cat(downs),
            f"{key}.lora_up.weight": torch.block_diag(*ups),
            f"{key}.alpha": torch.tensor(float(sum(len(down) for down in downs))),
        }
        biases = [lora.bias(name) for name in names]
        if biases[0] is not None:
            yield {f"{key}.diff_b": torch.cat(biases)}


def balance(down: Tensor, up: Tensor, dtype: torch.dtype = torch.float16) -> tuple[Tensor, Tensor]:
    """Give both factors of every rank component the same largest magnitude, as far as the type they are for needs it.

    Args:
        down: [R, in]. up: [out, R]. dtype: float32 has range enough as it is.
    """
    if dtype == torch.float32:
        return down, up
    # In float64, which no ratio of float32 numbers leaves.
    largest_down, largest_up = down.double().abs().amax(dim=1), up.double().abs().amax(dim=0)
    # A component that contributes nothing is left as it is.
    counts = (largest_down > 0) & (largest_up > 0)
    ratio = torch.where(counts, largest_down / largest_up, 1.0).sqrt()
    return (down / ratio[:, None]).to(down.dtype), (up * ratio).to(up.dtype)
