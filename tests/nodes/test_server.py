"""The pack as a user's graph meets it: over HTTP, in ComfyUI's own process, with its own samplers and caches."""

import copy

import numpy as np
import pytest
import requests
from safetensors.torch import load_file, save_file

from harness.comfyui import ROOT, GraphError
from harness.locales import NEWER
from harness.small_models import SMALL_BANK, flux_layers, random_bank

# Published node ids and the names and order of their inputs. They never change; new inputs go last, with defaults.
PUBLISHED = {
    "LoRWeBLoadBasis": ["basis_name"],
    "LoRWeBLoadSigLIP": ["clip_name"],
    "LoRWeBLoadStarter": [],
    "LoRWeBStarterExample": ["example"],
    "LoRWeBEncodeAnalogy": ["basis", "clip_vision", "image_a", "image_a_prime", "image_b", "fit", "encoder_crop"],
    "LoRWeBApply": ["model", "basis", "coefficients", "strength", "mode"],
    "LoRWeBCanvas": ["image_a", "image_a_prime", "image_b", "megapixels", "long_side", "fit", "basis"],
    "LoRWeBAnalogyReferences": [
        "conditioning",
        "vae",
        "image_a",
        "image_a_prime",
        "image_b",
        "megapixels",
        "long_side",
        "fit",
        "basis",
        "negative",
    ],
    "LoRWeBCropResult": ["image", "geometry", "original_size"],
    "LoRWeBBlendCoefficients": ["coefficients_1", "coefficients_2", "blend"],
    "LoRWeBAdjustCoefficients": ["coefficients", "temperature", "top_k", "block_scales", "overrides"],
    "LoRWeBPlotCoefficients": ["coefficients"],
    "LoRWeBSaveLoRA": ["basis", "coefficients", "filename_prefix", "format", "max_rank", "dtype"],
    "LoRWeBSaveEdit": [
        "coefficients",
        "filename_prefix",
        "name",
        "image_a",
        "image_a_prime",
        "basis",
        "prompt",
        "strength",
    ],
    "LoRWeBRefineEdit": [
        "model",
        "basis",
        "coefficients",
        "vae",
        "conditioning",
        "image_a",
        "image_a_prime",
        "steps",
        "seed",
        "tie",
        "long_side",
        "fit",
        "image_b",
        "draws",
        "rate",
        "sampling_steps",
    ],
    "LoRWeBLoadEdit": ["edit"],
    "LoRWeBFindEdits": ["coefficients", "folder", "k"],
}


def result(comfy, graph):
    return comfy.images(comfy.run(graph), "b_prime")[0]


def free(comfy):
    """Make ComfyUI forget its caches and unload its models, as its own buttons do."""
    requests.post(f"{comfy.url}/free", json={"unload_models": True, "free_memory": True}, timeout=60).raise_for_status()


def unpatched(graph):
    graph = copy.deepcopy(graph)
    graph["sampler"]["inputs"]["model"] = ["model", 0]
    return graph


def only(graph, *outputs):
    """The part of a graph that the named output nodes need."""
    needed, todo = {}, list(outputs)
    while todo:
        node = todo.pop()
        if node not in needed:
            needed[node] = graph[node]
            todo += [value[0] for value in graph[node]["inputs"].values() if isinstance(value, list)]
    return needed


def test_published_interface(comfy):
    info = comfy.object_info()
    for node_id, inputs in PUBLISHED.items():
        order = info[node_id]["input_order"]
        found = order["required"] + order.get("optional", [])
        assert [name for name in found if name not in NEWER.get(node_id, ())] == inputs, node_id
        assert info[node_id]["category"] == "LoRWeB" and info[node_id]["description"]
    assert {name for name in info if name.startswith("LoRWeB")} == set(PUBLISHED)


def test_every_input_has_a_tooltip_and_every_node_a_help_page(comfy):
    described = comfy.object_info()
    for node_id in PUBLISHED:
        info = described[node_id]
        for name, (_, *options) in (info["input"]["required"] | info["input"].get("optional", {})).items():
            assert options and options[0].get("tooltip"), f"{node_id}.{name}"
        assert all(info["output_tooltips"]), node_id
        page = ROOT / "web" / "docs" / f"{node_id}.md"
        assert page.is_file() and len(page.read_text(encoding="utf-8")) > 300, page
        served = requests.get(f"{comfy.url}/extensions/comfyui-lorweb/docs/{node_id}.md", timeout=30)
        assert served.status_code == 200 and served.text == page.read_text(encoding="utf-8")


def test_edit_by_example(comfy, graph, photographs):
    """The main job: b' comes back at b's own size, with a heatmap, and loading the bank shows progress."""
    free(comfy)  # the bank is to be loaded in this run, whatever ran before
    seen = []
    outputs = comfy.run(graph, lambda node, value, maximum: seen.append((node, value, maximum)))
    b_prime = comfy.images(outputs, "b_prime")[0]
    assert b_prime.shape == photographs["chelsea"][::3, ::3].shape and b_prime.std() > 1
    assert comfy.images(outputs, "heatmap")[0].shape[1] >= 700
    assert "40 of 40 layers patched" in outputs["apply"]["text"][0]
    assert ("basis", 80, 80) in seen, "two passes over 40 layers"


def test_switching_the_node_off_restores_the_base_exactly(comfy, graph):
    free(comfy)
    before = result(comfy, unpatched(graph))
    edited = result(comfy, graph)
    free(comfy)
    after = result(comfy, unpatched(graph))
    assert np.array_equal(before, after)
    assert not np.array_equal(before, edited)
    graph["apply"]["inputs"]["strength"] = 0.0
    assert np.array_equal(result(comfy, graph), before)


def test_saved_lora_in_the_stock_loader(comfy, graph):
    edited = result(comfy, graph)
    save = only(graph, "apply")
    save["save"] = {
        "class_type": "LoRWeBSaveLoRA",
        "inputs": {
            "basis": ["basis", 0], "coefficients": graph["apply"]["inputs"]["coefficients"],
            "filename_prefix": "loras/test", "format": "diffusers", "max_rank": 0, "dtype": "float32",
        },
    }  # fmt: skip
    text = comfy.run(only(save, "save"))["save"]["text"][0]
    assert "exact, rank 32" in text
    listed = comfy.object_info()["LoraLoaderModelOnly"]["input"]["required"]["lora_name"][0]
    name = next(name for name in listed if name.startswith("test_"))
    assert (comfy.output_folder / "loras" / name).is_file()
    stock = copy.deepcopy(graph)
    stock["apply"] = {
        "class_type": "LoraLoaderModelOnly",
        "inputs": {"model": ["model", 0], "lora_name": name, "strength_model": 1.0},
    }
    difference = result(comfy, stock).astype(int) - edited
    assert np.abs(difference).mean() < 0.5 and np.abs(difference).max() < 16


def test_truncated_lora_reports_its_error(comfy, graph):
    save = only(graph, "apply")
    coefficients = graph["apply"]["inputs"]["coefficients"]
    inputs = {"basis": ["basis", 0], "coefficients": coefficients, "filename_prefix": "loras/small", "max_rank": 4}
    save["save"] = {"class_type": "LoRWeBSaveLoRA", "inputs": inputs | {"format": "comfyui", "dtype": "float16"}}
    assert "rank 4, relative error" in comfy.run(only(save, "save"))["save"]["text"][0]
    save["save"]["inputs"]["max_rank"] = 64
    assert "exact, rank 32" in comfy.run(only(save, "save"))["save"]["text"][0]


def test_a_batch_of_b_shares_one_edit(comfy, graph, names):
    """Two b in a batch give a batch of two canvases and two b'."""
    graph["b2"] = {"class_type": "ImageInvert", "inputs": {"image": ["b", 0]}}
    graph["batch"] = {"class_type": "ImageBatch", "inputs": {"image1": ["b", 0], "image2": ["b2", 0]}}
    for node in ("canvas", "analogy"):
        graph[node]["inputs"]["image_b"] = ["batch", 0]
    images = comfy.images(comfy.run(graph), "b_prime")
    assert len(images) == 2 and not np.array_equal(*images)


def test_a_blend_and_an_adjustment_reach_the_model(comfy, graph):
    edited = result(comfy, graph)
    source = graph["apply"]["inputs"]["coefficients"]
    graph["adjust"] = {
        "class_type": "LoRWeBAdjustCoefficients",
        "inputs": {
            "coefficients": source, "temperature": 0.5, "top_k": 2,
            "block_scales": "transformer_blocks.{0-1} = 2", "overrides": "single_transformer_blocks 0 = 1.5",
        },
    }  # fmt: skip
    graph["blend"] = {
        "class_type": "LoRWeBBlendCoefficients",
        "inputs": {"coefficients_1": source, "coefficients_2": ["adjust", 0], "blend": 0.0},
    }
    graph["apply"]["inputs"]["coefficients"] = ["blend", 0]
    assert np.array_equal(result(comfy, graph), edited)
    graph["blend"]["inputs"]["blend"] = 1.0
    assert not np.array_equal(result(comfy, graph), edited)


@pytest.fixture
def banks(comfy):
    """The server's own models/lorweb, emptied afterwards."""
    folder = comfy.base / "models" / "lorweb"
    folder.mkdir(parents=True, exist_ok=True)
    yield folder
    for file in folder.iterdir():
        file.unlink()


def refused(comfy, graph, node_type, *fragments):
    with pytest.raises(GraphError) as caught:
        comfy.run(graph)
    assert caught.value.node_type == node_type
    assert "." not in caught.value.exception_type, "the page shows it before the message"
    for fragment in fragments:
        assert fragment in str(caught.value)


def test_bad_inputs_are_clean_errors_and_the_server_goes_on(comfy, graph, banks, small_models):
    good = copy.deepcopy(graph)
    whole = load_file(small_models / "lorweb" / SMALL_BANK)

    def use(bank):
        changed = copy.deepcopy(graph)
        changed["basis"]["inputs"]["basis_name"] = bank
        return changed

    refused(comfy, use("absent.safetensors"), "LoRWeBLoadBasis", "absent.safetensors", str(banks), SMALL_BANK)

    (banks / "cut.safetensors").write_bytes((small_models / "lorweb" / SMALL_BANK).read_bytes()[:5000])
    refused(comfy, use("cut.safetensors"), "LoRWeBLoadBasis", "cut.safetensors", "not a readable safetensors file")

    name = "transformer.transformer_blocks.0.attn.to_q.lora_B"
    save_file({k: v.clone() for k, v in whole.items() if k != name}, banks / "gap.safetensors")
    refused(comfy, use("gap.safetensors"), "LoRWeBLoadBasis", "lora_B missing in layer transformer_blocks.0.attn.to_q")

    random_bank(banks / "wide.safetensors", flux_layers(256, 2, 2), 8, 4, 32, 3 * 1024)
    refused(comfy, use("wide.safetensors"), "LoRWeBEncodeAnalogy", "gives 768 numbers", "trained with 1024")

    random_bank(banks / "other.safetensors", flux_layers(128, 2, 2), 8, 4, 32, 2304)
    refused(comfy, use("other.safetensors"), "LoRWeBApply", "128 x 128 delta", "another base")

    mixed = copy.deepcopy(graph)
    random_bank(banks / "deep.safetensors", flux_layers(256, 3, 2), 8, 4, 32, 2304)
    mixed["deep"] = {"class_type": "LoRWeBLoadBasis", "inputs": {"basis_name": "deep.safetensors"}}
    mixed["apply"]["inputs"]["basis"] = ["deep", 0]
    refused(comfy, mixed, "LoRWeBApply", "use the bank that they were made with")

    adjusted = copy.deepcopy(graph)
    inputs = {"coefficients": graph["apply"]["inputs"]["coefficients"], "temperature": 1.0, "top_k": 0}
    adjusted["adjust"] = {"class_type": "LoRWeBAdjustCoefficients", "inputs": inputs}
    adjusted["apply"]["inputs"]["coefficients"] = ["adjust", 0]
    inputs |= {"block_scales": "", "overrides": "somewhere = 1"}
    refused(comfy, adjusted, "LoRWeBAdjustCoefficients", "overrides: line 1")
    inputs |= {"block_scales": "nowhere = 1", "overrides": ""}
    refused(comfy, adjusted, "LoRWeBAdjustCoefficients", "'nowhere' matches none of the 40 layers")

    assert result(comfy, good).std() > 1


def scale(graph, node, source, consumers):
    """The graph with a node between a source and those that take its image or latent."""
    changed = copy.deepcopy(graph)
    name = "samples" if node["class_type"].startswith("Latent") else "image"
    for consumer, slot in consumers:
        assert changed[consumer]["inputs"][slot] == [source, 0]
        changed[consumer]["inputs"][slot] = ["scale", 0]
    changed["scale"] = {**node, "inputs": {**node["inputs"], name: [source, 0]}}
    return changed


@pytest.mark.parametrize("node", [
    {"class_type": "FluxKontextImageScale", "inputs": {}},
    {"class_type": "ImageScaleBy", "inputs": {"upscale_method": "bilinear", "scale_by": 2.0}},
    {"class_type": "LatentUpscaleBy", "inputs": {"upscale_method": "bilinear", "scale_by": 2.0}},
], ids=lambda node: node["class_type"])  # fmt: skip
def test_a_scaled_canvas_is_refused_before_it_is_sampled(comfy, graph, node):
    latent = node["class_type"].startswith("Latent")
    source, consumer = ("latent", ("sampler", "latent_image")) if latent else ("canvas", ("latent", "pixels"))
    graph["sampler"]["inputs"]["seed"] = 77  # not one of a run before
    ran = set()
    with pytest.raises(
        GraphError, match=rf"^node crop .*: {node['class_type']} \(node scale\) makes the picture"
    ) as caught:
        comfy.run(scale(graph, node, source, [consumer]), lambda name, value, maximum: ran.add(name))
    assert "do not scale it in between" in str(caught.value) and "sampler" not in ran


def separate(graph):
    """The graph with three references and b' alone in place of the canvas."""
    changed = {name: node for name, node in graph.items() if name not in ("latent", "reference", "canvas_result")}
    inputs = {name: value for name, value in graph["canvas"]["inputs"].items() if name != "basis"}
    inputs |= {"conditioning": ["prompt", 0], "vae": ["vae", 0], "basis": ["basis", 0], "long_side": 128}
    changed["canvas"] = {"class_type": "LoRWeBAnalogyReferences", "inputs": inputs}
    changed["guidance"]["inputs"]["conditioning"] = ["canvas", 0]
    changed["sampler"]["inputs"]["latent_image"] = ["canvas", 1]
    changed["crop"]["inputs"]["geometry"] = ["canvas", 2]
    return changed


def test_separate_references(comfy, graph, photographs):
    """b' comes back at b's own size, the bank of the other layout is named, and a scaled latent is refused."""
    outputs = comfy.run(only(graph := separate(graph), "b_prime"))
    assert comfy.images(outputs, "b_prime")[0].shape == photographs["chelsea"][::3, ::3].shape
    assert "was trained with the layout canvas, and this is separate" in outputs["canvas"]["text"][0]
    scaled = {"class_type": "LatentUpscaleBy", "inputs": {"samples": ["sampler", 0], "upscale_method": "bilinear"}}
    graph["scale"] = {**scaled, "inputs": {**scaled["inputs"], "scale_by": 2.0}}
    graph["decoded"]["inputs"]["samples"] = ["scale", 0]
    refused(
        comfy, only(graph, "b_prime"), "LoRWeBCropResult", "LatentUpscaleBy (node scale) makes the picture 192 x 128"
    )


def test_a_scaling_that_changes_no_size_is_let_through(comfy, graph):
    node = {"class_type": "ImageScaleBy", "inputs": {"upscale_method": "bilinear", "scale_by": 1.0}}
    assert result(comfy, scale(graph, node, "canvas", [("latent", "pixels")])).std() > 1


def test_a_bank_replaced_under_its_name_is_loaded_again(comfy, graph, banks):
    path = banks / "mine.safetensors"
    graph["basis"]["inputs"]["basis_name"] = path.name
    random_bank(path, flux_layers(256, 2, 2), 8, 4, 32, 2304, seed=1)
    assert path.name in comfy.object_info()["LoRWeBLoadBasis"]["input"]["required"]["basis_name"][1]["options"]
    first = result(comfy, graph)
    assert np.array_equal(result(comfy, graph), first)
    random_bank(path, flux_layers(256, 2, 2), 8, 4, 32, 2304, seed=2)
    assert not np.array_equal(result(comfy, graph), first)


def with_a_second_edit(graph, modes):
    """The graph with another edit on another clone of its one model, which answers in ``b_prime_2``."""
    graph = copy.deepcopy(graph)
    inputs = {**graph["analogy"]["inputs"], "image_a": ["a_prime", 0], "image_a_prime": ["a", 0]}
    graph["analogy_2"] = {"class_type": "LoRWeBEncodeAnalogy", "inputs": inputs}
    again = {"apply": "coefficients", "sampler": "model", "decoded": "samples", "crop": "image", "b_prime": "images"}
    source = "analogy_2"
    for name, slot in again.items():
        inputs = {**graph[name]["inputs"], slot: [source, 0]}
        source = f"{name}_2"
        graph[source] = {**graph[name], "inputs": inputs}
    graph["apply"]["inputs"]["mode"], graph["apply_2"]["inputs"]["mode"] = modes
    return graph


@pytest.mark.parametrize("modes", [("patch", "patch"), ("runtime", "runtime"), ("patch", "runtime")], ids="-".join)
def test_two_edits_on_two_clones_of_one_model(comfy, graph, modes):
    graph = with_a_second_edit(graph, modes)
    outputs = ("b_prime", "b_prime_2")
    alone = []
    for output in outputs:
        free(comfy)
        alone.append(comfy.images(comfy.run(only(graph, output)), output)[0])
    free(comfy)
    found = comfy.run(only(graph, *outputs))
    assert all(np.array_equal(comfy.images(found, output)[0], one) for output, one in zip(outputs, alone))
    assert not np.array_equal(*alone)


@pytest.mark.parametrize("mode", ["patch", "runtime"])
def test_on_off_and_on_again_with_another_seed(comfy, graph, mode):
    graph["apply"]["inputs"]["mode"] = mode
    first = result(comfy, graph)
    off = result(comfy, unpatched(graph))
    graph["sampler"]["inputs"]["seed"] = 4321
    again, other_off = result(comfy, graph), result(comfy, unpatched(graph))
    free(comfy)
    assert np.array_equal(result(comfy, graph), again) and np.array_equal(result(comfy, unpatched(graph)), other_off)
    graph["sampler"]["inputs"]["seed"] = 0
    assert np.array_equal(result(comfy, unpatched(graph)), off) and np.array_equal(result(comfy, graph), first)
    assert not np.array_equal(first, again) and not np.array_equal(again, other_off)
