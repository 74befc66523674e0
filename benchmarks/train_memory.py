"""What memory training takes on FLUX.1-Kontext at its full size, counted without a GPU on tensors without data.

Two batches of a step that accumulates them: autocast to bfloat16, gradient checkpointing, 512-pixel canvases. The
state of the optimiser, what CUDA itself takes and what its allocator leaves unused come on top.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import training  # noqa: F401  # isort: skip  (makes diffusers importable, so it comes first)

import torch
from torch import Tensor, nn

from training.config import ObjectiveConfig
from training.run.objective import flow_loss

from ._live import counting
from ._measure import GIB, print_table
from .train_step import lora, lorweb, make_base, make_batch

ADAPTERS = {"LoRWeB": lorweb, "PEFT's LoRA": lora}
SIZES = (24, 19, 38)
SIDE = 64  # of the latent canvas


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train_memory", description=__doc__.splitlines()[0])
    parser.add_argument("--batch", nargs="*", type=int, default=(1, 2, 6), help="analogies at once")
    parser.add_argument("--sizes", nargs=3, type=int, default=SIZES, metavar=("HEADS", "DOUBLE", "SINGLE"))
    parser.add_argument("--text", type=int, default=512, help="tokens of a prompt")
    options = parser.parse_args(arguments)
    rows = [row(name, options.sizes, batch, options.text) for batch in options.batch for name in ADAPTERS]
    header = ("batch", "adapter", "its weights", "forward", "forward and backward", "of a further batch")
    print_table(f"Memory of training, {options.text} tokens of text, GiB, counted", header, rows)


def row(name: str, sizes: tuple[int, int, int], batch: int, text: int) -> tuple:
    """Of the table; what is above the weights."""
    model, inputs = empty(ADAPTERS[name], sizes, batch, text)
    trained = sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
    return batch, name, *(f"{size / GIB:.2f}" for size in (trained, *peaks(model, inputs)))


def empty(adapt: Callable, sizes: tuple[int, int, int], batch: int, text: int) -> tuple[nn.Module, tuple]:
    """An adapted base in bfloat16 to whose weights nobody wrote, and a batch for it."""
    with torch.device("meta"):
        base = make_base(*sizes, device="meta")
        model = adapt(base).train()
    model.to_empty(device="cpu")
    return model, make_batch(base, batch, SIDE, text)


def peaks(model: nn.Module, batch: tuple, fake: bool = True) -> tuple[int, int, int]:
    """Most bytes above the weights until the first loss, after its gradients, and after those of a second loss."""
    known: list[Tensor] = [*model.parameters(), *model.buffers()]
    found = []
    with counting(known, fake) as live:
        for _ in range(2):
            with torch.autocast("cpu", torch.bfloat16):
                loss = flow_loss(model, *batch, ObjectiveConfig()).loss.mean()
            found.append(live.peak)
            loss.backward()
            del loss
            found.append(live.peak)
    return found[0], found[1], found[3]


if __name__ == "__main__":
    main()
