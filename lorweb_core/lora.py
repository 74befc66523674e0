"""The composed LoRA: one analogy as one ordinary LoRA, exact at rank N * r or truncated."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from .checkpoint import Progress, iterate_with_progress
from .coefficients import MixingCoefficients
from .config import BankConfig, BankError
from .export import balance, save_lora
from .fingerprint import Fingerprint
from .mixing import composed_factors

# What float16 holds. Weights are below 10: an edit beyond this can only give noise, or NaN.
_LARGEST_DELTA = 65504.0


@dataclass(frozen=True)
class BasisLayer:
    """The basis of one linear layer: A [N, in, r], B [N, r, out] and, in the bias variant, bias [N, out].

    Tensors keep the file's dtype and stay in the memory-mapped file until somebody reads them.

    Attributes:
        bound: what no element of an ``A[n] @ B[n]``, or of the bias, exceeds in magnitude.
    """

    A: Tensor
    B: Tensor
    bias: Tensor | None = None
    bound: float = 0.0

    @property
    def in_features(self) -> int:
        return self.A.shape[1]

    @property
    def out_features(self) -> int:
        return self.B.shape[2]


class Bank(Protocol):
    """What a composed LoRA needs of a bank."""

    config: BankConfig
    layers: dict[str, BasisLayer]
    fingerprint: Fingerprint | None

    @property
    def path(self) -> Path: ...

    def require_unchanged(self) -> None: ...


class ComposedLoRA:
    """The LoRA that a bank and one set of coefficients make. Factors are formed when asked for, and not kept.

    Args:
        progress: called with (layers checked, layers in all).

    Raises:
        ValueError: when the coefficients are a batch, were mixed by another bank, are of other layers or another N, or
            make a delta that half precision does not hold.
    """

    def __init__(self, bank: Bank, coefficients: MixingCoefficients, progress: Progress | None = None):
        coefficients.require_single("A LoRA")
        if set(coefficients.layers) != set(bank.layers) or coefficients.num_loras != bank.config.num_loras:
            raise ValueError(
                f"these coefficients are of another bank: they are for {coefficients.describe()}, but {bank.path.name}"
                f" has {len(bank.layers)} layers of {bank.config.num_loras}, from {next(iter(bank.layers))} on; use the"
                " bank that they were made with"
            )
        if None not in (coefficients.fingerprint, bank.fingerprint) and coefficients.fingerprint != bank.fingerprint:
            raise ValueError(
                f"these coefficients are of another bank: they were mixed by {coefficients.fingerprint}, and this bank"
                f" is {bank.fingerprint}; use the bank that they were made with, or encode the example again"
            )
        self.bank = bank
        self.coefficients = coefficients
        self._rows = dict(zip(coefficients.layers, coefficients.values, strict=True))
        self._check_range(progress)

    @property
    def names(self) -> tuple[str, ...]:
        """Module paths of the adapted layers."""
        return tuple(self.bank.layers)

    def layer_coefficients(self, name: str) -> Tensor:
        """Mixing coefficients [N] of one layer."""
        return self._rows[name]

    def factors(self, name: str) -> tuple[Tensor, Tensor]:
        """(down [N*r, in], up [out, N*r]) in float32, scale already in."""
        self.bank.require_unchanged()
        layer = self.bank.layers[name]
        return composed_factors(layer.A.float(), layer.B.float(), self._rows[name], self.bank.config.scale)

    def bias(self, name: str) -> Tensor | None:
        """What the bias variant adds to the bias: ``scale * sum_n c[n] * bias[n]``, [out] float32; else None."""
        bias = self.bank.layers[name].bias
        return None if bias is None else self.bank.config.scale * (self._rows[name] @ bias.float())

    def _check_range(self, progress: Progress | None) -> None:
        totals = self.coefficients.values.double().abs().sum(dim=-1).tolist()
        layers = zip(self.coefficients.layers, totals, strict=True)
        for name, total in iterate_with_progress(layers, progress, len(totals)):
            largest = self.bank.layers[name].bound * abs(self.bank.config.scale) * total
            if largest > _LARGEST_DELTA and not self._reach(name) <= _LARGEST_DELTA:
                raise BankError(
                    f"{self.bank.path}: the edit is too large for half precision: in layer {name} it may reach"
                    f" {largest:.3g} with these coefficients, whose magnitudes add up to {total:.3g}, and half"
                    f" precision ends at {_LARGEST_DELTA:,.0f}; lower block scales, overrides or blend, or get the bank"
                    " again if it is damaged"
                )

    def _reach(self, name: str) -> float:
        """What no element of one layer's delta, and of what is added to its bias, exceeds in magnitude."""
        bias = self.bias(name)
        return largest_element(*self.factors(name)) + (0.0 if bias is None else float(bias.abs().amax()))

    def truncate(self, rank: int, progress: Progress | None = None) -> TruncatedLoRA:
        """The best LoRA of a smaller rank (in the Frobenius norm of each layer), with the error per layer.

        Raises:
            ValueError: unless rank >= 1.
        """
        if rank < 1:
            raise ValueError(f"the rank is {rank}; it must be at least 1")
        factors, errors = {}, {}
        for name in iterate_with_progress(self.names, progress, len(self.names)):
            # Balanced, so that no square of a factor leaves float32.
            factors[name], errors[name] = truncate_factors(*balance(*self.factors(name)), rank)
        biases = {name: bias for name in self.names if (bias := self.bias(name)) is not None}
        return TruncatedLoRA(factors, biases, errors)

    def save(
        self, path: str | os.PathLike, format: str = "diffusers", dtype: torch.dtype = torch.float32,
        metadata: Mapping[str, str] | None = None, progress: Progress | None = None, replace: bool = True,
    ) -> None:  # fmt: skip
        """Write a plain LoRA file; see ``export.save_lora``."""
        save_lora(self, path, format, dtype, metadata, progress, replace)


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


def largest_element(down: Tensor, up: Tensor) -> float:
    """What no element of ``up @ down`` exceeds in magnitude, by the norms of its rows and columns."""
    return float(up.double().norm(dim=1).amax() * down.double().norm(dim=0).amax())


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
