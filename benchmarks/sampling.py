"""A sampling step with the patched model against the base: the edit is in the weights, so a step costs the same.

On the CPU a small FLUX and a 256-pixel canvas; on a GPU full-size FLUX with random bf16 weights, a one-megapixel canvas
and a bank of the released size. The target is a ratio of at most 1.02.
"""

import tempfile
from pathlib import Path

import torch

from harness.inprocess import load_comfyui
from harness.small_models import flux_layers, random_bank

from ._flux import random_flux, step_inputs
from ._measure import alternate, median_ratio, milliseconds, print_table

ON_GPU = {"hidden": 3072, "double": 19, "single": 38, "canvas": 1024, "repeats": 10}
ON_CPU = {"hidden": 512, "double": 4, "single": 8, "canvas": 256, "repeats": 25}


def main() -> None:
    """Print the table."""
    load_comfyui()
    from lorweb_pack.nodes.apply import Apply

    from lorweb_core import BasisBank

    size = dict(ON_GPU if torch.cuda.is_available() else ON_CPU)
    canvas, repeats = size.pop("canvas"), size.pop("repeats")
    # Two models with the same weights: patching one in and out between steps would be timed as well.
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    base, edited = (random_flux(**size, dtype=dtype) for _ in range(2))
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        bank = BasisBank.load(random_bank(Path(folder, "bank.safetensors"), flux_layers(*size.values())))
        patched = Apply.execute(edited, bank, bank.mix(torch.randn(bank.config.query_dim)), 1.0).args[0]
        patched.patch_model(device_to=patched.load_device)
        inputs = step_inputs(base, canvas)
        candidates = {
            "patched": lambda: edited.model.diffusion_model(**inputs),
            "base": lambda: base.model.diffusion_model(**inputs),
        }
        difference = (candidates["patched"]() - candidates["base"]()).abs().mean()
        assert difference > 0, "the patched model must be a different one"
        seconds = alternate(candidates, repeats, warmup=3)
    ratio = median_ratio(seconds, "patched", "base")
    row = (*size.values(), canvas, milliseconds(seconds["patched"]), milliseconds(seconds["base"]), f"{ratio:.3f}")
    header = ("hidden", "double", "single", "canvas", "patched step", "base step", "patched / base")
    print_table("One sampling step", header, [row])


if __name__ == "__main__":
    main()
