"""What memory Refine Edit takes on FLUX.1-Kontext at its full size, counted without a GPU on tensors without data.

The model is ComfyUI's, the call is Refine Edit's own: one draw with its gradient, all of it bfloat16. What CUDA itself
takes, what its allocator leaves unused, and the VAE come on top.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from harness.inprocess import load_comfyui
from harness.small_models import CONTEXT, flux_layers, flux_specs, random_bank

from ._flux import FP8, flux_config
from ._live import counting
from ._measure import GIB, print_table

DTYPES = {"bfloat16": torch.bfloat16, "float8": FP8}
SIDES = (512, 1024)
SIZES = (3072, 19, 38)
TEXT = 512  # tokens


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.refine_memory", description=__doc__.splitlines()[0])
    parser.add_argument("--side", nargs="*", type=int, default=SIDES, help="of the canvas, in pixels")
    parser.add_argument("--sizes", nargs=3, type=int, default=SIZES, metavar=("WIDTH", "DOUBLE", "SINGLE"))
    options = parser.parse_args(arguments)
    load_comfyui()
    with tempfile.TemporaryDirectory() as folder:
        path = random_bank(Path(folder, "bank.safetensors"), flux_layers(*options.sizes))
        rows = [row(path, options.sizes, name, side) for name in DTYPES for side in options.side]
    header = ("base", "canvas", "weights", "bank", "a draw without its gradient", "with its gradient", "in all")
    print_table("Memory of Refine Edit, GiB, counted", header, rows)


def row(bank_file: Path, sizes: tuple[int, int, int], dtype: str, side: int) -> tuple:
    """Of the table."""
    from lorweb_core import BasisBank

    bank, model = BasisBank.load(bank_file), empty_flux(sizes, DTYPES[dtype])
    weights, factors = model.model_size(), sum(tensor.nbytes for tensor in factors_of(bank))
    plain, graded = (counted(model, bank, side, graded) for graded in (False, True))
    total = weights + factors + graded
    return dtype, f"{side} px", *(f"{size / GIB:.2f}" for size in (weights, factors, plain, graded, total))


def empty_flux(sizes: tuple[int, int, int], dtype: torch.dtype):
    """FLUX.1-Kontext's architecture as a ModelPatcher that computes in bfloat16; nobody wrote to its weights."""
    import comfy.model_patcher

    cpu = torch.device("cpu")
    weights = {name: torch.empty(spec.shape, dtype=dtype, device="meta") for name, spec in flux_specs(*sizes).items()}
    config = flux_config(weights, sizes[0])
    config.set_inference_dtype(dtype, torch.bfloat16 if dtype == FP8 else None)
    model = config.get_model(weights, "", device=cpu).eval()
    return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)


def factors_of(bank) -> list[Tensor]:
    """What of a bank is loaded beside the model."""
    from lorweb_pack.nodes.runtime import place

    return list(place(bank).model.parameters())


def counted(model, bank, side: int, graded: bool, fake: bool = True) -> int:
    """Most bytes above the weights of model and bank in a call of the model for a loss.

    Args:
        side: of the canvas, in pixels. graded: whether the loss's gradient is taken too.
        fake: whether the tensors have no data, so that nothing is computed.
    """
    from lorweb_pack.nodes.differentiable import attention
    from lorweb_pack.nodes.fitting import _Call

    latent = torch.zeros(1, 16, side // 8, side // 8)
    told = {"c_crossattn": torch.zeros(1, TEXT, CONTEXT), "y": torch.zeros(1, CONTEXT), "guidance": torch.ones(1)}
    told |= {"ref_latents": [latent.clone()], "transformer_options": {"optimized_attention_override": attention}}
    call = _Call(bank.mix(torch.zeros(bank.config.query_dim)).values, torch.ones(latent.shape[-2:]), graded)
    call.target = latent
    executor = partial(model.model._apply_model)
    executor.class_obj = model.model
    known = [*model.model.parameters(), *factors_of(bank)]
    with torch.no_grad(), counting(known, fake) as live:
        call(executor, editing(model, bank), latent.clone(), torch.ones(1), **told)
    return live.peak


def editing(model, bank) -> Callable:
    """Coefficients -> the edit on the model's layers, as a context."""
    from lorweb_pack.nodes.apply import RUNTIME, parts_of, require_targets
    from lorweb_pack.nodes.runtime import RunTimeEdit

    parts = parts_of(require_targets(model, bank, RUNTIME))
    return lambda values: RunTimeEdit(bank, values, parts).on(model.model, torch.device("cpu"))


if __name__ == "__main__":
    main()
