"""The basis as one of ComfyUI's weight adapters: the delta exists only while ComfyUI patches a weight."""

import comfy.model_management
import torch
from comfy.weight_adapter import WeightAdapterBase
from torch import Tensor

from ..lorweb_core import BasisLayer
from ..lorweb_core.mixing import composed_factors


class BasisAdapter(WeightAdapterBase):
    """``weight += strength * scale * sum_n c[n] * (A[n] @ B[n]).T``, formed on the device that ComfyUI patches on.

    ``weights`` is (A [N, in, r], B [N, r, out], c [N], scale): A and B are the bank's own tensors, so an adapter costs
    N numbers. Every tensor stands in that tuple because ComfyUI moves adapters by rebuilding them from it.
    """

    name = "lorweb"

    def __init__(self, loaded_keys: set[str], weights: tuple[Tensor, Tensor, Tensor, float]):
        self.loaded_keys = loaded_keys
        self.weights = weights

    @classmethod
    def of(cls, layer: BasisLayer, coefficients: Tensor, scale: float) -> "BasisAdapter":
        """The adapter of one layer and its coefficients [N]."""
        return cls(set(), (layer.A, layer.B, coefficients, scale))

    def calculate_weight(
        self,
        weight: Tensor,
        key: str,
        strength: float,
        strength_model: float,
        offset: tuple[int, int, int] | None,
        function,
        intermediate_dtype: torch.dtype = torch.float32,
        original_weight=None,
    ) -> Tensor:
        """ComfyUI's contract: add the delta to ``weight`` ([out, in], or the slice of a fused weight) and return it."""
        *tensors, scale = self.weights
        a, b, c = (comfy.model_management.cast_to_device(t, weight.device, intermediate_dtype) for t in tensors)
        down, up = composed_factors(a, b, c, scale * strength)
        weight += function((up @ down).to(weight.dtype))
        return weight
