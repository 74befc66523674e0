"""Analogy References: what the model is shown, and b' back at b's own size; with the autoencoders of three families."""

import comfy.sample
import comfy.sd
import comfy.utils
import pytest
import torch
from comfy.ldm.models.autoencoder import AutoencoderKL
from comfy.ldm.wan.vae import WanVAE
from lorweb_pack.lorweb_core import BasisBank, Frame
from lorweb_pack.nodes.canvas import Canvas, CropResult
from lorweb_pack.nodes.references import AnalogyReferences
from safetensors.torch import load_file, save_file

from harness.small_models import SMALL_VAE, random_bank

from .dense import relative
from .test_canvas import LAYERS
from .test_families import TEXT, random_flux_2, random_qwen

FLUX_2 = {
    "double_z": True, "z_channels": 32, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128,
    "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0, "batch_norm_latent": True,
}  # fmt: skip
WAN = {"z_dim": 16, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_scales": [], "dropout": 0.0}
# Family -> the latent of a picture of 64 x 96 pixels.
SHAPES = {"flux": (16, 8, 12), "flux2": (128, 4, 6), "qwen": (16, 1, 8, 12)}
PROMPT = [[torch.zeros(1, 4, 8), {"pooled_output": torch.zeros(1, 8)}]]


@pytest.fixture(scope="module")
def autoencoders(small_models):
    """One of each family: ComfyUI's own classes, FLUX.2's at its full size, with random weights."""
    models = {
        "flux2": AutoencoderKL(ddconfig=FLUX_2, embed_dim=32),
        "qwen": WanVAE(dim=8, temperal_downsample=[False, True, True], **WAN),
    }
    made = {family: comfy.sd.VAE(sd=random_weights(model)) for family, model in models.items()}
    return made | {"flux": comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(small_models / "vae" / SMALL_VAE)))}


def random_weights(model) -> dict[str, torch.Tensor]:
    """Weights that keep the variance of what goes in; ComfyUI's classes begin with whatever is in memory."""
    generator, weights = torch.Generator().manual_seed(0), {}
    for name, tensor in model.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        if tensor.dim() > 1:
            weights[name] = noise * tensor[0].numel() ** -0.5
        else:
            weights[name] = float(name.endswith(("weight", "running_var"))) + 0.02 * noise
    return weights


def photograph(height, width, batch=1, seed=0):
    return torch.rand(batch, height, width, 3, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("family", SHAPES)
def test_the_model_is_shown_a_a_prime_b_in_this_order(autoencoders, family):
    vae = autoencoders[family]
    a, a_prime, b = photograph(64, 96), photograph(64, 96, seed=1), photograph(64, 96, batch=2, seed=2)
    node = AnalogyReferences.execute(PROMPT, vae, a, a_prime, b, 0.0, 0, "crop", negative=PROMPT)
    told, empty, geometry, untold, width, height = node.args
    assert (width, height) == (96, 64)
    for conditioning in (told, untold):
        references = conditioning[0][1]["reference_latents"]
        assert [tuple(latent.shape) for latent in references] == [(n, *SHAPES[family]) for n in (1, 1, 2)]
        pictures = (a, a_prime, b[:1], b[1:])
        found = (references[0], references[1], references[2][:1], references[2][1:])
        assert all(relative(latent, vae.encode(picture)) < 1e-5 for latent, picture in zip(found, pictures))
    assert empty["samples"].shape == references[2].shape and not empty["samples"].any()
    assert "reference_latents" not in PROMPT[0][1] and told[0][1]["pooled_output"] is PROMPT[0][1]["pooled_output"]
    assert geometry == Frame.whole(64, 96)


@pytest.mark.parametrize("family", SHAPES)
def test_b_prime_comes_back_at_bs_own_size(autoencoders, small_flux, family):
    """Sampled by ComfyUI on the family's own model, with the empty latent and the references that the node gives."""
    model = {"flux": lambda: small_flux, "flux2": random_flux_2, "qwen": random_qwen}[family]()
    width = model.model.diffusion_model.params.context_in_dim if family == "flux" else TEXT
    text = torch.randn(1, 4, width, generator=torch.Generator().manual_seed(1))
    prompt = [[text, {"pooled_output": torch.zeros(1, 768)}]]
    vae, pictures = autoencoders[family], (photograph(90, 40), photograph(90, 40, seed=1), photograph(61, 90, batch=2))
    node = AnalogyReferences.execute(prompt, vae, *pictures, 0.0, 96, "crop", negative=prompt)
    told, empty, geometry, untold = node.args[:4]
    noise = torch.randn(empty["samples"].shape, generator=torch.Generator().manual_seed(2))
    assert comfy.sample.fix_empty_latent_channels(model, empty["samples"]).shape == noise.shape
    found = comfy.sample.sample(model, noise, 1, 2.0, "euler", "simple", told, untold, empty["samples"], seed=0)
    assert found.shape == noise.shape and torch.isfinite(found).all()
    decoded = vae.decode(found)
    decoded = decoded.reshape(-1, *decoded.shape[-3:])
    cropped = CropResult.execute(decoded, geometry).args[0]
    assert cropped.shape == (2, 61, 90, 3) and decoded.shape[1:3] == (geometry.height, geometry.width)
    swapped = [[text, {**told[0][1], "reference_latents": told[0][1]["reference_latents"][::-1]}]]
    other = comfy.sample.sample(model, noise, 1, 2.0, "euler", "simple", swapped, untold, empty["samples"], seed=0)
    assert not torch.allclose(found, other)  # which reference is which counts


def test_without_a_negative_prompt_it_is_the_prompt(autoencoders):
    picture = photograph(32, 32)
    made = AnalogyReferences.execute(PROMPT, autoencoders["flux"], picture, picture, picture, 0.0, 0, "crop").args
    told, untold = made[0], made[3]
    assert untold[0][0] is told[0][0] and len(untold[0][1]["reference_latents"]) == 3


def test_grey_and_transparent_pictures_and_the_first_pair(autoencoders):
    vae, b = autoencoders["flux"], photograph(32, 48)
    pairs, transparent = photograph(32, 32, batch=3), torch.cat((b, torch.rand(1, 32, 48, 1)), dim=-1)
    told = AnalogyReferences.execute(PROMPT, vae, pairs[..., :1], pairs, transparent, 0.0, 0, "crop").args[0]
    grey, second, third = told[0][1]["reference_latents"]
    expected = (pairs[:1, ..., :1].expand(-1, -1, -1, 3), pairs[:1], b)
    assert all(relative(found, vae.encode(x)) < 1e-5 for found, x in zip((grey, second, third), expected))


def test_other_references_are_refused(autoencoders):
    picture, before = photograph(32, 32), [[PROMPT[0][0], {"reference_latents": [torch.zeros(1, 16, 4, 4)]}]]
    for name, words in (("conditioning", {"conditioning": before}), ("negative", {"negative": before})):
        inputs = {"conditioning": PROMPT, "vae": autoencoders["flux"], "image_a": picture, "image_a_prime": picture}
        inputs |= {"image_b": picture, "megapixels": 0.0, "long_side": 0, "fit": "crop"}
        with pytest.raises(ValueError, match=f"^{name} has reference latents already"):
            AnalogyReferences.execute(**inputs | words)


def test_a_bank_of_the_other_layout_is_named(autoencoders, tmp_path):
    """And one of the same layout only for a size far from its training's."""
    canvas = BasisBank.load(random_bank(tmp_path / "bank.safetensors", LAYERS, 4, 2, 8, 24))
    header = canvas.metadata["lorweb_config"].replace("{", '{"layout": "separate", ', 1)
    separate = tmp_path / "separate.safetensors"
    save_file(load_file(canvas.path), separate, metadata=canvas.metadata | {"canvas": "64", "lorweb_config": header})
    separate, picture = BasisBank.load(separate), photograph(64, 64)

    def shown(node, bank, *rest):
        out = node.execute(*rest, picture, picture, picture, 0.0, 64, "crop", bank).ui
        return out and out.as_dict()["text"][0]

    vae = autoencoders["flux"]
    assert shown(AnalogyReferences, separate, PROMPT, vae) is None
    text = shown(AnalogyReferences, canvas, PROMPT, vae)
    assert "bank.safetensors was trained with the layout canvas" in text and "Use Canvas in place of Analogy" in text
    text = shown(Canvas, separate)
    assert "separate.safetensors was trained with the layout separate" in text
    assert "Use Analogy References in place of Canvas" in text
    far = AnalogyReferences.execute(PROMPT, vae, picture, picture, picture, 0.0, 256, "crop", separate)
    assert "The picture is 256 x 256, but separate.safetensors was trained on pictures of 64 x 64" in str(
        far.ui.as_dict()
    )
