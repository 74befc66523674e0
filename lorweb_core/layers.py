"""What ComfyUI calls the layers of a bank: per family of models, its modules and the diffusers layers that each stacks.

FLUX.1 and FLUX.2 (Black Forest Labs' names) stack q, k and v; Qwen-Image is named as in diffusers.
ComfyUI maps FLUX.1 and Qwen-Image itself, FLUX.2 since 0.11: its own map comes first wherever there is one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

Stacks = Mapping[str, tuple[str, ...]]  # ComfyUI's module in a block -> the diffusers layers whose outputs it stacks

_ATTENTION: Stacks = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.proj": ("attn.to_add_out",),
}
_QWEN_LAYERS = (
    "attn.to_q", "attn.to_k", "attn.to_v", "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_out.0",
    "attn.to_add_out", "img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2", "img_mod.1",
    "txt_mod.1",
)  # fmt: skip


@dataclass(frozen=True)
class Family:
    """A family of models.

    Attributes:
        name: as their makers write it; the names of its models have it in them.
        comfyui: what ComfyUI calls it.
        blocks: diffusers' list of blocks -> ComfyUI's, and what is in one of its blocks.
        since: the first ComfyUI that knows all of diffusers' names; empty where every one does.
    """

    name: str
    comfyui: str
    blocks: Mapping[str, tuple[str, Stacks]]
    since: str = ""

    def knows(self, layer: str) -> bool:
        """Whether a layer, by its path in diffusers, is one of the family's."""
        block, _, rest = layer.split(".", 2) if layer.count(".") > 1 else (layer, "", "")
        _, stacks = self.blocks.get(block, ("", {}))
        return any(rest in parts for parts in stacks.values())


FLUX_1 = Family("FLUX.1", "flux", {
    "transformer_blocks": ("double_blocks", {
        **_ATTENTION,
        "img_mod.lin": ("norm1.linear",), "txt_mod.lin": ("norm1_context.linear",),
        "img_mlp.0": ("ff.net.0.proj",), "img_mlp.2": ("ff.net.2",),
        "txt_mlp.0": ("ff_context.net.0.proj",), "txt_mlp.2": ("ff_context.net.2",),
    }),
    "single_transformer_blocks": ("single_blocks", {
        "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"), "linear2": ("proj_out",),
        "modulation.lin": ("norm.linear",),
    }),
})  # fmt: skip
FLUX_2 = Family("FLUX.2", "flux2", {
    "transformer_blocks": ("double_blocks", {
        **_ATTENTION,
        "img_mlp.0": ("ff.linear_in",), "img_mlp.2": ("ff.linear_out",),
        "txt_mlp.0": ("ff_context.linear_in",), "txt_mlp.2": ("ff_context.linear_out",),
    }),
    "single_transformer_blocks": ("single_blocks", {
        "linear1": ("attn.to_qkv_mlp_proj",), "linear2": ("attn.to_out",),
    }),
}, since="0.11")  # fmt: skip
QWEN_IMAGE = Family(
    "Qwen-Image",
    "qwen_image",
    {"transformer_blocks": ("transformer_blocks", {layer: (layer,) for layer in _QWEN_LAYERS})},
)
FAMILIES = (FLUX_1, FLUX_2, QWEN_IMAGE)


def family_of(layers: Sequence[str]) -> Family:
    """The family that all layers are of.

    Raises:
        ValueError: naming a layer that none of the families has.
    """
    family = nearest_family(layers)
    for layer in layers:
        if not family.knows(layer):
            raise ValueError(
                f"format 'comfyui' does not know {layer}: it is no linear layer of {family.name}'s blocks; save as"
                " 'diffusers'"
            )
    return family


def nearest_family(layers: Iterable[str]) -> Family:
    """The family that most of the layers are of; the first of those that share them, as attention alone does."""
    return likely_families(layers)[0]


def likely_families(layers: Iterable[str], base: str = "") -> tuple[Family, ...]:
    """The families that most of the layers are of, one as a rule.

    Args:
        base: name of the model that they are of; it decides between families that share the layers.
    """
    layers = tuple(layers)
    known = [sum(map(family.knows, layers)) for family in FAMILIES]
    nearest = [family for family, count in zip(FAMILIES, known, strict=True) if count == max(known)]
    named = [family for family in nearest if family.name.lower() in base.lower()]
    return tuple(named or nearest)


def fused_modules(layers: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """ComfyUI's modules and the diffusers layers that each stacks, for the layers of a LoRA.

    Raises:
        ValueError: for a layer that no family has, or a module of which only some parts are there.
    """
    family, modules, left = family_of(layers), {}, set(layers)
    for block in dict.fromkeys(tuple(layer.split(".")[:2]) for layer in layers):
        target, stacks = family.blocks[block[0]]
        for module, parts in stacks.items():
            stacked = tuple(f"{block[0]}.{block[1]}.{part}" for part in parts)
            there = left.intersection(stacked)
            if there and len(there) < len(stacked):
                missing = ", ".join(sorted(set(stacked) - there))
                raise ValueError(
                    f"format 'comfyui' needs layers that this bank lacks: {module} of {'.'.join(block)} fuses"
                    f" {missing}; save as 'diffusers'"
                )
            if there:
                modules[f"{target}.{block[1]}.{module}"] = stacked
    return modules


def places(widths: Mapping[str, int]) -> dict[str, tuple[str, int | None]]:
    """Layer -> ComfyUI's module, and the first of its outputs that is the layer's; None where it is all of them.

    Args:
        widths: layer -> its outputs. A layer whose place depends on layers that are not there is left out.
    """
    family = nearest_family(widths)
    found = {layer: _place(family, layer, widths) for layer in widths}
    return {layer: place for layer, place in found.items() if place is not None}


def _place(family: Family, layer: str, widths: Mapping[str, int]) -> tuple[str, int | None] | None:
    if not family.knows(layer):
        return None
    block, number, rest = layer.split(".", 2)
    target, stacks = family.blocks[block]
    module, parts = next((module, parts) for module, parts in stacks.items() if rest in parts)
    before = [f"{block}.{number}.{part}" for part in parts[: parts.index(rest)]]
    if not all(name in widths for name in before):
        return None
    start = None if len(parts) == 1 else sum(widths[name] for name in before)
    return f"{target}.{number}.{module}", start
