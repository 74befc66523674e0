"""The basis as one of ComfyUI's weight adapters: a delta of the weight, or of what the layer gives."""

import comfy.model_management
import torch
from comfy.weight_adapter import WeightAdapterBase
from torch import Tensor

from ..lorweb_core import BasisLayer
from ..lorweb_core.mixing import composed_factors, composed_output

Weights = tuple[Tensor, Tensor, Tensor, float, Tensor | None]


class BasisAdapter(WeightAdapterBase):
    """``weight += strength * scale * sum_n c[n] * (A[n] @ B[n]).T``, in the weight or at run time.

    ``weights`` is (A [N, in, r], B [N, r, out], c [N], scale, bias [N, out] or None): all but c are the bank's own
    tensors, so an adapter costs N numbers. Every tensor stands in that tuple because ComfyUI moves adapters by
    rebuilding them from it.

    Attributes:
        multiplier: the strength at run time, by ComfyUI's name for it.
        kept: numbers of the basis elements that c is of, at run time; None where it is of all.
        ran: whether ``h`` was called.
    """

    name = "lorweb"
    multiplier = 1.0
    kept: Tensor | None = None
    ran = False

    def __init__(self, loaded_keys: set[str], weights: Weights):
        self.loaded_keys = loaded_keys
        self.weights = weights

    @classmethod
    def of(cls, layer: BasisLayer, coefficients: Tensor, scale: float) -> "BasisAdapter":
        """The adapter of one layer and its coefficients [N]."""
        return cls(set(), (layer.A, layer.B, coefficients, scale, layer.bias))

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
        """ComfyUI's contract: add the delta to ``weight`` ([out, in], or the slice of a fused weight) and return it.

        The bias of the bias variant is a weight of its own, with a patch of its own.
        """
        *tensors, scale, _ = self.weights
        a, b, c = (comfy.model_management.cast_to_device(t, weight.device, intermediate_dtype) for t in tensors)
        down, up = composed_factors(a, b, c, scale * strength)
        weight += function((up @ down).to(weight.dtype))
        return weight

    def h(self, x: Tensor, base_out: Tensor) -> Tensor:
        """ComfyUI's contract of bypass: what is added to the layer's output, bias included, differentiable in c.

        Args:
            x: what goes into the layer, [..., in]. base_out: what it gives, [..., out]; its dtype is computed in.

        Returns:
            [..., out].
        """
        self.ran = True
        a, b, c, scale, bias = self.weights
        if self.kept is not None:  # chosen here, so that no more than one layer's copy is there at a time
            a, b, bias = (t if t is None else t.index_select(0, self.kept) for t in (a, b, bias))
        cast, device = comfy.model_management.cast_to_device, base_out.device
        dtype = base_out.dtype if base_out.dtype.itemsize > 1 else torch.float16
        a, b, c, x, bias = (t if t is None else cast(t, device, dtype) for t in (a, b, c, x, bias))
        delta = composed_output(x, a, b, c, scale * self.multiplier)
        if bias is not None:
            delta = delta + (scale * self.multiplier) * (c @ bias)
        return delta
