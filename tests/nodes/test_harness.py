"""The harness against a real server: graphs run, bad graphs come back as errors, nothing is left behind."""

import contextlib
import math
import os
import threading
from multiprocessing import get_context

import numpy as np
import psutil
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from harness.comfyui import PACK_NAME, ComfyServer, GraphError, GraphInterrupted, ServerError
from harness.edit_graph import ModelFiles, edit_graph, sepia
from harness.fetch import comfyui_folder
from harness.small_models import (
    RANDOM_CLIP_L,
    RANDOM_VIT_L,
    SMALL_BANK,
    SMALL_FLUX,
    SMALL_VAE,
    bank_specs,
    flux_layers,
    random_bank,
    small_flux,
)


def node(class_type, **inputs):
    return {"class_type": class_type, "inputs": inputs}


def stock_graph(image, steps=2, weight_dtype="default", seed=0):
    """Kontext as ComfyUI users build it, without a node of ours but the loader of the small FLUX."""
    return {
        "model": node("LoadSmallFlux", unet_name=SMALL_FLUX, weight_dtype=weight_dtype),
        "vae": node("VAELoader", vae_name=SMALL_VAE),
        "clip": node("CLIPLoader", clip_name=RANDOM_CLIP_L, type="stable_diffusion"),
        "image": node("LoadImage", image=image),
        "latent": node("VAEEncode", pixels=["image", 0], vae=["vae", 0]),
        "prompt": node("CLIPTextEncode", text="a photograph", clip=["clip", 0]),
        "reference": node("ReferenceLatent", conditioning=["prompt", 0], latent=["latent", 0]),
        "guidance": node("FluxGuidance", conditioning=["reference", 0], guidance=2.5),
        "sampler": node(
            "KSampler",
            model=["model", 0],
            positive=["guidance", 0],
            negative=["guidance", 0],
            latent_image=["latent", 0],
            seed=seed,
            steps=steps,
            cfg=1.0,
            sampler_name="euler",
            scheduler="simple",
            denoise=1.0,
        ),
        "decoded": node("VAEDecode", samples=["sampler", 0], vae=["vae", 0]),
        "saved": node("SaveImage", images=["decoded", 0], filename_prefix="stock"),
        "roundtrip": node("VAEDecode", samples=["latent", 0], vae=["vae", 0]),
        "saved_roundtrip": node("SaveImage", images=["roundtrip", 0], filename_prefix="roundtrip"),
    }


@pytest.fixture(scope="module")
def picture(comfy, photographs):
    return comfy.upload(photographs["chelsea"][:128, :192])


def test_stock_graph_runs_with_the_small_flux(comfy, picture):
    seen = []
    outputs = comfy.run(stock_graph(picture), lambda *progress: seen.append(progress))
    (image,) = comfy.images(outputs, "saved")
    assert image.shape == (128, 192, 3) and image.dtype == np.uint8
    assert image.std() > 10
    assert ("sampler", 1, 2) in seen and ("sampler", 2, 2) in seen
    (roundtrip,) = comfy.images(outputs, "saved_roundtrip")
    assert roundtrip.std() > 5 and np.isin(roundtrip, (0, 255)).mean() < 0.01


def test_the_same_seed_gives_the_same_image_and_another_seed_another(comfy, picture):
    first = comfy.images(comfy.run(stock_graph(picture, seed=1)), "saved")[0]
    other = comfy.images(comfy.run(stock_graph(picture, seed=2)), "saved")[0]
    again = comfy.images(comfy.run(stock_graph(picture, seed=1)), "saved")[0]
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_fp8_weights_give_nearly_the_same_image(comfy, picture):
    full = comfy.images(comfy.run(stock_graph(picture)), "saved")[0].astype(float)
    cast = comfy.images(comfy.run(stock_graph(picture, weight_dtype="fp8_e4m3fn")), "saved")[0].astype(float)
    difference = np.abs(full - cast).mean()
    assert 0 < difference < 0.5 * full.std()


def test_outputs_of_cached_nodes_are_still_there(comfy, picture):
    graph = stock_graph(picture, seed=3)
    first, second = comfy.run(graph), comfy.run(graph)
    assert np.array_equal(comfy.images(first, "saved")[0], comfy.images(second, "saved")[0])


def test_invalid_graphs_raise_and_the_server_goes_on(comfy, picture):
    graph = stock_graph("there is no such image.png")
    with pytest.raises(GraphError, match="no such image") as caught:
        comfy.run(graph)
    assert (caught.value.node_id, caught.value.node_type) == ("image", "LoadImage")
    with pytest.raises(GraphError, match="NoSuchNode"):
        comfy.run({"1": node("NoSuchNode")})
    with pytest.raises(GraphError, match="no outputs"):
        comfy.run({"1": node("LoadImage", image=picture)})
    assert comfy.run(stock_graph(picture))["saved"]["images"]


def test_a_graph_with_one_good_and_one_bad_output_raises(comfy, picture):
    graph = stock_graph(picture, steps=5000, seed=6)
    graph["missing"] = node("LoadImage", image="there is no such image.png")
    graph["bad"] = node("SaveImage", images=["missing", 0], filename_prefix="never")
    with pytest.raises(GraphError, match="no such image") as caught:
        comfy.run(graph)
    assert caught.value.node_id == "missing"
    assert comfy.run(stock_graph(picture), timeout=120)["saved"]["images"]


def test_an_exception_inside_a_node_names_it_and_the_server_goes_on(comfy, picture):
    graph = {
        "vae": node("VAELoader", vae_name=SMALL_VAE),
        "empty": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "decoded": node("VAEDecode", samples=["empty", 0], vae=["vae", 0]),  # 4 channels into a VAE of 16
        "saved": node("SaveImage", images=["decoded", 0], filename_prefix="never"),
    }
    with pytest.raises(GraphError, match="channels") as caught:
        comfy.run(graph)
    assert (caught.value.node_id, caught.value.node_type) == ("decoded", "VAEDecode")
    assert caught.value.exception_type == "RuntimeError"
    assert caught.value.details["traceback"]
    assert comfy.run(stock_graph(picture))["saved"]["images"]


def test_interrupt_stops_a_run_and_the_server_goes_on(comfy, picture):
    def interrupt_while_sampling(name, value, maximum):
        if name == "sampler" and value == 1:
            threading.Thread(target=comfy.interrupt).start()

    with pytest.raises(GraphInterrupted):
        comfy.run(stock_graph(picture, steps=500, seed=4), interrupt_while_sampling)
    assert comfy.run(stock_graph(picture))["saved"]["images"]


def test_a_run_that_takes_too_long_is_interrupted(comfy, picture):
    with pytest.raises(TimeoutError):
        comfy.run(stock_graph(picture, steps=5000, seed=5), timeout=3)
    assert comfy.run(stock_graph(picture))["saved"]["images"]


def test_the_main_job_runs(comfy, photographs):
    a = photographs["astronaut"][::4, ::4]
    names = [comfy.upload(image) for image in (a, sepia(a), photographs["coffee"][::4, ::4])]
    models = ModelFiles(clip_vision=RANDOM_VIT_L)  # by ComfyUI's own loader
    outputs = comfy.run(edit_graph(*names, models, long_side=256, steps=2))
    assert comfy.images(outputs, "b_prime")[0].shape == (100, 150, 3)
    assert comfy.images(outputs, "heatmap")[0].std() > 10


def test_loras_in_the_output_folder_are_offered_by_the_stock_loader(comfy):
    folder = comfy.output_folder / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    small_flux(folder / "listed.safetensors")  # any safetensors file: only the listing is looked at
    options = comfy.object_info()["LoraLoader"]["input"]["required"]["lora_name"][0]
    assert "listed.safetensors" in options


def at_once(server):
    """The server started, and not waited for."""
    server._wait_until_ready = lambda: None
    server.start()
    return server


def test_a_server_stops_without_leaving_a_process_and_can_start_again(tmp_path):
    server = ComfyServer(tmp_path, arguments=["--disable-all-custom-nodes"])
    with server:
        process = psutil.Process(server.pid)
        assert (tmp_path / "custom_nodes" / PACK_NAME / "pyproject.toml").is_file()
    assert not process.is_running() and server.pid is None
    with pytest.raises(ServerError, match="not running"):
        server.object_info()
    process = psutil.Process(at_once(server).pid)
    process.kill()
    process.wait()
    with pytest.raises(ServerError, match="exit status"):
        server.run({"1": node("EmptyImage", width=8, height=8, batch_size=1, color=0)})
    server.stop()


def test_a_server_ends_with_the_process_that_started_it(tmp_path):
    """Which ends as when it is killed: nothing cleans up."""
    pid = tmp_path / "pid"

    def start():
        pid.write_text(str(at_once(ComfyServer(tmp_path)).pid))
        os._exit(9)

    starter = get_context("fork").Process(target=start)
    starter.start()
    starter.join()
    assert starter.exitcode == 9
    with contextlib.suppress(psutil.NoSuchProcess):  # it may have ended already
        psutil.Process(int(pid.read_text())).wait(120)


def test_a_server_that_cannot_start_shows_its_log(tmp_path):
    with pytest.raises(ServerError, match="unrecognized arguments: --no-such-argument"):
        ComfyServer(tmp_path, arguments=["--no-such-argument"]).start()


def test_one_core_and_comfyuis_own_nodes_in_this_process():
    import nodes
    from lorweb_pack.lorweb_core import bank

    import lorweb_core

    assert "UNETLoader" in nodes.NODE_CLASS_MAPPINGS
    assert bank.BasisBank is lorweb_core.BasisBank


def test_comfyui_path_must_hold_a_comfyui(tmp_path, monkeypatch):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"main\.py"):
        comfyui_folder()
    (tmp_path / "main.py").touch()
    assert comfyui_folder() == tmp_path.resolve()


def test_flux_layers_at_released_size_have_the_released_number_of_parameters():
    layers = flux_layers(hidden=3072, double=19, single=38)
    specs = bank_specs(layers, num_loras=32, rank=4, key_dim=128, query_dim=2304)
    assert len(layers) == 494
    assert sum(math.prod(spec.shape) for layer in specs.values() for spec in layer.values()) == 835_051_520


def test_flux_layers_are_the_linears_of_the_small_flux(small_flux):
    """Every layer of the small bank maps to a weight of the model, by ComfyUI's own table."""
    import comfy.lora

    table = comfy.lora.model_lora_keys_unet(small_flux.model, {})
    weights = small_flux.model.state_dict()
    for name, (features_in, features_out) in flux_layers(256, 2, 2).items():
        target = table[f"transformer.{name}"]
        key, part = (target, None) if isinstance(target, str) else target
        shape = list(weights[key].shape)
        if part is not None:
            shape[part[0]] = part[2]
        assert shape == [features_out, features_in], name


def test_random_models_are_kept_and_reproducible(tmp_path, small_models):
    path = small_flux(tmp_path / "flux.safetensors")
    written = path.stat().st_mtime_ns
    assert small_flux(path).stat().st_mtime_ns == written
    first, second = load_file(path), load_file(small_models / "diffusion_models" / SMALL_FLUX)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    in_bf16 = path.stat().st_size
    assert small_flux(path, dtype=torch.float32).stat().st_size > 1.9 * in_bf16


def test_a_random_bank_of_another_shape_replaces_the_old_file(tmp_path, small_models):
    layers = {"single_transformer_blocks.0.proj_mlp": (8, 16)}
    for num_loras in (2, 3):
        path = random_bank(tmp_path / "bank.safetensors", layers, num_loras, rank=2, key_dim=4, query_dim=6)
        with safe_open(path, framework="pt") as file:
            shape = file.get_slice("transformer.single_transformer_blocks.0.proj_mlp.lora_A").get_shape()
        assert shape == [num_loras, 8, 2]
    with safe_open(small_models / "lorweb" / SMALL_BANK, framework="pt") as file:
        assert all(file.get_tensor(name).abs().max() > 0 for name in file.keys() if name.endswith("lora_B"))  # noqa: SIM118
