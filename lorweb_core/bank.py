"""The basis bank: N small LoRAs per layer, and the one matrix that turns an analogy query into their coefficients."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .checkpoint import (
    BIAS,
    KEYS,
    LORA_A,
    LORA_B,
    PREFIX,
    TO_Q,
    BankFile,
    Layout,
    Progress,
    check_finite,
    find_settings,
    iterate_with_progress,
    resolve_config,
    write_bank,
)
from .coefficients import MixingCoefficients
from .config import RELEASED_CANVAS, BankConfig, BankError, naming
from .fingerprint import Fingerprint, FingerprintTaker
from .lora import BasisLayer, ComposedLoRA
from .mixing import attention_logits, fold_projection, mixing_coefficients
from .released import shared_yamls

logger = logging.getLogger(__name__)

Read = Callable[[str], Tensor]
# A bank whose products exceed float32, or whose folded keys leave no room to multiply them with a query, is damaged.
_LARGEST_PRODUCT = torch.finfo(torch.float32).max
_LARGEST_FOLDED = 1e30
_LARGEST_CANVAS = 16384


@dataclass(frozen=True)
class _Logits:
    """Queries [..., q] -> logits of all layers [..., L, h, N], and the tensors that they are multiplied with."""

    of: Callable[[Tensor], Tensor]
    tensors: tuple[Tensor, ...]


class BasisBank:
    """A basis bank. Make one with ``BasisBank.load``.

    Attributes:
        config: its ``BankConfig``.
        layers: diffusers module path (without "transformer.") -> ``BasisLayer``.
        file: the file it came from, held open.
        assumed: settings that the file did not give, for which the paper's values stand.
        fingerprint: what its coefficients are known by; None where nobody took it.
    """

    def __init__(
        self,
        config: BankConfig,
        layers: Mapping[str, BasisLayer],
        logits: _Logits,
        file: BankFile,
        assumed: tuple[str, ...] = (),
        fingerprint: Fingerprint | None = None,
    ):
        self.config = config
        self.layers = dict(layers)
        self.file = file
        self.assumed = assumed
        self.fingerprint = fingerprint
        self._logits = logits

    @property
    def path(self) -> Path:
        """The file's path."""
        return self.file.path

    @property
    def metadata(self) -> dict[str, str]:
        """The file's safetensors header entries."""
        return self.file.metadata

    @property
    def tensors(self) -> list[Tensor]:
        """All that it holds: the basis, mapped or in memory, and what queries are multiplied with."""
        basis = [tensor for layer in self.layers.values() for tensor in (layer.A, layer.B, layer.bias)]
        return [*(tensor for tensor in basis if tensor is not None), *self._logits.tensors]

    @property
    def extra(self) -> dict[str, str]:
        """Header entries beside the configuration, such as the training step."""
        return {k: v for k, v in self.metadata.items() if k not in ("format", "lorweb_config")}

    @property
    def canvas(self) -> int:
        """Side in pixels of the squares that it was trained to make; the released recipe's if the file is silent.

        In the canvas layout that is a whole canvas, in the separate layout b' alone.
        """
        side = self.metadata.get("canvas", "")
        meant = side.isdecimal() and len(side) < 10 and 1 <= int(side) <= _LARGEST_CANVAS
        return int(side) if meant else RELEASED_CANVAS

    @classmethod
    def load(cls, path: str | os.PathLike, progress: Progress | None = None, mmap: bool = True) -> BasisBank:
        """Load a bank file, released layout or ours, and check all of it.

        A and B stay memory-mapped. Keys and query projections are folded into one float32 matrix [L * h * N, q] where
        that is the smaller, and their pages released.

        Args:
            progress: called with (layers done, layers in all), first for reading, then for folding.
            mmap: False reads all tensors into memory: a mapped file that is overwritten while it is read kills the
                process.

        Raises:
            BankError: naming the file, the layer, what was expected and found, and what to do.
        """
        file, taker = BankFile(path, mmap), FingerprintTaker()
        with naming(file.path):
            layout = file.layout()
            config, assumed = resolve_config(layout, *find_settings(file.metadata, file.path))
            layers = _read_layers(layout, config, file.tensor, progress, taker)
        # A mapping of its own, so that the pages of keys and projections are released with it.
        keys_file = file.reopened()
        with naming(file.path):
            logits = _logits_of(layout, config, keys_file.tensor, progress, taker)
        bank = cls(config, layers, logits, file, tuple(assumed), taker.fingerprint(file.path.name))
        if assumed:
            logger.warning(_explain_assumed(bank))
        return bank

    def mix(self, query: Tensor) -> MixingCoefficients:
        """Mixing coefficients of every layer for an analogy query: one matrix product for all layers, as a rule.

        Args:
            query: [q], or [batch, q].

        Returns:
            Coefficients with values [L, N], or [batch, L, N].

        Raises:
            ValueError: when the query has another width or is not finite.
            BankError: as ``require_unchanged``.
        """
        self.require_unchanged()
        self.config.check_query(query.shape)
        z = query.detach().to("cpu", torch.float32)
        if not torch.isfinite(z).all():
            raise ValueError("the query holds NaN or infinite values; check the image encoder and the images")
        return MixingCoefficients(self.values(z), tuple(self.layers), self.config.softmax, self.fingerprint)

    def values(self, query: Tensor) -> Tensor:
        """Coefficients [..., L, N] of queries [..., q] in float32 on the CPU, unchecked and differentiable."""
        return mixing_coefficients(self._logits.of(query), self.config.softmax, self.config.mixing).float()

    def compose(self, coefficients: MixingCoefficients, progress: Progress | None = None) -> ComposedLoRA:
        """One ordinary LoRA of rank N * r. It holds this bank and the coefficients, no copy of any factor.

        Args:
            progress: called with (layers checked, layers in all).

        Raises:
            ValueError: when the coefficients are a batch, were mixed by another bank, are of other layers or another
                N, or make a delta that half precision does not hold.
            BankError: as ``require_unchanged``.
        """
        self.require_unchanged()
        return ComposedLoRA(self, coefficients, progress)

    def require_unchanged(self) -> None:
        """Refuse to read tensors of a mapped file that was written into, which may kill the process.

        Raises:
            BankError: saying what to do.
        """
        if self.file.mapped:
            self.file.require_unchanged()

    def delta(self, name: str, coefficients: MixingCoefficients) -> Tensor:
        """The dense delta ``scale * sum_n c[n] * (A[n] @ B[n]).T`` of one layer: [out, in] float32, the reference."""
        down, up = self.compose(coefficients).factors(name)
        return up @ down

    def save(self, path: str | os.PathLike) -> None:
        """Write our file: the released layout with the configuration in the header.

        The tensors come from the bank's own file, which must still be there.

        Raises:
            BankError: when it is not, or was written into.
        """
        self.file.require_named()
        tensors = {
            layer: {name: self.file.tensor(f"{PREFIX}{layer}.{name}") for name in shapes}
            for layer, shapes in self.file.layout().layers.items()
        }
        write_bank(path, tensors, self.config, self.extra)


def _explain_assumed(bank: BasisBank) -> str:
    config, path = bank.config, bank.path
    text = (
        f"{path.name} does not say {', '.join(bank.assumed)}; using the paper's: softmax {config.softmax}, query mode"
        f" {config.query_mode}, {config.heads} head(s), mixing {config.mixing}, encoder {config.encoder}. Put its"
        f" config.yaml beside it as {path.with_suffix('.yaml').name} to be sure"
    )
    unclaimed = [] if path.with_suffix(".yaml").is_file() else shared_yamls(path)
    return text + (f" ({unclaimed[0]} may be another bank's)" if unclaimed and "query_mode" in bank.assumed else "")


def _read_layers(
    layout: Layout, config: BankConfig, read: Read, progress: Progress | None, taker: FingerprintTaker
) -> dict[str, BasisLayer]:
    """The basis of every layer, checked to be finite, and to remain so when multiplied."""
    layers = {}
    for layer, shapes in iterate_with_progress(layout.layers.items(), progress, len(layout.layers)):
        tensors = {name: read(f"{PREFIX}{layer}.{name}") for name in shapes if name not in (KEYS, TO_Q)}
        largest = {name: check_finite(layer, name, tensor) for name, tensor in tensors.items()}
        for name, tensor in tensors.items():
            taker.add(f"{layer}.{name}", tensor)
        bound = max(config.rank * largest[LORA_A] * largest[LORA_B], largest.get(BIAS, 0.0))
        if bound * abs(config.scale) * config.num_loras > _LARGEST_PRODUCT:
            raise BankError(
                f"{LORA_A} times {LORA_B} of layer {layer} are more than float32 holds: they reach"
                f" {largest[LORA_A]:.3g} and {largest[LORA_B]:.3g}, with a scale of {config.scale:.3g}; the file is"
                " damaged, get it again"
            )
        layers[layer] = BasisLayer(tensors[LORA_A], tensors[LORA_B], tensors.get(BIAS), bound)
    return layers


def _logits_of(
    layout: Layout, config: BankConfig, read: Read, progress: Progress | None, taker: FingerprintTaker
) -> _Logits:
    """What makes the logits of all layers.

    A pass of its own: between its large temporaries nothing is allocated that stays, so the heap does not fragment.
    """
    shape = (len(layout.layers), config.heads, config.num_loras)
    n, d, q = config.num_loras, config.key_dim, config.query_dim
    checked = _checked_keys(layout, read, progress, taker)
    if not layout.has_projection or config.heads * n * q > d * (n + q):
        pairs = list(checked)
        held = tuple(tensor for pair in pairs for tensor in pair[1:] if tensor is not None)
        return _Logits(
            lambda z: torch.stack([_layer_logits(*pair[1:], z, config.heads) for pair in pairs], dim=-3), held
        )
    rows = config.heads * n
    folded = torch.empty(len(layout.layers) * rows, q)
    for index, (layer, keys, to_q) in enumerate(checked):
        part = fold_projection(keys, to_q, config.heads).flatten(0, 1)
        if not part.abs().amax() <= _LARGEST_FOLDED:
            raise BankError(
                f"{KEYS} times {TO_Q} of layer {layer} reach {float(part.abs().amax()):.3g}; the file is damaged or"
                " its training diverged, use another checkpoint"
            )
        folded[index * rows : (index + 1) * rows] = part
    return _Logits(lambda z: (z @ folded.mT).unflatten(-1, shape), (folded,))


def _checked_keys(
    layout: Layout, read: Read, progress: Progress | None, taker: FingerprintTaker
) -> Iterator[tuple[str, Tensor, Tensor | None]]:
    """(layer, keys [N, d], projection [d, q] or None) of every layer, checked to be finite."""
    for layer, shapes in iterate_with_progress(layout.layers.items(), progress, len(layout.layers)):
        tensors = {name: read(f"{PREFIX}{layer}.{name}") for name in (KEYS, TO_Q) if name in shapes}
        for name, tensor in tensors.items():
            check_finite(layer, name, tensor)
            taker.add(f"{layer}.{name}", tensor)
        yield layer, tensors[KEYS], tensors.get(TO_Q)


def _layer_logits(keys: Tensor, to_q: Tensor | None, z: Tensor, heads: int) -> Tensor:
    """Logits [..., h, N] of one layer in float64, by its keys and projection as they are in the file."""
    u = z.double() if to_q is None else z.double() @ to_q.double().mT
    return attention_logits(keys.double(), u, heads)
