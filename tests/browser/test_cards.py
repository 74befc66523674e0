"""An edit card dropped on Load Edit, in the real page and both renderers, makes the picture that the edit made."""

import shutil

import numpy as np
import pytest
from PIL import Image

from harness.browser import read_workflow
from harness.comfyui import ROOT
from lorweb_core.card import is_card

from .small import find
from .test_nodes import faults
from .test_renderers import nodes_2, rendered  # noqa: F401  (fixtures)

pytestmark = pytest.mark.browser

# What a person does by hand: a node more, or one in another's place.
_ADD_SAVE_EDIT = """() => {
    const graph = app.graph, node = LiteGraph.createNode("LoRWeBSaveEdit");
    graph.add(node);
    node.pos = [1440, 1100];
    graph.findNodesByType("LoRWeBEncodeAnalogy")[0].connect(0, node, 0);
    node.widgets.find(widget => widget.name === "filename_prefix").value = "lorweb_edits/dropped";
    return node.id;
}"""
_LOAD_IN_PLACE_OF_ENCODE = """() => {
    const graph = app.graph, node = LiteGraph.createNode("LoRWeBLoadEdit");
    const apply = graph.findNodesByType("LoRWeBApply")[0];
    for (const type of ["LoRWeBEncodeAnalogy", "LoRWeBSaveEdit"]) graph.remove(graph.findNodesByType(type)[0]);
    graph.add(node);
    node.pos = [460, 90];
    node.connect(0, apply, apply.inputs.findIndex(input => input.name === "coefficients"));
    app.canvas.centerOnNode(node);
    app.canvas.setDirty(true, true);
    return node.id;
}"""
_MIDDLE = """id => {
    const box = document.querySelector(`[data-node-id="${id}"]`)?.getBoundingClientRect();
    if (box) return [box.x + box.width / 2, box.y + box.height / 2];
    const node = app.graph.getNodeById(id);
    return app.canvasPosToClientPos([node.pos[0] + node.size[0] / 2, node.pos[1] + node.size[1] / 2]);
}"""
_CHOSEN = "id => app.graph.getNodeById(id).widgets.find(widget => widget.name === 'edit').value"


def result(page, comfy, node):
    """The newest picture of a Save Image node."""
    (image,) = page.page.evaluate("id => app.nodeOutputs[id].images", node["id"])
    return np.asarray(Image.open(comfy.output_folder / image["subfolder"] / image["filename"]))


def test_a_card_dropped_on_load_edit_makes_the_same_picture(rendered, comfy, tmp_path):  # noqa: F811
    workflow = read_workflow(ROOT / "workflows" / "starter_cpu.json")
    save = find(workflow, "SaveImage")
    rendered.load(workflow)
    rendered.page.evaluate(_ADD_SAVE_EDIT)
    rendered.press_run()
    expected = result(rendered, comfy, save)
    card = max((comfy.output_folder / "lorweb_edits").glob("dropped_*.png"))
    load = rendered.page.evaluate(_LOAD_IN_PLACE_OF_ENCODE)
    rendered.settle()
    middle = rendered.page.evaluate(_MIDDLE, load)
    mine = shutil.copy(card, tmp_path / f"mine {card.stem}.png")
    rendered.drop(mine, *middle)
    rendered.page.wait_for_function(f"id => ({_CHOSEN})(id) === '{mine.name}'", arg=load)
    assert is_card(comfy.base / "input" / mine.name), "the card came to the server as it was"
    rendered.press_run()
    with Image.open(card) as picture:
        assert rendered.pictures(load)[-1] == picture.size
    assert np.array_equal(result(rendered, comfy, save), expected)
    assert len(rendered.serialize()["nodes"]) == len(workflow["nodes"]), "no workflow was opened out of the card"
    assert faults(rendered) == []
