"""The shipped workflows against what a running server knows of their nodes; no browser needed."""

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
import requests
from PIL import Image

from harness.api_graph import NOTES, WIDGET_TYPES, api_graph, described_inputs, widgets
from harness.comfyui import PACK_NAME, ROOT
from harness.edit_graph import sepia
from harness.small_models import RANDOM_CLIP_L, SMALL_BANK, SMALL_FLUX, SMALL_VAE

WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
SHIPPED = {
    "blend_two_edits",
    "edit_and_refine",
    "edit_by_example",
    "edit_cards",
    "export_lora",
    "inspect_coefficients",
    "klein_edit_by_example",
    "qwen_edit_by_example",
    "refine_edit",
    "starter_cpu",
}
TITLE_HEIGHT = 30

# Nodes of a workflow with models of their own, and what runs in their place within seconds.
SMALL_CLIP = {"class_type": "CLIPLoader", "inputs": {"clip_name": RANDOM_CLIP_L, "type": "stable_diffusion"}}
SMALL = {
    "UNETLoader": {"class_type": "LoadSmallFlux", "inputs": {"unet_name": SMALL_FLUX, "weight_dtype": "default"}},
    "CLIPLoader": SMALL_CLIP,
    "DualCLIPLoader": SMALL_CLIP,
    "CLIPVisionLoader": {"class_type": "LoadSmallVision", "inputs": {}},
    "VAELoader": {"class_type": "VAELoader", "inputs": {"vae_name": SMALL_VAE}},
    "LoRWeBLoadBasis": {"class_type": "LoRWeBLoadBasis", "inputs": {"basis_name": SMALL_BANK}},
}
FEW = {
    "KSampler": {"steps": 2},
    "Flux2Scheduler": {"steps": 2},
    "LoRWeBAnalogyReferences": {"long_side": 128},
    "LoRWeBCanvas": {"long_side": 128},
    "LoRWeBRefineEdit": {"steps": 1, "long_side": 64},
}

each_workflow = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def object_info(comfy):
    return comfy.object_info()


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def nodes_of(workflow):
    return [node for node in workflow["nodes"] if node["type"] not in NOTES]


def test_all_workflows_are_there():
    assert {path.stem for path in WORKFLOWS} == SHIPPED


def is_ours(node):
    return node["type"].startswith("LoRWeB")


@each_workflow
def test_node_types_and_outputs_exist(path, object_info):
    for node in nodes_of(read(path)):
        info = object_info[node["type"]]
        ours = len(info["output"]) if is_ours(node) else len(node["outputs"])  # newer ComfyUI adds some to its own
        assert [output["type"] for output in node["outputs"]] == info["output"][:ours], node["type"]
        assert [output["name"] for output in node["outputs"]] == info["output_name"][:ours], node["type"]


@each_workflow
def test_widget_values_fit_their_widgets(path, object_info):
    for node in nodes_of(read(path)):
        values, expected = node.get("widgets_values") or [], list(widgets(object_info[node["type"]]))
        if node["type"].startswith("Preview"):
            continue  # its widgets are display only
        told = f"{node['type']}: {values} for {[name for name, *_ in expected]}"
        assert len(values) == len(expected) or (len(values) < len(expected) and not is_ours(node)), told
        for value, (name, kind, options) in zip(values, expected):
            check_value(f"{node['type']}.{name}", value, kind, options)


def check_value(where, value, kind, options):
    python_types = {"BOOLEAN": bool, "FLOAT": (int, float), "INT": int}.get(kind, str)
    assert isinstance(value, python_types), where
    if kind in ("FLOAT", "INT"):
        assert options.get("min", value) <= value <= options.get("max", value), where
    if kind == "COMBO" and not value.endswith((".safetensors", ".png")):  # files depend on the machine
        assert value in options["options"], where


@each_workflow
def test_links_join_slots_of_one_type(path, object_info):
    workflow = read(path)
    nodes = {node["id"]: node for node in workflow["nodes"]}
    for link, origin, output, target, slot, kind in workflow["links"]:
        source, sink = nodes[origin], nodes[target]
        produced = source["outputs"][output]["type"]
        assert link in source["outputs"][output]["links"]
        assert sink["inputs"][slot]["link"] == link
        accepted = described_inputs(object_info[sink["type"]])[sink["inputs"][slot]["name"]][0]
        assert {kind, accepted} <= {produced, "*"}, f"{source['type']} -> {sink['type']}.{sink['inputs'][slot]['name']}"


@each_workflow
def test_every_required_socket_is_connected(path, object_info):
    for node in nodes_of(read(path)):
        connected = {slot["name"] for slot in node["inputs"] if slot["link"] is not None}
        for name in object_info[node["type"]]["input"].get("required", {}):
            kind, options = described_inputs(object_info[node["type"]])[name]
            if kind not in WIDGET_TYPES or options.get("forceInput"):
                assert name in connected, f"{node['type']}.{name}"


@each_workflow
def test_nodes_lie_in_groups_and_do_not_overlap(path):
    workflow = read(path)
    boxes = {node.get("title", node["type"]) + f" {node['id']}": box_of(node) for node in workflow["nodes"]}
    groups = [(x, y, x + w, y + h) for x, y, w, h in (group["bounding"] for group in workflow["groups"])]
    for name, (left, top, right, bottom) in boxes.items():
        assert any(g[0] <= left and g[1] <= top and right <= g[2] and bottom <= g[3] for g in groups), name
    for (first, one), (second, other) in itertools.combinations(boxes.items(), 2):
        assert not overlap(one, other), f"{first} and {second}"
    assert not any(overlap(one, other) for one, other in itertools.combinations(groups, 2))


def box_of(node):
    (x, y), (width, height) = node["pos"], node["size"]
    return x, y - TITLE_HEIGHT, x + width, y + height


def overlap(one, other):
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


@each_workflow
def test_notes_say_where_every_file_goes(path):
    workflow = read(path)
    notes = "\n".join(node["widgets_values"][0] for node in workflow["nodes"] if node["type"] in NOTES)
    files = {value for node in nodes_of(workflow) for value in files_of(node)}
    assert [name for name in files if name not in notes] == []
    if path.stem in ("edit_cards", "starter_cpu"):
        assert not any(name.endswith(".safetensors") for name in files), "everything that it needs is in the pack"
    else:
        licences = {"klein_edit_by_example": "are Apache-2.0", "qwen_edit_by_example": "are Apache-2.0"}
        assert files and licences.get(path.stem, "non-commercial") in notes


def files_of(node):
    values = node.get("widgets_values") or []
    return [value for value in values if isinstance(value, str) and value.endswith((".safetensors", ".png"))]


@each_workflow
def test_files_to_download_belong_to_their_node(path):
    """What the page offers when a model is missing."""
    for node in nodes_of(read(path)):
        for model in node["properties"].get("models", []):
            assert model["name"] in files_of(node)
            assert model["url"].startswith("https://huggingface.co/")
            assert model["directory"] in {"clip_vision", "diffusion_models", "lorweb", "text_encoders", "vae"}


@pytest.mark.parametrize("name", ["klein_edit_by_example", "qwen_edit_by_example", "refine_edit"])
def test_workflows_run_on_small_models(comfy, object_info, names, photographs, name):
    """On the small FLUX, bank and encoders: b' comes back at b's own size."""
    second = photographs["coffee"][::4, ::4]
    names = names | {"c": comfy.upload(np.ascontiguousarray(second), "c.png")}
    names["c_prime"] = comfy.upload(np.ascontiguousarray(sepia(second)), "c_prime.png")
    workflow = read(ROOT / "workflows" / f"{name}.json")
    titles = {
        str(node["id"]): re.split("[:,]", node.get("title", ""))[0].replace("'", "_prime")
        for node in nodes_of(workflow)
    }
    graph = api_graph(workflow, object_info)
    for node, content in graph.items():
        content |= SMALL.get(content["class_type"], {})
        content["inputs"] |= FEW.get(content["class_type"], {})
        if content["class_type"] == "LoadImage":
            content["inputs"]["image"] = names[titles[node]]
    (saved,) = (node for node, content in graph.items() if content["class_type"] == "SaveImage")
    b_prime = comfy.images(comfy.run(graph), saved)[0]
    assert b_prime.shape == photographs["chelsea"][::3, ::3].shape and b_prime.std() > 1


@each_workflow
def test_picture_has_the_same_name(path):
    picture = path.with_suffix(".jpg")
    assert picture.stat().st_size < 250_000
    with Image.open(picture) as image:
        assert image.format == "JPEG"
        assert 1200 <= image.width <= 1600


def test_comfyui_lists_and_serves_them_as_templates(comfy):
    address = f"{comfy.url}/api/workflow_templates"
    assert set(requests.get(address, timeout=30).json()[PACK_NAME]) == SHIPPED
    for path in WORKFLOWS:
        for file in (path, path.with_suffix(".jpg")):
            reply = requests.get(f"{address}/{PACK_NAME}/{file.name}", timeout=30)
            assert reply.content == file.read_bytes()
