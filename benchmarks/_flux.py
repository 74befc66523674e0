"""FLUX with random weights inside ComfyUI, at any size, and sampling with it."""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from harness.small_models import CONTEXT, Spec, flux_specs

from ._measure import synchronize

FP8 = torch.float8_e4m3fn


@torch.no_grad()
def random_flux(
    hidden: int,
    double: int,
    single: int,
    dtype: torch.dtype = torch.bfloat16,
    scaled: bool = False,
    offload: torch.device | None = None,
):
    """A ModelPatcher around FLUX.1-Kontext-dev's architecture; head width 128, context and pooled width 768.

    Args:
        hidden: a multiple of 128; 3072 is FLUX.1's.
        dtype: of the weights; where the device has no fast arithmetic in it, ComfyUI casts them as it uses them.
        scaled: fp8 as in the files named fp8_scaled, every matrix beside its scale.
        offload: where ComfyUI keeps the weights when they are not in use; the device itself if None.
    """
    import comfy.model_management
    import comfy.model_patcher

    device = comfy.model_management.get_torch_device()
    weights = _random_weights(flux_specs(hidden, double, single), dtype, scaled, device)
    config = flux_config(weights, hidden)
    supported = list(config.supported_inference_dtypes)
    dtype = torch.bfloat16 if scaled else dtype
    config.set_inference_dtype(dtype, comfy.model_management.unet_manual_cast(dtype, device, supported))
    model = config.get_model(weights, "", device=device)
    model.load_model_weights(weights, "")
    offload = offload or device
    return comfy.model_patcher.ModelPatcher(model.to(offload), load_device=device, offload_device=offload)


def flux_config(weights: dict[str, Tensor], hidden: int):
    """ComfyUI's configuration of these weights; 0.3.75 takes every FLUX to have 24 heads."""
    import comfy.model_detection

    config = comfy.model_detection.model_config_from_unet(weights, "")
    config.unet_config["num_heads"] = hidden // sum(config.unet_config["axes_dim"])
    return config


def _random_weights(specs: dict[str, Spec], dtype: torch.dtype, scaled: bool, device) -> dict[str, Tensor]:
    """Drawn on the device; fp8, which cannot be drawn, is rounded from bfloat16."""
    generator = torch.Generator(device).manual_seed(0)
    weights = {"scaled_fp8": torch.zeros(2, dtype=FP8)} if scaled else {}
    for name, spec in specs.items():
        tensor = torch.empty(spec.shape, dtype=torch.bfloat16 if dtype == FP8 else dtype, device=device)
        tensor.normal_(spec.mean, spec.std, generator=generator)
        if scaled and tensor.dim() == 2:
            scale = tensor.abs().max().float() / torch.finfo(FP8).max
            weights[name.removesuffix("weight") + "scale_weight"] = scale
            tensor = (tensor / scale).to(FP8)
        weights[name] = tensor if scaled else tensor.to(dtype)
    return weights


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


class Sampler:
    """ComfyUI's own sampler, as KSampler calls it, on a square canvas with its reference latent.

    Args:
        canvas: side of the canvas in pixels.
        clock: counts the seconds.
    """

    def __init__(self, canvas: int, text_tokens: int, clock: Callable[[], float] = time.perf_counter):
        self.clock = clock
        generator = torch.Generator().manual_seed(1)
        shape = (1, 16, canvas // 8, canvas // 8)
        self.noise, self.latent = (torch.randn(shape, generator=generator) for _ in range(2))
        context = torch.randn(1, text_tokens, CONTEXT, generator=generator)
        pooled = torch.randn(1, CONTEXT, generator=generator)
        told = {"pooled_output": pooled, "guidance": 2.5, "reference_latents": [self.latent]}
        self.conditioning = [[context, told]]
        self.seconds: list[float] = []

    def __call__(self, model, steps: int) -> Tensor:
        """The sampled latent; ``seconds`` then has when each step was done, counted from the call."""
        import comfy.sample

        self.seconds = []
        synchronize()
        start = self.clock()

        def done(*_):
            synchronize()
            self.seconds.append(self.clock() - start)

        return comfy.sample.sample(
            model, self.noise, steps, 1.0, "euler", "simple", self.conditioning, self.conditioning, self.latent,
            seed=0, callback=done, disable_pbar=True,
        )  # fmt: skip

    def steps(self) -> list[float]:
        """Seconds of every step of the last run but the first, in which the weights are loaded."""
        return [later - earlier for earlier, later in zip(self.seconds, self.seconds[1:])]
