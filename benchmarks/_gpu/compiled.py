"""torch.compile: the edit switched off and on again, and a slider that moves, without compiling anew."""

from __future__ import annotations

import torch

from harness.inprocess import load_comfyui

from .._measure import timed
from .report import report
from .setting import Setting, queries
from .step import sample_finite

FEW_BLOCKS = {"double": 1, "single": 1}  # compiling takes long, and more blocks show nothing else
MOVES = [0.1 * step for step in range(1, 11)]


def run(setting: Setting) -> None:
    """Report all of it."""
    load_comfyui()
    from comfy_api.torch_helpers import set_torch_compile_wrapper
    from lorweb_pack.nodes.apply import Apply

    with torch.inference_mode():
        bank = setting.bank(**FEW_BLOCKS)
        coefficients = bank.mix(queries(bank, 1)[0])
        model = setting.flux(**FEW_BLOCKS).clone()
        set_torch_compile_wrapper(model, backend="eager" if setting.dry else "inductor")
        sampler = setting.sampler()

        def sample(strength: float) -> torch.Tensor:
            return sample_finite(sampler, Apply.execute(model, bank, coefficients, strength).args[0], setting.steps)

        report("first run, compiling", timed(lambda: sample(1.0)), "s")
        on, off, again = sample(1.0), sample(0.0), sample(1.0)
        assert not torch.equal(on, off), "the edit must change the result"
        report("strength 1, 0, 1: results with 1 that differ", int(not torch.equal(on, again)), "", 0)
        before = graphs()
        for strength in MOVES:
            sample(strength)
        report(f"graphs compiled in {len(MOVES)} moves of the slider", graphs() - before, "", 0)


def graphs() -> int:
    """Graphs that torch.compile has compiled so far."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]
