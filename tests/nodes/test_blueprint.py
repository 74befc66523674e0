"""The subgraph blueprint: what ComfyUI serves is what the workflow says."""

import json

import requests

from harness.api_graph import described_inputs
from harness.blueprint import BLUEPRINT, INPUTS, SOURCE, draw_blueprint
from harness.browser import read_workflow


def test_it_is_drawn_from_the_workflow():
    """``python -m harness.blueprint`` after a change of the workflow."""
    assert json.loads(BLUEPRINT.read_text(encoding="ascii")) == draw_blueprint(read_workflow(SOURCE))


def test_comfyui_offers_it(comfy):
    offered = requests.get(f"{comfy.url}/global_subgraphs", timeout=30).json()
    (key,) = (key for key, entry in offered.items() if entry["name"] == BLUEPRINT.stem)
    served = requests.get(f"{comfy.url}/global_subgraphs/{key}", timeout=30).json()["data"]
    assert json.loads(served) == json.loads(BLUEPRINT.read_text(encoding="ascii"))


def test_inside_links_join_slots_of_one_type(comfy):
    info = comfy.object_info()
    (subgraph,) = json.loads(BLUEPRINT.read_text(encoding="ascii"))["definitions"]["subgraphs"]
    nodes = {node["id"]: node for node in subgraph["nodes"]}
    entries = {subgraph["inputNode"]["id"]: subgraph["inputs"]}
    for link in subgraph["links"]:
        outputs = entries.get(link["origin_id"]) or nodes[link["origin_id"]]["outputs"]
        assert outputs[link["origin_slot"]]["type"] == link["type"]
        if link["target_id"] == subgraph["outputNode"]["id"]:
            assert subgraph["outputs"][link["target_slot"]]["linkIds"] == [link["id"]]
            continue
        slot = nodes[link["target_id"]]["inputs"][link["target_slot"]]
        assert slot["link"] == link["id"]
        assert described_inputs(info[nodes[link["target_id"]]["type"]])[slot["name"]][0] == link["type"]
    assert [slot["name"] for slot in subgraph["inputs"]] == [entry.name for entry in INPUTS]
    assert all(slot["linkIds"] for slot in subgraph["inputs"])
