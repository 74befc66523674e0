"""A whole session in the page: run, move a slider, share the result, and meet errors at the right node."""

import pytest

from harness.browser import read_workflow
from harness.comfyui import ROOT
from harness.small_models import SMALL_BANK

from .small import WORKFLOWS, both_pages, find, small_workflow

pytestmark = pytest.mark.browser


@pytest.fixture
def blend(page, images):
    """blend_two_edits, run once by the Run button."""
    workflow = small_workflow("blend_two_edits", images)
    page.load(workflow)
    page.press_run()
    return workflow


def widget_of(page, kind):
    """The first widget's value of a node, as the page would save it."""
    return find(page.serialize(), kind)["widgets_values"][0]


def test_the_blend_slider_runs_what_comes_after_it_and_a_dropped_result_restores_it(page, blend, comfy):
    sizes = {node["id"]: node["size"] for node in page.serialize()["nodes"]}
    slider, saved = find(blend, "LoRWeBBlendCoefficients")["id"], find(blend, "SaveImage")["id"]
    drag(page, page.widget_area(slider, "blend"), 0.5, 0.8)
    value = widget_of(page, "LoRWeBBlendCoefficients")
    assert value > 1

    page.press_run()
    kinds = {str(node["id"]): node["type"] for node in blend["nodes"]}
    ran = [kinds[node] for node in page.executed()]
    before = {
        "LoRWeBLoadBasis",
        "LoRWeBEncodeAnalogy",
        "LoadSmallFlux",
        "LoRWeBCanvas",
        "VAEEncode",
        "CLIPVisionLoader",
    }
    assert {"LoRWeBBlendCoefficients", "LoRWeBApply", "KSampler", "SaveImage"} <= set(ran)
    assert not before & set(ran)
    assert page.errors == []
    assert page.pictures(slider) and page.pictures(saved)
    assert {node["id"]: node["size"] for node in page.serialize()["nodes"]} == sizes, "pictures have their room"

    result = max((comfy.output_folder / "lorweb").glob("blend_*.png"), key=lambda path: path.stat().st_mtime)
    page.reset()
    assert page.serialize()["nodes"] == []
    page.drop(result, 800, 600)
    page.page.wait_for_function("count => app.graph.nodes.length === count", arg=len(blend["nodes"]))
    assert widget_of(page, "LoRWeBBlendCoefficients") == value
    assert page.missing_types() == [] and page.errors == []


def drag(page, area, start, end):
    """Drag inside a slider, from one share of its width to another."""
    left, top, right, bottom = area
    mouse, y = page.page.mouse, (top + bottom) / 2
    mouse.move(left + (right - left) * start, y)
    mouse.down()
    mouse.move(left + (right - left) * end, y, steps=8)
    mouse.up()
    page.settle()


@both_pages
def test_files_open_from_disk(page):
    for path in WORKFLOWS:
        page.reset()
        # The input behind the Open command.
        page.page.locator("#comfy-file-input").set_input_files(path)
        nodes = len(read_workflow(path)["nodes"])
        page.page.wait_for_function("count => app.graph.nodes.length === count", arg=nodes)
        assert page.missing_types() == [] and page.errors == []


def test_a_broken_bank_is_named_at_its_node(page, comfy, images, small_models):
    broken = comfy.base / "models" / "lorweb" / "broken.safetensors"
    broken.parent.mkdir(parents=True, exist_ok=True)
    broken.write_bytes((small_models / "lorweb" / SMALL_BANK).read_bytes()[:5000])
    workflow = small_workflow("edit_by_example", images)
    loader = find(workflow, "LoRWeBLoadBasis")
    loader["widgets_values"] = [broken.name]
    page.load(workflow)
    page.press_run()
    broken.unlink()
    text = failure(page, loader)
    assert broken.name in text and "not a readable safetensors file" in text


@both_pages
def test_a_missing_bank_is_named_with_its_folder(page, comfy, images):
    workflow = small_workflow("edit_by_example", images)
    loader = find(workflow, "LoRWeBLoadBasis")
    loader["widgets_values"] = ["absent.safetensors"]
    page.load(workflow)
    page.press_run()
    text = failure(page, loader)
    assert "absent.safetensors" in text and str(comfy.base / "models" / "lorweb") in text


@both_pages
def test_a_bad_override_names_its_widget_and_line(page, images):
    workflow = small_workflow("inspect_coefficients", images)
    adjust = find(workflow, "LoRWeBAdjustCoefficients")
    adjust["widgets_values"][2:] = ["", "# by hand\ntransformer_blocks.1 = 0.4"]
    page.load(workflow)
    page.press_run()
    assert "overrides: line 2: 'transformer_blocks.1 = 0.4' names no basis element" in failure(page, adjust)


def failure(page, node):
    """What the page says of the node that failed, which it marks in the graph."""
    assert str(page.page.evaluate("() => app.lastExecutionError?.node_id")) == str(node["id"])
    return page.complaints()


@both_pages
def test_loaders_whose_files_are_missing_are_marked(page):
    """The note beside them says which file goes where."""
    workflow = read_workflow(ROOT / "workflows" / "edit_by_example.json")
    page.load(workflow)
    page.reset()  # closes the list of missing models
    page.load(workflow)
    page.dismiss()
    page.press_run()
    errors = page.page.evaluate("() => app.lastNodeErrors")
    kinds = {node["id"]: node["type"] for node in workflow["nodes"]}
    marked = {kinds[int(node)]: error["errors"][0]["type"] for node, error in errors.items() if error["errors"]}
    assert marked.keys() == {"UNETLoader", "DualCLIPLoader", "VAELoader", "CLIPVisionLoader"}
    assert set(marked.values()) == {"value_not_in_list"}
