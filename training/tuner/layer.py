"""One adapted linear layer: whatever base layer there is, plus its basis weighed per sample."""

from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from lorweb_core import BankConfig

from .config import INITS


class LoRWeBLayer(nn.Module, BaseTunerLayer):
    """``base(x) + (((x A) * c) B)`` with the N basis LoRAs side by side in one pair of thin matrices.

    A is one linear in -> N*r and B one linear N*r -> out, the shapes of an ordinary LoRA of rank N*r: two
    matrix products a layer, whatever N is. The base layer is only ever called, so it may be quantised.

    Attributes:
        coefficients: [B, N*r], each coefficient times the LoRA scale and repeated r times. ``LoRWeBModel``
            sets them once a step; they stay until the next one because gradient checkpointing reads them
            again in the backward pass.
    """

    adapter_layer_names = ("lora_A", "lora_B")

    def __init__(self, base_layer: nn.Module, adapter_name: str, bank: BankConfig, init: str = "linear"):
        super().__init__()
        self.base_layer = base_layer
        self.in_features, self.out_features = base_layer.in_features, base_layer.out_features
        width = bank.num_loras * bank.rank
        # nn.Linear's own initialisation is the Kaiming-uniform of LoRA: bound 1 / sqrt(in).
        self.lora_A = nn.ModuleDict({adapter_name: nn.Linear(self.in_features, width, bias=False)})
        self.lora_B = nn.ModuleDict({adapter_name: nn.Linear(width, self.out_features, bias=False)})
        self.lora_A[adapter_name].weight.data *= INITS[init](bank.rank)
        nn.init.zeros_(self.lora_B[adapter_name].weight)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(adapter_name)
        self.coefficients: Tensor | None = None

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """x [B, ..., in] -> [B, ..., out]."""
        result = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters:
            return result
        (adapter,) = self.active_adapters
        lora_a, lora_b = self.lora_A[adapter], self.lora_B[adapter]
        projected = lora_a(self._cast_input_dtype(x, lora_a.weight.dtype))
        return (result + lora_b(projected * self._coefficients_for(projected))).to(result.dtype)

    def _coefficients_for(self, projected: Tensor) -> Tensor:
        """The coefficients shaped to multiply projected [B, ..., N*r]."""
        c = self.coefficients
        if c is None:
            raise RuntimeError(
                "no analogy query is set; pass query=z to the model, or call it inside `with model.mixing(z)`"
            )
        if c.shape[0] not in (1, projected.shape[0]):
            raise ValueError(f"{c.shape[0]} analogy queries do not go with a batch of {projected.shape[0]}")
        return c.to(projected.dtype).view(c.shape[0], *[1] * (projected.dim() - 2), c.shape[1])
