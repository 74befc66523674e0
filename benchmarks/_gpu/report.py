"""How a part tells its results: one line of JSON on standard output for each, as soon as it is known."""

from __future__ import annotations

import contextlib
import json
import subprocess
import traceback
from collections.abc import Iterator

import torch

from .words import MACHINE, RESULT


def report(what: str, value: float | str, unit: str = "", goal: float | None = None) -> None:
    """Tell one result.

    Args:
        goal: the most that the value should be.
    """
    row = {"what": what, "value": value, "unit": unit, "goal": goal}
    print(f"{RESULT} {json.dumps(row)}", flush=True)


@contextlib.contextmanager
def attempt(what: str) -> Iterator[None]:
    """Tell that a measurement failed, and let the part go on with the next."""
    try:
        yield
    except Exception as error:  # whatever it is: a GPU is at hand too seldom to lose the rest
        traceback.print_exc()
        report(f"{what}: {type(error).__name__}", "failed")


def report_machine() -> None:
    """Tell what all results were measured on."""
    print(f"{MACHINE} {json.dumps(machine())}", flush=True)


def machine() -> dict[str, str]:
    """Card, driver, torch and ComfyUI."""
    from harness.inprocess import load_comfyui

    from .._measure import device_name

    load_comfyui()
    from comfyui_version import __version__

    return {
        "card": device_name(),
        "driver": _driver(),
        "torch": f"{torch.__version__}, CUDA {torch.version.cuda or 'none'}",
        "ComfyUI": __version__,
    }


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version,memory.total", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "none"
