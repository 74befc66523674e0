"""What a bank is, for people and for machines."""

from __future__ import annotations

from typing import Any

from .bank import BasisBank
from .config import CANVAS, SEPARATE
from .wording import clipped

_MOST_ENTRIES = 30
LAYOUT_WORDS = {
    CANVAS: "canvas (a, a', b and b' on one 2x2 picture: nodes Canvas and Crop Result)",
    SEPARATE: "separate (a, a', b as three references, b' alone: nodes Analogy References and Crop Result)",
}


def summary(bank: BasisBank) -> dict[str, Any]:
    """The facts of a bank as plain JSON types."""
    blocks: dict[str, int] = {}
    for name in bank.layers:
        kind = name.split(".", 1)[0]
        blocks[kind] = blocks.get(kind, 0) + 1
    first = next(iter(bank.layers.values()))
    config = bank.config
    return {
        "file": str(bank.path),
        "bytes": bank.file.size,
        "layers": len(bank.layers),
        "layers_by_kind": blocks,
        "dtype": str(first.A.dtype).removeprefix("torch."),
        "bias": first.bias is not None,
        "composed_rank": config.num_loras * config.rank,
        "assumed": list(bank.assumed),
        "config": {name: getattr(config, name) for name in config.__dataclass_fields__},
        "header": bank.extra,
    }


def describe(bank: BasisBank) -> str:
    """A readable summary of a bank, a fact a line."""
    facts, config = summary(bank), bank.config
    kinds = clipped(", ".join(f"{count} in {kind}" for kind, count in facts["layers_by_kind"].items()))
    lines = [
        f"{bank.path.name}: {facts['bytes'] / 2**20:,.1f} MiB, {facts['dtype']}",
        f"layers: {facts['layers']} ({kinds}){', with bias' if facts['bias'] else ''}",
        f"basis: N = {config.num_loras} LoRAs of rank {config.rank}; an edit is a rank {facts['composed_rank']} LoRA",
        f"mixing: {'softmax' if config.softmax else 'tanh'}, {config.heads} head(s), {config.mixing}; key width"
        f" {config.key_dim}, scale {config.scale:g}",
        f"query: {config.query_mode}, width {config.query_dim}, projection {config.projection}",
        f"encoder: {config.encoder} ({config.embedding_dim} numbers an image)",
        f"base: {config.base_model}",
        f"layout: {LAYOUT_WORDS[config.layout]}",
        *(f"{clipped(name, 80)}: {clipped(value)}" for name, value in list(facts["header"].items())[:_MOST_ENTRIES]),
    ]
    if bank.assumed:
        lines.append(f"not said by the file, so assumed as in the paper: {', '.join(bank.assumed)}")
    return "\n".join(lines)
