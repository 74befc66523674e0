"""Nodes 2.0, the renderer that is the default of the newest web page of ComfyUI on PyPI."""

import itertools

import pytest
from PIL import Image

from harness.blueprint import BLUEPRINT, INPUTS
from harness.browser import ComfyPage, read_workflow
from harness.comfyui import ROOT

from .small import WORKFLOWS, find

pytestmark = [pytest.mark.browser, pytest.mark.pages("newest")]

_VALUES = {"prompt": "Draw it.", "strength": 0.7, "seed": 5, "vae_name": "other.safetensors"}
_SET = """values => app.graph.nodes[0].widgets.filter(widget => widget.name in values)
    .forEach(widget => { widget.value = values[widget.name]; })"""
_WIDGETS = "() => app.graph.nodes[0].widgets.map(widget => [widget.name, widget.value])"
# (left, top, right, bottom) of every node as the document shows it, in the graph's own units.
_BOXES = """() => {
    const {scale} = app.canvas.ds;
    return Object.fromEntries([...document.querySelectorAll("[data-node-id]")].map(node => {
        const {left, top, right, bottom} = node.getBoundingClientRect();
        return [node.dataset.nodeId, [left, top, right, bottom].map(side => side / scale)];
    }));
}"""
_SELECT = """type => {
    const node = app.graph.nodes.find(node => node.type === type);
    app.canvas.deselectAll();
    app.canvas.selectNode(node);
    app.canvas.centerOnNode(node);
}"""


@pytest.fixture(scope="module")
def newest(browser, comfy):
    """The newest page, in the renderer that is its default: Nodes 2.0."""
    page = ComfyPage(browser, comfy.url, settings={"Comfy.VueNodes.Enabled": True})
    yield page
    page.close()


def test_the_starter_opens_and_runs(newest):
    workflow = read_workflow(ROOT / "workflows" / "starter_cpu.json")
    newest.load(workflow)
    assert newest.missing_types() == [] and newest.errors == []
    newest.press_run()
    example = find(workflow, "LoRWeBStarterExample")["widgets_values"][0]
    with Image.open(ROOT / "starter" / "examples" / example / "b.png") as picture:
        size = picture.size
    saved = find(workflow, "SaveImage")["id"]
    # It also asks for what an older server does not have, and says so in the console.
    assert newest.pictures(saved) == [size]


def test_a_node_opens_its_help_page(newest):
    newest.load(read_workflow(ROOT / "workflows" / "starter_cpu.json"))
    newest.page.evaluate(_SELECT, "LoRWeBCanvas")
    newest.page.get_by_test_id("info-button").click()
    newest.page.get_by_role("heading", name="Mistakes and cures").wait_for()
    newest.page.get_by_test_id("info-button").click()


def test_the_box_keeps_its_values_when_saved_and_opened_again(newest):
    newest.load(read_workflow(BLUEPRINT))
    newest.page.evaluate(_SET, _VALUES)
    saved = newest.serialize()
    newest.load(read_workflow(WORKFLOWS[0]))
    newest.load(saved)
    shown = dict(newest.page.evaluate(_WIDGETS))
    assert list(shown) == [entry.name for entry in INPUTS if entry.widget]
    assert {name: shown[name] for name in _VALUES} == _VALUES
    inside = {node["class_type"]: node["inputs"] for node in newest.prompt().values()}
    assert inside["CLIPTextEncode"]["text"] == "Draw it." and inside["KSampler"]["seed"] == 5
    assert inside["LoRWeBApply"]["strength"] == 0.7 and inside["VAELoader"]["vae_name"] == "other.safetensors"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_nodes_do_not_overlap(newest, path):
    """Nodes 2.0 draws them taller than LiteGraph, most of all those whose files are missing."""
    workflow = read_workflow(path)
    newest.load(workflow)
    boxes = newest.page.evaluate(_BOXES)
    assert boxes.keys() == {str(node["id"]) for node in workflow["nodes"]}
    for (one, a), (other, b) in itertools.combinations(boxes.items(), 2):
        assert not (a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]), (one, other)
