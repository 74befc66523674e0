"""Sizes: those of FLUX.1-Kontext-dev and the released bank, and toy ones that try the suite out on a CPU."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from harness.small_models import flux_layers, random_bank

from .._flux import FP8, Sampler, random_flux

DTYPES = {"bf16": torch.bfloat16, "fp8": FP8}


@dataclass(frozen=True)
class Setting:
    """What the parts measure.

    Attributes:
        folder: where parts leave what others can use too.
        canvas: side in pixels; trained: of the canvases that the bank was trained on. text: tokens.
        steps: of a sampling run. rounds: repetitions of what is timed.
        gib: size of the tensors that bandwidths are measured with.
    """

    folder: Path
    dry: bool = False
    hidden: int = 3072
    double: int = 19
    single: int = 38
    canvas: int = 1024
    trained: int = 512
    text: int = 512
    steps: int = 4
    rounds: int = 3
    gib: float = 2.0

    @classmethod
    def toy(cls, folder: Path) -> Setting:
        """Everything as small as it can be."""
        return cls(
            folder, True, hidden=128, double=1, single=1, canvas=64, trained=64, text=4, steps=2, rounds=1, gib=1 / 1024
        )

    @property
    def blocks(self) -> tuple[int, int, int]:
        """Width and numbers of blocks."""
        return self.hidden, self.double, self.single

    def flux(self, dtype: str = "bf16", offload: torch.device | None = None, **blocks: int):
        """FLUX of these sizes as ComfyUI's ModelPatcher; ``offload`` as in ``random_flux``."""
        sizes = dict(zip(("hidden", "double", "single"), self.blocks)) | blocks
        return random_flux(**sizes, dtype=DTYPES[dtype], offload=offload)

    def bank(self, **blocks: int):
        """A bank of the released sizes for all layers of that FLUX, loaded from a file as the node loads it."""
        from lorweb_core import BasisBank

        return BasisBank.load(self.bank_file(**blocks))

    def bank_file(self, **blocks: int) -> Path:
        """That bank's file, drawn on the GPU where there is one."""
        sizes = dict(zip(("hidden", "double", "single"), self.blocks)) | blocks
        path = self.folder / f"bank_{'_'.join(map(str, sizes.values()))}.safetensors"
        shape = {"num_loras": 4, "key_dim": 8, "query_dim": 24} if self.dry else {}
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return random_bank(path, flux_layers(*sizes.values()), device=device, **shape)

    def sampler(self) -> Sampler:
        """ComfyUI's sampler on a canvas of this size."""
        return Sampler(self.canvas, self.text)


def queries(bank, number: int) -> list[torch.Tensor]:
    """Random analogy queries, always the same ones."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(bank.config.query_dim, generator=generator) for _ in range(number)]
