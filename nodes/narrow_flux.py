"""A FLUX that is narrower than the released one, as ComfyUI's MODEL.

ComfyUI 0.3 takes every FLUX to have 24 attention heads, so its own loader cannot load a small one; newer ComfyUI reads
the heads from the width, and its own loader is used.
"""

import comfy.model_detection
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.utils
import torch
from torch import Tensor


def load_narrow_flux(
    weights: dict[str, Tensor], name: str, dtype: torch.dtype | None = None, shift: float | None = None
) -> comfy.model_patcher.ModelPatcher:
    """A FLUX.1 or FLUX.2 of any width whose heads are as wide as its positional embedding.

    Args:
        weights: in FLUX's original names or in those of diffusers.
        name: of the file, for errors.
        dtype: of the weights; ComfyUI's own choice when None.
        shift: of the noise schedule, as ComfyUI's model sampling nodes have it; that of the model's kind when None.

    Raises:
        ValueError: when it is not a FLUX.
    """
    weights = comfy.model_detection.convert_diffusers_mmdit(weights, "") or weights
    config = comfy.model_detection.model_config_from_unet(weights, "")
    if config is None or config.unet_config.get("image_model") not in ("flux", "flux2"):
        raise ValueError(f"{name}: not a FLUX checkpoint")
    heads = config.unet_config["hidden_size"] // sum(config.unet_config["axes_dim"])
    if config.unet_config["num_heads"] == heads:
        model = comfy.sd.load_diffusion_model_state_dict(weights, model_options={"dtype": dtype})
    else:
        config.unet_config["num_heads"] = heads
        model = _load(config, weights, dtype)
    if shift is not None:
        sampling = model.model.model_sampling
        sampling.set_parameters(shift=shift, multiplier=sampling.multiplier)
    return model


def _load(config, weights: dict[str, Tensor], dtype: torch.dtype | None) -> comfy.model_patcher.ModelPatcher:
    """What ``load_diffusion_model_state_dict`` of ComfyUI 0.3 does once it has a configuration."""
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
