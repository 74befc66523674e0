"""ComfyUI-LoRWeB: edit images by example. ComfyUI loads this folder as a package and calls ``comfy_entrypoint``."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """The pack's nodes. Imported here, not above, so that tools can collect the folder without ComfyUI."""
    from .nodes import LoRWeBExtension

    return LoRWeBExtension()
