"""ComfyUI nodes: thin, every ``execute`` calls the core. The only room that knows comfy.

They use ``comfy_api.latest``: what the versioned modules beside it offer of ``io``, ``ui`` and ``ComfyExtension`` is
that of ``latest`` itself, so to name one of them would hold nothing still.
"""

import importlib
import logging

from comfy_api.latest import ComfyExtension, io

from .errors import in_plain_words
from .folders import register_folders

logger = logging.getLogger(__name__)

MODULES = (
    "basis",
    "siglip",
    "starter",
    "analogy",
    "coefficients",
    "apply",
    "canvas",
    "references",
    "export",
    "edits",
    "refine",
)


def nodes_of(module: str) -> list[type[io.ComfyNode]]:
    """The nodes of a module of this folder; none, and a word in the log, where ComfyUI lacks what that module needs."""
    try:
        nodes = importlib.import_module(f".{module}", __name__).NODES
    except (ImportError, AttributeError) as error:
        logger.error("LoRWeB: the nodes of %s.py are left out, this ComfyUI does not suit them: %s", module, error)
        return []
    for node in nodes:
        node.execute = classmethod(in_plain_words(node.execute.__func__))
    return nodes


NODES = [node for module in MODULES for node in nodes_of(module)]


class LoRWeBExtension(ComfyExtension):
    """What ComfyUI asks for the pack's nodes."""

    def __init__(self):
        self.loaded = False

    async def on_load(self) -> None:
        register_folders()
        self.loaded = True

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        if not self.loaded:  # ComfyUI 0.3 does not call on_load
            await self.on_load()
        return NODES
