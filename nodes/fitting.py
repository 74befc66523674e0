"""A MODEL of ComfyUI's with a basis on it, as refining asks for one: losses with gradients, and answers."""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import NamedTuple

import comfy.model_management
import comfy.model_sampling
import comfy.samplers
import node_helpers
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..lorweb_core import BasisBank
from ..lorweb_core.tasks import Pair, Task
from .apply import RUNTIME, parts_of, require_targets
from .differentiable import attention, differentiable, ordinary
from .layouts import Analogy, Layout
from .runtime import RunTimeEdit, bring_factors

KEY = "lorweb_refine"
_REMEMBERED = 256  # analogies
# Gradients of float16 models would sink below its smallest number; a power of two changes nothing else.
_SCALE = 1024.0
# What a step takes of memory, in what ComfyUI reckons that sampling takes.
_MEMORY = 3
# Of what the judge asks for, the answer with noise nearest to this is shown: the model still has to make it up.
_SHOWN = 0.8


class Estimate(NamedTuple):
    """What the model takes a noisy answer for: a latent as the VAE has them, and how noisy it was, 0..1."""

    latent: Tensor
    sigma: float


class FittedModel:
    """A model with a basis on it, as ``lorweb_core.tasks`` describes it. The MODEL that came in stays as it is.

    Args:
        conditioning: what the model is told beside the pictures.
        sampling_steps: of ``answer``.

    Attributes:
        seen: of what it was asked for losses alone, the answer that shows most; who looks at it puts None there.
        on_call: told of every call of the model.

    Raises:
        ValueError: when no layer of the bank is in the model, or the model is none for flow matching.
    """

    def __init__(self, model: ModelPatcher, bank: BasisBank, conditioning: list, vae, layout: Layout, sampling_steps=8):
        self.bank, self.parts = bank, parts_of(require_targets(model, bank, RUNTIME))
        self.conditioning, self.vae, self.layout, self.sampling_steps = conditioning, vae, layout, sampling_steps
        self.analogy = lru_cache(_REMEMBERED)(self._encode)  # tensors are the same key while they are one object
        self.seen: Estimate | None = None
        self.on_call: Callable[[], None] = lambda: None
        self._sampling = model.get_model_object("model_sampling")
        if not isinstance(self._sampling, comfy.model_sampling.CONST):
            raise ValueError(_no_references(model.model))
        _require_all_steps(conditioning)
        self._call: _Call | None = None
        self._checked = False
        self._model = model.clone()
        self._model.model_options["transformer_options"]["optimized_attention_override"] = attention
        # Compiled blocks are compiled for other forwards.
        self._model.remove_wrappers_with_key(WrappersMP.APPLY_MODEL, "torch.compile")
        self._model.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, KEY, _with_room)
        # The last wrapper is the innermost: others, such as edits at run time, hold while it goes back.
        self._model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, self._run)
        bring_factors(self._model, bank)

    def losses(self, values: Tensor, tasks: Sequence[Task], seed: int) -> Tensor:
        """Flow losses of the answers: see ``lorweb_core.tasks.Model``.

        One at a time: a batch is hardly quicker, and takes its memory.
        """
        analogies = [self.analogy(*task.example, *task.answer) for task in tasks]
        return torch.cat([self._loss(values, analogy, _seed(seed, i)) for i, analogy in enumerate(analogies)])

    def _loss(self, values: Tensor, analogy: Analogy, seed: int) -> Tensor:
        graded = values.requires_grad and torch.is_grad_enabled()
        call = _Call(values.detach(), analogy.mask, graded)
        noise, sigma = self._draw(analogy.latent.shape, seed)
        estimate = self._sample(call, noise, analogy.latent, analogy.references, torch.tensor([sigma]), _Once(call))
        if graded:
            # The gradient is known already: the loss as a plane of that slope.
            return call.losses + (call.gradient * (values - values.detach())).sum()
        if self.seen is None or abs(sigma - _SHOWN) < abs(self.seen.sigma - _SHOWN):
            self.seen = Estimate(self.layout.answer(estimate), sigma)
        return call.losses

    def _draw(self, shape: Sequence[int], seed: int) -> tuple[Tensor, float]:
        """Noise, and its amount in 0..1: logit-normal, shifted as the model's own sampling is."""
        generator = torch.Generator().manual_seed(seed)
        noise, t = torch.randn(tuple(shape), generator=generator), torch.randn((), generator=generator).sigmoid()
        return noise, float(self._sampling.percent_to_sigma(t.item()))

    @torch.inference_mode()
    def answer(self, values: Tensor, example: Pair, picture: Tensor, seed: int = 0) -> Tensor:
        """b' [H, W, 3] of a picture, sampled by Euler's method."""
        analogy = self.analogy(*example, picture, picture)
        sigmas = comfy.samplers.calculate_sigmas(self._sampling, "simple", self.sampling_steps)
        noise = torch.randn(analogy.latent.shape, generator=torch.Generator().manual_seed(seed))
        call, sampler = _Call(values.detach(), analogy.mask, False), comfy.samplers.sampler_object("euler")
        sampled = self._sample(call, noise, torch.zeros_like(noise), analogy.references, sigmas, sampler)
        return self.decode(self.layout.answer(sampled))

    @torch.inference_mode()
    def decode(self, latent: Tensor) -> Tensor:
        """The latent of an answer as a picture [H, W, 3] on the CPU."""
        pictures = self.vae.decode(latent).cpu()
        return pictures.reshape(-1, *pictures.shape[-3:])[0].clamp(0, 1)

    @torch.inference_mode()
    def _encode(self, a: Tensor, a_prime: Tensor, b: Tensor, b_prime: Tensor) -> Analogy:
        return self.layout.encode(self.vae, Pair(a, a_prime), b, b_prime)

    @torch.inference_mode()
    def _sample(self, call: "_Call", noise: Tensor, latent: Tensor, references: Sequence[Tensor], sigmas, sampler):
        """ComfyUI's own way to a model, which loads it and does what the conditioning and other nodes ask for."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        self.on_call()
        self._call = call
        shown = node_helpers.conditioning_set_values(self.conditioning, {"reference_latents": list(references)})
        guider = comfy.samplers.CFGGuider(self._model)
        guider.inner_set_conds({"positive": shown})
        return guider.sample(noise, latent, sampler, sigmas, disable_pbar=True, seed=0)

    def _run(self, executor, x: Tensor, t: Tensor, *args, **kwargs) -> Tensor:
        """ComfyUI's contract: a wrapper of ``apply_model``, here with the edit on the layers."""
        if "ref_latents" not in kwargs:
            raise ValueError(_no_references(executor.class_obj))
        edit = partial(self._edit, executor.class_obj, x.device)
        return self._call(executor, edit, x, t, *args, **kwargs)

    def _edit(self, model, device: torch.device, values: Tensor):
        edit, self._checked = RunTimeEdit(self.bank, values, self.parts, checked=self._checked), True
        return edit.on(model, device)


def _require_all_steps(conditioning: list) -> None:
    """Losses are of any amount of noise.

    Raises:
        ValueError: for a prompt that is for some steps of sampling only.
    """
    if any(told.get("start_percent", 0.0) > 0 or told.get("end_percent", 1.0) < 1 for _, told in conditioning):
        raise ValueError(
            "the conditioning is for a part of the steps only; connect it from before ConditioningSetTimestepRange"
        )


class _Call:
    """One call of the model.

    Args:
        values: coefficients [L, N]. mask: [h, w], where the loss is taken. graded: whether its gradient is wanted.

    Attributes:
        target: latents without noise [B, ...]; None where no loss is wanted.
        losses: [B]. gradient: of their sum, [L, N]; on the CPU.
    """

    def __init__(self, values: Tensor, mask: Tensor, graded: bool):
        self.values, self.mask, self.graded = values, mask, graded
        self.target: Tensor | None = None

    def __call__(self, executor, edit, x: Tensor, sigmas: Tensor, *args, **kwargs) -> Tensor:
        """What the model makes of x without noise.

        Args:
            executor: the model, by ComfyUI's contract. edit: coefficients -> the edit on its layers, as a context.
        """
        if self.graded:
            return self._graded(executor, edit, x, sigmas, *args, **kwargs)
        with edit(self.values):
            denoised = executor(x, sigmas, *args, **kwargs)
        if self.target is not None:
            self.losses = self._flow_losses(denoised, sigmas).cpu()
        return denoised

    def _graded(self, executor, edit, x: Tensor, sigmas: Tensor, *args, **kwargs) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            values, sigmas = self.values.clone().requires_grad_(), ordinary(sigmas)
            named = {name: ordinary(value) for name, value in kwargs.items()}
            with differentiable(executor.class_obj.diffusion_model), edit(values):
                denoised = executor(ordinary(x), sigmas, *map(ordinary, args), **named)
                losses = self._flow_losses(denoised, sigmas)
                gradient = torch.autograd.grad(losses.sum() * _SCALE, values)[0] / _SCALE
            if not gradient.isfinite().all():
                raise ValueError("the gradient is not finite; load the model at a higher precision, such as bf16")
            self.losses, self.gradient = losses.detach().cpu(), gradient
            return denoised.detach()

    def _flow_losses(self, denoised: Tensor, sigmas: Tensor) -> Tensor:
        """Mean square of the velocity's error where the answer is: its estimate's error over the noise. [B]"""
        target = ordinary(self.target).repeat(len(denoised) // len(self.target), *[1] * (denoised.dim() - 1))
        error = (denoised.float() - target) / sigmas.view(-1, *[1] * (denoised.dim() - 1))
        mask = ordinary(self.mask.to(error))
        losses = (error.square() * mask).flatten(1).sum(1) / (mask.sum() * error[0].numel() / mask.numel())
        return losses.view(-1, len(self.target)).mean(0)


class _Once(comfy.samplers.Sampler):
    """A sampler that asks the model once, every picture of the batch with noise of its own amount."""

    def __init__(self, call: _Call):
        self.call = call

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, *_, **__):
        """ComfyUI's contract."""
        self.call.target = latent_image
        x = model_wrap.inner_model.model_sampling.noise_scaling(sigmas, noise, latent_image)
        return model_wrap(x, sigmas, **extra_args)


def _with_room(executor, model, noise_shape, *args, **kwargs):
    """ComfyUI's contract: a wrapper of what loads the models. The way back takes memory that sampling does not."""
    return executor(model, [_MEMORY * noise_shape[0], *noise_shape[1:]], *args, **kwargs)


def _no_references(model) -> str:
    return (
        f"this model ({type(model).__name__}) takes no reference latents, by which the example is shown; use"
        " FLUX.1-Kontext-dev, or whatever the bank was trained on"
    )


def _seed(seed: int, place: int) -> int:
    """One number of a signed seed and a place below a million."""
    return (2 * abs(seed) + (seed < 0)) * 2**20 + place
