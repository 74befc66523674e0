"""Makes ComfyUI importable in this process, and the repository root importable as the package ``lorweb_pack``.

Tests import ``comfy``, ``folder_paths``, ComfyUI's ``nodes`` and ``lorweb_pack.nodes.apply`` like any module.
"""

from __future__ import annotations

import atexit
import importlib
import importlib.util
import pkgutil
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from harness.comfyui import ROOT
from harness.fetch import comfyui_folder

PACK = "lorweb_pack"


def _prepare_comfyui() -> None:
    """ComfyUI's folder comes first on the path: its ``nodes`` is meant by ``import nodes``, not ours."""
    sys.path.insert(0, str(comfyui_folder()))
    from comfy.cli_args import args

    base = tempfile.mkdtemp(prefix="comfyui-")
    atexit.register(shutil.rmtree, base, ignore_errors=True)
    args.base_directory = base
    args.cpu = not torch.cuda.is_available()


def _load_pack() -> None:
    """Load the repository root as one package, as ComfyUI does, with ``lorweb_core`` under both of its names.

    The harness and the training import the core absolutely, the nodes relatively; as two modules its classes would
    differ.
    """
    spec = importlib.util.spec_from_file_location(PACK, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    package = importlib.util.module_from_spec(spec)
    sys.modules[PACK] = package
    spec.loader.exec_module(package)
    core = importlib.import_module("lorweb_core")
    for module in pkgutil.iter_modules(core.__path__, "lorweb_core."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in [name for name in sys.modules if name.split(".")[0] == "lorweb_core"]:
        sys.modules[f"{PACK}.{name}"] = sys.modules[name]
    package.lorweb_core = core


if PACK not in sys.modules:
    _prepare_comfyui()
    _load_pack()


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
