"""The shipped workflows in ComfyUI's real page."""

import json

import pytest

from harness.browser import read_workflow
from harness.comfyui import PACK_NAME, ROOT
from harness.small_models import RANDOM_VIT_L, SMALL_BANK

WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))

pytestmark = pytest.mark.browser
each_workflow = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)


@each_workflow
def test_opens_without_a_missing_node_or_an_error(page, path):
    workflow = read_workflow(path)
    page.load(workflow)
    assert page.missing_types() == []
    assert page.errors == []
    assert len(page.serialize()["nodes"]) == len(workflow["nodes"])


@each_workflow
def test_the_page_saves_what_it_opened(page, path):
    workflow = read_workflow(path)
    page.load(workflow)
    saved = page.serialize()
    assert saved["links"] == workflow["links"]
    assert [group["bounding"] for group in saved["groups"]] == [group["bounding"] for group in workflow["groups"]]
    # Versions of the frontend differ in what else they note down about a node.
    for ours, theirs in zip(workflow["nodes"], saved["nodes"]):
        for part in ("id", "type", "title", "pos", "size", "mode", "widgets_values"):
            assert theirs.get(part) == ours.get(part), f"{ours['type']} {part}"


def test_the_template_browser_shows_them_with_their_pictures(page):
    page.page.evaluate("() => app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    page.page.get_by_text(PACK_NAME).click()
    for path in WORKFLOWS:
        page.page.get_by_role("heading", name=path.stem).wait_for()
    page.settle()
    pictures = page.page.get_by_role("dialog").locator("img").all()
    assert len(pictures) == len(WORKFLOWS)
    assert all(picture.evaluate("image => image.naturalWidth") >= 1200 for picture in pictures)


def test_an_unknown_node_is_reported(page):
    workflow = read_workflow(ROOT / "workflows" / "inspect_coefficients.json")
    workflow["nodes"][0]["type"] = "NoSuchNode"
    page.load(workflow)
    assert page.missing_types() == ["NoSuchNode"]


def test_missing_models_are_named_with_their_folders(page):
    page.load(read_workflow(ROOT / "workflows" / "edit_by_example.json"))
    dialog = page.page.get_by_role("dialog").inner_text()
    for name in ("flux1-dev-kontext_fp8_scaled.safetensors", "t5xxl_fp8_e4m3fn_scaled.safetensors", "ae.safetensors"):
        assert name in dialog
    assert "diffusion_models" in dialog


def test_a_run_shows_both_heatmaps(page, comfy, photographs):
    text = (ROOT / "workflows" / "inspect_coefficients.json").read_text(encoding="utf-8")
    names = {
        "lorweb_bank.safetensors": SMALL_BANK,
        "clip-vit-large-patch14.safetensors": RANDOM_VIT_L,
        "example.png": comfy.upload(photographs["chelsea"], "example.png"),
        "transformer_blocks.{0-4}": "transformer_blocks.{0-1}",
    }
    for shipped, here in names.items():
        text = text.replace(shipped, here)
    workflow = json.loads(text)
    page.load(workflow)
    plots = [node["id"] for node in workflow["nodes"] if node["type"] == "LoRWeBPlotCoefficients"]
    page.run(plots)
    assert page.errors == []
    for plot in plots:
        widths = page.page.evaluate("id => app.graph.getNodeById(id).imgs.map(image => image.naturalWidth)", plot)
        assert len(widths) == 1
        assert widths[0] > 500
