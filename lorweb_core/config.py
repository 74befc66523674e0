"""What a basis bank is: its shape numbers and the settings that the tensors alone do not tell."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any

from .mixing import MIXINGS
from .query import QUERY_MODES
from .wording import clipped, is_finite, meant, shown

CLIP_VIT_L = "openai/clip-vit-large-patch14"
SIGLIP2 = "google/siglip2-base-patch16-224"
FLUX_KONTEXT = "black-forest-labs/FLUX.1-Kontext-dev"
RELEASED_CANVAS = 512
PROJECTIONS = ("linear", "none")
# How a, a', b and b' lie in the model's pictures: on one 2x2 canvas, or as three references and an answer of its own.
CANVAS, SEPARATE = "canvas", "separate"
LAYOUTS = (CANVAS, SEPARATE)
_LONGEST_NAME = 300


class BankError(ValueError):
    """A bank file or its configuration cannot be used; the message names the file, the layer and what to do."""


@contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Put the file's name before the message of any BankError raised inside, where it is not there yet."""
    try:
        yield
    except BankError as error:
        if str(error).startswith(f"{path}: "):
            raise
        raise BankError(f"{path}: {error}") from error


@dataclass(frozen=True)
class BankConfig:
    """Configuration of a bank.

    Attributes:
        num_loras: N, basis LoRAs per layer.
        rank: r of each of them.
        key_dim: d.
        query_dim: q, width of the analogy query.
        heads: h, attention heads of the mixing; divides d.
        softmax: softmax over the N logits, or tanh of each.
        mixing: how heads combine, "mean" or "sum".
        query_mode: one of ``QUERY_MODES``, which images are encoded and how.
        encoder: hub id of the image encoder the bank was trained with.
        base_model: hub id of the model it adapts.
        alpha: LoRA alpha; the delta is scaled by alpha / rank. None means alpha = rank.
        projection: "linear" (``att_lora_to_q``) or "none" (q = d).
        layout: one of ``LAYOUTS``, how the model was shown its analogies.
    """

    num_loras: int
    rank: int
    key_dim: int
    query_dim: int
    heads: int = 1
    softmax: bool = True
    mixing: str = "mean"
    query_mode: str = "cat-aa'b"
    encoder: str = CLIP_VIT_L
    base_model: str = FLUX_KONTEXT
    alpha: float | None = None
    projection: str = "linear"
    layout: str = CANVAS

    def __post_init__(self) -> None:
        for name in ("num_loras", "rank", "key_dim", "query_dim", "heads"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise BankError(f"{name} is {shown(value)}; expected a whole number of at least 1")
        if self.key_dim % self.heads:
            raise BankError(f"heads is {shown(self.heads)}, which does not divide the key width {self.key_dim}")
        if not isinstance(self.softmax, bool):
            raise BankError(f"softmax is {shown(self.softmax)}; expected true or false")
        _expect_one_of("mixing", self.mixing, MIXINGS)
        _expect_one_of("projection", self.projection, PROJECTIONS)
        _expect_one_of("layout", self.layout, LAYOUTS)
        _expect_one_of("query_mode", self.query_mode, tuple(QUERY_MODES))
        if self.projection == "none" and self.query_dim != self.key_dim:
            raise BankError(
                f"projection is 'none', so the query width must equal the key width; found {self.query_dim} and"
                f" {self.key_dim}"
            )
        for name in ("encoder", "base_model"):
            value = getattr(self, name)
            if not isinstance(value, str) or len(value) > _LONGEST_NAME:
                raise BankError(
                    f"{name} is {shown(value)}; expected a name in quotes, of at most {_LONGEST_NAME} letters"
                )
        if self.alpha is None:
            object.__setattr__(self, "alpha", self.rank)
        if not is_finite(self.alpha) or self.alpha == 0:
            raise BankError(f"alpha is {shown(self.alpha)}; expected a finite number, not 0")
        object.__setattr__(self, "alpha", float(self.alpha))

    @property
    def scale(self) -> float:
        """alpha / rank, the factor on the summed delta."""
        return self.alpha / self.rank

    @property
    def embedding_dim(self) -> int:
        """Numbers that the encoder has to give per encoded image (or per flattened token sequence)."""
        return self.query_dim // QUERY_MODES[self.query_mode].parts

    def check_query(self, shape: Sequence[int]) -> None:
        """Refuse an analogy query of another shape than [q] or [batch, q].

        Raises:
            ValueError: with both shapes.
        """
        q = self.query_dim
        if len(shape) not in (1, 2) or shape[-1] != q:
            raise ValueError(f"the query has shape {list(shape)}; this bank needs [{q}] or [batch, {q}]")

    def to_json(self) -> str:
        """The configuration as it stands in the header of a bank file.

        A header without a layout means canvas, and versions that know no layout read no other.
        """
        settings = asdict(self)
        if self.layout == CANVAS:
            del settings["layout"]
        return json.dumps(settings)


def _expect_one_of(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise BankError(f"{name} is {shown(value)}; expected one of {', '.join(choices)}")


def settings_from_header(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Settings in a bank file's own safetensors header (empty for the released layout, which carries none)."""
    text = metadata.get("lorweb_config")
    if text is None:
        return {}
    try:
        settings = json.loads(text)
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits are ValueErrors
        raise BankError(f"the header entry lorweb_config is not JSON ({clipped(error)})") from error
    known = {field.name for field in fields(BankConfig)}
    unknown = sorted(set(settings) - known) if isinstance(settings, dict) else [type(settings).__name__]
    if unknown:
        raise BankError(
            f"the header entry lorweb_config holds {clipped(', '.join(unknown))}, which this version does not know"
            f"{meant(unknown[0], known)}; update the node pack"
        )
    return settings
