"""The node LoadSmallFlux, and the function behind it for tests that run inside ComfyUI's process."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import comfy.model_patcher
import comfy.utils
import folder_paths
import torch
from comfy_api.latest import io

_DTYPES = {"default": None, "fp8_e4m3fn": torch.float8_e4m3fn}


def _narrow_flux():
    """``nodes/narrow_flux.py``, by its path: this pack does not know under which name ComfyUI imported that one."""
    path = Path(__file__).resolve().parents[2] / "nodes" / "narrow_flux.py"
    spec = importlib.util.spec_from_file_location("lorweb_narrow_flux", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class LoadSmallFlux(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LoadSmallFlux",
            display_name="Load Small FLUX",
            category="loaders",
            inputs=[
                io.Combo.Input("unet_name", options=folder_paths.get_filename_list("diffusion_models")),
                io.Combo.Input("weight_dtype", options=list(_DTYPES)),
            ],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, unet_name: str, weight_dtype: str) -> io.NodeOutput:
        path = folder_paths.get_full_path_or_raise("diffusion_models", unet_name)
        return io.NodeOutput(load_small_flux(path, _DTYPES[weight_dtype]))


def load_small_flux(path: str, dtype: torch.dtype | None = None) -> comfy.model_patcher.ModelPatcher:
    """Load a checkpoint of a narrow FLUX; see the pack's ``nodes/narrow_flux.py``."""
    return _narrow_flux().load_narrow_flux(comfy.utils.load_torch_file(str(path)), str(path), dtype)
