"""How a part tells its results: one line of JSON on standard output for each, as soon as it is known."""

from __future__ import annotations

import json
import subprocess

import torch

from .words import MACHINE, RESULT


def report(what: str, value: float | str, unit: str = "", goal: float | None = None) -> None:
    """Tell one result.

    Args:
        goal: the most that the value should be.
    """
    row = {"what": what, "value": value, "unit": unit, "goal": goal}
    print(f"{RESULT} {json.dumps(row)}", flush=True)


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
