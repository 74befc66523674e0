"""The main job in both of ComfyUI's renderers: LiteGraph's canvas, and the document's elements ("Nodes 2.0")."""

import pytest

from harness.blueprint import INPUTS
from lorweb_core.plot import THUMBNAIL

from .small import find, place_box, small_workflow

pytestmark = pytest.mark.browser

_RENDERER = "Comfy.VueNodes.Enabled"


@pytest.fixture
def nodes_2(page):
    """The page with Nodes 2.0 switched on."""
    page.set(_RENDERER, True)
    yield page
    page.set(_RENDERER, False)


@pytest.fixture(params=["litegraph", "nodes_2"])
def rendered(request):
    """The page in each of the renderers."""
    return request.getfixturevalue("page" if request.param == "litegraph" else "nodes_2")


def elements(page, node, selector):
    """What Nodes 2.0 shows of a node."""
    return page.page.locator(f'[data-node-id="{node["id"]}"] {selector}')


def test_edit_by_example_shows_its_pictures(rendered, images, photographs):
    workflow = small_workflow("edit_by_example", images)
    rendered.load(workflow)
    rendered.press_run()
    height, width, _ = photographs["chelsea"][::4, ::4].shape
    assert rendered.pictures(find(workflow, "LoRWeBEncodeAnalogy")["id"]) == [THUMBNAIL]
    assert rendered.pictures(find(workflow, "SaveImage")["id"]) == [(width, height)]
    assert rendered.pictures(find(workflow, "PreviewImage", "before and after")["id"])[0][0] > 2 * width
    assert rendered.errors == []


def test_nodes_2_draws_itself(nodes_2, images):
    """What the tests of that renderer look at is there: else they would look at LiteGraph twice."""
    workflow = small_workflow("edit_by_example", images)
    nodes_2.load(workflow)
    assert nodes_2.page.locator("[data-node-id]").count() == len(workflow["nodes"])


def test_sliders_move_in_nodes_2(nodes_2, images):
    workflow = small_workflow("blend_two_edits", images)
    nodes_2.load(workflow)
    blend, strength = find(workflow, "LoRWeBBlendCoefficients"), find(workflow, "LoRWeBApply")
    before = nodes_2.prompt()
    for node in (blend, strength):
        elements(nodes_2, node, "[role=slider]").press("ArrowRight")
    after = nodes_2.prompt()
    for node, name in ((blend, "blend"), (strength, "strength")):
        key = str(node["id"])
        assert after[key]["inputs"][name] > before[key]["inputs"][name]
    assert nodes_2.errors == []


def test_the_box_shows_its_widgets_in_nodes_2(nodes_2):
    place_box(nodes_2)
    box = nodes_2.page.locator("[data-node-id]")
    assert box.count() == 1
    text = box.inner_text()
    assert [entry.label for entry in INPUTS if entry.label not in text and entry.name != "prompt"] == []
    assert "Make the change" in box.locator("textarea").input_value()
    assert box.locator("[role=slider]").count() == 1
