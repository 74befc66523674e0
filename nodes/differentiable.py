"""ComfyUI's models, made for sampling, differentiated in what is added to their layers.

No weight takes a gradient and none is copied for good: blocks are computed again on the way back, and layers whose
weight is not at hand as it is multiplied with (8 bits, packed, or streamed from memory) once more by themselves.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import comfy.model_management
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from .forwards import Forward, changed

_PLAIN = (Tensor, nn.Parameter)
_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)
# Not cuDNN's: for some lengths its gradient is NaN (pytorch/pytorch issue 196678, NVIDIA/cudnn-frontend issue 160).
_ATTENTION_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def ordinary(value):
    """A tensor that was made in inference mode as one that was not, of the same memory; all else as it is.

    Outside of inference mode autograd refuses to save the former, and all tensors of ComfyUI's loaders are of that
    kind.
    """
    if torch.is_inference_mode_enabled() or type(value) not in _PLAIN or not value.is_inference():
        return value
    place = value.untyped_storage(), value.storage_offset(), value.shape, value.stride()
    made = torch.empty(0, dtype=value.dtype, device=value.device).set_(*place)
    vars(made).update(vars(value))  # ComfyUI keeps there in what type a weight is streamed
    return made


class OrdinaryTensors(TorchFunctionMode):
    """All tensors that functions of PyTorch are given are ordinary."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        named = {name: ordinary(value) for name, value in (kwargs or {}).items()}
        return func(*map(ordinary, args), **named)


@contextmanager
def differentiable(model: nn.Module) -> Iterator[None]:
    """A diffusion model whose outputs can be differentiated, for forward and backward inside.

    Args:
        model: its lists of modules are taken for its blocks.
    """
    blocks = [block for part in model.children() if isinstance(part, nn.ModuleList) for block in part]
    layers = [module for module in model.modules() if not module._modules]
    changes = [(layer, _saving_no_weight(layer)) for layer in layers if layer._parameters or layer._buffers]
    changes += [(layer, _saving_a_copy) for layer in layers if isinstance(layer, _NORMS)]
    changes += [(block, _checkpointed) for block in blocks]
    with _in_training(), changed(changes):
        yield


@contextmanager
def _in_training() -> Iterator[None]:
    """Newer ComfyUI keeps from kernels that have no gradient when it is told so."""
    before = getattr(comfy.model_management, "in_training", None)
    if before is None:
        yield
        return
    comfy.model_management.in_training = True
    try:
        yield
    finally:
        comfy.model_management.in_training = before


def attention(
    _, q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None, attn_precision=None,
    skip_reshape: bool = False, skip_output_reshape: bool = False, **others,
) -> Tensor:  # fmt: skip
    """ComfyUI's override of attention: PyTorch's own has a gradient, the faster ones have not.

    ComfyUI's own way to PyTorch's is not taken, for it puts cuDNN's kernel first.

    Args:
        q, k, v: [B, T, heads * d], or [B, heads, T, d] with ``skip_reshape``. mask: [T, T], [B, T, T], or with heads.
    """
    if not skip_reshape:
        width = q.shape[-1] // heads
        q, k, v = (tensor.unflatten(-1, (-1, width)).transpose(1, 2) for tensor in (q, k, v))
    if mask is not None and mask.dim() < q.dim():
        mask = mask[:, None] if mask.dim() == 3 else mask[None, None]
    known = {name: others[name] for name in ("scale", "enable_gqa") if name in others}
    with sdpa_kernel(_ATTENTION_KERNELS):
        output = scaled_dot_product_attention(q, k, v, attn_mask=mask, **known)
    return output if skip_output_reshape else output.transpose(1, 2).flatten(2)


def _checkpointed(forward: Forward) -> Forward:
    def run(*args, **kwargs):
        # Blocks add in place to what they are given; computed again, they need it as it was.
        return forward(*map(_copied, args), **{name: _copied(value) for name, value in kwargs.items()})

    def again(*args, **kwargs):
        return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return again


def _copied(value):
    return value.clone() if isinstance(value, Tensor) else value


def _saving_no_weight(layer: nn.Module):
    def change(forward: Forward) -> Forward:
        def run(x: Tensor, *args, **kwargs):
            if x.requires_grad and not (args or kwargs or _as_it_is(layer, x)):
                return _Recomputed.apply(x, layer, forward)
            with _ordinary_weights(layer):
                return forward(x, *args, **kwargs)

        return run

    return change


def _saving_a_copy(forward: Forward) -> Forward:
    """A norm saves what it is given, and blocks add to that in place, which a checkpoint does not notice."""
    return lambda x: forward(x.clone())


@contextmanager
def _ordinary_weights(layer: nn.Module) -> Iterator[None]:
    kinds = layer._parameters, layer._buffers
    before = [dict(kind) for kind in kinds]
    for kind in kinds:
        kind.update((name, ordinary(weight)) for name, weight in list(kind.items()))
    try:
        yield
    finally:
        for kind, weights in zip(kinds, before):
            kind.update(weights)


def _as_it_is(layer: nn.Module, x: Tensor) -> bool:
    """Whether a layer's weights are there as they are multiplied with, so that saving them for the way back is free."""
    weights = [weight for weight in layer._parameters.values() if weight is not None]
    return all(type(w) in _PLAIN and w.device == x.device and w.dtype.itemsize > 1 for w in weights)


class _Recomputed(torch.autograd.Function):
    """A layer that saves what goes in and no weight."""

    @staticmethod
    def forward(ctx, x: Tensor, layer: nn.Module, forward: Forward) -> Tensor:
        ctx.save_for_backward(x)
        ctx.layer, ctx.run = layer, forward
        return forward(x.detach())

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad(), _multiplying_exactly(ctx.layer), OrdinaryTensors():
            output = ctx.run(x)
        if not output.requires_grad:
            raise ValueError(
                f"a layer of this model ({type(ctx.layer).__name__}) cannot be differentiated, as packed formats with"
                " kernels of their own cannot; use a bf16, fp8 or GGUF file"
            )
        return torch.autograd.grad(output, x, gradient)[0], None, None


@contextmanager
def _multiplying_exactly(layer: nn.Module) -> Iterator[None]:
    """ComfyUI's 8-bit products, which have no gradient, give way to those of the unpacked weight."""
    own, exact = vars(layer), {"training": True, "_full_precision_mm": True}
    before = {name: own[name] for name in exact if name in own}
    own.update(exact)
    try:
        yield
    finally:
        for name in exact:
            own.pop(name)
        own.update(before)
