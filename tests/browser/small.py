"""The shipped workflows with small models and uploaded photographs in place of the files that they name, and ways to
open them in the page."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Locator

from harness.blueprint import BLUEPRINT, INPUTS
from harness.browser import ComfyPage, Workflow, read_workflow
from harness.comfyui import PACK_NAME, ROOT
from harness.small_models import RANDOM_CLIP_L, RANDOM_VIT_L, SMALL_BANK, SMALL_FLUX, SMALL_VAE

WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
# Loader in the workflow -> the one that loads the small model, and its values.
_LOADERS = {
    "UNETLoader": ("LoadSmallFlux", [SMALL_FLUX, "default"]),
    "DualCLIPLoader": ("CLIPLoader", [RANDOM_CLIP_L, "stable_diffusion", "default"]),
    "VAELoader": ("VAELoader", [SMALL_VAE]),
    "CLIPVisionLoader": ("CLIPVisionLoader", [RANDOM_VIT_L]),
    "LoRWeBLoadBasis": ("LoRWeBLoadBasis", [SMALL_BANK]),
}
# Values of Refine Edit: one step of one draw on a small canvas.
QUICK = [1, 0, 0, 128, "crop", 1, 0.2, 1]
_STEPS, _LONG_SIDE = 2, 1  # which of the widgets' values
# For tests that both the pinned page and the newest one on PyPI have to pass.
both_pages = pytest.mark.pages("pinned", "newest")
# Of either generation of the page.
_SEARCH = ".comfy-vue-node-search-container, [role=dialog]:has(input[aria-controls=results-list])"
_ATTEMPTS = 5  # a page with much to do takes a double click for two clicks


def small_workflow(name: str, images: dict[str, str]) -> Workflow:
    """A shipped workflow that runs within seconds: two steps on a canvas of 256 pixels.

    Args:
        images: title of a LoadImage node up to its colon -> name of an uploaded file.
    """
    workflow = read_workflow(ROOT / "workflows" / f"{name}.json")
    for node in workflow["nodes"]:
        _shrink(node)
        if node["type"] == "LoadImage":
            node["widgets_values"][0] = images[node["title"].split(":")[0]]
    return workflow


def browse_templates(page: ComfyPage) -> Locator:
    """ComfyUI's template browser, at this pack's templates."""
    page.page.evaluate("() => app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    dialog = page.page.get_by_role("dialog")
    dialog.get_by_text(PACK_NAME).first.click()
    return dialog


def open_template(page: ComfyPage, path: Path) -> None:
    """Open a workflow by a click in the template browser."""
    browse_templates(page).get_by_test_id(f"template-workflow-{path.stem}").click()
    count = len(read_workflow(path)["nodes"])
    page.page.wait_for_function("count => app.graph.nodes.length === count", arg=count)
    page.settle()


def search_nodes(page: ComfyPage, words: str) -> Locator:
    """What the node search offers for the words; it opens at a double click on the empty graph.

    It shows what it finds a while later, and the nodes used most until then: wait for the one that you look for.
    """
    search = page.page.locator(_SEARCH)
    for _ in range(_ATTEMPTS):
        page.page.mouse.dblclick(800, 500)
        page.settle()
        if search.count():
            break
    search.locator("input").first.fill(words)
    return search.locator(".option-container")


def place_box(page: ComfyPage) -> None:
    """Place the box "Edit by Example" by the node search."""
    search_nodes(page, "edit by example").filter(has_text=BLUEPRINT.stem).click()
    page.settle()


def small_box(workflow: Workflow) -> Workflow:
    """A graph with one subgraph node, made as small inside; its file pickers choose small models.

    The box loses the inputs of a loader of another type than the shipped one: values of its widgets are saved by their
    place, and newer pages count no widget for an input that leads nowhere.
    """
    (subgraph,) = workflow["definitions"]["subgraphs"]
    (box,) = (node for node in workflow["nodes"] if node["type"] == subgraph["id"])
    shipped = {node["id"]: node["type"] for node in subgraph["nodes"]}
    for node in subgraph["nodes"]:
        _shrink(node)
    values = dict(zip((entry.name for entry in INPUTS if entry.widget), box["widgets_values"]))
    values |= {"basis_name": SMALL_BANK, "clip_vision_name": RANDOM_VIT_L, "vae_name": SMALL_VAE}
    gone = _cut_inputs(subgraph, [node for node in subgraph["nodes"] if node["type"] != shipped[node["id"]]])
    box["widgets_values"] = [value for name, value in values.items() if name not in gone]
    # Older pages list a box's widgets there, newer ones among its inputs.
    shown = box["properties"].get("proxyWidgets", [])
    shown[:] = [entry for entry in shown if entry[1] not in gone]
    box["inputs"] = [slot for slot in box["inputs"] if slot["name"] not in gone]
    return workflow


def _shrink(node: dict) -> None:
    node["properties"].pop("models", None)
    if node["type"] in _LOADERS:
        node["type"], values = _LOADERS[node["type"]]
        node["widgets_values"] = list(values)
    elif node["type"] == "KSampler":
        node["widgets_values"][_STEPS] = 2
    elif node["type"] == "LoRWeBCanvas":
        node["widgets_values"][_LONG_SIDE] = 256
    elif node["type"] == "LoRWeBRefineEdit":
        node["widgets_values"] = QUICK


def _cut_inputs(subgraph: dict, nodes: list[dict]) -> set[str]:
    """Take the inputs of nodes away; returns the names of the box's inputs that led to them alone, which go too."""
    cut = {link["id"] for link in subgraph["links"] if link["target_id"] in [node["id"] for node in nodes]}
    for node in nodes:
        node["inputs"] = []
    subgraph["links"] = [link for link in subgraph["links"] if link["id"] not in cut]
    slots = subgraph["inputs"]
    subgraph["inputs"] = [slot for slot in slots if not cut.issuperset(slot["linkIds"])]
    for link in subgraph["links"]:
        if link["origin_id"] == subgraph["inputNode"]["id"]:
            link["origin_slot"] = subgraph["inputs"].index(slots[link["origin_slot"]])
    return {slot["name"] for slot in slots if slot not in subgraph["inputs"]}


def find(workflow: Workflow, kind: str, title: str = "") -> dict:
    """The node of a type whose title contains the words."""
    (node,) = (n for n in workflow["nodes"] if n["type"] == kind and title in n.get("title", ""))
    return node
