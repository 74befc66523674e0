"""Banks of other families than FLUX.1 on ComfyUI's own models, and our table of names beside ComfyUI's."""

import json

import comfy.lora
import comfy.model_patcher
import comfy.supported_models
import pytest
import torch
from lorweb_pack.lorweb_core import BasisBank
from lorweb_pack.lorweb_core.checkpoint import PREFIX
from lorweb_pack.nodes.apply import apply_lora, target_table
from lorweb_pack.nodes.narrow_flux import load_narrow_flux
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from harness.small_models import SMALL_HIDDEN, flux_layers, random_bank

from .dense import patched, relative

HIDDEN, HEAD, TEXT, LATENT, SINGLES = 256, 128, 64, 128, 2
QWEN = {
    "image_model": "qwen_image", "num_layers": 1, "in_channels": 64, "num_attention_heads": HIDDEN // HEAD,
    "attention_head_dim": HEAD, "joint_attention_dim": TEXT, "axes_dims_rope": (16, 56, 56),
}  # fmt: skip


def random_flux_2() -> comfy.model_patcher.ModelPatcher:
    """A narrow FLUX.2 with random weights, in float32, by the names of its own files."""
    norms = {f"norm.{kind}_norm.scale": (HEAD,) for kind in ("query", "key")}
    shapes = {
        "img_in": (HIDDEN, LATENT), "txt_in": (HIDDEN, TEXT), "time_in.in_layer": (HIDDEN, 256),
        "time_in.out_layer": (HIDDEN, HIDDEN), "double_stream_modulation_img.lin": (6 * HIDDEN, HIDDEN),
        "double_stream_modulation_txt.lin": (6 * HIDDEN, HIDDEN), "single_stream_modulation.lin": (3 * HIDDEN, HIDDEN),
        "final_layer.linear": (LATENT, HIDDEN), "final_layer.adaLN_modulation.1": (2 * HIDDEN, HIDDEN),
    }  # fmt: skip
    for stream in ("img", "txt"):
        attention, mlp = f"double_blocks.0.{stream}_attn", f"double_blocks.0.{stream}_mlp"
        shapes |= {f"{attention}.qkv": (3 * HIDDEN, HIDDEN), f"{attention}.proj": (HIDDEN, HIDDEN)}
        shapes |= {f"{mlp}.0": (6 * HIDDEN, HIDDEN), f"{mlp}.2": (HIDDEN, 3 * HIDDEN)}
        shapes |= {f"{attention}.{name}": shape for name, shape in norms.items()}
    for block in (f"single_blocks.{number}" for number in range(SINGLES)):
        shapes |= {f"{block}.linear1": (9 * HIDDEN, HIDDEN), f"{block}.linear2": (HIDDEN, 4 * HIDDEN)}
        shapes |= {f"{block}.{name}": shape for name, shape in norms.items()}
    generator = torch.Generator().manual_seed(0)
    weights = {
        name if name.endswith("scale") else f"{name}.weight": 0.05 * torch.randn(shape, generator=generator)
        for name, shape in shapes.items()
    }
    return load_narrow_flux(weights, "FLUX.2", torch.float32)


def random_qwen() -> comfy.model_patcher.ModelPatcher:
    """A narrow Qwen-Image with random weights, in float32."""
    config = comfy.supported_models.QwenImage(QWEN)
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "")
    generator = torch.Generator().manual_seed(0)
    for parameter in model.diffusion_model.parameters():
        parameter.data = 0.05 * torch.randn(parameter.shape, generator=generator)
    return comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


def flux_2_layers() -> dict[str, tuple[int, int]]:
    """Diffusers layer -> (inputs, outputs) of every linear layer in the blocks, but for the shared modulations."""
    wide = 3 * HIDDEN
    double = {f"attn.{name}": (HIDDEN, HIDDEN) for name in (
        "to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")}  # fmt: skip
    for stream in ("ff", "ff_context"):
        double |= {f"{stream}.linear_in": (HIDDEN, 2 * wide), f"{stream}.linear_out": (wide, HIDDEN)}
    single = {"attn.to_qkv_mlp_proj": (HIDDEN, 3 * HIDDEN + 2 * wide), "attn.to_out": (HIDDEN + wide, HIDDEN)}
    layers = {f"transformer_blocks.0.{name}": size for name, size in double.items()}
    return layers | {
        f"single_transformer_blocks.{i}.{name}": size for i in range(SINGLES) for name, size in single.items()
    }


def qwen_layers(model) -> dict[str, tuple[int, int]]:
    """Every linear layer in the blocks of ComfyUI's model, named as in diffusers."""
    weights = model.model.diffusion_model.state_dict()
    names = (name for name in weights if name.startswith("transformer_blocks.") and weights[name].dim() == 2)
    return {name.removesuffix(".weight"): tuple(weights[name].shape[::-1]) for name in names}


def bank_of(folder, layers, **settings) -> BasisBank:
    """A random bank, whose header says the settings besides."""
    sizes = {"num_loras": 3, "rank": 2, "key_dim": 8, "query_dim": 12, "dtype": torch.float32}
    path = random_bank(folder / "bank.safetensors", layers, **sizes)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    config = json.loads(metadata["lorweb_config"]) | settings
    save_file(load_file(path), path, metadata=metadata | {"lorweb_config": json.dumps(config)})
    return BasisBank.load(path)


def rows_of(target) -> tuple[str, slice]:
    """The weight of the diffusion model that a layer is in, and its rows."""
    key, rows = target, slice(None)
    if isinstance(target, tuple):
        key, (_, start, length) = target
        rows = slice(start, start + length)
    return key.removeprefix("diffusion_model."), rows


@pytest.mark.parametrize("family", ["flux2", "qwen"])
@torch.no_grad()
def test_a_bank_patches_all_of_its_family(tmp_path, family):
    model = random_flux_2() if family == "flux2" else random_qwen()
    layers = flux_2_layers() if family == "flux2" else qwen_layers(model)
    bank = bank_of(tmp_path, layers)
    coefficients = bank.mix(torch.randn(12, generator=torch.Generator().manual_seed(1)))
    before = {name: weight.clone() for name, weight in model.model.diffusion_model.state_dict().items()}
    edited, report = apply_lora(model, bank.compose(coefficients), 0.7)
    assert f"{len(layers)} of {len(layers)} layers" in report and len(layers) == (16 if family == "flux2" else 14)
    table = target_table({name: size[1] for name, size in layers.items()})
    with patched(edited) as diffusion_model:
        after = diffusion_model.state_dict()
        for name in layers:
            key, rows = rows_of(table[name])
            expected = before[key][rows] + 0.7 * bank.delta(name, coefficients)
            assert relative(after[key][rows], expected) < 1e-5 and not torch.equal(after[key][rows], before[key][rows])
    assert all(torch.equal(weight, before[name]) for name, weight in model.model.diffusion_model.state_dict().items())


def test_the_table_says_what_comfyui_says_wherever_both_speak(small_flux):
    spoken = 0
    for model, layers in (
        (small_flux, flux_layers(SMALL_HIDDEN, 2, 2)),
        (random_flux_2(), flux_2_layers()),
        (qwen := random_qwen(), qwen_layers(qwen)),
    ):
        keys = comfy.lora.model_lora_keys_unet(model.model, {})
        for name, target in target_table({name: size[1] for name, size in layers.items()}).items():
            if PREFIX + name in keys:
                spoken += 1
                assert keys[PREFIX + name] == target, name
    assert spoken >= 2 * 14 + 2 * 6 + 14


KLEIN, QWEN_EDIT = "black-forest-labs/FLUX.2-klein-base-4B", "Qwen/Qwen-Image-Edit-2511"
ATTENTION = [f"transformer_blocks.0.attn.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")]


@pytest.mark.parametrize("mode", ["patch", "runtime"])
@pytest.mark.parametrize(("base", "layers", "family"), [
    (KLEIN, flux_2_layers(), "FLUX.2"),
    (KLEIN, dict.fromkeys(ATTENTION, (HIDDEN, HIDDEN)), "FLUX.2"),  # names and widths that FLUX.1 has too
    (QWEN_EDIT, dict.fromkeys(ATTENTION, (HIDDEN, HIDDEN)), "Qwen-Image"),
], ids=["klein", "attention of klein", "attention of qwen"])  # fmt: skip
def test_a_bank_of_another_family_is_refused_naming_both(small_flux, tmp_path, base, layers, family, mode):
    bank = bank_of(tmp_path, layers, base_model=base)
    lora = bank.compose(bank.mix(torch.zeros(12)))
    with pytest.raises(ValueError, match=f"^the bank does not fit .*trained on {base}.*{family},.* FLUX.1; load"):
        apply_lora(small_flux, lora, 1.0, mode)
    with pytest.raises(ValueError, match=r"FLUX.1-Kontext-dev, of the family FLUX.1,.* family Qwen-Image;"):
        other = bank_of(tmp_path, flux_layers(HIDDEN, 1, 1))
        apply_lora(random_qwen(), other.compose(other.mix(torch.zeros(12))), 1.0, mode)


def test_a_bank_of_another_width_is_refused_naming_its_base(tmp_path):
    layers = {"single_transformer_blocks.0.attn.to_out": (8 * HIDDEN, 2 * HIDDEN)}
    bank = bank_of(tmp_path, layers, base_model=KLEIN)
    with pytest.raises(
        ValueError, match=f"does not fit this model: .* trained on {KLEIN}, and its factors of layer single"
    ):
        apply_lora(random_flux_2(), bank.compose(bank.mix(torch.zeros(12))), 1.0)
