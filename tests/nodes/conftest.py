"""Makes ComfyUI importable in this process, and the repository root importable as the package ``lorweb_pack``.

Tests import ``comfy``, ``folder_paths``, ComfyUI's ``nodes`` and ``lorweb_pack.nodes.apply`` like any module.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
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


@pytest.fixture(scope="session")
def names(comfy, photographs):
    """Uploaded a, a' and b; b is not square and small, so that the runs are quick."""
    from harness.edit_graph import sepia

    a = photographs["astronaut"][::4, ::4]
    images = {"a": a, "a_prime": sepia(a), "b": photographs["chelsea"][::3, ::3]}
    return {name: comfy.upload(np.ascontiguousarray(image), f"{name}.png") for name, image in images.items()}


@pytest.fixture
def graph(names):
    """Edit by example with the small models, in API format."""
    from harness.edit_graph import edit_graph

    return edit_graph(names["a"], names["a_prime"], names["b"], long_side=256, steps=2)
