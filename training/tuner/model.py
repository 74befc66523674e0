"""The tuner: PEFT injects the layers, the mixer gives them their coefficients."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from lorweb_core.checkpoint import KEYS, LORA_A, LORA_B, TO_Q

from .config import LoRWeBConfig
from .layer import LoRWeBLayer
from .mixer import Mixer

ADAPTER = "default"


class LoRWeBModel(BaseTuner):
    """A frozen model with a basis of LoRAs on every target layer. Call it as ``tuner(..., query=z)``.

    Made directly, not through ``get_peft_model``: PEFT's registry accepts the names of its own enum only.

    Args:
        model: the base model; changed in place.
        config: see ``LoRWeBConfig``.

    Attributes:
        mixer: keys and query projections of all layers.
        tuner_layers: module path in the base model -> adapted layer, in the mixer's order.
        coefficients: mixing coefficients [B, L, N] of the query that is set, attached to the autograd graph.
    """

    prefix = "lora_"
    tuner_layer_cls = LoRWeBLayer
    target_module_mapping: dict[str, list[str]] = {}
    uses_shared_state = True

    def __init__(self, model: nn.Module, config: LoRWeBConfig):
        super().__init__(model, config, ADAPTER)
        self.coefficients: Tensor | None = None

    @property
    def bank_config(self):
        """The ``BankConfig`` of the bank that is being trained."""
        return self.peft_config[ADAPTER].bank

    def _create_and_replace(
        self, peft_config, adapter_name, target, target_name, parent, current_key, parameter_name=None
    ) -> None:
        if not (hasattr(target, "in_features") and hasattr(target, "out_features")):
            raise ValueError(
                f"{current_key} is a {type(target).__name__}; a basis needs a linear layer: narrow target_modules"
            )
        self._replace_module(
            parent, target_name, LoRWeBLayer(target, adapter_name, peft_config.bank, peft_config.init), target
        )

    def _post_injection_hook(self, model: nn.Module, config: LoRWeBConfig, adapter_name: str) -> None:
        self._cast_adapter_dtype(adapter_name)
        self.tuner_layers: dict[str, LoRWeBLayer] = {
            name: model.get_submodule(name) for name in self.targeted_module_names
        }
        reference = next(iter(self.tuner_layers.values())).lora_A[adapter_name].weight
        self.mixer = Mixer(len(self.targeted_module_names), config.bank, reference.device, reference.dtype)

    def forward(self, *args: Any, query: Tensor | None = None, **kwargs: Any) -> Any:
        """The base model's forward under query [B, q], or under the query that was set before if None."""
        if query is not None:
            self.set_query(query)
        return self.model(*args, **kwargs)

    def set_query(self, query: Tensor) -> Tensor:
        """Mix every layer for query [q] or [B, q]; returns the coefficients [B, L, N].

        Raises:
            ValueError: when the query has another width than the bank's.
        """
        self.bank_config.check_query(query.shape)
        self.set_coefficients(self.mixer(torch.atleast_2d(query)))
        return self.coefficients

    def set_coefficients(self, values: Tensor | None) -> None:
        """Hand coefficients [B, L, N] to the layers, or take them away (None)."""
        self.coefficients = values
        layers = self.tuner_layers.values()
        if values is None:
            per_layer = [None] * len(layers)
        else:
            bank = self.bank_config
            # One unbind, so that the backward pass gathers the gradients of all layers in one stack.
            scaled = (bank.scale * values).repeat_interleave(bank.rank, dim=-1)
            per_layer = scaled.transpose(0, 1).contiguous().unbind(0)
        for layer, c in zip(layers, per_layer, strict=True):
            layer.coefficients = c

    @contextmanager
    def mixing(self, query: Tensor) -> Iterator[Tensor]:
        """Coefficients of a query for the calls inside, such as a sampling loop; yields them [B, L, N]."""
        before = self.coefficients
        if isinstance(self, FSDPModule):
            self.unshard()  # FSDP gathers the mixer for calls of the whole model only
        try:
            yield self.set_query(query)
        finally:
            self.set_coefficients(before)

    def adapter_state_dict(self) -> dict[str, Tensor]:
        """Every trained tensor, whole, under PEFT's adapter names. Collective when FSDP2 sharded the parameters."""
        trained = {name: gather(p.detach()) for name, p in self.named_parameters() if p.requires_grad}
        state = self._get_adapter_state_dict(self, self.peft_config[ADAPTER], ADAPTER, trained, [])
        return {self._remove_adapter_name_from_key(key, ADAPTER): value for key, value in state.items()}

    def load_adapter_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load what ``adapter_state_dict`` returned.

        Raises:
            ValueError: when tensors are missing or unknown.
        """
        ours = self.adapter_state_dict().keys()
        if ours != state.keys():
            odd = sorted(ours ^ state.keys())
            raise ValueError(f"the adapter state does not fit this model: {len(odd)} names differ, such as {odd[0]}")
        named = self._remap_adapter_state_dict_for_load(self, self.peft_config[ADAPTER], ADAPTER, dict(state))
        self.load_state_dict(named, strict=False)

    def bank_tensors(self, state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """An adapter state as the core's ``write_bank`` takes it: module path -> tensor name -> tensor."""
        tensors = {}
        for index, name in enumerate(self.tuner_layers):
            a, b = (state[f"model.{name}.{matrix}.weight"] for matrix in ("lora_A", "lora_B"))
            split = (self.bank_config.num_loras, self.bank_config.rank)
            tensors[name] = {
                LORA_A: a.unflatten(0, split).transpose(1, 2),
                LORA_B: b.T.unflatten(0, split),
                KEYS: state["mixer.keys"][index],
            }
            if self.mixer.to_q is not None:
                tensors[name][TO_Q] = state["mixer.to_q"][index]
        return tensors

    def adapter_state(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The inverse of ``bank_tensors``, of the same layers in any order."""
        state = {}
        for name in self.tuner_layers:
            state[f"model.{name}.lora_A.weight"] = tensors[name][LORA_A].transpose(1, 2).flatten(0, 1)
            state[f"model.{name}.lora_B.weight"] = tensors[name][LORA_B].flatten(0, 1).T
        state["mixer.keys"] = torch.stack([tensors[name][KEYS] for name in self.tuner_layers])
        if self.mixer.to_q is not None:
            state["mixer.to_q"] = torch.stack([tensors[name][TO_Q] for name in self.tuner_layers])
        return state


def gather(tensor: Tensor) -> Tensor:
    """The whole of a tensor that FSDP2 may have sharded: then on the CPU, for a card need not hold all of a bank."""
    return tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor
