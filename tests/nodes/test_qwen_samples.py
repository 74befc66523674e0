"""Qwen-Image-Edit as it is trained and in ComfyUI: the same edit, references, text and noise come to the same latents.

A tiny transformer of the real class with random weights, and a bank that the trainer's own parts write.
"""

from itertools import pairwise

import comfy.sample
import comfy.samplers
import pytest
import torch
from diffusers import QwenImageTransformer2DModel
from lorweb_pack.nodes import basis
from lorweb_pack.nodes.apply import apply_lora

from lorweb_core import BankConfig
from lorweb_core.checkpoint import write_bank
from training.bases import QWEN_EDIT, Conditioning
from training.data.layouts import LAYOUTS
from training.tuner import LoRWeBConfig, LoRWeBModel

from .test_families import QWEN, random_qwen

# Even numbers of tokens a side: of odd ones, diffusers and ComfyUI centre the positions half a token apart.
SIGMAS, SIZE = (1.0, 0.7, 0.3, 0.0), (12, 8)
KINDS = [("separate", False), ("canvas", False), ("separate", True)]  # layout, and whether it is of 2511's kind


@pytest.fixture
def transformer(zero_cond_t):
    """Of 2509's kind, or of 2511's, which modulates references as at t = 0."""
    names = ("num_layers", "num_attention_heads", "attention_head_dim", "joint_attention_dim")
    torch.manual_seed(0)
    return QwenImageTransformer2DModel(**{name: QWEN[name] for name in names}, zero_cond_t=zero_cond_t)


@pytest.fixture
def model(transformer, zero_cond_t):
    """ComfyUI's with the same weights, by names that both share."""
    model = random_qwen()
    inside = model.model.diffusion_model
    if zero_cond_t and not hasattr(inside, "default_ref_method"):
        pytest.skip("this ComfyUI knows no Qwen-Image-Edit-2511")
    inside.load_state_dict(transformer.state_dict())
    if zero_cond_t:  # as its checkpoints ask for
        inside.default_ref_method = "index_timestep_zero"
    return model


@pytest.fixture
def tuner(transformer, model):
    """The transformer with a bank on it that does something."""
    settings = BankConfig(num_loras=3, rank=2, key_dim=8, query_dim=12, layout="separate", base_model="qwen")
    torch.manual_seed(1)
    tuner = LoRWeBModel(transformer, LoRWeBConfig(bank=settings, target_modules=QWEN_EDIT.targets))
    for layer in tuner.tuner_layers.values():
        torch.nn.init.normal_(layer.lora_B["default"].weight)
    return tuner


@pytest.mark.parametrize(("layout", "zero_cond_t"), KINDS)
def test_a_trained_bank_makes_the_same_edit(model, tuner, tmp_path, monkeypatch, layout):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(12, generator=generator)
    noise, *shown = torch.randn(2 if layout == "canvas" else 4, 1, 16, *SIZE, generator=generator)
    text = torch.randn(1, 9, QWEN["joint_attention_dim"], generator=generator)

    tensors = tuner.bank_tensors(tuner.adapter_state_dict())
    write_bank(tmp_path / "bank.safetensors", tensors, tuner.bank_config)
    monkeypatch.setattr(basis, "basis_path", tmp_path.joinpath)
    bank, info = basis.LoadBasis.execute("bank.safetensors").args
    assert "separate" in info
    plain = by_comfyui(model, noise, shown, text)
    with torch.no_grad():
        edited, report = apply_lora(model, bank.compose(bank.mix(query)), 1.0)
    assert "12 of 12 layers" in report
    found = by_comfyui(edited, noise, shown, text)

    condition = Conditioning(QWEN_EDIT, LAYOUTS[layout], tuple(shown), {"tokens": text})
    with tuner.mixing(query), torch.no_grad():
        expected = by_training(tuner, noise, condition)
    assert (plain - expected).abs().max() > 0.01
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def by_training(model, noise, condition):
    """Euler's steps along the velocity that training asks for."""
    x = noise
    for now, then in pairwise(SIGMAS):
        x = x + (then - now) * QWEN_EDIT.velocity(model, x, torch.tensor([now]), condition)
    return x


@torch.inference_mode()
def by_comfyui(model, noise, shown, text):
    """ComfyUI's sampler; latents are the autoencoder's own outside of it."""
    form = model.model.latent_format
    latents = [form.process_out(latent[:, :, None]) for latent in shown]
    told = [[text, {"reference_latents": latents, "pooled_output": None}]]
    empty = torch.zeros_like(noise)[:, :, None]
    sampled = comfy.sample.sample_custom(
        model, noise[:, :, None], 1.0, comfy.samplers.sampler_object("euler"), torch.tensor(SIGMAS), told, told, empty
    )
    return form.process_in(sampled)[:, :, 0]
