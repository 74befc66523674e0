"""``mix`` at the released size against a loop over the layers: what folding keys and projections buys.

The loop holds every key and projection in float32 already, so that it pays for the arithmetic alone.
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
    """METHOD's formula, layer by layer. z [q] or [batch, q]."""
    rows = []
    for keys, to_q in layers:
        u = z @ to_q.T
        rows.append((u @ keys.T / math.sqrt(keys.shape[1])).softmax(-1))
    return torch.stack(rows, dim=-2)


def main() -> None:
    """Print the table."""
    path = released_size_bank()
    bank, file = BasisBank.load(path), BankFile(path)
    layers = [tuple(file.tensor(f"{PREFIX}{name}.{t}").float() for t in (KEYS, TO_Q)) for name in bank.layers]
    rows = []
    for title, shape in (("one query", (2304,)), (f"{BATCH} queries", (BATCH, 2304))):
        z = 0.6 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(bank.mix(z).values, loop(layers, z), rtol=1e-4, atol=1e-6)
        seconds = alternate({"mix": lambda z=z: bank.mix(z), "loop": lambda z=z: loop(layers, z)}, repeats=30, warmup=5)
        ratio = median_ratio(seconds, "loop", "mix")
        rows.append((title, milliseconds(seconds["mix"]), milliseconds(seconds["loop"]), f"{ratio:.1f} x"))
    print_table("mix against a per-layer loop, 494 layers", ("query", "mix", "loop", "loop / mix"), rows)


if __name__ == "__main__":
    main()
