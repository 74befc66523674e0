"""Seeing and steering an edit: the pictures on the nodes, what a slider makes ComfyUI run again, errors at a widget."""

import copy
import itertools

import numpy as np
import pytest

from harness.comfyui import GraphError
from lorweb_core.plot import THUMBNAIL


@pytest.fixture
def blended(graph):
    """Two edits of b, one by (a, a') and one by (a', a), and a blend of them."""
    swapped = copy.deepcopy(graph["analogy"])
    inputs = swapped["inputs"]
    inputs["image_a"], inputs["image_a_prime"] = inputs["image_a_prime"], inputs["image_a"]
    graph["analogy_2"] = swapped
    graph["blend"] = {
        "class_type": "LoRWeBBlendCoefficients",
        "inputs": {"coefficients_1": ["analogy", 0], "coefficients_2": ["analogy_2", 0], "blend": 0.25},
    }
    for node in ("apply", "plot"):
        graph[node]["inputs"]["coefficients"] = ["blend", 0]
    return graph


def executed(comfy, graph):
    """Ids of the nodes that ran, those left out whose results ComfyUI still had."""
    ran = set()
    comfy.run(graph, lambda node, value, maximum: ran.add(node))
    return ran


def downstream(graph, *nodes):
    """The nodes and all that depends on them."""
    found = set(nodes)
    while True:
        more = {n for n, node in graph.items() if any(v[0] in found for v in node["inputs"].values() if _is_link(v))}
        if more <= found:
            return found
        found |= more


def _is_link(value):
    return isinstance(value, list)


def test_moving_the_blend_slider_encodes_nothing_anew(comfy, blended):
    comfy.run(blended)
    assert executed(comfy, blended) == set(), "the same graph again runs nothing"
    blended["blend"]["inputs"]["blend"] = 0.75
    ran = executed(comfy, blended)
    assert ran == downstream(blended, "blend")
    assert {"blend", "apply", "sampler", "decoded", "crop", "b_prime"} <= ran
    assert not ran & {"basis", "model", "clip_vision", "canvas", "latent", "analogy", "analogy_2"}


def test_moving_the_strength_slider_patches_and_samples_only(comfy, graph):
    comfy.run(graph)
    graph["apply"]["inputs"]["strength"] = 0.55
    assert executed(comfy, graph) == downstream(graph, "apply")


def test_strengths_are_sliders(comfy):
    info = comfy.object_info()
    for node, name, low, high in (("LoRWeBApply", "strength", -2, 2), ("LoRWeBBlendCoefficients", "blend", -1, 2)):
        options = info[node]["input"]["required"][name][1]
        assert (options["display"], options["min"], options["max"]) == ("slider", low, high)


def test_encode_blend_and_adjust_show_their_coefficients(comfy, blended):
    """The picture is a temporary file, and another edit gives another picture."""
    blended["adjust"] = {
        "class_type": "LoRWeBAdjustCoefficients",
        "inputs": {
            "coefficients": ["blend", 0], "temperature": 0.3, "top_k": 2, "block_scales": "",
            "overrides": "single_transformer_blocks 3 = 1",
        },
    }  # fmt: skip
    blended["apply"]["inputs"]["coefficients"] = ["adjust", 0]
    outputs = comfy.run(blended)
    nodes = ("analogy", "analogy_2", "blend", "adjust")
    assert {image["type"] for node in nodes for image in outputs[node]["images"]} == {"temp"}
    pictures = [comfy.images(outputs, node)[0] for node in nodes]
    assert {picture.shape for picture in pictures} == {(THUMBNAIL[1], THUMBNAIL[0], 3)}
    assert not any(np.array_equal(one, other) for one, other in itertools.pairwise(pictures))
    assert not list(comfy.output_folder.rglob("ComfyUI_temp*"))


@pytest.mark.parametrize(
    ("widget", "text", "says"),
    [
        ("overrides", "# by hand\ntransformer_blocks.1 = 0.4", "line 2: 'transformer_blocks.1 = 0.4' names no basis"),
        ("overrides", "transformer_blocks.1 0 = much", "line 1: 'much' in 'transformer_blocks.1 0 = much' is not a"),
        ("block_scales", "transformer_blocks.1: 2", "line 1: 'transformer_blocks.1: 2' is not an assignment"),
        ("overrides", "transformer_blocks.1 99 = 1", "transformer_blocks.1 99: basis elements are numbered 0 to 7"),
        ("block_scales", "nowhere = 2", "'nowhere' matches none of the 40 layers"),
    ],
)
def test_a_bad_line_is_named_with_its_widget(comfy, graph, widget, text, says):
    inputs = {"coefficients": ["analogy", 0], "temperature": 1.0, "top_k": 0, "block_scales": "", "overrides": ""}
    graph["adjust"] = {"class_type": "LoRWeBAdjustCoefficients", "inputs": inputs | {widget: text}}
    graph["apply"]["inputs"]["coefficients"] = ["adjust", 0]
    with pytest.raises(GraphError) as caught:
        comfy.run(graph)
    assert caught.value.node_id == "adjust" and caught.value.exception_type == "ValueError"
    assert f"{widget}: {says}" in str(caught.value)
