"""The box "Edit by Example (LoRWeB)", drawn from the workflow ``edit_by_example``: ``python -m harness.blueprint``.

ComfyUI offers every file in ``subgraphs/`` in its node search, under the file's name. What the workflow shows outside
the box (photographs to choose, notes, previews, the saved result) is left out; what a person sets is an input of it.
"""

from __future__ import annotations

import json
import logging
import uuid
from dataclasses import dataclass
from typing import Any

from .browser import Workflow, read_workflow
from .comfyui import ROOT

log = logging.getLogger(__name__)

SOURCE = ROOT / "workflows" / "edit_by_example.json"
BLUEPRINT = ROOT / "subgraphs" / "Edit by Example (LoRWeB).json"
DESCRIPTION = (
    "Shows FLUX.1-Kontext one picture before and after an edit, and repeats the edit on another: three images, a prompt"
    " and a strength in, b' out."
)
_OUTSIDE = {"ImageStitch", "LoadImage", "MarkdownNote", "PreviewImage", "SaveImage"}
_INPUT_NODE, _OUTPUT_NODE = -10, -20  # ids that the frontend gives to the two ends of every subgraph
_INPUT_POSITION, _OUTPUT_POSITION = (60, 90), (2560, 90)
_SLOT_HEIGHT = 20
_BOX_SIZE = [480, 460]


@dataclass(frozen=True)
class Input:
    """An input of the box: an image, or a widget of a node inside.

    Attributes:
        name: in saved workflows; never changes once released.
        label: what people read.
        node: type of the node whose widget it is; for an image, the title of its LoadImage up to the colon.
        widget: the widget's name; empty for an image.
    """

    name: str
    label: str
    type: str
    node: str
    widget: str = ""


INPUTS = (
    Input("a", "a: before", "IMAGE", "a"),
    Input("a_prime", "a': after", "IMAGE", "a'"),
    Input("b", "b: to edit", "IMAGE", "b"),
    Input("prompt", "prompt", "STRING", "CLIPTextEncode", "text"),
    Input("strength", "strength", "FLOAT", "LoRWeBApply", "strength"),
    Input("seed", "seed", "INT", "KSampler", "seed"),
    Input("basis_name", "basis bank", "COMBO", "LoRWeBLoadBasis", "basis_name"),
    Input("unet_name", "FLUX model", "COMBO", "UNETLoader", "unet_name"),
    Input("clip_vision_name", "CLIP vision", "COMBO", "CLIPVisionLoader", "clip_name"),
    Input("clip_name1", "CLIP 1", "COMBO", "DualCLIPLoader", "clip_name1"),
    Input("clip_name2", "CLIP 2", "COMBO", "DualCLIPLoader", "clip_name2"),
    Input("vae_name", "VAE", "COMBO", "VAELoader", "vae_name"),
)


def draw_blueprint(workflow: Workflow) -> Workflow:
    """The box, as a workflow (UI format) of one subgraph node.

    Args:
        workflow: ``edit_by_example`` in UI format.
    """
    outside = {node["id"]: node for node in workflow["nodes"] if node["type"] in _OUTSIDE}
    nodes = [node for node in workflow["nodes"] if node["id"] not in outside]
    links = _links_inside(workflow, outside)
    values = [_connect(nodes, links, index, entry) for index, entry in enumerate(INPUTS) if entry.widget]
    _forget_cut_links(nodes, {link["id"] for link in links})
    subgraph = _subgraph(nodes, links)
    return {
        "id": _uuid("workflow"),
        "revision": 0,
        "last_node_id": 1,
        "last_link_id": 0,
        "nodes": [_box(subgraph, values)],
        "links": [],
        "groups": [],
        "definitions": {"subgraphs": [subgraph]},
        "config": {},
        "extra": {"BlueprintDescription": DESCRIPTION},
        "version": 0.4,
    }


def _uuid(name: str) -> str:
    """The same for every drawing, so that a redrawn file differs only where the box does."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"comfyui-lorweb/blueprint/{name}"))


def _links_inside(workflow: Workflow, outside: dict[int, dict]) -> list[dict[str, Any]]:
    """Links between nodes of the box, and those to its ends in place of LoadImage and SaveImage."""
    images = {entry.node: index for index, entry in enumerate(INPUTS) if not entry.widget}
    keys = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    inside = []
    for link in (dict(zip(keys, values)) for values in workflow["links"]):
        origin, target = outside.get(link["origin_id"]), outside.get(link["target_id"])
        if target is not None and target["type"] == "SaveImage":
            inside.append({**link, "target_id": _OUTPUT_NODE, "target_slot": 0})
        elif target is None and origin is None:
            inside.append(link)
        elif target is None:
            index = images[origin["title"].split(":")[0]]
            inside.append({**link, "origin_id": _INPUT_NODE, "origin_slot": index})
    return inside


def _connect(nodes: list[dict], links: list[dict], index: int, entry: Input) -> Any:
    """Join a widget to the box's input; returns the widget's value.

    The frontend puts a node's sockets first and its widgets after them; those in ``INPUTS`` come first.
    """
    (node,) = (node for node in nodes if node["type"] == entry.node)
    link = {"id": max(link["id"] for link in links) + 1, "origin_id": _INPUT_NODE, "origin_slot": index}
    links.append({**link, "target_id": node["id"], "target_slot": len(node["inputs"]), "type": entry.type})
    position = sum("widget" in slot for slot in node["inputs"])
    slot = {"name": entry.widget, "type": entry.type, "widget": {"name": entry.widget}, "link": link["id"]}
    node["inputs"].append(slot)
    return node["widgets_values"][position]


def _forget_cut_links(nodes: list[dict], kept: set[int]) -> None:
    for output in (output for node in nodes for output in node["outputs"]):
        output["links"] = [link for link in output["links"] or [] if link in kept]


def _subgraph(nodes: list[dict], links: list[dict]) -> dict[str, Any]:
    inputs = [
        {
            "id": _uuid(entry.name),
            "name": entry.name,
            "type": entry.type,
            "linkIds": [link["id"] for link in links if _leaves(link, index)],
            **_shown(entry.label),
            "pos": _slot_position(_INPUT_POSITION, index),
        }
        for index, entry in enumerate(INPUTS)
    ]
    result = {
        "id": _uuid("b_prime"),
        "name": "b_prime",
        "type": "IMAGE",
        "linkIds": [link["id"] for link in links if link["target_id"] == _OUTPUT_NODE],
        **_shown("b'"),
        "pos": _slot_position(_OUTPUT_POSITION, 0),
    }
    last = {"lastNodeId": max(node["id"] for node in nodes), "lastLinkId": max(link["id"] for link in links)}
    return {
        "id": _uuid("subgraph"),
        "version": 1,
        "state": {"lastGroupId": 0, **last, "lastRerouteId": 0},
        "revision": 0,
        "config": {},
        "name": BLUEPRINT.stem,
        "inputNode": {"id": _INPUT_NODE, "bounding": [*_INPUT_POSITION, 130, _SLOT_HEIGHT * (len(inputs) + 2)]},
        "outputNode": {"id": _OUTPUT_NODE, "bounding": [*_OUTPUT_POSITION, 130, _SLOT_HEIGHT * 3]},
        "inputs": inputs,
        "outputs": [result],
        "widgets": [],
        "nodes": nodes,
        "groups": [],
        "links": links,
        "extra": {},
    }


def _shown(label: str) -> dict[str, str]:
    """LiteGraph shows a slot's label; Nodes 2.0 its localized name."""
    return {"label": label, "localized_name": label}


def _leaves(link: dict[str, Any], index: int) -> bool:
    return (link["origin_id"], link["origin_slot"]) == (_INPUT_NODE, index)


def _slot_position(corner: tuple[int, int], index: int) -> list[int]:
    return [corner[0] + _SLOT_HEIGHT, corner[1] + _SLOT_HEIGHT * (index + 1)]


def _box(subgraph: dict[str, Any], values: list[Any]) -> dict[str, Any]:
    """The node that people place.

    Without ``proxyWidgets``: the frontend shows the inputs that are widgets by itself, and newer ones lose the values
    of those that the property names.
    """
    slots = []
    for entry in INPUTS:
        slot = {"name": entry.name, **_shown(entry.label), "type": entry.type, "link": None}
        slots.append(slot | ({"widget": {"name": entry.name}} if entry.widget else {}))
    return {
        "id": 1,
        "type": subgraph["id"],
        "pos": [0, 0],
        "size": _BOX_SIZE,
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": slots,
        "outputs": [{"name": "b_prime", **_shown("b'"), "type": "IMAGE", "links": []}],
        "title": subgraph["name"],
        "properties": {},
        "widgets_values": values,
    }


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    blueprint = draw_blueprint(read_workflow(SOURCE))
    BLUEPRINT.parent.mkdir(exist_ok=True)
    # ComfyUI reads it in the encoding of the system.
    BLUEPRINT.write_text(json.dumps(blueprint, indent=2) + "\n", encoding="ascii")
    log.info("%s: %d nodes", BLUEPRINT, len(blueprint["definitions"]["subgraphs"][0]["nodes"]))


if __name__ == "__main__":
    main()
