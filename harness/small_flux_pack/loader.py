"""The nodes, and the functions behind them for tests that run inside ComfyUI's process."""

from __future__ import annotations

import importlib.util
import json
import tempfile
from pathlib import Path

import comfy.clip_vision
import comfy.model_patcher
import comfy.utils
import folder_paths
import torch
from comfy_api.latest import io

# CLIP's architecture, deep enough for hidden state -16, small enough to encode many images.
_SMALL_VIT = {
    "model_type": "clip_vision_model", "hidden_size": 64, "num_hidden_layers": 17, "num_attention_heads": 4,
    "intermediate_size": 128, "hidden_act": "quick_gelu", "num_channels": 3, "patch_size": 14, "image_size": 56,
}  # fmt: skip
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


class LoadSmallVision(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LoadSmallVision",
            display_name="Load Small CLIP Vision",
            category="loaders",
            outputs=[io.ClipVision.Output()],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(small_vision(768))


def small_vision(projection: int) -> comfy.clip_vision.ClipVisionModel:
    """ComfyUI's own vision model in a small size, with random weights; ``projection`` numbers an image."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "config.json")
        config.write_text(json.dumps(_SMALL_VIT | {"projection_dim": projection}), encoding="utf-8")
        encoder = comfy.clip_vision.ClipVisionModel(str(config))
    generator = torch.Generator().manual_seed(0)
    for name, weight in encoder.model.named_parameters():
        centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        weight.data = torch.randn(weight.shape, generator=generator) * (0.05 if weight.dim() < 2 else 0.15) + centre
    return encoder
