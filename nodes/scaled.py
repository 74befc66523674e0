"""Whether the model's picture comes back in another size, told from the graph before anything is sampled."""

import logging
import re
from typing import Any

import nodes as comfyui_nodes
import torch

from ..lorweb_core.canvas import LATENT_SHRINK

logger = logging.getLogger(__name__)

Graph = dict[str, dict[str, Any]]
SCALES = re.compile("scale|resize", re.IGNORECASE)
# A latent of FLUX; scaling is the same for all channels.
CHANNELS = 16


def require_unscaled(graph: Graph, crop: str, size: tuple[int, int]) -> None:
    """Refuse a graph whose nodes between Canvas (or Analogy References) and Crop Result change the size it gave.

    Only nodes that are told by their names to scale, and by constants how, are looked at: they are tried on a blank
    picture. Behind one that cannot be tried nobody knows the size, and what others do is seen when it is done.

    Args:
        graph: in API format.
        crop: id of the Crop Result.
        size: (height, width) of the picture.

    Raises:
        ValueError: naming the node, and what to do.
    """
    canvas = graph[crop]["inputs"].get("geometry")
    image = graph[crop]["inputs"].get("image")
    if not isinstance(canvas, list) or not isinstance(image, list):
        return
    now, last = size, None
    for node, name, kind in _way(graph, image, str(canvas[0]), set()) or ():
        after = _size_after(graph[node], name, kind, now)
        if after is None:
            return
        now, last = (after, node) if after != now else (now, last)
    if now != size:
        raise ValueError(
            f"{graph[last]['class_type']} (node {last}) makes the picture {now[1]} x {now[0]}, but Crop Result needs it"
            f" as it was planned, {size[1]} x {size[0]}: do not scale it in between; take that node out, and set the"
            " size by megapixels or long_side of Canvas or Analogy References"
        )


def _way(graph: Graph, link: list, canvas: str, dead: set[str]) -> list[tuple[str, str, str]] | None:
    """Nodes that pass images or latents on to the link's end, from the one that gave the size: (id, input's name, its
    type), or None.
    """
    node = str(link[0])
    if node == canvas:
        return []
    if node in dead or node not in graph:
        return None
    dead.add(node)
    for name, value in graph[node]["inputs"].items():
        kind = _type_of(graph, value)
        before = _way(graph, value, canvas, dead) if kind in ("IMAGE", "LATENT") else None
        if before is not None:
            return [*before, (node, name, kind)]
    return None


def _type_of(graph: Graph, value: Any) -> str | None:
    """The type of what comes through a link; None for a constant."""
    if not isinstance(value, list) or str(value[0]) not in graph:
        return None
    origin = comfyui_nodes.NODE_CLASS_MAPPINGS.get(graph[str(value[0])]["class_type"])
    return origin and origin.RETURN_TYPES[value[1]]


def _size_after(node: dict[str, Any], name: str, kind: str, size: tuple[int, int]) -> tuple[int, int] | None:
    """(height, width) of the picture behind a node; None behind one that scales nobody knows how."""
    if not SCALES.search(node["class_type"]):
        return size
    others = {key: value for key, value in node["inputs"].items() if key != name}
    if any(isinstance(value, list) for value in others.values()):
        return None
    shrink = LATENT_SHRINK if kind == "LATENT" else 1
    try:
        result = _run(node["class_type"], {**others, name: _blank(kind, size)})
        height, width = result["samples"].shape[2:] if kind == "LATENT" else result.shape[1:3]
    except Exception as error:  # it is somebody else's node, and only tried
        logger.debug("%s was not tried: %s", node["class_type"], error)
        return None
    return height * shrink, width * shrink


def _blank(kind: str, size: tuple[int, int]) -> Any:
    height, width = size
    if kind == "IMAGE":
        return torch.zeros(1, height, width, 3)
    return {"samples": torch.zeros(1, CHANNELS, height // LATENT_SHRINK, width // LATENT_SHRINK)}


def _run(class_type: str, inputs: dict[str, Any]) -> Any:
    """The first output of a node of either of ComfyUI's kinds."""
    node = comfyui_nodes.NODE_CLASS_MAPPINGS[class_type]
    owner = node if hasattr(node, "define_schema") else node()
    result = getattr(owner, node.FUNCTION)(**inputs)
    return getattr(result, "args", result)[0]
