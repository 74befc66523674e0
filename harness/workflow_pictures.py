"""Pictures of the shipped workflows, as ComfyUI's template browser shows them: ``python -m harness.workflow_pictures``.

Every workflow is opened in the real page with photographs of scikit-image, what needs no diffusion model is run, and
the graph is photographed into a .jpg of the same name. Random models stand in for those that the workflows name.
"""

from __future__ import annotations

import argparse
import io
import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from lorweb_core.layers import FLUX_2, QWEN_IMAGE, Family

from .browser import ComfyPage, Workflow, open_browser, read_workflow
from .comfyui import ROOT, ComfyServer
from .edit_graph import sepia
from .small_models import RANDOM_VIT_L, flux_layers, photographs, random_bank, small_models

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

log = logging.getLogger(__name__)

WORKFLOWS = ROOT / "workflows"
PICTURE_WIDTH = 1600
LARGEST_BYTES = 250_000
_ALWAYS, _NEVER = 0, 2  # a node's mode when it is neither muted nor bypassed, and when it is muted
# Larger text in notes, because the picture is smaller than the page.
_SETTINGS = {"Comfy.TextareaWidget.FontSize": 15, "Comfy.Minimap.Visible": False}
# What a workflow names, and what stands in for it. Empty files are enough for combo boxes that nothing runs from.
BANK, ENCODER = "lorweb/lorweb_model.safetensors", "clip_vision/clip-vit-large-patch14.safetensors"
KLEIN_BANK, QWEN_BANK = "lorweb/klein_bank.safetensors", "lorweb/qwen_edit_bank.safetensors"
_ONLY_NAMED = (
    "diffusion_models/flux1-dev-kontext_fp8_scaled.safetensors",
    "text_encoders/clip_l.safetensors",
    "text_encoders/t5xxl_fp8_e4m3fn_scaled.safetensors",
    "vae/ae.safetensors",
    "diffusion_models/flux-2-klein-base-4b-fp8.safetensors",
    "text_encoders/qwen_3_4b.safetensors",
    "vae/flux2-vae.safetensors",
    "diffusion_models/qwen_image_edit_2509_fp8_e4m3fn.safetensors",
    "text_encoders/qwen_2.5_vl_7b_fp8_scaled.safetensors",
    "vae/qwen_image_vae.safetensors",
)
# Loaders of those files; what comes after them cannot run.
_IDLE_LOADERS = {"UNETLoader", "CLIPLoader", "DualCLIPLoader", "VAELoader"}
_OUTPUT_NODES = {
    "LoRWeBAdjustCoefficients",
    "LoRWeBBlendCoefficients",
    "LoRWeBEncodeAnalogy",
    "LoRWeBFindEdits",
    "LoRWeBLoadEdit",
    "LoRWeBPlotCoefficients",
    "LoRWeBSaveEdit",
    "LoRWeBSaveLoRA",
    "PreviewAny",
    "PreviewImage",
    "SaveImage",
}
_MARGIN, _EDGE = 240, 10  # the page's own bars lie over the edges of the graph
_CHOOSE_IMAGES = """files => {
    for (const node of app.graph.nodes.filter(node => node.type === "LoadImage")) {
        const widget = node.widgets.find(widget => widget.name === "image");
        widget.value = files[node.title.split(":")[0]];
        widget.callback(widget.value);
    }
}"""
_BOUNDS = """() => {
    const boxes = [...app.graph.nodes, ...app.graph.groups].map(item => item.boundingRect ?? item.getBounding());
    return [Math.min(...boxes.map(b => b[0])), Math.min(...boxes.map(b => b[1])),
            Math.max(...boxes.map(b => b[0] + b[2])), Math.max(...boxes.map(b => b[1] + b[3]))];
}"""
_SWITCH_ON = """() => {
    for (const node of app.graph.nodes.filter(node => node.mode === 2)) node.mode = 0;
}"""
_FRAME = """([x, y, margin]) => {
    app.canvas.ds.scale = 1;
    app.canvas.ds.offset = [margin - x, margin - y];
    app.canvas.setDirty(true, true);
}"""


def stand_in_models(folder: Path) -> Path:
    """A models folder with every file that the workflows name; the bank and the encoder work, the others are empty."""
    for name in _ONLY_NAMED:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    # The shapes of real banks but for narrow layers, so that a heatmap has its 494 (100, 720) rows and 32 columns.
    shapes = {
        BANK: flux_layers(16, 19, 38),
        KLEIN_BANK: narrow_layers(FLUX_2, {"transformer_blocks": 5, "single_transformer_blocks": 20}),
        QWEN_BANK: narrow_layers(QWEN_IMAGE, {"transformer_blocks": 60}),
    }
    for name, layers in shapes.items():
        random_bank(folder / name, layers, num_loras=32, rank=4, key_dim=16, query_dim=2304)
    encoder = folder / ENCODER
    encoder.parent.mkdir(parents=True, exist_ok=True)
    encoder.symlink_to(small_models() / "clip_vision" / RANDOM_VIT_L)
    return folder


def narrow_layers(family: Family, blocks: dict[str, int]) -> dict[str, tuple[int, int]]:
    """Every linear layer of a family but the modulations, 16 wide: diffusers module path -> (in, out)."""
    parts = {
        block: [part for stack in stacks.values() for part in stack] for block, (_, stacks) in family.blocks.items()
    }
    names = (f"{block}.{i}.{part}" for block, count in blocks.items() for i in range(count) for part in parts[block])
    return {name: (16, 16) for name in names if not name.endswith("mod.1")}


def upload_photographs(server: ComfyServer) -> dict[str, str]:
    """Put photographs into the input folder: title of a LoadImage node up to its colon -> file name."""
    pictures = photographs()
    first, second, b = (pictures[name] for name in ("astronaut", "coffee", "chelsea"))
    files = {
        "a": ("a.png", first),
        "a'": ("a_prime.png", sepia(first)),
        "c": ("c.png", second),
        "c'": ("c_prime.png", sketch(second)),
        "c', same edit": ("c_same.png", sepia(second)),
        "b": ("b.png", b),
    }
    return {title: server.upload(image, name) for title, (name, image) in files.items()}


def sketch(photograph: np.ndarray) -> np.ndarray:
    """The edit of the second example pair: a pencil drawing, uint8 [H, W, 3] in and out."""
    import numpy as np
    from PIL import Image, ImageFilter

    return np.asarray(Image.fromarray(photograph).convert("L").filter(ImageFilter.CONTOUR).convert("RGB"))


def take_picture(page: ComfyPage, workflow: Workflow, images: dict[str, str]) -> bytes:
    """Open a workflow, show the images, run what can be run, and photograph the graph.

    Args:
        images: title of a LoadImage node up to its colon -> name of an uploaded file.

    Returns:
        The graph as JPEG, ``PICTURE_WIDTH`` pixels wide.
    """
    page.load(workflow)
    page.page.evaluate(_CHOOSE_IMAGES, images)
    left, top, right, bottom = page.page.evaluate(_BOUNDS)
    width, height = round(right - left), round(bottom - top)
    page.page.set_viewport_size({"width": width + 2 * _MARGIN, "height": height + 2 * _MARGIN})
    page.page.evaluate(_FRAME, [left, top, _MARGIN])
    run_all(page, workflow)
    clip = {"x": _MARGIN - _EDGE, "y": _MARGIN - _EDGE, "width": width + 2 * _EDGE, "height": height + 2 * _EDGE}
    return to_jpeg(page.page.screenshot(clip=clip))


def run_all(page: ComfyPage, workflow: Workflow) -> None:
    """Run what can be run of an open workflow, and after that what is muted until the rest has run once."""
    page.run(runnable_outputs(workflow))
    if muted := [node for node in workflow["nodes"] if node["mode"] == _NEVER]:
        page.page.evaluate(_SWITCH_ON)
        for node in muted:
            node["mode"] = _ALWAYS
        page.run(runnable_outputs(workflow))


def runnable_outputs(workflow: Workflow) -> list[int]:
    """Ids of the active output nodes that need no diffusion model."""
    types = {node["id"]: node["type"] for node in workflow["nodes"]}
    idle = {node for node, kind in types.items() if kind in _IDLE_LOADERS}
    while more := {target for _, origin, _, target, *_ in workflow["links"] if origin in idle} - idle:
        idle |= more
    active = [node["id"] for node in workflow["nodes"] if node["mode"] == _ALWAYS]
    return [node for node in active if types[node] in _OUTPUT_NODES and node not in idle]


def to_jpeg(screenshot: bytes) -> bytes:
    """Scale a PNG to ``PICTURE_WIDTH`` and compress it to at most ``LARGEST_BYTES``."""
    from PIL import Image

    picture = Image.open(io.BytesIO(screenshot)).convert("RGB")
    height = round(picture.height * PICTURE_WIDTH / picture.width)
    return _compress(picture.resize((PICTURE_WIDTH, height), Image.Resampling.LANCZOS), LARGEST_BYTES)


def compress(screenshot: bytes, largest: int) -> bytes:
    """A PNG as JPEG of at most so many bytes."""
    from PIL import Image

    return _compress(Image.open(io.BytesIO(screenshot)).convert("RGB"), largest)


def _compress(picture: Image.Image, largest: int) -> bytes:
    for quality in range(90, 0, -5):
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=quality, optimize=True)
        if stream.tell() <= largest:
            break
    return stream.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description="Photograph the shipped workflows in ComfyUI's page.")
    parser.add_argument("names", nargs="*", help="workflows, without .json; all of them when none is named")
    names = parser.parse_args().names or sorted(path.stem for path in WORKFLOWS.glob("*.json"))
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as base:
        models = stand_in_models(Path(base, "models"))
        with ComfyServer(Path(base, "server"), models) as server, open_browser() as browser:
            images = upload_photographs(server)
            for name in names:
                page = ComfyPage(browser, server.url, settings=_SETTINGS)
                path = WORKFLOWS / f"{name}.jpg"
                path.write_bytes(take_picture(page, read_workflow(path.with_suffix(".json")), images))
                page.close()
                log.info("%s: %d kB", path, path.stat().st_size // 1000)


if __name__ == "__main__":
    main()
