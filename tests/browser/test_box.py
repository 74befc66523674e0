"""The subgraph blueprint "Edit by Example": offered by the node search, placed as one box, run with small models."""

import pytest

from harness.blueprint import BLUEPRINT, INPUTS

from .small import both_pages, find, place_box, small_box

pytestmark = pytest.mark.browser

_WIRE = """images => {
    const box = app.graph.nodes[0];
    const add = (type, x, y) => {
        const node = LiteGraph.createNode(type);
        node.pos = [box.pos[0] + x, box.pos[1] + y];
        app.graph.add(node);
        return node;
    };
    Object.entries(images).forEach(([input, file], row) => {
        const loader = add("LoadImage", -400, 350 * row);
        loader.widgets.find(widget => widget.name === "image").value = file;
        loader.connect(0, box, input);
    });
    box.connect(0, add("SaveImage", 500, 0), 0);
}"""
_SET = """values => app.graph.nodes[0].widgets.filter(widget => widget.name in values)
    .forEach(widget => { widget.value = values[widget.name]; })"""


@pytest.fixture
def placed(page):
    """The page after placing the box from the node search."""
    place_box(page)
    return page


@both_pages
def test_it_is_one_box_whose_inputs_say_what_they_are(placed):
    assert placed.page.evaluate("() => app.graph.nodes.map(node => node.title)") == [BLUEPRINT.stem]
    slots = placed.page.evaluate("() => app.graph.nodes[0].inputs.map(input => [input.name, input.label, input.type])")
    assert slots == [[entry.name, entry.label, entry.type] for entry in INPUTS]
    shown = placed.page.evaluate("() => app.graph.nodes[0].widgets.map(widget => widget.name)")
    assert shown == [entry.name for entry in INPUTS if entry.widget]
    assert placed.missing_types() == [] and placed.errors == []


@both_pages
def test_its_widgets_reach_the_nodes_inside(placed):
    values = {"prompt": "Draw it.", "strength": 0.7, "seed": 5, "vae_name": "other.safetensors"}
    placed.page.evaluate(_SET, values)
    inside = {node["class_type"]: node["inputs"] for node in placed.prompt().values()}
    assert inside["CLIPTextEncode"]["text"] == "Draw it."
    assert inside["LoRWeBApply"]["strength"] == 0.7
    assert inside["KSampler"]["seed"] == 5
    assert inside["VAELoader"]["vae_name"] == "other.safetensors"


@both_pages
def test_it_keeps_its_values_when_saved_and_opened_again(placed):
    values = {"prompt": "Draw it.", "strength": 0.7, "seed": 5, "vae_name": "other.safetensors"}
    placed.page.evaluate(_SET, values)
    saved = placed.serialize()
    placed.reset()
    placed.load(saved)
    shown = dict(placed.page.evaluate("() => app.graph.nodes[0].widgets.map(widget => [widget.name, widget.value])"))
    assert list(shown) == [entry.name for entry in INPUTS if entry.widget]
    assert {name: shown[name] for name in values} == values
    inside = {node["class_type"]: node["inputs"] for node in placed.prompt().values()}
    assert (inside["KSampler"]["seed"], inside["LoRWeBApply"]["strength"]) == (5, 0.7)


@both_pages
def test_it_runs_to_a_picture(placed, images, photographs):
    placed.page.evaluate(_WIRE, {"a": images["a"], "a_prime": images["a'"], "b": images["b"]})
    workflow = small_box(placed.serialize())
    placed.load(workflow)
    placed.press_run()
    saved = find(workflow, "SaveImage")["id"]
    height, width, _ = photographs["chelsea"][::4, ::4].shape
    assert placed.pictures(saved) == [(width, height)]
    assert placed.errors == []
