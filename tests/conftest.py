"""Fixtures of every tier: photographs, small models, a running ComfyUI."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from harness.launch import cure_torchvision

cure_torchvision()

ROOT = Path(__file__).resolve().parent.parent


def pytest_addoption(parser):
    parser.addoption("--gpu-tests-anywhere", action="store_true", help="run tests marked gpu without a GPU too")


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not item.config.getoption("--gpu-tests-anywhere"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")


@pytest.fixture(scope="session")
def photographs():
    """name -> photograph, uint8 [H, W, 3]."""
    from harness.small_models import photographs

    return photographs()


@pytest.fixture(scope="session")
def small_models() -> Path:
    """A models folder (diffusion_models/, vae/, clip_vision/, text_encoders/, lorweb/) of small random models."""
    command = [sys.executable, "-m", "harness.small_models"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return Path(done.stdout.strip())


@pytest.fixture(scope="session")
def comfy(small_models, tmp_path_factory):
    """A running ComfyUI with this pack, the small models and LoadSmallFlux; one for the whole session."""
    from harness.comfyui import ComfyServer
    from harness.edit_graph import SMALL_FLUX_PACK

    with ComfyServer(tmp_path_factory.mktemp("comfyui"), small_models, extra_packs=[SMALL_FLUX_PACK]) as server:
        yield server
