"""A training step of the tuner against PEFT's LoRA of equal rank at full size, and the memory that batches take."""

from __future__ import annotations

import gc
import statistics

import torch

from .._measure import GIB, timed
from .report import attempt, report
from .setting import Setting

SIDE, TEXT = 64, 128  # a 512-pixel canvas and the prompts of kontext_24gb.yaml
BATCHES = (1, 2, 4, 6)


def run(setting: Setting) -> None:
    """Report all of it."""
    from ..train_step import lora, lorweb

    found = {}
    for name, adapt in (("LoRWeB", lorweb), ("PEFT's LoRA", lora)):
        for batch in BATCHES if name == "LoRWeB" and not setting.dry else BATCHES[:1]:
            what = f"{name}, base in bf16, batch {batch}"
            with attempt(what):
                found[name, batch] = seconds, peak = measure(setting, adapt, batch)
                report(f"{what}: step", seconds, "s")
                report(f"{what}: peak", peak / GIB, "GiB")
    for what, ours, plain in zip(("step", "peak"), found["LoRWeB", 1], found["PEFT's LoRA", 1]):
        report(f"LoRWeB / PEFT's LoRA, {what}", ours / plain)


def measure(setting: Setting, adapt, batch: int) -> tuple[float, int]:
    """(median seconds of a step, bytes at its peak)."""
    from ..train_step import Step, make_base, make_batch

    gc.collect()
    torch.cuda.empty_cache()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    base = make_base(setting.hidden // 128, setting.double, setting.single)
    side, text = (4, 4) if setting.dry else (SIDE, TEXT)
    step = Step(adapt(base), make_batch(base, batch, side, text), device)
    step()
    peak = step.peak_bytes()
    seconds = statistics.median(timed(step) for _ in range(setting.rounds))
    assert step().isfinite(), "the loss is not finite after the steps before it"
    return seconds, peak
