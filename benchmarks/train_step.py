"""A training step of the tuner against PEFT's own LoRA of rank N*r: same base, batch, precision and checkpointing.

Without a GPU, FLUX at a quarter of its width, with N, d and q scaled down alike: base, basis, keys and projections then
have the proportions of full width (3072; N = 32, d = 128, q = 2304). With one, FLUX at full width in bfloat16; the
numbers of blocks are arguments: ``python -m benchmarks.train_step [double single]``.
"""

import sys

import training  # noqa: F401  # isort: skip  (makes diffusers importable, so it comes first)

import torch
from diffusers import FluxTransformer2DModel
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils._pytree import tree_leaves

from lorweb_core import BankConfig
from training.bases import KONTEXT, Conditioning
from training.config import ObjectiveConfig
from training.data.layouts import CANVAS
from training.run.objective import Noise, flow_loss
from training.tuner import LoRWeBConfig, LoRWeBModel

from ._live import LiveBytes
from ._measure import alternate, median_ratio, milliseconds, print_table

FULL_WIDTH, RANK = 3072, 4


class Plain(nn.Module):
    """PEFT's model under the tuner's call signature: the query is not used."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, query, **kwargs):
        return self.model(**kwargs)


def make_base(heads: int, double: int, single: int, device: str | None = None) -> FluxTransformer2DModel:
    """A random FLUX, frozen, with gradient checkpointing; but on the CPU in bfloat16, for text of its full width."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    full = device != "cpu"
    torch.set_default_dtype(torch.bfloat16 if full else torch.float32)  # at full size no room for a float32 copy
    with torch.device(device):
        model = FluxTransformer2DModel(
            num_attention_heads=heads, num_layers=double, num_single_layers=single, guidance_embeds=True,
            joint_attention_dim=4096 if full else 256,
        )  # fmt: skip
    torch.set_default_dtype(torch.float32)
    model.requires_grad_(False)
    model.enable_gradient_checkpointing()
    return model


def lorweb(base: FluxTransformer2DModel) -> nn.Module:
    """The tuner."""
    return LoRWeBModel(base, LoRWeBConfig(bank=bank_config(base.inner_dim), target_modules=KONTEXT.targets))


def bank_config(width: int) -> BankConfig:
    """The paper's bank, scaled to the width of the base."""
    num_loras, key_dim, query_dim = (number * width // FULL_WIDTH for number in (32, 128, 2304))
    return BankConfig(num_loras=num_loras, rank=RANK, key_dim=key_dim, query_dim=query_dim)


def lora(base: FluxTransformer2DModel) -> nn.Module:
    """PEFT's LoRA of the same rank."""
    rank = bank_config(base.inner_dim).num_loras * RANK
    return Plain(get_peft_model(base, LoraConfig(r=rank, lora_alpha=rank, target_modules=KONTEXT.targets)))


def make_batch(base: FluxTransformer2DModel, batch: int, side: int, text: int):
    """(latents, noise, conditioning) of random analogies; ``side`` of the latent canvas."""
    device, dtype = base.device, base.dtype
    shape = (batch, 16, side, side)
    config = base.config
    told = {"tokens": (text, config.joint_attention_dim), "pooled": (config.pooled_projection_dim,)}
    condition = Conditioning(
        KONTEXT,
        CANVAS,
        references=(torch.randn(shape, device=device, dtype=dtype),),
        text={name: torch.randn(batch, *size, device=device, dtype=dtype) for name, size in told.items()},
        query=torch.randn(batch, bank_config(base.inner_dim).query_dim, device=device),
        guidance=torch.ones(batch, device=device),
    )
    noise = Noise(torch.randn(shape, device=device), torch.rand(batch, device=device))
    return torch.randn(shape, device=device), noise, condition


class Step:
    """One optimiser step of one candidate."""

    def __init__(self, model: nn.Module, batch: tuple, device: str):
        self.model, self.batch, self.device = model.train(), batch, device
        self.optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])

    def __call__(self) -> torch.Tensor:
        """The loss before the step."""
        latents, noise, condition = self.batch
        with torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda"):
            loss = flow_loss(self.model, latents, noise, condition, ObjectiveConfig()).loss.mean()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def peak_bytes(self) -> int:
        """Most memory that tensors hold during a step, everything that lives through it included."""
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self()
            return torch.cuda.max_memory_allocated()
        state = [leaf for leaf in tree_leaves(self.optimizer.state_dict()) if isinstance(leaf, torch.Tensor)]
        with LiveBytes([*self.model.parameters(), *self.model.buffers(), *state]) as live:
            self()
        return live.known + live.peak


def _make_step(adapt, base_size: tuple[int, int, int], batch_size: tuple[int, int, int], device: str) -> Step:
    base = make_base(*base_size)
    return Step(adapt(base), make_batch(base, *batch_size), device)


def _peak(make_step) -> int:
    step = make_step()
    step()
    return step.peak_bytes()


def main() -> None:
    """Print the table."""
    cuda = torch.cuda.is_available()
    device = "cuda" if cuda else "cpu"
    double, single = (int(n) for n in sys.argv[1:3]) if len(sys.argv) > 2 else ((4, 8) if cuda else (2, 4))
    heads, side, text = (24, 64, 512) if cuda else (6, 16, 32)
    width, rows = heads * 128, []
    for batch in (1, 2):
        make = {
            name: lambda adapt=adapt, batch=batch: _make_step(
                adapt, (heads, double, single), (batch, side, text), device
            )
            for name, adapt in (("LoRWeB", lorweb), ("LoRA", lora))
        }
        # One at a time, so that neither is charged for the other.
        peaks = {name: _peak(make_step) for name, make_step in make.items()}
        seconds = alternate({name: make_step() for name, make_step in make.items()}, repeats=15, warmup=2)
        rows.append(
            (
                batch,
                *(milliseconds(values) for values in seconds.values()),
                f"{median_ratio(seconds, 'LoRWeB', 'LoRA'):.3f}",
                *(f"{peak / 2**20:,.0f} MiB" for peak in peaks.values()),
                f"{peaks['LoRWeB'] / peaks['LoRA']:.3f}",
            )
        )
    print_table(
        f"Step, FLUX of width {width}, {double} + {single} blocks, N = {bank_config(width).num_loras}, r = {RANK}",
        ("batch", "LoRWeB", "LoRA", "time ratio", "LoRWeB peak", "LoRA peak", "peak ratio"),
        rows,
    )


if __name__ == "__main__":
    main()
