"""An edit at run time: the basis adds to what the layers give while the model is called, and no weight changes.

It hangs on the model patcher as a wrapper of ``apply_model``. The layers are changed only inside a call, so a call that
ends, fails or is interrupted leaves the model as it was, and another clone of it never sees the edit. ComfyUI's own
bypass (its newer versions) is not used: it takes no part of a fused layer, needs a ``weight``, and stays in the model.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from weakref import WeakKeyDictionary

import comfy.model_management
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor, nn

from ..lorweb_core import BasisBank, BasisLayer
from ..lorweb_core.lora import ComposedLoRA
from .adapter import BasisAdapter
from .differentiable import ordinary
from .errors import in_plain_words
from .forwards import changed

logger = logging.getLogger(__name__)

KEY = "lorweb"

# Which outputs of a module (None: all) a layer of the bank adds to.
Rows = slice | None
Parts = Mapping[str, Mapping[str, Rows]]


class Factors(nn.Module):
    """A layer's A, B and bias, as ComfyUI moves them between devices.

    Back on the CPU they are the bank's memory-mapped tensors again, not copies. What is there already stays: ComfyUI
    moves every module and then the whole model.
    """

    def __init__(self, layer: BasisLayer):
        super().__init__()
        self._source = {"A": layer.A, "B": layer.B, "bias": layer.bias}
        for name, tensor in self._source.items():
            self.register_parameter(name, None if tensor is None else nn.Parameter(tensor, requires_grad=False))

    def _apply(self, fn, recurse: bool = True) -> "Factors":
        for name, parameter in self._parameters.items():
            if parameter is not None and not _same_place(parameter, fn(self._source[name].new_empty(0))):
                parameter.data = fn(self._source[name])
        return self


def _same_place(one: Tensor, other: Tensor) -> bool:
    return (one.device, one.dtype) == (other.device, other.dtype)


_placed: WeakKeyDictionary[BasisBank, ModelPatcher] = WeakKeyDictionary()


def place(bank: BasisBank) -> ModelPatcher:
    """The bank's factors as a model of ComfyUI's, which thus counts and frees their memory; one for all edits."""
    if bank not in _placed:
        layers = nn.ModuleList(Factors(layer) for layer in bank.layers.values())
        device = comfy.model_management.get_torch_device()
        _placed[bank] = ModelPatcher(layers, load_device=device, offload_device=torch.device("cpu"))
    return _placed[bank]


class RunTimeEdit:
    """A wrapper of ``apply_model`` that adds one edit to the layers' outputs.

    Args:
        bank: of the edit.
        values: its coefficients [L, N], layers as the bank has them.
        parts: module path in the model -> what of the bank adds to it.
        strength: of the edit.
        checked: whether it is known already that all of it runs.
    """

    def __init__(self, bank: BasisBank, values: Tensor, parts: Parts, strength: float = 1.0, checked: bool = False):
        self._require_unchanged = in_plain_words(bank.require_unchanged)
        self._parts, self._strength, self._scale = parts, strength, bank.config.scale
        self._factors = dict(zip(bank.layers, place(bank).model))
        self._values = values
        self._kept = None
        used = max(1, int((self._values != 0).sum(-1).max()))
        if used < bank.config.num_loras:
            self._kept = self._values.abs().topk(used, dim=-1).indices
            self._values = self._values.gather(-1, self._kept)
        self._checked = checked

    def __call__(self, executor, x: Tensor, *args, **kwargs):
        """ComfyUI's contract: ``executor(...)`` is the model, x its latent."""
        with self.on(executor.class_obj, x.device):
            return executor(x, *args, **kwargs)

    @contextmanager
    def on(self, model: nn.Module, device: torch.device) -> Iterator[None]:
        """The edit on the layers of a model, for the calls inside."""
        self._require_unchanged()  # on the CPU it is read at every step
        adapters = self._adapters(device)
        with changed(self._changes(model, adapters)):
            yield
        if not self._checked:
            self._checked = True
            self._name_what_did_not_run(adapters)

    def _changes(self, model: nn.Module, adapters: Mapping[str, BasisAdapter]) -> Iterator[tuple[nn.Module, Callable]]:
        for path, parts in self._parts.items():
            added = tuple((rows, adapters[name]) for name, rows in parts.items())
            yield comfy.utils.get_attr(model, path), partial(_edited_forward, added=added)

    @torch.inference_mode(False)
    def _adapters(self, device: torch.device) -> dict[str, BasisAdapter]:
        """The adapters of all layers, of tensors that a gradient may go through.

        Coefficients and kept numbers go to each device in one copy for all layers.
        """
        values, chosen, adapters = ordinary(self._values.to(device)), {}, {}
        for number, (name, factors) in enumerate(self._factors.items()):
            a, b, bias = (None if t is None else ordinary(t.data) for t in (factors.A, factors.B, factors.bias))
            adapters[name] = adapter = BasisAdapter(set(), (a, b, values[number], self._scale, bias))
            adapter.multiplier = self._strength
            if self._kept is not None:
                if a.device not in chosen:
                    chosen[a.device] = ordinary(self._kept.to(a.device))
                adapter.kept = chosen[a.device][number]
        return adapters

    def _name_what_did_not_run(self, adapters: Mapping[str, BasisAdapter]) -> None:
        silent = [name for parts in self._parts.values() for name in parts if not adapters[name].ran]
        if silent:
            logger.warning(
                "%d of %d layers did not run as modules of their own, such as %s, so the edit is missing there: the"
                " model's loader fuses them, or something skips blocks. Try mode patch, or another format of the model",
                len(silent), len(adapters), silent[0],
            )  # fmt: skip


def _edited_forward(forward, added: tuple[tuple[Rows, BasisAdapter], ...]):
    """A layer's forward with adapters' outputs added."""

    in_place = any(rows is not None for rows, _ in added)

    def edited(x: Tensor, *args, **kwargs) -> Tensor:
        output = forward(x, *args, **kwargs)
        if in_place and torch.is_grad_enabled():
            output = output.clone()  # which others may have saved for the way back
        for rows, adapter in added:
            if rows is None:
                output = output + adapter.h(x, output)
            else:
                output[..., rows] += adapter.h(x, output[..., rows])
        return output

    return edited


def refuse_changed(model: ModelPatcher, bank: BasisBank) -> None:
    """Look at the bank's file once more before sampling: to read a mapped file that was cut off ends the server.

    It is done before ComfyUI patches the first weight, for it would leave a model half patched.
    """
    require_unchanged = in_plain_words(bank.require_unchanged)

    def look(executor, *args, **kwargs):
        """ComfyUI's contract: ``executor(...)`` loads the model and patches it."""
        require_unchanged()
        return executor(*args, **kwargs)

    model.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, KEY, look)


def add_at_run_time(model: ModelPatcher, lora: ComposedLoRA, parts: Parts, strength: float) -> ModelPatcher:
    """A clone of the model that makes the edit at run time."""
    edited, values = model.clone(), torch.stack([lora.layer_coefficients(name) for name in lora.bank.layers])
    edited.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, RunTimeEdit(lora.bank, values, parts, strength))
    bring_factors(edited, lora.bank)
    return edited


def bring_factors(model: ModelPatcher, bank: BasisBank) -> None:
    """Have the bank's factors loaded wherever the model is, once for all edits on it."""
    factors, others = place(bank), model.get_additional_models_with_key(KEY)
    if not any(other.is_clone(factors) for other in others):
        model.set_additional_models(KEY, [*others, factors])
