"""``mix`` at the released size against a loop over the layers: what folding keys and projections buys.

Two loops: over the tensors as the file holds them (float16, converted as they are used), and over float32 copies that
were made beforehand, which pays for the arithmetic alone and holds 590 MB more.
"""

import math

import torch

from harness.fetch import cache_folder
from harness.small_models import flux_layers, random_bank
from lorweb_core import BasisBank
from lorweb_core.checkpoint import KEYS, PREFIX, TO_Q, BankFile

from ._measure import alternate, median_ratio, milliseconds, print_table

BATCH = 16


def released_size_bank():
    """A random bank of the released size (494 layers, N = 32, r = 4, d = 128, q = 2304; 1.7 GB), kept in the cache."""
    return random_bank(cache_folder() / "released_size_bank.safetensors", flux_layers(3072, 19, 38))


def loop(layers: list[tuple[torch.Tensor, torch.Tensor]], z: torch.Tensor) -> torch.Tensor:
    """The paper's formula, layer by layer. z [q] or [batch, q]."""
    rows = []
    for keys, to_q in layers:
        u = z @ to_q.float().T
        rows.append((u @ keys.float().T / math.sqrt(keys.shape[1])).softmax(-1))
    return torch.stack(rows, dim=-2)


def main() -> None:
    """Print the table."""
    path = released_size_bank()
    bank, file = BasisBank.load(path), BankFile(path)
    stored = [tuple(file.tensor(f"{PREFIX}{name}.{t}") for t in (KEYS, TO_Q)) for name in bank.layers]
    converted = [tuple(tensor.float() for tensor in layer) for layer in stored]
    rows = []
    for title, shape in (("one query", (2304,)), (f"{BATCH} queries", (BATCH, 2304))):
        z = 0.6 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(bank.mix(z).values, loop(converted, z), rtol=1e-4, atol=1e-6)
        candidates = {
            "mix": lambda z=z: bank.mix(z),
            "float16": lambda z=z: loop(stored, z),
            "float32": lambda z=z: loop(converted, z),
        }
        seconds = alternate(candidates, repeats=30, warmup=5)
        ratios = [f"{median_ratio(seconds, name, 'mix'):.1f} x" for name in ("float16", "float32")]
        rows.append((title, *(milliseconds(seconds[name]) for name in candidates), *ratios))
    header = ("query", "mix", "loop, float16", "loop, float32", "float16 / mix", "float32 / mix")
    print_table("mix against a per-layer loop, 494 layers", header, rows)


if __name__ == "__main__":
    main()
