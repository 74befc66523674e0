"""The English texts of the nodes as a locale file: ``python -m harness.locales`` writes ``locales/en/nodeDefs.json``.

It is made from the nodes' schemas, and is what the translations beside it are held against.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from .comfyui import ROOT
from .inprocess import load_comfyui

LOCALES = ROOT / "locales"
# Node id -> inputs that only newer ComfyUI has; where it lacks them, their texts stay as they are.
NEWER = {"LoRWeBBlendCoefficients": ("more",)}
# What vue-i18n, which shows the texts, would take for its own syntax.
_SYNTAX = re.compile(r"[{}@|$]")


def english() -> dict[str, dict[str, Any]]:
    """Node id -> its texts, in the layout of ComfyUI's ``nodeDefs.json``."""
    load_comfyui()
    from lorweb_pack.nodes import NODES
    from lorweb_pack.nodes.coefficients import MORE

    texts = {schema.node_id: _texts(schema) for schema in (node.define_schema() for node in NODES)}
    for node, inputs in NEWER.items():
        for name in inputs:
            texts[node]["inputs"].setdefault(name, read("en")[node]["inputs"][name])
    # The page asks for inputs that grow by the names of the group and of the input.
    blend = texts["LoRWeBBlendCoefficients"]["inputs"]
    blend |= {f"more_{name}": {"name": name, "tooltip": blend["more"]["tooltip"]} for name in MORE}
    return texts


def _texts(schema) -> dict[str, Any]:
    return {
        "display_name": escape(schema.display_name),
        "description": escape(schema.description),
        "inputs": {slot.id: {"name": slot.id, "tooltip": escape(slot.tooltip)} for slot in schema.inputs},
        "outputs": {
            str(index): {"name": slot.display_name, "tooltip": escape(slot.tooltip)}
            for index, slot in enumerate(schema.outputs)
        },
    }


def escape(text: str) -> str:
    """A text whose every character stands for itself in vue-i18n."""
    return _SYNTAX.sub(lambda match: f"{{'{match[0]}'}}", text)


def read(language: str) -> dict[str, dict[str, Any]]:
    """The texts of a language as they are in the repository."""
    return json.loads(path_of(language).read_text(encoding="utf-8"))


def path_of(language: str) -> Path:
    return LOCALES / language / "nodeDefs.json"


def main() -> None:
    path = path_of("en")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(english(), ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
