"""The shipped workflows in ComfyUI's real page."""

import re

import pytest

from harness.browser import read_workflow
from harness.comfyui import ROOT
from lorweb_core.plot import THUMBNAIL

from .small import WORKFLOWS, both_pages, browse_templates, find, open_template, small_workflow

pytestmark = pytest.mark.browser
each_workflow = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)


@both_pages
@each_workflow
def test_the_page_opens_it_without_an_error_and_saves_what_it_opened(page, path):
    workflow = read_workflow(path)
    page.load(workflow)
    assert page.missing_types() == []
    assert page.errors == []
    saved = page.serialize()
    assert len(saved["nodes"]) == len(workflow["nodes"])
    assert sorted(saved["links"]) == sorted(workflow["links"])
    assert [group["bounding"] for group in saved["groups"]] == [group["bounding"] for group in workflow["groups"]]
    # Versions of the frontend differ in what else they note down about a node, and newer nodes have more widgets.
    for ours, theirs in zip(workflow["nodes"], saved["nodes"]):
        for part in ("id", "type", "title", "pos", "size", "mode"):
            assert (theirs.get(part) or None) == (ours.get(part) or None), f"{ours['type']} {part}"
        values = ours.get("widgets_values") or []
        assert (theirs.get("widgets_values") or [])[: len(values)] == values, ours["type"]


@both_pages
def test_the_template_browser_shows_them_with_their_pictures(page):
    cards = browse_templates(page).get_by_test_id(re.compile("^template-workflow-"))
    cards.nth(len(WORKFLOWS) - 1).wait_for()
    assert sorted(cards.locator("h3").all_inner_texts()) == [path.stem for path in WORKFLOWS]
    for card in cards.all():
        card.scroll_into_view_if_needed()
        page.settle()
        assert card.locator("img").evaluate("image => image.naturalWidth") >= 1200


@both_pages
def test_the_template_browser_opens_one(page):
    """Another is opened by the starter's test."""
    open_template(page, ROOT / "workflows" / "edit_by_example.json")
    assert page.missing_types() == []
    assert page.errors == []


@both_pages
def test_an_unknown_node_is_reported(page):
    workflow = read_workflow(ROOT / "workflows" / "inspect_coefficients.json")
    workflow["nodes"][0]["type"] = "NoSuchNode"
    page.load(workflow)
    assert page.missing_types() == ["NoSuchNode"]


@both_pages
def test_missing_models_are_named_with_their_folders(page):
    page.load(read_workflow(ROOT / "workflows" / "edit_by_example.json"))
    dialog = page.complaints()
    for name in ("flux1-dev-kontext_fp8_scaled.safetensors", "t5xxl_fp8_e4m3fn_scaled.safetensors", "ae.safetensors"):
        assert name in dialog
    assert "diffusion_models" in dialog


def test_a_run_shows_both_heatmaps(page, images):
    """And the room that the workflow leaves for the pictures is enough: no node grows."""
    workflow = small_workflow("inspect_coefficients", images)
    find(workflow, "LoRWeBAdjustCoefficients")["widgets_values"][2] = "transformer_blocks.{0-1} = 0.5"
    page.load(workflow)
    sizes = {node["id"]: node["size"] for node in page.serialize()["nodes"]}
    plots = [node["id"] for node in workflow["nodes"] if node["type"] == "LoRWeBPlotCoefficients"]
    coefficients = [find(workflow, kind)["id"] for kind in ("LoRWeBEncodeAnalogy", "LoRWeBAdjustCoefficients")]
    page.run([*plots, *coefficients])
    assert page.errors == []
    for plot in plots:
        assert len(page.pictures(plot)) == 1 and page.pictures(plot)[0][0] > 500
    for node in coefficients:
        assert page.pictures(node) == [THUMBNAIL]
    assert {node["id"]: node["size"] for node in page.serialize()["nodes"]} == sizes


def test_a_refined_result_has_its_size_and_the_shape_of_b(page, images):
    workflow = small_workflow("edit_and_refine", images)
    find(workflow, "ImageScaleToTotalPixels")["widgets_values"][1] = 0.06
    nodes = [find(workflow, "PreviewImage", "as the canvas made it"), find(workflow, "SaveImage", "refined")]
    page.load(workflow)
    page.run([node["id"] for node in nodes])
    assert page.errors == []
    (made,), (refined,) = (page.pictures(node["id"]) for node in nodes)
    assert refined[0] * refined[1] == pytest.approx(0.06 * 2**20, rel=0.08)
    assert refined[0] * refined[1] > 2 * made[0] * made[1]
    assert refined[0] / refined[1] == pytest.approx(made[0] / made[1], rel=0.05)
