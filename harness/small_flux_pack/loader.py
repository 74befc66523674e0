"""The node LoadSmallFlux, and the function behind it for tests that run inside ComfyUI's process."""

from __future__ import annotations

import comfy.model_detection
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.utils
import folder_paths
import torch
from comfy_api.latest import io

_DTYPES = {"default": None, "fp8_e4m3fn": torch.float8_e4m3fn}


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
    """Load a FLUX of any width whose heads are as wide as its positional embedding.

    Args:
        path: a checkpoint in FLUX's original names.
        dtype: of the weights; ComfyUI's own choice when None.

    Raises:
        ValueError: when it is not a FLUX.
    """
    weights = comfy.utils.load_torch_file(str(path))
    config = comfy.model_detection.model_config_from_unet(weights, "")
    if config is None or config.unet_config.get("image_model") != "flux":
        raise ValueError(f"{path}: not a FLUX checkpoint")
    heads = config.unet_config["hidden_size"] // sum(config.unet_config["axes_dim"])
    if config.unet_config["num_heads"] == heads:
        return comfy.sd.load_diffusion_model(str(path), {} if dtype is None else {"dtype": dtype})
    config.unet_config["num_heads"] = heads
    return _load(config, weights, dtype)


def _load(config, weights: dict[str, torch.Tensor], dtype: torch.dtype | None):
    """What ``comfy.sd.load_diffusion_model_state_dict`` does once it has a configuration."""
    device = comfy.model_management.get_torch_device()
    offload_device = comfy.model_management.unet_offload_device()
    supported = list(config.supported_inference_dtypes)
    if dtype is None:
        dtype = comfy.model_management.unet_dtype(
            model_params=comfy.utils.calculate_parameters(weights),
            supported_dtypes=supported,
            weight_dtype=comfy.utils.weight_dtype(weights),
        )
    config.set_inference_dtype(dtype, comfy.model_management.unet_manual_cast(dtype, device, supported))
    model = config.get_model(weights, "").to(offload_device)
    model.load_model_weights(weights, "")
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=offload_device)
