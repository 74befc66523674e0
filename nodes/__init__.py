"""ComfyUI nodes: thin, every ``execute`` calls the core. The only room that knows comfy."""

from comfy_api.latest import ComfyExtension, io

from . import analogy, apply, basis, canvas, coefficients, export, siglip, starter
from .folders import register_basis_folder

# At import: ComfyUI 0.3 does not call an extension's on_load.
register_basis_folder()

NODES: list[type[io.ComfyNode]] = [
    node for module in (basis, siglip, starter, analogy, coefficients, apply, canvas, export) for node in module.NODES
]


class LoRWeBExtension(ComfyExtension):
    """What ComfyUI asks for the pack's nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
