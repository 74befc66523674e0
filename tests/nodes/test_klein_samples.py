"""FLUX.2-klein through diffusers and through ComfyUI: the same edit, pictures, text and noise give the same answer.

A tiny transformer of the real class with the real autoencoder's class, random weights, a bank on it.
"""

import re

import comfy.sample
import comfy.samplers
import comfy.sd
import numpy as np
import pytest
import torch
from lorweb_pack.lorweb_core import BasisBank
from lorweb_pack.lorweb_core.layers import places
from lorweb_pack.nodes.apply import apply_lora
from lorweb_pack.nodes.narrow_flux import load_narrow_flux
from PIL import Image

from harness.small_models import random_bank
from training.bases import KLEIN
from training.bases.tiny_klein import make_klein
from training.evaluate import Contestant

# Diffusers' names of what is in no block, and of the norms in blocks, as FLUX.2's own files have them.
NAMES = {
    r"^x_embedder": "img_in", r"^context_embedder": "txt_in", r"^proj_out": "final_layer.linear",
    r"^time_guidance_embed\.timestep_embedder\.linear_1": "time_in.in_layer",
    r"^time_guidance_embed\.timestep_embedder\.linear_2": "time_in.out_layer",
    r"^norm_out\.linear": "final_layer.adaLN_modulation.1",
    r"^(\w+_stream_modulation\w*)\.linear": r"\1.lin",
    r"^transformer_blocks\.(\d+)\.attn\.norm_added_([qk])": r"double_blocks.\1.txt_attn.norm.\2",
    r"^transformer_blocks\.(\d+)\.attn\.norm_([qk])": r"double_blocks.\1.img_attn.norm.\2",
    r"^single_transformer_blocks\.(\d+)\.attn\.norm_([qk])": r"single_blocks.\1.norm.\2",
    r"norm\.q\.weight$": "norm.query_norm.scale", r"norm\.k\.weight$": "norm.key_norm.scale",
}  # fmt: skip
WORDS, STEPS, GUIDANCE, SIZE = "make it gold", 3, 3.0, (80, 64)


def comfy_weights(transformer) -> dict[str, torch.Tensor]:
    """The weights of diffusers' transformer by FLUX.2's own names."""
    state = transformer.state_dict()
    widths = {name: m.out_features for name, m in transformer.named_modules() if re.fullmatch(KLEIN.targets, name)}
    placed, parts = {}, {}
    for layer, (module, start) in places(widths).items():
        parts.setdefault(module, []).append((start or 0, state.pop(f"{layer}.weight")))
    for module, slices in parts.items():
        placed[f"{module}.weight"] = torch.cat([weight for _, weight in sorted(slices, key=lambda part: part[0])])
    for name, weight in state.items():
        if name == "norm_out.linear.weight":  # diffusers has the scale first, FLUX.2's files the shift
            weight = weight.roll(len(weight) // 2, 0)
        for pattern, replacement in NAMES.items():
            name = re.sub(pattern, replacement, name)
        placed[name] = weight
    return placed


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return str(make_klein(tmp_path_factory.mktemp("klein") / "base"))


@pytest.fixture(scope="module")
def pipeline(base):
    pipeline = KLEIN.pipeline.from_pretrained(base)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def bank(pipeline, tmp_path_factory):
    layers = {
        name: (module.in_features, module.out_features)
        for name, module in pipeline.transformer.named_modules()
        if re.fullmatch(KLEIN.targets, name)
    }
    sizes = {"num_loras": 3, "rank": 2, "key_dim": 8, "query_dim": 12, "dtype": torch.float32}
    return BasisBank.load(random_bank(tmp_path_factory.mktemp("bank") / "bank.safetensors", layers, **sizes))


@pytest.fixture(scope="module")
def vae(pipeline):
    """The pipeline's autoencoder as ComfyUI's VAE: its classes with the tiny widths."""
    settings = pipeline.vae.config
    ddconfig = {
        "double_z": True, "z_channels": settings.latent_channels, "resolution": 256, "in_channels": 3, "out_ch": 3,
        "ch": settings.block_out_channels[0], "ch_mult": [1, 1, 1, 1], "num_res_blocks": settings.layers_per_block,
        "attn_resolutions": [], "dropout": 0.0, "batch_norm_latent": True,
    }  # fmt: skip
    return comfy.sd.VAE(pipeline.vae.state_dict(), config={"params": {"ddconfig": ddconfig, "embed_dim": 32}})


def pictures(layout):
    rng, (width, height) = np.random.default_rng(0), SIZE
    size = (2 * height, 2 * width, 3) if layout == "canvas" else (height, width, 3)
    return [Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)) for _ in range(1 if layout == "canvas" else 3)]


@pytest.mark.parametrize("layout", ["separate", "canvas"])
@torch.inference_mode()
def test_the_same_edit_gives_the_same_answer(pipeline, bank, vae, layout):
    coefficients = bank.mix(torch.randn(12, generator=torch.Generator().manual_seed(1)))
    model = load_narrow_flux(comfy_weights(pipeline.transformer), "klein", torch.float32)
    edited, report = apply_lora(model, bank.compose(coefficients), 1.0)
    assert f"{len(bank.layers)} of {len(bank.layers)} layers" in report

    shown, size = pictures(layout), pictures(layout)[-1].size
    noise = torch.randn(1, 128, size[1] // 16, size[0] // 16, generator=torch.Generator().manual_seed(5))
    plain = by_diffusers(pipeline, shown, noise)
    contestant = Contestant("bank", bank, pipeline.transformer)
    contestant.wear(coefficients)
    expected = by_diffusers(pipeline, shown, noise)
    pipeline.transformer.unload_lora()

    found = by_comfyui(edited, vae, pipeline, shown, noise)
    assert (plain - expected).abs().max() > 0.005
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def by_diffusers(pipeline, shown, noise):
    width, height = shown[-1].size
    image = pipeline(
        image=shown, prompt=WORDS, height=height, width=width, num_inference_steps=STEPS, guidance_scale=GUIDANCE,
        latents=noise.clone(), output_type="pt",
    ).images[0]  # fmt: skip
    return image.movedim(0, -1)


def by_comfyui(model, vae, pipeline, shown, noise):
    """ComfyUI's sampler at the sigmas of the pipeline, with its text."""
    latents = [vae.encode(torch.from_numpy(np.asarray(picture) / np.float32(255))[None]) for picture in shown]
    told = [pipeline.encode_prompt(words)[0] for words in (WORDS, "")]
    positive, negative = ([[tokens, {"reference_latents": latents, "pooled_output": None}]] for tokens in told)
    sampler = comfy.samplers.sampler_object("euler")
    sampled = comfy.sample.sample_custom(
        model, noise, GUIDANCE, sampler, pipeline.scheduler.sigmas, positive, negative, torch.zeros_like(noise)
    )
    return vae.decode(sampled)[0]
