"""The training objective: conditional flow matching on all of the image that the base is to make."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from diffusers.training_utils import compute_density_for_timestep_sampling
from torch import Tensor, nn

from lorweb_core import MixingCoefficients

from ..bases import Conditioning
from ..config import ObjectiveConfig
from ..data.layouts import Layout

_BELL_FLOOR = math.exp(-0.5)  # exp(-2 (t - 1/2)^2) at t = 0 and 1
_BELL_MEAN = math.sqrt(math.pi / 2) * math.erf(math.sqrt(0.5)) - _BELL_FLOOR


def bell_weight(t: Tensor) -> Tensor:
    """``exp(-2 (t - 1/2)^2)`` shifted to zero at t = 0 and 1 and scaled to a mean of 1 over t in 0..1."""
    return (torch.exp(-2 * (t - 0.5) ** 2) - _BELL_FLOOR) / _BELL_MEAN


@dataclass
class Noise:
    """The random part of one step: noise [B, C, h, w] and timesteps t [B] in 0..1."""

    noise: Tensor
    t: Tensor


def draw_noise(shape: tuple[int, ...], generators: list[torch.Generator], config: ObjectiveConfig) -> Noise:
    """Noise and timestep of every sample from the sample's own generator, so that batching and processes do not matter.

    Args:
        shape: of one latent, [C, h, w].
    """
    draws = [noise_from(generator, (1, *shape), config) for generator in generators]
    return Noise(torch.cat([draw.noise for draw in draws]), torch.cat([draw.t for draw in draws]))


def noise_from(generator: torch.Generator, shape: tuple[int, ...], config: ObjectiveConfig) -> Noise:
    """Noise and timesteps of latents [B, C, h, w] from one generator, on its device."""
    noise = torch.randn(shape, generator=generator, device=generator.device)
    t = compute_density_for_timestep_sampling(
        config.timesteps, shape[0], logit_mean=0.0, logit_std=1.0, mode_scale=1.29,
        device=generator.device, generator=generator,
    )  # fmt: skip
    return Noise(noise, shifted(t, config.shift))


def shifted(t: Tensor, shift: float) -> Tensor:
    """Timesteps of 0..1 moved towards the noise: ``s t / (1 + (s - 1) t)``.

    Equation 23 of Esser et al., "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis", 2024, and
    what diffusers' ``FlowMatchEulerDiscreteScheduler(shift=s)`` samples at.
    """
    return shift * t / (1 + (shift - 1) * t)


class Flow(NamedTuple):
    """What a model's velocity comes to.

    Attributes:
        loss: weighted mean squared error of the velocity, per sample [B] in float32.
        estimate: the latents [B, C, h, w] that it heads for, ``x_t - t velocity``, in float32.
    """

    loss: Tensor
    estimate: Tensor


def flow_loss(model: nn.Module, x_0: Tensor, draw: Noise, condition: Conditioning, config: ObjectiveConfig) -> Flow:
    """How far the model's velocity at ``x_t = (1 - t) x_0 + t noise`` is from ``noise - x_0``."""
    t = draw.t.view(-1, 1, 1, 1)
    x_t = (1 - t) * x_0 + t * draw.noise
    velocity = condition.family.velocity(model, x_t, draw.t, condition).float()
    weight = region_weight(condition.layout, x_0.shape, config.canvas_weight, x_0.device)
    if config.changed:
        weight = weight * (1 + config.changed * change(x_0, condition.references[-1]))
    error = (velocity - (draw.noise - x_0).float()) ** 2 * weight
    loss = error.mean(dim=(1, 2, 3))
    return Flow(loss * bell_weight(draw.t) if config.weighting == "bell" else loss, x_t - t * velocity)


def region_weight(layout: Layout, shape: tuple[int, ...], canvas_weight: float, device: torch.device) -> Tensor:
    """Weights [h, w] of mean 1: 1 where b' is and ``canvas_weight`` elsewhere, before scaling."""
    weight = torch.full(shape[-2:], canvas_weight, device=device)
    layout.answer(weight[..., None])[:] = 1.0
    return weight / weight.mean()


def change(x_0: Tensor, reference: Tensor) -> Tensor:
    """How much an edit changes each place of latents [B, C, h, w], in 0..1: [B, 1, h, w], 0 where b' is b.

    Latents have a variance of about 1, so a mean absolute difference of 1 is another picture.
    """
    return (x_0 - reference).abs().mean(1, keepdim=True).clamp(max=1).float()


def imbalance(coefficients: MixingCoefficients) -> Tensor:
    """``log N`` minus the entropy of the batch's mean coefficients: 0 when the batch uses all basis LoRAs alike."""
    return math.log(coefficients.num_loras) - coefficients.mean().entropy().mean()
