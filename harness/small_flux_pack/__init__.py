"""A ComfyUI pack for tests and the demo: loads a FLUX and an image encoder smaller than the released ones.

Older ComfyUI takes every FLUX to have 24 attention heads, so its own loader cannot load a small one; nor does any
version know a CLIP vision model smaller than ViT-L.
"""

from __future__ import annotations


async def comfy_entrypoint():
    """ComfyUI's entry point."""
    from comfy_api.latest import ComfyExtension

    from .loader import LoadSmallFlux, LoadSmallVision

    class SmallFluxExtension(ComfyExtension):
        async def get_node_list(self):
            return [LoadSmallFlux, LoadSmallVision]

    return SmallFluxExtension()
