"""A ComfyUI pack for tests and the demo: loads a FLUX that is narrower than the released one.

Older ComfyUI takes every FLUX to have 24 attention heads, so its own loader cannot load a small one.
"""

from __future__ import annotations


async def comfy_entrypoint():
    """ComfyUI's entry point."""
    from comfy_api.latest import ComfyExtension

    from .loader import LoadSmallFlux

    class SmallFluxExtension(ComfyExtension):
        async def get_node_list(self):
            return [LoadSmallFlux]

    return SmallFluxExtension()
