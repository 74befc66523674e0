"""Save LoRA for every family and format: diffusers' own loaders and ComfyUI's stock one make the edit of the file.

The models are the real classes with random weights, narrow, one block of each kind.
"""

import comfy.lora
import comfy.sd
import comfy.utils
import folder_paths
import pytest
import torch
from lorweb_pack.lorweb_core.checkpoint import PREFIX
from lorweb_pack.nodes.apply import target_table
from lorweb_pack.nodes.export import SaveLoRA
from lorweb_pack.nodes.narrow_flux import load_narrow_flux
from safetensors.torch import load_file

from harness.small_models import SMALL_FLUX, flux_layers

from .dense import patched, relative
from .test_families import (
    HEAD,
    HIDDEN,
    LATENT,
    SINGLES,
    TEXT,
    bank_of,
    flux_2_layers,
    qwen_layers,
    random_flux_2,
    random_qwen,
    rows_of,
)

STRENGTH = 0.7
FORMATS = ("diffusers", "comfyui")


def diffusers_model(family):
    """A model of diffusers' class, as narrow as ComfyUI's, and the class that loads its LoRA files."""
    diffusers = pytest.importorskip("diffusers")
    from diffusers.loaders import lora_pipeline

    torch.manual_seed(0)
    shape = {"num_attention_heads": HIDDEN // HEAD, "attention_head_dim": HEAD, "joint_attention_dim": TEXT}
    if family == "flux":
        model = diffusers.FluxTransformer2DModel(num_layers=1, num_single_layers=1, pooled_projection_dim=8, **shape)
        return model, lora_pipeline.FluxLoraLoaderMixin
    if family == "flux2":
        model = diffusers.Flux2Transformer2DModel(
            num_layers=1, num_single_layers=SINGLES, in_channels=LATENT, guidance_embeds=False, **shape
        )
        return model, lora_pipeline.Flux2LoraLoaderMixin
    return diffusers.QwenImageTransformer2DModel(num_layers=1, **shape), lora_pipeline.QwenImageLoraLoaderMixin


@pytest.fixture(params=["flux", "flux2", "qwen"])
def edit(request, tmp_path):
    """(family, bank of all its layers, coefficients)."""
    layers = {
        "flux": lambda: flux_layers(HIDDEN, 1, 1), "flux2": flux_2_layers, "qwen": lambda: qwen_layers(random_qwen()),
    }[request.param]()  # fmt: skip
    bank = bank_of(tmp_path, layers)
    return request.param, bank, bank.mix(torch.randn(12, generator=torch.Generator().manual_seed(1)))


def saved(bank, coefficients, format) -> tuple[str, str]:
    """(path of the LoRA that the node saves, what it says)."""
    told = SaveLoRA.execute(bank, coefficients, "loras/family", format, 0, "float32")
    path = f"{folder_paths.get_output_directory()}/loras/{told.args[0]}"
    return path, told.ui.as_dict()["text"][0]


# ComfyUI's names of FLUX.1 are in the next test: diffusers converts them at the width of FLUX.1 alone.
@pytest.mark.parametrize(
    ("edit", "format"),
    [("flux", "diffusers"), *((family, format) for family in ("flux2", "qwen") for format in FORMATS)],
    indirect=["edit"],
)
def test_diffusers_reads_it(edit, format):
    family, bank, coefficients = edit
    model, loader = diffusers_model(family)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    state = loader.lora_state_dict(saved(bank, coefficients, format)[0])
    model.load_lora_adapter(state, prefix="transformer")
    model.fuse_lora()
    model.unload_lora()
    for name, weight in model.state_dict().items():
        layer = name.removesuffix(".weight")
        expected = before[name] + bank.delta(layer, coefficients) if layer in bank.layers else before[name]
        assert relative(weight, expected) < 1e-5, name
    assert {f"{layer}.weight" for layer in bank.layers} <= before.keys()


def test_diffusers_reads_comfyuis_names_of_flux_1(tmp_path):
    loader = pytest.importorskip("diffusers.loaders.lora_pipeline").FluxLoraLoaderMixin
    bank = bank_of(tmp_path, flux_layers(3072, 1, 1))
    coefficients = bank.mix(torch.randn(12, generator=torch.Generator().manual_seed(1)))
    state, lora = loader.lora_state_dict(saved(bank, coefficients, "comfyui")[0]), bank.compose(coefficients)
    assert len(state) == 2 * len(bank.layers)
    for layer in bank.layers:
        down, up = lora.factors(layer)
        x = torch.randn(down.shape[1], generator=torch.Generator().manual_seed(2))
        found = state[f"{PREFIX}{layer}.lora_B.weight"] @ (state[f"{PREFIX}{layer}.lora_A.weight"] @ x)
        assert relative(found, up @ (down @ x)) < 1e-5, layer


def comfyui_model(family, small_models):
    """A narrow model of ComfyUI's class, in float32."""
    if family == "flux":
        return load_narrow_flux(load_file(small_models / "diffusion_models" / SMALL_FLUX), SMALL_FLUX, torch.float32)
    return random_flux_2() if family == "flux2" else random_qwen()


@pytest.mark.parametrize("format", FORMATS)
@torch.no_grad()
def test_comfyuis_stock_loader_reads_it(edit, small_models, format):
    """All of it, but for the names of FLUX.2 that ComfyUI before 0.11 lacks, which the node says."""
    family, bank, coefficients = edit
    model = comfyui_model(family, small_models)
    path, text = saved(bank, coefficients, format)
    known = comfy.lora.model_lora_keys_unet(model.model, {})
    lacking = {layer for layer in bank.layers if format == "diffusers" and PREFIX + layer not in known}
    assert family == "flux2" or not lacking
    assert ("from 0.11 on; for an older one save as comfyui" in text) == (family == "flux2" and format == "diffusers")
    before = {name: weight.clone() for name, weight in model.model.diffusion_model.state_dict().items()}
    loaded = comfy.sd.load_lora_for_models(model, None, comfy.utils.load_torch_file(path), STRENGTH, 0.0)[0]
    table = target_table({name: layer.out_features for name, layer in bank.layers.items()})
    with patched(loaded) as diffusion_model:
        after = diffusion_model.state_dict()
        for layer in bank.layers:
            key, rows = rows_of(table[layer])
            delta = 0.0 if layer in lacking else STRENGTH * bank.delta(layer, coefficients)
            assert relative(after[key][rows], before[key][rows] + delta) < 1e-5, layer


def test_the_node_says_whose_names_it_wrote(edit):
    family, bank, coefficients = edit
    name = {"flux": "FLUX.1", "flux2": "FLUX.2", "qwen": "Qwen-Image"}[family]
    assert f"diffusers' names of {name}: " in saved(bank, coefficients, "diffusers")[1]
    assert f"ComfyUI's names of {name}: " in saved(bank, coefficients, "comfyui")[1]
