"""Mixing coefficients: what one analogy is, and what people do with it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .fingerprint import Fingerprint
from .patterns import match_layers
from .wording import clipped, is_finite, misspelt, shown

JSON_FORMAT, JSON_VERSION = "lorweb-coefficients", 1
# tanh coefficients are pulled this far from +-1 before atanh, whose value there is infinite.
_TANH_EDGE = 1e-6


@dataclass(frozen=True)
class MixingCoefficients:
    """Coefficients of every layer and basis element. Operations return new objects.

    Attributes:
        values: [L, N], or [batch, L, N]; float32 on the CPU, where they come from a bank.
        layers: the L module paths.
        softmax: whether they came from a softmax (shares of 1) or from tanh (signed, each in [-1, 1]).
        fingerprint: of the bank that mixed them; None where nobody knows.

    Raises:
        ValueError: when values and layers do not go together, there are none, or some are NaN or infinite.
    """

    values: Tensor
    layers: tuple[str, ...]
    softmax: bool = True
    fingerprint: Fingerprint | None = None

    def __post_init__(self) -> None:
        if self.values.dim() not in (2, 3) or self.values.shape[-2] != len(self.layers):
            raise ValueError(
                f"coefficients have shape {list(self.values.shape)}; expected [{len(self.layers)}, N] or [batch,"
                f" {len(self.layers)}, N]"
            )
        if not self.values.numel():
            raise ValueError("there are no coefficients; an analogy needs at least one image of each")
        # Of coefficients in training the loss tells, without waiting for the device at every step.
        if not self.values.requires_grad and not torch.isfinite(self.values).all():
            raise ValueError(
                "the coefficients would hold NaN or infinite values; look at the blend, scales, overrides and images"
                " that they are made of"
            )

    @property
    def num_loras(self) -> int:
        """N."""
        return self.values.shape[-1]

    def for_layer(self, name: str) -> Tensor:
        """[N] or [batch, N] of one layer.

        Raises:
            ValueError: when there is no such layer.
        """
        if name not in self.layers:
            raise ValueError(
                f"there are no coefficients for layer {clipped(name, 80)}; layers are named like"
                f" {clipped(self.layers[0], 80)}"
            )
        return self.values[..., self.layers.index(name), :]

    def describe(self) -> str:
        """What a bank has to have for them, for errors."""
        activation = "softmax" if self.softmax else "tanh"
        first = clipped(self.layers[0], 80)
        return f"{len(self.layers)} layers of {self.num_loras} basis elements ({activation}), from {first} on"

    def mean(self) -> MixingCoefficients:
        """The average over a batch: one edit from several examples."""
        return replace(self, values=self.values.mean(dim=0)) if self.values.dim() == 3 else self

    @staticmethod
    def blend(coefficients: Sequence[MixingCoefficients], weights: Sequence[float] | None = None) -> MixingCoefficients:
        """Weighted sum; weights default to an average. Weights that add to 1 interpolate edits, others extrapolate.

        Raises:
            ValueError: for no coefficients, another number of weights, one that is not finite, or coefficients that
                cannot be of one bank: of other fingerprints, other layers, another N or another activation.
        """
        if not coefficients:
            raise ValueError("there is nothing to blend")
        weights = [1 / len(coefficients)] * len(coefficients) if weights is None else list(weights)
        if len(weights) != len(coefficients):
            raise ValueError(f"{len(coefficients)} coefficients need as many weights; found {len(weights)}")
        weights = [_finite(weight, "blend") for weight in weights]
        first = coefficients[0]
        for other in coefficients[1:]:
            if (other.layers, other.num_loras, other.softmax) != (first.layers, first.num_loras, first.softmax):
                raise ValueError(
                    f"coefficients of different banks do not blend: {first.describe()} and {other.describe()}; encode"
                    " both with the same bank"
                )
        known = [c.fingerprint for c in coefficients if c.fingerprint is not None]
        for other in known[1:]:
            if other != known[0]:
                raise ValueError(
                    f"coefficients of different banks do not blend: {known[0]} and {other}; encode both with one bank"
                )
        values = sum(weight * c.values for weight, c in zip(weights, coefficients, strict=True))
        return replace(first, values=values, fingerprint=known[0] if known else None)

    def temperature(self, t: float) -> MixingCoefficients:
        """Sharpen (t < 1) or flatten (t > 1): with one head, as if the logits had been divided by t.

        Softmax shares become ``|c|^(1/t)`` with their sign, rescaled to the same total per layer; tanh coefficients
        become ``tanh(atanh(c) / t)``, in layers that blending or hands took beyond 1 relative to the largest.

        Raises:
            ValueError: unless t > 0 and finite.
        """
        if not 0 < t < math.inf:
            raise ValueError(f"the temperature is {shown(t)}; it must be a number above 0")
        if t == 1:
            return self
        if not self.softmax:
            largest = self.values.abs().amax(dim=-1, keepdim=True).clamp_min(1)
            logits = (self.values / largest).clamp(-1 + _TANH_EDGE, 1 - _TANH_EDGE).atanh()
            return replace(self, values=(logits / t).tanh() * largest)
        # Relative to the largest, so that small shares to a high power do not all vanish.
        magnitude = self.values.abs()
        relative = magnitude / magnitude.amax(dim=-1, keepdim=True).clamp_min(torch.finfo(magnitude.dtype).tiny)
        return replace(self, values=_same_total(relative.pow(1 / t) * self.values.sign(), self.values))

    def top_k(self, k: int) -> MixingCoefficients:
        """Keep the k strongest elements of every layer; softmax shares are rescaled to the same total.

        Raises:
            ValueError: unless 1 <= k <= N.
        """
        if not 1 <= k <= self.num_loras:
            raise ValueError(f"top-k is {k}; this bank has {self.num_loras} basis elements")
        kept = self.values.abs().topk(k, dim=-1).indices
        values = torch.zeros_like(self.values).scatter(-1, kept, self.values.gather(-1, kept))
        return replace(self, values=_same_total(values, self.values) if self.softmax else values)

    def scale_blocks(self, scales: Iterable[tuple[str, float]]) -> MixingCoefficients:
        """Multiply the layers that each pattern covers; later patterns act on what earlier ones left.

        Raises:
            ValueError: when a pattern covers no layer, or a factor is not finite.
        """
        values = self.values.clone()
        for pattern, factor in scales:
            values[..., match_layers(pattern, self.layers), :] *= _finite(factor, pattern)
        return replace(self, values=values)

    def override(self, table: Iterable[tuple[str, int, float]]) -> MixingCoefficients:
        """Set single coefficients by hand: (layer pattern, basis index from 0, value). Nothing is rescaled.

        Raises:
            ValueError: when a pattern covers no layer, an index is out of range, or a value is not finite.
        """
        values = self.values.clone()
        for pattern, index, value in table:
            if not 0 <= index < self.num_loras:
                raise ValueError(
                    f"{clipped(pattern, 80)} {index}: basis elements are numbered 0 to {self.num_loras - 1}"
                )
            values[..., match_layers(pattern, self.layers), index] = _finite(value, pattern)
        return replace(self, values=values)

    def entropy(self) -> Tensor:
        """Entropy in nats of the shares |c| / sum|c| per layer: [L] or [batch, L]; 0 for a layer of zeros.

        Its gradient is finite everywhere: at a share of 0, which a softmax rounds small ones to, it is taken as 0.
        """
        magnitude = self.values.abs()
        shares = magnitude / magnitude.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(magnitude.dtype).tiny)
        return torch.special.entr(torch.where(shares > 0, shares, 1.0)).sum(dim=-1)

    def effective_number(self) -> Tensor:
        """How many basis elements a layer uses in effect, exp(entropy): from 1 to N. [L] or [batch, L]."""
        return self.entropy().exp()

    def to_json(self) -> str:
        """JSON text that ``from_json`` reads back to the same float32 values.

        Raises:
            ValueError: for a batch.
        """
        self.require_single("JSON")
        rows = {name: row.tolist() for name, row in zip(self.layers, self.values, strict=True)}
        bank = {} if self.fingerprint is None else self.fingerprint.as_document()
        head = {"format": JSON_FORMAT, "version": JSON_VERSION, "softmax": self.softmax}
        return json.dumps({**head, **bank, "layers": rows})

    @classmethod
    def from_json(cls, text: str) -> MixingCoefficients:
        """Read what ``to_json`` wrote.

        Raises:
            ValueError: saying what is wrong with the text.
        """
        try:
            document = json.loads(text)
        except (ValueError, TypeError, RecursionError) as error:  # too many digits, no text, too deep
            raise ValueError(f"the coefficients are not JSON: {clipped(error)}") from error
        if not isinstance(document, dict) or document.get("format") != JSON_FORMAT:
            raise ValueError(f'this JSON does not hold coefficients; expected an object with "format": "{JSON_FORMAT}"')
        return cls.from_document(document)

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> MixingCoefficients:
        """Read the JSON object that ``to_json`` writes.

        Raises:
            ValueError: saying what is wrong with it.
        """
        if document.get("version", JSON_VERSION) != JSON_VERSION:
            raise ValueError(
                f"the coefficients are of version {shown(document['version'])}, and this pack reads {JSON_VERSION};"
                " update the node pack"
            )
        rows = document.get("layers")
        if not isinstance(rows, dict) or not rows or not isinstance(document.get("softmax"), bool):
            raise ValueError(
                'the coefficients need "softmax": true or false, and "layers" with at least one layer'
                f"{misspelt('layers', document) or misspelt('softmax', document)}"
            )
        return cls(_rows_to_tensor(rows), tuple(rows), document["softmax"], Fingerprint.of_document(document))

    def require_single(self, purpose: str) -> None:
        """Raise ValueError for a batch: one analogy is one LoRA."""
        if self.values.dim() == 3:
            raise ValueError(
                f"{purpose} needs one set of coefficients; found a batch of {len(self.values)}: take its mean() first"
            )


def _rows_to_tensor(rows: dict[str, list[float]]) -> Tensor:
    first = next(iter(rows.values()))
    width = len(first) if isinstance(first, list) else 0
    for name, row in rows.items():
        if not (isinstance(row, list) and len(row) == width and width and all(map(is_finite, row))):
            raise ValueError(
                f"expected a list of {width or 'N'} finite numbers, as the first layer has, for layer"
                f" {clipped(name, 80)}; found {shown(row)}"
            )
    return torch.tensor(list(rows.values()), dtype=torch.float32)


def _same_total(values: Tensor, like: Tensor) -> Tensor:
    """Rescale each layer's values so that their magnitudes add up to those of ``like``."""
    total = values.abs().sum(dim=-1, keepdim=True).clamp_min(torch.finfo(values.dtype).tiny)
    return values * (like.abs().sum(dim=-1, keepdim=True) / total)


def _finite(value: float, where: str) -> float:
    if not is_finite(value) or abs(value) > torch.finfo(torch.float32).max:
        raise ValueError(f"{clipped(where, 80)}: {shown(value)} is not a finite number of float32")
    return value
