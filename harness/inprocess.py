"""ComfyUI inside this process, for tests and benchmarks that look at weights and timings rather than at a server."""

from __future__ import annotations

import asyncio
import atexit
import importlib
import importlib.util
import pkgutil
import shutil
import sys
import tempfile

import torch

from .comfyui import ROOT
from .fetch import comfyui_folder
from .launch import cure_torchvision

PACK = "lorweb_pack"


def load_comfyui() -> None:
    """Make ``comfy``, ``folder_paths``, ComfyUI's ``nodes`` and this pack as ``lorweb_pack`` importable; once."""
    if PACK not in sys.modules:
        cure_torchvision()
        _prepare_comfyui()
        _load_pack()


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
    asyncio.run(_ask_for_nodes(package))


async def _ask_for_nodes(package) -> None:
    """As ComfyUI does, which makes ``models/lorweb`` known."""
    extension = await package.comfy_entrypoint()
    await extension.get_node_list()
