"""Banks of other families than FLUX.1 on ComfyUI's own models, and our table of names beside ComfyUI's."""

import json
import math

import comfy.lora
import comfy.model_detection
import comfy.model_patcher
import comfy.supported_models
import folder_paths
import nodes
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


def flux_2_shapes(hidden: int = HIDDEN, text: int = TEXT, singles: int = SINGLES) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights of a klein with one double block, by the names of its own files."""
    norms = {f"norm.{kind}_norm.scale": (HEAD,) for kind in ("query", "key")}
    shapes = {
        "img_in": (hidden, LATENT), "txt_in": (hidden, text), "time_in.in_layer": (hidden, 256),
        "time_in.out_layer": (hidden, hidden), "double_stream_modulation_img.lin": (6 * hidden, hidden),
        "double_stream_modulation_txt.lin": (6 * hidden, hidden), "single_stream_modulation.lin": (3 * hidden, hidden),
        "final_layer.linear": (LATENT, hidden), "final_layer.adaLN_modulation.1": (2 * hidden, hidden),
    }  # fmt: skip
    for stream in ("img", "txt"):
        attention, mlp = f"double_blocks.0.{stream}_attn", f"double_blocks.0.{stream}_mlp"
        shapes |= {f"{attention}.qkv": (3 * hidden, hidden), f"{attention}.proj": (hidden, hidden)}
        shapes |= {f"{mlp}.0": (6 * hidden, hidden), f"{mlp}.2": (hidden, 3 * hidden)}
        shapes |= {f"{attention}.{name}": shape for name, shape in norms.items()}
    for block in (f"single_blocks.{number}" for number in range(singles)):
        shapes |= {f"{block}.linear1": (9 * hidden, hidden), f"{block}.linear2": (hidden, 4 * hidden)}
        shapes |= {f"{block}.{name}": shape for name, shape in norms.items()}
    return {name if name.endswith("scale") else f"{name}.weight": shape for name, shape in shapes.items()}


def random_flux_2() -> comfy.model_patcher.ModelPatcher:
    """A narrow FLUX.2 with random weights, in float32."""
    generator = torch.Generator().manual_seed(0)
    weights = {name: 0.05 * torch.randn(shape, generator=generator) for name, shape in flux_2_shapes().items()}
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


def flux_2_layers(hidden: int = HIDDEN, singles: int = SINGLES) -> dict[str, tuple[int, int]]:
    """Diffusers layer -> (inputs, outputs) of every linear layer in the blocks, but for the shared modulations."""
    wide = 3 * hidden
    double = {f"attn.{name}": (hidden, hidden) for name in (
        "to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")}  # fmt: skip
    for stream in ("ff", "ff_context"):
        double |= {f"{stream}.linear_in": (hidden, 2 * wide), f"{stream}.linear_out": (wide, hidden)}
    single = {"attn.to_qkv_mlp_proj": (hidden, 3 * hidden + 2 * wide), "attn.to_out": (hidden + wide, hidden)}
    layers = {f"transformer_blocks.0.{name}": size for name, size in double.items()}
    return layers | {
        f"single_transformer_blocks.{i}.{name}": size for i in range(singles) for name, size in single.items()
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


# Real widths: those of klein-4B and of Qwen-Image-Edit, with one block of a kind.
WIDTH, KLEIN_TEXT, QWEN_TEXT, WORDS = 3072, 7680, 3584, 4


def qwen_shapes() -> dict[str, tuple[int, ...]]:
    config = comfy.supported_models.QwenImage(QWEN | {"num_attention_heads": 24, "joint_attention_dim": QWEN_TEXT})
    model = config.get_model({}, "", device=torch.device("meta"))
    return {name: tuple(tensor.shape) for name, tensor in model.diffusion_model.state_dict().items()}


def written(path, shapes):
    """A file of weights that keep the variance of what goes in, in bfloat16; a million random numbers over and over."""
    noise = torch.randn(999_983, generator=torch.Generator().manual_seed(0)).bfloat16()
    weights = {}
    for name, shape in shapes.items():
        count = math.prod(shape)
        part = noise.repeat(-(-count // len(noise)))[:count].view(shape)
        weights[name] = part * (shape[1] ** -0.5 if len(shape) > 1 else 0.1) + (len(shape) == 1)
    save_file(weights, path)
    return path


def loaded(path):
    """By ComfyUI's own loader; ComfyUI 0.3.75 takes every FLUX.2 for the 48 heads of dev, and cannot load klein."""
    folder_paths.add_model_folder_path("diffusion_models", str(path.parent))
    weights = load_file(path)
    config = comfy.model_detection.model_config_from_unet(weights, "").unet_config
    if config["image_model"] == "flux2" and config["num_heads"] != WIDTH // HEAD:
        return load_narrow_flux(weights, path.name)
    return nodes.UNETLoader().load_unet(path.name, "default")[0]


def step(diffusion_model, text: int, latent: tuple[int, ...]) -> torch.Tensor:
    """The answer of a model to a random latent, text and reference."""
    generator = torch.Generator().manual_seed(3)
    x, reference = (torch.randn(1, *latent, generator=generator) for _ in range(2))
    context = torch.randn(1, WORDS, text, generator=generator)
    return diffusion_model(x, torch.tensor([0.7]), context=context, ref_latents=[reference])


@pytest.mark.parametrize("family", ["klein", "qwen"])
@torch.no_grad()
def test_real_widths_through_the_stock_loader(tmp_path, family):
    """A bank patches all of its layers, and the patched answer is that of weights with dense deltas added by hand."""
    shapes, text, latent = {
        "klein": (lambda: flux_2_shapes(WIDTH, KLEIN_TEXT, 1), KLEIN_TEXT, (LATENT, 4, 4)),
        "qwen": (qwen_shapes, QWEN_TEXT, (16, 1, 4, 4)),
    }[family]
    model = loaded(written(tmp_path / f"wide_{family}.safetensors", shapes()))
    layers = flux_2_layers(WIDTH, 1) if family == "klein" else qwen_layers(model)
    bank = bank_of(tmp_path, layers, base_model=KLEIN if family == "klein" else QWEN_EDIT)
    coefficients = bank.mix(torch.randn(12, generator=torch.Generator().manual_seed(1)))
    edited, report = apply_lora(model, bank.compose(coefficients), 1.0)
    assert (
        report.startswith(f"bank.safetensors: {len(layers)} of {len(layers)} layers patched") and "lacks" not in report
    )
    with patched(edited) as diffusion_model:
        found = step(diffusion_model, text, latent)
    diffusion_model = model.model.diffusion_model
    plain, weights = step(diffusion_model, text, latent), diffusion_model.state_dict()
    for layer, target in target_table({name: size[1] for name, size in layers.items()}).items():
        key, rows = rows_of(target)
        weights[key][rows] += bank.delta(layer, coefficients)
    assert relative(found, step(diffusion_model, text, latent)) < 1e-5 and relative(found, plain) > 1e-3
