"""Apply plus ComfyUI's patching against the stock LoRA loader with the exported LoRA of the same rank.

FLUX at its real width (hidden 3072), one double and one single block (on a GPU: all 19 and 38), and a bank with N = 32
and r = 4 for all their layers. Both start with what a graph holds: the bank and the coefficients here, the LoRA's
tensors there; both end with patched weights.
"""

import tempfile
from pathlib import Path

import torch

from harness.inprocess import load_comfyui
from harness.small_models import flux_layers, random_bank

from ._flux import random_flux
from ._measure import alternate, median_ratio, milliseconds, print_table


def main() -> None:
    """Print the table."""
    load_comfyui()
    import comfy.sd
    from lorweb_pack.nodes.apply import Apply
    from safetensors.torch import load_file

    from lorweb_core import BasisBank

    cuda = torch.cuda.is_available()
    blocks = (19, 38) if cuda else (1, 1)
    model = random_flux(3072, *blocks, dtype=torch.bfloat16 if cuda else torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        bank = BasisBank.load(random_bank(Path(folder, "bank.safetensors"), flux_layers(3072, *blocks)))
        coefficients = bank.mix(torch.randn(bank.config.query_dim))
        bank.compose(coefficients).save(Path(folder, "lora.safetensors"), dtype=torch.float16)
        lora = load_file(Path(folder, "lora.safetensors"))
        candidates = {
            "Apply": lambda: patch(Apply.execute(model, bank, coefficients, 1.0).args[0]),
            "stock": lambda: patch(comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0)[0]),
        }
        with torch.inference_mode():
            seconds = alternate(candidates, repeats=7)
    ratio = median_ratio(seconds, "Apply", "stock")
    row = (*blocks, milliseconds(seconds["Apply"]), milliseconds(seconds["stock"]), f"{ratio:.2f}")
    header = ("double blocks", "single blocks", "Apply + patching", "stock LoRA loader + patching", "ratio")
    print_table("Apply against the stock LoRA loader, rank 128, hidden 3072", header, [row])


def patch(model) -> None:
    """Load the patches into the weights as ComfyUI does before sampling, and take them out again."""
    model.patch_model(device_to=model.load_device)
    model.unpatch_model(device_to=model.load_device)


if __name__ == "__main__":
    main()
