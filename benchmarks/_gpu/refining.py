"""Refine: what a loss and its gradient take on a canvas of the bank's own size, in time and memory."""

from __future__ import annotations

import statistics

import torch

from harness.inprocess import load_comfyui
from harness.small_models import small_vae

from .._measure import timed
from .memory import GIB, memory_left, start_counting, unload
from .report import attempt, report
from .setting import Setting, queries

CARD = 16  # GiB of a smaller card


def run(setting: Setting) -> None:
    """Report all of it."""
    load_comfyui()
    with torch.inference_mode():
        bank = setting.bank()
        for dtype in ("fp8", "bf16"):
            model = setting.flux(dtype, offload=torch.device("cpu"))
            with attempt(f"{dtype}, all memory"):
                measure(setting, bank, model, f"{dtype}, all memory")
            with attempt(f"{dtype}, {CARD} GiB left"), memory_left(CARD * GIB) as filled:
                measure(setting, bank, model, f"{dtype}, {CARD} GiB left", filled)
            unload()


def measure(setting: Setting, bank, model, what: str, filled: int = 0) -> None:
    """A loss without and with its gradient, after one of each; four pairs take at most 96 with and 84 without.

    Args:
        filled: bytes of the card that are allocated only to be taken.
    """
    fitted, values, tasks = prepared(setting, bank, model)
    seconds = {}
    for name, graded in (("loss", False), ("loss and gradient", True)):
        with torch.inference_mode(False), torch.set_grad_enabled(graded):
            fitted.losses(values, tasks, 0)
            before = start_counting()
            times = [timed(lambda: fitted.losses(values, tasks, 1)) for _ in range(setting.rounds)]
        seconds[name] = statistics.median(times)
        report(f"{what}: {name}, {setting.trained} pixels", seconds[name], "s")
        if torch.cuda.is_available():
            report(f"{what}: {name}, peak", (torch.cuda.max_memory_allocated() - filled) / GIB, "GiB")
            report(f"{what}: {name}, above the weights", (torch.cuda.max_memory_allocated() - before) / GIB, "GiB")
    report(f"{what}: with the gradient / without", seconds["loss and gradient"] / seconds["loss"], "", 4.0)


def prepared(setting: Setting, bank, model):
    """The model to fit, coefficients that want a gradient, and a task of random pictures."""
    import comfy.sd
    import comfy.utils
    from lorweb_pack.lorweb_core.tasks import Pair, Task
    from lorweb_pack.nodes.fitting import FittedModel
    from lorweb_pack.nodes.layouts import LAYOUTS

    vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(small_vae(setting.folder / "vae.safetensors"))))
    ((context, told),) = setting.sampler().conditioning
    conditioning = [[context, {name: value for name, value in told.items() if name != "reference_latents"}]]
    fitted = FittedModel(model, bank, conditioning, vae, LAYOUTS["canvas"])
    side = setting.trained // 2
    a, a_prime, b, b_prime = torch.rand(4, side, side, 3, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode(False):
        values = bank.mix(queries(bank, 1)[0]).values.clone().requires_grad_()
    return fitted, values, [Task(Pair(a, a_prime), Pair(b, b_prime))]
