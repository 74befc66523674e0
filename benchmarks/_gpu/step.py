"""A sampling step with the patched model against the base, in every mode that Apply has."""

from __future__ import annotations

import inspect
import statistics

import torch

from harness.inprocess import load_comfyui

from .._flux import Sampler
from .report import attempt, report
from .setting import Setting, queries


def run(setting: Setting) -> None:
    """Report all of it."""
    load_comfyui()
    with torch.inference_mode():
        bank = setting.bank()
        for dtype in ("bf16", "fp8"):
            with attempt(dtype):
                compare(setting, dtype, candidates(setting.flux(dtype), bank))


def candidates(model, bank) -> dict[str, object]:
    """The base and the model with an edit, once for every mode of Apply."""
    from lorweb_pack.nodes.apply import Apply

    coefficients = bank.mix(queries(bank, 1)[0])
    found = {"base": model, "patched": Apply.execute(model, bank, coefficients, 1.0).args[0]}
    if "mode" in inspect.signature(Apply.execute).parameters:
        found["run time"] = Apply.execute(model, bank, coefficients, 1.0, mode="runtime").args[0]
    return found


def sample_finite(sampler: Sampler, model, steps: int) -> torch.Tensor:
    """The sampled latent, which is no result where it is NaN: NaN differs from everything, itself too."""
    latent = sampler(model, steps)
    assert latent.isfinite().all(), "the sampled latent is not finite"
    return latent


def compare(setting: Setting, dtype: str, models: dict[str, object]) -> None:
    """Steps of the models in turn, through ComfyUI's sampler."""
    sampler = setting.sampler()
    seconds: dict[str, list[float]] = {name: [] for name in models}
    results = {}
    for _ in range(setting.rounds):
        for name, model in models.items():
            results[name] = sample_finite(sampler, model, setting.steps)
            seconds[name].append(statistics.median(sampler.steps()))
    what = f"{setting.canvas} pixels, {dtype}"
    report(f"step of the base, {what}", statistics.median(seconds["base"]), "s")
    for name in list(models)[1:]:
        assert not torch.equal(results[name], results["base"]), f"{name}: the edited model must be a different one"
        ratio = statistics.median(a / b for a, b in zip(seconds[name], seconds["base"]))
        report(f"{name} / base, step, {what}", ratio, "", 1.02 if name == "patched" else None)
