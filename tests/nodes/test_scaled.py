"""What lies between Canvas and Crop Result, where graphs are more than a chain of constants."""

import nodes as comfyui_nodes
import pytest
import torch
from comfy_execution.graph_utils import GraphBuilder
from execution import CacheType, PromptExecutor
from lorweb_pack.nodes.canvas import Canvas, CropResult
from lorweb_pack.nodes.scaled import require_unscaled

SIZE = (64, 96)


@pytest.fixture(autouse=True)
def known(monkeypatch):
    """The pack's nodes are known to ComfyUI, and two of a test's own."""
    for node in (Canvas, CropResult):
        monkeypatch.setitem(comfyui_nodes.NODE_CLASS_MAPPINGS, node.GET_SCHEMA().node_id, node)
    for node in (Expands, Shown):
        monkeypatch.setitem(comfyui_nodes.NODE_CLASS_MAPPINGS, node.__name__, node)


class Expands:
    """Puts Canvas and Crop Result into the graph while it runs, as the nodes of loops do."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("IMAGE",), "run", "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"scale_by": ("FLOAT", {})}}

    def run(self, scale_by):
        graph = GraphBuilder()
        image = graph.node("EmptyImage", width=32, height=32, batch_size=1, color=255).out(0)
        images = {"image_a": image, "image_a_prime": image, "image_b": image}
        canvas = graph.node("LoRWeBCanvas", **images, megapixels=0.0, long_side=32, fit="crop")
        scaled = graph.node("ImageScaleBy", image=canvas.out(0), upscale_method="bilinear", scale_by=scale_by)
        crop = graph.node("LoRWeBCropResult", image=scaled.out(0), geometry=canvas.out(1), original_size=True)
        return {"result": (crop.out(0),), "expand": graph.finalize()}


class Shown:
    """Keeps what it is given."""

    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE, images = (), "run", "tests", True, []

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": ("IMAGE",)}}

    def run(self, image):
        self.images.append(image)
        return {}


class Server:
    """What an executor wants of one."""

    client_id = last_node_id = last_prompt_id = None

    def send_sync(self, *_):
        """Nobody listens."""


def errors_of(scale_by):
    """The errors of a run whose Crop Result is put into the graph while it goes on."""
    executor = PromptExecutor(Server(), CacheType.CLASSIC, {"lru": 0, "ram": 4, "ram_inactive": 4})
    graph = {
        "1": {"class_type": "Expands", "inputs": {"scale_by": scale_by}},
        "2": {"class_type": "Shown", "inputs": {"image": ["1", 0]}},
    }
    executor.execute(graph, "prompt", {}, ["2"])
    return [data["exception_message"] for event, data in executor.status_messages if event == "execution_error"]


def test_a_crop_that_a_loop_put_there_is_looked_at_as_any_other():
    Shown.images.clear()
    assert errors_of(1.0) == [] and Shown.images[0].shape == (1, 32, 32, 3)
    (error,) = errors_of(2.0)
    assert "ImageScaleBy" in error and "do not scale it in between" in error


def graph_with(*scalers):
    """Canvas, nodes one after the other, Crop Result."""
    graph, last = {"canvas": {"class_type": "LoRWeBCanvas", "inputs": {}}}, "canvas"
    for number, (kind, inputs) in enumerate(scalers):
        graph[name := f"{kind} {number}"] = {"class_type": kind, "inputs": {"image": [last, 0], **inputs}}
        last = name
    graph["crop"] = {"class_type": "LoRWeBCropResult", "inputs": {"image": [last, 0], "geometry": ["canvas", 1]}}
    return graph


TWICE = ("ImageScaleBy", {"upscale_method": "bilinear", "scale_by": 2.0})
HALF = ("ImageScaleBy", {"upscale_method": "bilinear", "scale_by": 0.5})
LINKED = ("ImageScale", {"upscale_method": "bilinear", "width": ["canvas", 2], "height": 64, "crop": "disabled"})
FAILS = ("ImageScale", {"upscale_method": "no such", "width": 32, "height": 64, "crop": "disabled"})


@pytest.mark.parametrize("scalers", [(), (TWICE, HALF), (TWICE, LINKED), (LINKED, HALF), (FAILS, HALF)])
def test_what_may_end_at_the_planned_size_is_not_refused(scalers):
    require_unscaled(graph_with(*scalers), "crop", SIZE)


@torch.inference_mode()
def test_what_ends_at_another_is():
    with pytest.raises(ValueError, match=r"ImageScaleBy \(node ImageScaleBy 0\) makes the picture 192 x 128"):
        require_unscaled(graph_with(TWICE), "crop", SIZE)
