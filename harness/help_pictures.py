"""Pictures for the help pages: ``python -m harness.help_pictures``.

Each shows a node after a run in a shipped workflow, between the nodes that it is linked with, which are folded up.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from pathlib import Path

from .api_graph import BYPASSED
from .browser import ComfyPage, Workflow, open_browser, read_workflow
from .comfyui import ROOT, ComfyServer
from .workflow_pictures import WORKFLOWS, compress, run_all, stand_in_models, upload_photographs

log = logging.getLogger(__name__)

FOLDER = ROOT / "web" / "docs" / "images"
LARGEST_BYTES = 60_000
_SETTINGS = {"Comfy.Minimap.Visible": False, "Comfy.NodeBadge.NodeSourceBadgeMode": "None"}
# Node -> the workflow that shows it.
SHOWN_IN = {
    "LoRWeBLoadBasis": "edit_by_example",
    "LoRWeBLoadSigLIP": "edit_by_example",
    "LoRWeBEncodeAnalogy": "edit_by_example",
    "LoRWeBBlendCoefficients": "blend_two_edits",
    "LoRWeBAdjustCoefficients": "inspect_coefficients",
    "LoRWeBPlotCoefficients": "inspect_coefficients",
    "LoRWeBApply": "edit_by_example",
    "LoRWeBCanvas": "edit_by_example",
    "LoRWeBAnalogyReferences": "klein_edit_by_example",
    "LoRWeBCropResult": "edit_by_example",
    "LoRWeBSaveLoRA": "export_lora",
    "LoRWeBSaveEdit": "edit_cards",
    "LoRWeBLoadEdit": "edit_cards",
    "LoRWeBFindEdits": "edit_cards",
    "LoRWeBLoadStarter": "starter_cpu",
    "LoRWeBStarterExample": "starter_cpu",
    "LoRWeBRefineEdit": "starter_cpu",  # whose model is there to be run
}
# No workflow needs it; it stands where the other encoder's loader is.
_INSTEAD = {"LoRWeBLoadSigLIP": "CLIPVisionLoader"}
_CHOOSE_IMAGES = """files => {
    for (const node of app.graph.nodes.filter(node => node.type === "LoadImage"))
        node.widgets.find(widget => widget.name === "image").value = files[node.title.split(":")[0]];
}"""
# Three columns: sources, the node, targets. Pictures that a target shows stay open, because they say what came out.
_ARRANGE = """([type, gap, tall]) => {
    const graph = app.graph, node = graph.nodes.find(node => node.type === type);
    const linksOf = slots => slots.flatMap(slot => slot.links ?? slot.link ?? []).map(id => graph.links.get(id));
    const nodesOf = ids => [...new Set(ids)].map(id => graph.getNodeById(id));
    const sources = nodesOf(linksOf(node.inputs).map(link => link.origin_id));
    const targets = nodesOf(linksOf(node.outputs).map(link => link.target_id));
    const shown = [...sources, node, ...targets];
    graph.nodes.filter(other => !shown.includes(other)).forEach(other => graph.remove(other));
    graph.groups.slice().forEach(group => graph.remove(group));
    // A folded node shows the first 20 letters of its title.
    for (const other of shown.filter(other => other !== node))
        other.title = other.title.replace(" (LoRWeB)", "").replace(/(.{10,}?):.*/, "$1");
    node.setSize([node.size[0], Math.min(node.size[1], tall)]);
    const open = other => other === node || other.type === "PreviewImage";
    shown.filter(other => !open(other)).forEach(other => other.collapse(true));
    shown.filter(other => open(other) && other !== node).forEach(other => other.setSize([400, 320]));
    const height = column => column.reduce((sum, other) => sum + (other.flags.collapsed ? 0 : other.size[1]) + gap, 0);
    const tallest = Math.max(...[sources, [node], targets].map(height));
    const place = (column, left) => {
        let top = (tallest - height(column)) / 2;
        for (const other of column) {
            other.pos = [left, top];
            top += (other.flags.collapsed ? 0 : other.size[1]) + gap;
        }
    };
    place(sources, 0);
    place([node], sources.length ? 230 : 0);
    place(targets, node.pos[0] + node.size[0] + 50);
    app.canvas.deselectAll();
    app.canvas.ds.scale = 1;
    app.canvas.ds.offset = [300, 200];
    app.canvas.setDirty(true, true);
}"""
_GAP = 56  # a title, and air
_TALL = 700
_BOX = """() => {
    const boxes = app.graph.nodes.map(node => node.getBounding());
    const [left, top] = app.canvasPosToClientPos(
        [Math.min(...boxes.map(box => box[0])), Math.min(...boxes.map(box => box[1]))]);
    const [right, bottom] = app.canvasPosToClientPos(
        [Math.max(...boxes.map(box => box[0] + box[2])), Math.max(...boxes.map(box => box[1] + box[3]))]);
    return [left, top, right, bottom];
}"""
_EDGE = 12


def take_picture(page: ComfyPage, node: str, images: dict[str, str]) -> bytes:
    """The node amid those that it is linked with, as JPEG.

    Args:
        images: title of a LoadImage node up to its colon -> name of an uploaded file.
    """
    workflow = _with_node_on(read_workflow(WORKFLOWS / f"{SHOWN_IN[node]}.json"), node)
    page.load(workflow)
    page.page.evaluate(_CHOOSE_IMAGES, images)
    run_all(page, workflow)
    if node in _INSTEAD:
        page.load(_with_loader(workflow, node))
    page.page.evaluate(_ARRANGE, [node, _GAP, _TALL])
    page.settle()
    left, top, right, bottom = page.page.evaluate(_BOX)
    clip = {"x": left - _EDGE, "y": top - _EDGE, "width": right - left + 2 * _EDGE, "height": bottom - top + 2 * _EDGE}
    return compress(page.page.screenshot(clip=clip), LARGEST_BYTES)


def _with_node_on(workflow: Workflow, kind: str) -> Workflow:
    """The workflow with a node that it ships bypassed, and says so in the title, switched on."""
    for node in workflow["nodes"]:
        if node["type"] == kind and node["mode"] == BYPASSED:
            node["mode"] = 0
            del node["title"]
    return workflow


def _with_loader(workflow: Workflow, loader: str) -> Workflow:
    for node in workflow["nodes"]:
        if node["type"] == _INSTEAD[loader]:
            node.update(type=loader, properties={}, widgets_values=["siglip2-base-patch16-224.safetensors"])
            node["outputs"][0]["name"] = "clip_vision"
    return workflow


def main() -> None:
    parser = argparse.ArgumentParser(description="Photograph the nodes for their help pages.")
    parser.add_argument("nodes", nargs="*", help=f"{', '.join(SHOWN_IN)}; all of them when none is named")
    nodes = parser.parse_args().nodes or list(SHOWN_IN)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as base:
        models = stand_in_models(Path(base, "models"))
        with ComfyServer(Path(base, "server"), models) as server, open_browser() as browser:
            images = upload_photographs(server)
            page = ComfyPage(browser, server.url, size=(2400, 2000), settings=_SETTINGS)
            for node in nodes:
                path = FOLDER / f"{node}.jpg"
                path.write_bytes(take_picture(page, node, images))
                log.info("%s: %d kB", path, path.stat().st_size // 1000)


if __name__ == "__main__":
    main()
