"""FLUX with random weights inside ComfyUI, at any size."""

import torch

from harness.small_models import CONTEXT, flux_specs


@torch.no_grad()
def random_flux(hidden: int, double: int, single: int, dtype: torch.dtype = torch.bfloat16):
    """A ModelPatcher around FLUX.1-Kontext-dev's architecture; head width 128, context and pooled width 768.

    Args:
        hidden: a multiple of 128; 3072 is FLUX.1's.
        dtype: of the weights. Where the device has no fast arithmetic in it, ComfyUI chooses another.
    """
    import comfy.model_detection
    import comfy.model_management
    import comfy.model_patcher

    device = comfy.model_management.get_torch_device()
    generator = torch.Generator(device).manual_seed(0)
    weights = {
        name: torch.empty(spec.shape, dtype=dtype, device=device).normal_(spec.mean, spec.std, generator=generator)
        for name, spec in flux_specs(hidden, double, single).items()
    }
    config = comfy.model_detection.model_config_from_unet(weights, "")
    config.unet_config["num_heads"] = hidden // sum(config.unet_config["axes_dim"])
    supported = list(config.supported_inference_dtypes)
    dtype = comfy.model_management.unet_dtype(device, supported_dtypes=supported, weight_dtype=dtype)
    config.set_inference_dtype(dtype, comfy.model_management.unet_manual_cast(dtype, device, supported))
    model = config.get_model(weights, "", device=device)
    model.load_model_weights(weights, "")
    return comfy.model_patcher.ModelPatcher(model.to(device), load_device=device, offload_device=device)


def step_inputs(model, canvas: int, text_tokens: int = 256) -> dict[str, torch.Tensor | list]:
    """Keyword arguments of one denoising step on a square canvas with its reference latent, as Kontext runs it.

    Args:
        canvas: side of the canvas in pixels.
    """
    diffusion = model.model.diffusion_model
    device, dtype = model.load_device, diffusion.img_in.weight.dtype
    generator = torch.Generator(device).manual_seed(1)

    def random(*shape):
        return torch.randn(*shape, generator=generator, device=device, dtype=dtype)

    latent = (1, 16, canvas // 8, canvas // 8)
    return {
        "x": random(*latent),
        "timestep": torch.tensor([0.7], device=device, dtype=dtype),
        "context": random(1, text_tokens, CONTEXT),
        "y": random(1, CONTEXT),
        "guidance": torch.tensor([2.5], device=device, dtype=dtype),
        "ref_latents": [random(*latent)],
    }
