"""A sampling step with the edit at run time against the base and the patched model, and what a moved slider costs.

At FLUX's width (hidden 3072). By the arithmetic, a LoRA of rank R adds R (in + out) / (in out) to every layer: 8 % at
rank 128. On the CPU one double and one single block and a 128-pixel canvas in float32, in seconds of the processor,
which other work on the machine does not lengthen. On a GPU ``benchmarks.gpu`` measures it at full size.
"""

import statistics
import tempfile
import time
from pathlib import Path

import torch

from harness.inprocess import load_comfyui
from harness.small_models import flux_layers, random_bank

from ._flux import Sampler, random_flux
from ._measure import print_table, timed

HIDDEN, BLOCKS, CANVAS, TEXT, STEPS, ROUNDS = 3072, (1, 1), 128, 64, 2, 3
# Name -> basis LoRAs of rank 4; a truncated LoRA costs what a bank of its rank costs.
BANKS = {"rank 128": 32, "rank 64": 16, "rank 32": 8}
TOP_K = 4


def main() -> None:
    """Print the tables."""
    load_comfyui()
    sampler, model = Sampler(CANVAS, TEXT, time.process_time), random_flux(HIDDEN, *BLOCKS, dtype=torch.float32)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        models = edited(model, Path(folder))
        seconds = {name: [] for name in models}
        for _ in range(ROUNDS):
            for name, candidate in models.items():
                sampler(candidate, STEPS)
                seconds[name].append(statistics.median(sampler.steps()))
        rows = [
            (name, f"{statistics.median(times):.2f} s", ratio(times, seconds["base"]))
            for name, times in seconds.items()
        ]
        print_table("A step, hidden 3072", ("edit", "step", "/ base"), rows)
        slider(model, Path(folder), sampler)


def edited(model, folder: Path) -> dict[str, object]:
    """The base, and the model with edits of several sizes."""
    from lorweb_pack.nodes.apply import PATCH, RUNTIME, Apply

    from lorweb_core import BasisBank

    def apply(number: int, mode: str, top_k: int | None = None):
        layers = flux_layers(HIDDEN, *BLOCKS)
        bank = BasisBank.load(random_bank(folder / f"{number}.safetensors", layers, number, dtype=torch.float32))
        edit = bank.mix(torch.ones(bank.config.query_dim))
        return Apply.execute(model, bank, edit.top_k(top_k) if top_k else edit, 1.0, mode).args[0]

    models = {"base": model, "patched, rank 128": apply(32, PATCH)}
    models |= {f"run time, {name}": apply(number, RUNTIME) for name, number in BANKS.items()}
    return models | {f"run time, rank 128, top-k {TOP_K}": apply(32, RUNTIME, TOP_K)}


def ratio(times: list[float], base: list[float]) -> str:
    """Median over the rounds."""
    return f"{statistics.median(a / b for a, b in zip(times, base)):.3f}"


def slider(model, folder: Path, sampler: Sampler) -> None:
    """From a moved strength to the end of the first step."""
    from lorweb_pack.nodes.apply import PATCH, RUNTIME, Apply

    from lorweb_core import BasisBank

    bank = BasisBank.load(folder / "32.safetensors")
    edit, seconds = bank.mix(torch.ones(bank.config.query_dim)), {PATCH: [], RUNTIME: []}

    def edited_model(mode: str, strength: float):
        return Apply.execute(model, bank, edit, strength, mode).args[0]

    for strength in (1.0, 0.8, 0.6):
        for mode, times in seconds.items():
            times.append(timed(lambda m=mode, s=strength: sampler(edited_model(m, s), 1), time.process_time))
    rows = [(mode, f"{statistics.median(times[1:]):.2f} s") for mode, times in seconds.items()]
    print_table("A moved slider to the end of the first step, one block", ("mode", "time"), rows)


if __name__ == "__main__":
    main()
