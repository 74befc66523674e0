"""The composed LoRA: one analogy as one ordinary LoRA, exact at rank N * r or truncated."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from .checkpoint import Progress, iterate_with_progress
from .coefficients import MixingCoefficients
from .export import save_lora
from .mixing import composed_factors

if TYPE_CHECKING:
    from .bank import BasisBank


class LoRA(Protocol):
    """An ordinary LoRA: per layer ``delta = up @ down``, scale already in."""

    @property
    def names(self) -> tuple[str, ...]: ...

    def factors(self, name: str) -> tuple[Tensor, Tensor]: ...

    def bias(self, name: str) -> Tensor | None: ...


class ComposedLoRA:
    """The LoRA that a bank and one set of coefficients make. Factors are formed when asked for, and not kept.

    Raises:
        ValueError: when the coefficients are a batch, or belong to a bank with other layers or another N.
    """

    def __init__(self, bank: BasisBank, coefficients: MixingCoefficients):
        coefficients.require_single("A LoRA")
        if set(coefficients.layers) != set(bank.layers) or coefficients.num_loras != bank.config.num_loras:
            raise ValueError(
                f"these coefficients are for {coefficients.describe()}, but {bank.path.name} has {len(bank.layers)}"
                f" layers of {bank.config.num_loras}, from {next(iter(bank.layers))} on; use the bank that they were"
                " made with"
            )
        self.bank = bank
        self.coefficients = coefficients
        self._rows = dict(zip(coefficients.layers, coefficients.values, strict=True))

    @property
    def names(self) -> tuple[str, ...]:
        """Module paths of the adapted layers."""
        return tuple(self.bank.layers)

    def layer_coefficients(self, name: str) -> Tensor:
        """Mixing coefficients [N] of one layer."""
        return self._rows[name]

    def factors(self, name: str) -> tuple[Tensor, Tensor]:
        """(down [N*r, in], up [out, N*r]) in float32, scale already in."""
        layer = self.bank.layers[name]
        return composed_factors(layer.A.float(), layer.B.float(), self._rows[name], self.bank.config.scale)

    def bias(self, name: str) -> Tensor | None:
        """What the bias variant adds to the bias: ``scale * sum_n c[n] * bias[n]``, [out] float32; else None."""
        bias = self.bank.layers[name].bias
        return None if bias is None else self.bank.config.scale * (self._rows[name] @ bias.float())

    def truncate(self, rank: int, progress: Progress | None = None) -> TruncatedLoRA:
        """The best LoRA of a smaller rank (in the Frobenius norm of each layer), with the error per layer.

        Raises:
            ValueError: unless rank >= 1.
        """
        if rank < 1:
            raise ValueError(f"the rank is {rank}; it must be at least 1")
        factors, errors = {}, {}
        for name in iterate_with_progress(self.names, progress, len(self.names)):
            factors[name], errors[name] = truncate_factors(*self.factors(name), rank)
        biases = {name: bias for name in self.names if (bias := self.bias(name)) is not None}
        return TruncatedLoRA(factors, biases, errors)

    def save(
        self, path: str | os.PathLike, format: str = "diffusers", dtype: torch.dtype = torch.float32,
        metadata: Mapping[str, str] | None = None, progress: Progress | None = None,
    ) -> None:  # fmt: skip
        """Write a plain LoRA file; see ``export.save_lora``."""
        save_lora(self, path, format, dtype, metadata, progress)


class TruncatedLoRA:
    """A LoRA whose factors are held in memory.

    Attributes:
        errors: layer -> relative Frobenius error ``|delta - truncated| / |delta|`` against the exact LoRA.
    """

    def __init__(
        self, factors: Mapping[str, tuple[Tensor, Tensor]], biases: Mapping[str, Tensor], errors: Mapping[str, float]
    ):
        self._factors = dict(factors)
        self._biases = dict(biases)
        self.errors = dict(errors)

    @property
    def names(self) -> tuple[str, ...]:
        """Module paths of the adapted layers."""
        return tuple(self._factors)

    def factors(self, name: str) -> tuple[Tensor, Tensor]:
        """(down [rank, in], up [out, rank]) in float32."""
        return self._factors[name]

    def bias(self, name: str) -> Tensor | None:
        """What is added to the layer's bias: [out] float32, or None."""
        return self._biases.get(name)

    save = ComposedLoRA.save


def truncate_factors(down: Tensor, up: Tensor, rank: int) -> tuple[tuple[Tensor, Tensor], float]:
    """Truncated SVD of ``up @ down`` without forming it: QR of both sides, then the SVD of an R x R core.

    Args:
        down: [R, in]. up: [out, R]. rank: at most this many singular values are kept.

    Returns:
        ((down [k, in], up [out, k]) with the singular values split evenly, relative Frobenius error).
    """
    q_up, r_up = torch.linalg.qr(up)
    q_down, r_down = torch.linalg.qr(down.T)
    u, s, vh = torch.linalg.svd(r_up @ r_down.T, full_matrices=False)
    k = min(rank, len(s))
    root = s[:k].sqrt()
    truncated = root[:, None] * (vh[:k] @ q_down.T), (q_up @ u[:, :k]) * root
    total = s.square().sum()
    error = (s[k:].square().sum() / total).sqrt() if total > 0 else total
    return truncated, float(error)
