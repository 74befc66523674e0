"""A workflow file as the graph that ComfyUI's server runs, so that a shipped workflow runs without the page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .comfyui import Graph

NOTES = {"MarkdownNote", "Note"}  # these live in the page only
BYPASSED = 4  # a node's mode
WIDGET_TYPES = {"BOOLEAN", "COMBO", "FLOAT", "INT", "STRING"}


def api_graph(workflow: dict[str, Any], object_info: dict[str, Any]) -> Graph:
    """The nodes of a workflow with their values and links; one without subgraphs. Links lead around bypassed nodes.

    Args:
        object_info: what the server says of its nodes.
    """
    origins = {link: [str(node), slot] for link, node, slot, *_ in workflow["links"]}
    bypassed = [node for node in workflow["nodes"] if node["mode"] == BYPASSED]
    for node in bypassed:
        _lead_around(node, origins)
    graph = {}
    for node in workflow["nodes"]:
        if node["type"] in NOTES or node in bypassed:
            continue
        described = list(widgets(object_info[node["type"]]))
        # Widgets that ComfyUI has added since the workflow was saved stand at their defaults, as in the page.
        defaults = {name: options["default"] for name, _, options in described if "default" in options}
        values = defaults | dict(zip((name for name, *_ in described), node.get("widgets_values") or []))
        linked = {slot["name"]: origins[slot["link"]] for slot in node["inputs"] if slot["link"] is not None}
        graph[str(node["id"])] = {"class_type": node["type"], "inputs": values | linked}
    return graph


def _lead_around(node: dict[str, Any], origins: dict[int, list]) -> None:
    """Let what a bypassed node gives come from its first input of that type, as the page does."""
    for output in node["outputs"]:
        passed = next((slot["link"] for slot in node["inputs"] if slot["type"] == output["type"]), None)
        for link in (output["links"] or []) if passed is not None else []:
            origins[link] = origins[passed]


def described_inputs(info: dict[str, Any]) -> dict[str, tuple[str, dict[str, Any]]]:
    """Name -> (type, options) in the order of the slots; the type of an old-style combo is the list of its values."""
    described = {}
    for name, (kind, *options) in {**info["input"].get("required", {}), **info["input"].get("optional", {})}.items():
        options = options[0] if options else {}
        described[name] = ("COMBO", {**options, "options": kind}) if isinstance(kind, list) else (kind, options)
    return described


def widgets(info: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(name, type, options) of every value that the page saves for a node, in its order."""
    for name, (kind, options) in described_inputs(info).items():
        if kind in WIDGET_TYPES and not options.get("forceInput"):
            yield name, kind, options
            if options.get("control_after_generate"):
                yield "control_after_generate", "COMBO", {"options": ["fixed", "increment", "decrement", "randomize"]}
            if options.get("image_upload"):
                yield "upload", "COMBO", {"options": ["image"]}
