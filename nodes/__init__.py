"""ComfyUI nodes: thin, every ``execute`` calls the core. The only room that knows comfy."""

from comfy_api.latest import ComfyExtension, io

from . import analogy, apply, basis, canvas, coefficients, export
from .folders import register_basis_folder

NODES: list[type[io.ComfyNode]] = [
    node for module in (basis, analogy, coefficients, apply, canvas, export) for node in module.NODES
]


class LoRWeBExtension(ComfyExtension):
    """What ComfyUI asks for the pack's nodes."""

    async def on_load(self) -> None:
        register_basis_folder()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
