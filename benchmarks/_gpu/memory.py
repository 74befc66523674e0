"""Memory and speed where the card has enough, and where ComfyUI must stream the weights."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Iterator

import torch

from harness.inprocess import load_comfyui

from .._measure import GIB
from .analogy import composed, makers
from .report import attempt, report
from .setting import Setting
from .step import candidates, sample_finite

STOCK = "stock LoRA loader"
STEPS = 3  # of a run, the first of which loads the weights: whatever is streamed passes at every one
CARDS = {"fp8": 8, "bf16": 16}  # GiB left of the card


def run(setting: Setting) -> None:
    """Report all of it, what streams part of the weights first and what streams all of them last."""
    load_comfyui()
    with torch.inference_mode():
        bank = setting.bank()
        lora = composed(bank)
        models = {dtype: to_compare(setting.flux(dtype, offload=torch.device("cpu")), bank, lora) for dtype in CARDS}
        for dtype, card in CARDS.items():
            with attempt(f"{dtype}, {card} GiB left"), memory_left(card * GIB):
                compare(setting, f"{dtype}, {card} GiB left", models[dtype])
        for dtype in CARDS:
            with attempt(f"{dtype}, all memory"):
                compare(setting, f"{dtype}, all memory", models[dtype])
        for dtype in CARDS:
            with attempt(f"{dtype}, novram"), novram():
                compare(setting, f"{dtype}, novram", models[dtype])
        unload()


def to_compare(model, bank, lora: dict[str, torch.Tensor]) -> dict[str, object]:
    """The base, the stock LoRA, which sets the goal of all after it, and the edit in every mode."""
    edited = candidates(model, bank)
    return {"base": edited.pop("base"), STOCK: makers(model, bank, lora)[STOCK](1.0), **edited}


def compare(setting: Setting, what: str, models: dict[str, object]) -> None:
    """Peak memory and step time of a run of each model against the base's, and against the stock LoRA's."""
    steps: dict[str, float] = {}
    for name, model in models.items():
        unload()
        with attempt(f"{what}: {name}"):
            steps[name], peak = measure_run(setting, model)
            report(f"{what}: {name}, step", steps[name], "s")
            if torch.cuda.is_available():
                report(f"{what}: {name}, peak of loading and running", peak / GIB, "GiB")
            if name != "base" and "base" in steps:
                goal = steps[STOCK] / steps["base"] if name != STOCK and STOCK in steps else None
                report(f"{what}: {name} / base, step", steps[name] / steps["base"], "", goal)


def measure_run(setting: Setting, model) -> tuple[float, int]:
    """(median seconds of a step, most bytes above what was allocated before, weights included)."""
    before = start_counting()
    sampler = setting.sampler()
    sample_finite(sampler, model, STEPS)
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return statistics.median(sampler.steps()), peak - before


def start_counting() -> int:
    """Forget the peak of before; bytes that are allocated now."""
    if not torch.cuda.is_available():
        return 0
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def unload() -> None:
    """Take every model off the card."""
    import comfy.model_management

    comfy.model_management.unload_all_models()
    comfy.model_management.soft_empty_cache()


@contextlib.contextmanager
def memory_left(size: int) -> Iterator[int]:
    """Fill the card until only ``size`` bytes are free, as on a smaller one; gives the bytes that fill it."""
    unload()
    ballast = None
    if torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
        ballast = torch.empty(max(0, free - size), dtype=torch.uint8, device="cuda")
    try:
        yield 0 if ballast is None else ballast.numel()
    finally:
        del ballast
        unload()


@contextlib.contextmanager
def novram() -> Iterator[None]:
    """What ComfyUI's option --novram sets: no weight stays on the card."""
    from comfy import model_management

    unload()
    before = model_management.vram_state
    if torch.cuda.is_available():
        model_management.vram_state = model_management.VRAMState.NO_VRAM
    try:
        yield
    finally:
        model_management.vram_state = before
        unload()
