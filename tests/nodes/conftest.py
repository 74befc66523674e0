"""Makes ComfyUI importable in this process, and the repository root importable as the package ``lorweb_pack``.

Tests import ``comfy``, ``folder_paths``, ComfyUI's ``nodes`` and ``lorweb_pack.nodes.apply`` like any module.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.inprocess import load_comfyui

load_comfyui()


@pytest.fixture(scope="session")
def small_flux(small_models):
    """The small FLUX as ComfyUI's ModelPatcher; clone it before patching."""
    from harness.small_flux_pack.loader import load_small_flux
    from harness.small_models import SMALL_FLUX

    return load_small_flux(small_models / "diffusion_models" / SMALL_FLUX)


@pytest.fixture(scope="session")
def wide_flux_path() -> Path:
    """A checkpoint of FLUX's real width with one double and one single block, about 1 GB, kept in the cache."""
    from harness.small_models import wide_flux

    return wide_flux()
