"""The basis bank: N small LoRAs per layer, and the one matrix that turns an analogy query into their coefficients."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
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
    iterate_with_progress,
    naming,
    resolve_config,
    sibling_yaml,
    write_bank,
)
from .coefficients import MixingCoefficients
from .config import RELEASED_CANVAS, BankConfig, BankError
from .lora import ComposedLoRA
from .mixing import fold_projection, mixing_coefficients

logger = logging.getLogger(__name__)

Read = Callable[[str], Tensor]


@dataclass(frozen=True)
class BasisLayer:
    """The basis of one linear layer: A [N, in, r], B [N, r, out] and, in the bias variant, bias [N, out].

    Tensors keep the file's dtype and stay in the memory-mapped file until somebody reads them.
    """

    A: Tensor
    B: Tensor
    bias: Tensor | None = None

    @property
    def in_features(self) -> int:
        return self.A.shape[1]

    @property
    def out_features(self) -> int:
        return self.B.shape[2]


class BasisBank:
    """A basis bank. Make one with ``BasisBank.load``.

    Attributes:
        config: its ``BankConfig``.
        layers: diffusers module path (without "transformer.") -> ``BasisLayer``.
        path: the file it came from.
        metadata: the file's safetensors header entries.
        assumed: settings that the file did not give, for which the paper's values stand.
    """

    def __init__(
        self,
        config: BankConfig,
        layers: Mapping[str, BasisLayer],
        folded: Tensor,
        path: Path,
        metadata: Mapping[str, str],
        assumed: tuple[str, ...] = (),
    ):
        self.config = config
        self.layers = dict(layers)
        self.path = path
        self.metadata = dict(metadata)
        self.assumed = assumed
        self._folded = folded  # [L * h * N, q] float32

    @property
    def extra(self) -> dict[str, str]:
        """Header entries beside the configuration, such as the training step."""
        return {k: v for k, v in self.metadata.items() if k not in ("format", "lorweb_config")}

    @property
    def canvas(self) -> int:
        """Side in pixels of the square canvases that it was trained on; the released recipe's if the file is silent."""
        side = self.metadata.get("canvas", "")
        return int(side) if side.isdecimal() else RELEASED_CANVAS

    @classmethod
    def load(cls, path: str | os.PathLike, progress: Progress | None = None) -> BasisBank:
        """Load a bank file, released layout or ours, and check all of it.

        A and B stay memory-mapped; keys and query projections are folded into one float32 matrix [L * h * N, q] and
        their pages released.

        Args:
            progress: called with (layers done, layers in all), first for reading, then for folding.

        Raises:
            BankError: naming the file, the layer, what was expected and found, and what to do.
        """
        path = Path(path)
        factors = BankFile(path)
        with naming(path):
            layout = factors.layout()
            config, assumed = resolve_config(layout, factors.metadata, sibling_yaml(path))
            layers = _read_layers(layout, factors.tensor, progress)
            # A mapping of its own, so that the pages of keys and projections are released with it.
            folded = _fold_layers(layout, config, BankFile(path).tensor, progress)
        if assumed:
            logger.warning(
                "%s does not say %s; using the paper's: softmax %s, query mode %s, %d head(s), encoder %s. Put its"
                " config.yaml beside it as %s to be sure",
                path.name, ", ".join(assumed), config.softmax, config.query_mode, config.heads, config.encoder,
                path.with_suffix(".yaml").name,
            )  # fmt: skip
        return cls(config, layers, folded, path, factors.metadata, tuple(assumed))

    def mix(self, query: Tensor) -> MixingCoefficients:
        """Mixing coefficients of every layer for an analogy query: one matrix product for all layers.

        Args:
            query: [q], or [batch, q].

        Returns:
            Coefficients with values [L, N], or [batch, L, N].

        Raises:
            ValueError: when the query has another width or is not finite.
        """
        self.config.check_query(query.shape)
        z = query.detach().to("cpu", torch.float32)
        if not torch.isfinite(z).all():
            raise ValueError("the query holds NaN or infinite values; check the image encoder and the images")
        logits = (z @ self._folded.mT).unflatten(-1, (len(self.layers), self.config.heads, self.config.num_loras))
        values = mixing_coefficients(logits, self.config.softmax, self.config.mixing)
        return MixingCoefficients(values, tuple(self.layers), self.config.softmax)

    def compose(self, coefficients: MixingCoefficients) -> ComposedLoRA:
        """One ordinary LoRA of rank N * r. It holds this bank and the coefficients, no copy of any factor.

        Raises:
            ValueError: when the coefficients are a batch, or belong to a bank with other layers or another N.
        """
        return ComposedLoRA(self, coefficients)

    def delta(self, name: str, coefficients: MixingCoefficients) -> Tensor:
        """The dense delta ``scale * sum_n c[n] * (A[n] @ B[n]).T`` of one layer: [out, in] float32, the reference."""
        down, up = self.compose(coefficients).factors(name)
        return up @ down

    def save(self, path: str | os.PathLike) -> None:
        """Write our file: the released layout with the configuration in the header.

        The tensors come from the bank's own file, which must still be there, with the same layers.

        Raises:
            BankError: when it is not.
        """
        source = BankFile(self.path)
        with naming(self.path):
            layout = source.layout()
            if list(layout.layers) != list(self.layers):
                raise BankError("the file has changed since the bank was loaded; load it again before saving")
        tensors = {
            layer: {name: source.tensor(f"{PREFIX}{layer}.{name}") for name in shapes}
            for layer, shapes in layout.layers.items()
        }
        write_bank(path, tensors, self.config, self.extra)


def _read_layers(layout: Layout, read: Read, progress: Progress | None) -> dict[str, BasisLayer]:
    """The basis of every layer, checked to be finite."""
    layers = {}
    for layer, shapes in iterate_with_progress(layout.layers.items(), progress, len(layout.layers)):
        tensors = {name: read(f"{PREFIX}{layer}.{name}") for name in shapes if name not in (KEYS, TO_Q)}
        for name, tensor in tensors.items():
            check_finite(layer, name, tensor)
        layers[layer] = BasisLayer(tensors[LORA_A], tensors[LORA_B], tensors.get(BIAS))
    return layers


def _fold_layers(layout: Layout, config: BankConfig, read: Read, progress: Progress | None) -> Tensor:
    """The folded keys and projections of all layers, [L * h * N, q] float32.

    A pass of its own: between its large temporaries nothing is allocated that stays, so the heap does not fragment.
    """
    rows = config.heads * config.num_loras
    folded = torch.empty(len(layout.layers) * rows, config.query_dim)
    for index, (layer, shapes) in enumerate(iterate_with_progress(layout.layers.items(), progress, len(layout.layers))):
        tensors = {name: read(f"{PREFIX}{layer}.{name}") for name in (KEYS, TO_Q) if name in shapes}
        for name, tensor in tensors.items():
            check_finite(layer, name, tensor)
        fold = fold_projection(tensors[KEYS], tensors.get(TO_Q), config.heads)
        folded[index * rows : (index + 1) * rows] = fold.flatten(0, 1)
    return folded
