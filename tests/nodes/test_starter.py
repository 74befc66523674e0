"""The starter that comes with the pack: its parts are diffusers' own, and its workflow answers its examples."""

import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from comfy.samplers import calculate_sigmas
from lorweb_pack.nodes import starter
from lorweb_pack.nodes.image_encoder import ClipVisionEncoder
from lorweb_pack.nodes.narrow_flux import load_narrow_flux
from safetensors.torch import load_file, save_file

import training  # noqa: F401  # isort: skip  (makes diffusers importable)
from diffusers import FlowMatchEulerDiscreteScheduler

from harness.api_graph import api_graph
from harness.comfyui import ROOT
from harness.demo import EXAMPLES, answer, contact_sheet
from lorweb_core import BasisBank
from lorweb_core.packing import PACKED, unpack
from training.bases import KONTEXT
from training.encoders import VisionEncoder

STARTER = ROOT / "starter"
WORKFLOW = json.loads((ROOT / "workflows" / "starter_cpu.json").read_text(encoding="utf-8"))


@pytest.fixture
def images():
    """Random images [2, 128, 128, 3] in 0..1."""
    return torch.rand(2, 128, 128, 3, generator=torch.Generator().manual_seed(0))


def transformer():
    """The weights of the base's, in half precision."""
    return unpack(load_file(STARTER / "base" / "transformer" / PACKED), torch.float16)


def test_the_autoencoder_is_diffusers_own(images):
    coder, vae = KONTEXT.load_coder(str(STARTER / "base"), "cpu", torch.float32), starter._vae()
    expected = coder.encode(images)
    latent = starter.FLUX.process_in(vae.encode(images))
    torch.testing.assert_close(latent.float().cpu(), expected, atol=2e-3, rtol=2e-3)
    with torch.no_grad():
        decoded = coder.vae.decode(expected).sample.movedim(1, -1) / 2 + 0.5
    found = vae.decode(starter.FLUX.process_out(expected)).float().cpu()
    torch.testing.assert_close(found, decoded.clamp(0, 1), atol=2e-3, rtol=2e-3)


def test_the_image_encoder_is_transformers_own(images):
    config, pairs = BasisBank.load(STARTER / "bank.safetensors").config, torch.cat((images, images.flip(0)), 2)
    expected = VisionEncoder(str(STARTER / "encoder")).pooled(pairs, stretch=True)
    found = ClipVisionEncoder(starter._clip_vision(), config, "center").pooled(pairs, stretch=True)
    torch.testing.assert_close(found.float().cpu(), expected, atol=2e-3, rtol=2e-3)


def test_a_missing_file_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(starter, "FOLDER", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"^bank\.safetensors is missing from the starter"):
        starter.LoadStarter.execute()


def test_the_schedule_is_that_of_the_training():
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(STARTER / "base", subfolder="scheduler")
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 8, 8))
    schedule = starter._model().get_model_object("model_sampling")
    torch.testing.assert_close(calculate_sigmas(schedule, "simple", 8), scheduler.sigmas)
    trained = yaml.safe_load((STARTER / "logs" / "base" / "settings.yaml").read_text(encoding="utf-8"))
    assert scheduler.config.shift == trained["objective"]["shift"]


def test_any_shift_gives_the_schedule_of_diffusers():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 8, 8))
    model = load_narrow_flux(transformer(), "starter", shift=5.0)
    schedule = model.get_model_object("model_sampling")
    torch.testing.assert_close(calculate_sigmas(schedule, "simple", 8), scheduler.sigmas)
    assert schedule.timestep(torch.tensor(0.5)) == 0.5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_precision_gives_the_same_step(dtype):
    """ComfyUI chooses it by the card and by its options --bf16-unet, --fp16-unet and --fp32-unet."""

    def step(dtype):
        model = load_narrow_flux(transformer(), "starter", dtype).model
        tokens, extra = starter._prompt()[0]
        latent = torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            return model.apply_model(latent, torch.tensor([0.7]), c_crossattn=tokens, y=extra["pooled_output"])

    expected, found = step(torch.float32), step(dtype)
    assert found.isfinite().all()
    assert float((found - expected).norm() / expected.norm()) < 0.02


def test_graphs_of_0_1_find_their_examples():
    named = (
        "background_yellow circle_black darken insert_blue_square insert_red_disc invert letterbox night_vision sketch"
        " tint_blue zoom_out"
    )
    assert set(named.split()) < set(starter.example_names())


def distance(one, other):
    return float(((one.astype(float) - other) ** 2).mean())


def test_the_workflow_answers_its_examples(comfy):
    """Every b' but one is nearer to the true b' than b is, and far nearer for most of them."""
    graph, rows = api_graph(WORKFLOW, comfy.object_info()), {}
    for name in sorted(folder.name for folder in EXAMPLES.iterdir()):
        rows[name] = answer(comfy, WORKFLOW, graph, name)
    shares = {
        name: distance(row["b'"], row["true b'"]) / distance(row["b"], row["true b'"]) for name, row in rows.items()
    }
    assert len(shares) == 20 and {name for name, share in shares.items() if share >= 1} <= {"ground_grey"}, shares
    assert np.median(list(shares.values())) < 0.3, shares
    sheet = contact_sheet(rows)
    assert sheet.shape[0] > 190 * len(rows) and sheet.std() > 20


def test_without_the_edit_the_starter_does_something_else(comfy):
    graph = api_graph(WORKFLOW, comfy.object_info())
    edited = answer(comfy, WORKFLOW, graph, "tint_blue")["b'"]
    apply = next(node for node in graph.values() if node["class_type"] == "LoRWeBApply")
    apply["inputs"]["strength"] = 0.0
    plain = answer(comfy, WORKFLOW, graph, "tint_blue")
    assert distance(edited, plain["true b'"]) < distance(plain["b'"], plain["true b'"]) / 2


def test_a_transformer_that_is_not_packed_is_loaded_too(tmp_path, monkeypatch):
    packed = starter._model().model.diffusion_model.state_dict()
    shutil.copytree(STARTER / "base", tmp_path / "base")
    (tmp_path / "base" / "transformer" / PACKED).unlink()
    save_file(transformer(), tmp_path / "base" / "transformer" / "diffusion_pytorch_model.safetensors")
    monkeypatch.setattr(starter, "FOLDER", tmp_path)
    plain = starter._model().model.diffusion_model.state_dict()
    assert plain.keys() == packed.keys() and len(plain) > 50
    assert all(torch.equal(plain[key], packed[key]) for key in packed)
