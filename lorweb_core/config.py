"""What a basis bank is: its shape numbers and the settings that the tensors alone do not tell."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from .mixing import MIXINGS
from .query import QUERY_MODES

CLIP_VIT_L = "openai/clip-vit-large-patch14"
SIGLIP2 = "google/siglip2-base-patch16-224"
FLUX_KONTEXT = "black-forest-labs/FLUX.1-Kontext-dev"
RELEASED_CANVAS = 512
PROJECTIONS = ("linear", "none")


class BankError(ValueError):
    """A bank file or its configuration cannot be used; the message names the file, the layer and what to do."""


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

    def __post_init__(self) -> None:
        for name in ("num_loras", "rank", "key_dim", "query_dim", "heads"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise BankError(f"{name} is {value!r}; expected a whole number of at least 1")
        if self.key_dim % self.heads:
            raise BankError(f"heads is {self.heads}, which does not divide the key width {self.key_dim}")
        if not isinstance(self.softmax, bool):
            raise BankError(f"softmax is {self.softmax!r}; expected true or false")
        _expect_one_of("mixing", self.mixing, MIXINGS)
        _expect_one_of("projection", self.projection, PROJECTIONS)
        _expect_one_of("query_mode", self.query_mode, tuple(QUERY_MODES))
        if self.projection == "none" and self.query_dim != self.key_dim:
            raise BankError(
                f"projection is 'none', so the query width must equal the key width; found {self.query_dim} and"
                f" {self.key_dim}"
            )
        for name in ("encoder", "base_model"):
            if not isinstance(getattr(self, name), str):
                raise BankError(f"{name} is {getattr(self, name)!r}; expected a name in quotes")
        if self.alpha is None:
            object.__setattr__(self, "alpha", self.rank)
        if not isinstance(self.alpha, int | float) or isinstance(self.alpha, bool) or not math.isfinite(self.alpha):
            raise BankError(f"alpha is {self.alpha!r}; expected a finite number")
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
        """The configuration as it stands in the header of a bank file."""
        return json.dumps(asdict(self))


def _expect_one_of(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise BankError(f"{name} is {value!r}; expected one of {', '.join(choices)}")


def settings_from_header(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Settings in a bank file's own safetensors header (empty for the released layout, which carries none)."""
    text = metadata.get("lorweb_config")
    if text is None:
        return {}
    try:
        settings = json.loads(text)
    except json.JSONDecodeError as error:
        raise BankError(f"the header entry lorweb_config is not JSON ({error})") from error
    known = {field.name for field in fields(BankConfig)}
    unknown = sorted(set(settings) - known) if isinstance(settings, dict) else [type(settings).__name__]
    if unknown:
        raise BankError(
            f"the header entry lorweb_config holds {', '.join(unknown)}, which this version does not know; update the"
            " node pack"
        )
    return settings


# The training configuration that accompanies a released checkpoint: its names -> ours.
_YAML_NAMES = {
    "loras_num": "num_loras",
    "lora_keys_dim": "key_dim",
    "lora_heads": "heads",
    "lora_softmax": "softmax",
    "mixing_coeffs_type": "mixing",
    "query_mode": "query_mode",
    "external_query_model": "encoder",
    "query_projection_type": "projection",
}


def settings_from_yaml(document: Any) -> dict[str, Any]:
    """Settings in the ``config.yaml`` beside a released checkpoint (``config.process[0].network``).

    Raises:
        BankError: when it has no such section, or configures an *internal* query: coefficients that depend on the
            activations cannot be composed into one LoRA.
    """
    try:
        process = document["config"]["process"][0]
        network = process["network"]
        kwargs = network["network_kwargs"]
    except (KeyError, IndexError, TypeError) as error:
        raise BankError("it has no section config.process[0].network.network_kwargs") from error
    kwargs, model = _section("network_kwargs", kwargs), _section("model", process.get("model"))
    if kwargs.get("external_query") is False:
        raise BankError(
            "external_query is false: the coefficients of this bank depend on the activations at every step, so they"
            " cannot be composed into one LoRA; only banks with an image query (external_query: true) work here"
        )
    settings = {ours: kwargs[theirs] for theirs, ours in _YAML_NAMES.items() if kwargs.get(theirs) is not None}
    if network.get("linear") is not None:
        settings["rank"] = network["linear"]
    if network.get("linear_alpha") is not None:
        settings["alpha"] = network["linear_alpha"]
    if model.get("name_or_path"):
        settings["base_model"] = model["name_or_path"]
    return settings


def _section(name: str, section: Any) -> Mapping[str, Any]:
    if not isinstance(section, Mapping | None):
        raise BankError(f"its section {name} is {section!r}; expected settings by name")
    return section or {}
