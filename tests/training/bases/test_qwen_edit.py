"""Qwen-Image-Edit-Plus: what we ask of the model is what its own pipeline asks, on a tiny model of the real classes."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import QwenImageEditPlusPipeline, QwenImageTransformer2DModel
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as edit_plus
from PIL import Image
from transformers import Qwen2VLImageProcessor

from lorweb_core import BankConfig
from lorweb_core.layers import QWEN_IMAGE
from training.bases import QWEN_EDIT, Conditioning, family_of, joined
from training.bases.tiny_qwen import make_qwen
from training.config import load_config
from training.data.layouts import LAYOUTS
from training.run.sizes import text_tokens
from training.tuner import LoRWeBConfig, LoRWeBModel

CPU = torch.device("cpu")
WORDS, STEPS, GUIDANCE = "make it gold", 2, 3.0
SIZES = {"separate": [(64, 96)] * 3, "canvas": [(192, 128)]}  # width and height of the references


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return str(make_qwen(tmp_path_factory.mktemp("qwen") / "base"))


@pytest.fixture(scope="module")
def pipeline(base):
    pipeline = QwenImageEditPlusPipeline.from_pretrained(base)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def coder(base):
    return QWEN_EDIT.load_coder(base, CPU, torch.float32)


@pytest.fixture(scope="module")
def say(base):
    return QWEN_EDIT.load_prompts(base, CPU, torch.float32, 1)


@pytest.fixture
def pictures(request, monkeypatch):
    """References that the pipeline leaves at their size, where it would scale them to a megapixel."""
    sizes = SIZES[request.param]
    monkeypatch.setattr(edit_plus, "VAE_IMAGE_SIZE", sizes[0][0] * sizes[0][1])
    monkeypatch.setattr(edit_plus, "CONDITION_IMAGE_SIZE", 64 * 64)
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


def tensors(pictures):
    return [torch.from_numpy(np.asarray(picture) / np.float32(255)) for picture in pictures]


@pytest.fixture
def condition(coder, say, pictures):
    """What our path makes of the pictures and the words."""
    images = tensors(pictures)
    layout = LAYOUTS["canvas" if len(pictures) == 1 else "separate"]
    told, negative = say([WORDS, QWEN_EDIT.negative], [images, images])
    references = tuple(coder.encode(image[None]) for image in images)
    return Conditioning(QWEN_EDIT, layout, references, joined([told]), negative=joined([negative]))


def run(pipeline, pictures, guidance):
    """The pipeline's picture, and the calls of its transformer with what came of them."""
    calls, forward = [], pipeline.transformer.forward

    def recorded(**told):
        calls.append((told, forward(**told)[0]))
        return calls[-1][1:]

    pipeline.transformer.forward = recorded
    width, height = pictures[-1].size
    picture = pipeline(
        image=pictures, prompt=WORDS, negative_prompt=" ", height=height, width=width, num_inference_steps=STEPS,
        true_cfg_scale=guidance, generator=torch.Generator().manual_seed(7), output_type="pt",
    ).images[0]  # fmt: skip
    pipeline.transformer.forward = forward
    return picture.movedim(0, -1), calls


def unpacked(tokens, size):
    return edit_plus.QwenImageEditPlusPipeline._unpack_latents(tokens, size[0] * 8, size[1] * 8, 8).squeeze(2)


def packed(latents):
    return edit_plus.QwenImageEditPlusPipeline._pack_latents(latents, *latents.shape)


def test_the_folder_tells_the_family(base):
    assert family_of(base) is QWEN_EDIT


@pytest.mark.parametrize("zero_cond_t", [False, True], ids=["2509", "2511"])
@pytest.mark.parametrize("pictures", SIZES, indirect=True)
def test_the_velocity_is_the_pipelines(base, pipeline, condition, pictures, zero_cond_t, monkeypatch):
    model = QwenImageTransformer2DModel.from_pretrained(base, subfolder="transformer", zero_cond_t=zero_cond_t)
    monkeypatch.setattr(pipeline, "transformer", model)
    _, calls = run(pipeline, pictures, guidance=1.0)
    told, output = calls[-1]
    size = tuple(condition.references[-1].shape[-2:])
    count = size[0] * size[1] // 4
    torch.testing.assert_close(told["encoder_hidden_states"], condition.text["tokens"], rtol=1e-5, atol=1e-5)
    references = torch.cat(list(map(packed, condition.references)), dim=1)
    torch.testing.assert_close(told["hidden_states"][:, count:], references, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        x_t = unpacked(told["hidden_states"][:, :count], size)
        found = QWEN_EDIT.velocity(model, x_t, told["timestep"], condition)
    torch.testing.assert_close(found, unpacked(output[:, :count], size), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pictures", SIZES, indirect=True)
def test_what_is_sampled_is_the_pipelines(base, pipeline, coder, condition, pictures):
    expected, calls = run(pipeline, pictures, GUIDANCE)
    found = QWEN_EDIT.sampler(base, pipeline.transformer, coder)(condition, STEPS, GUIDANCE, 7)
    assert len(calls) == 2 * STEPS  # with and without words
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pictures", ["separate"], indirect=True)
def test_without_guidance_nothing_is_asked_twice(base, pipeline, coder, condition, pictures):
    expected, calls = run(pipeline, pictures, 1.0)
    found = QWEN_EDIT.sampler(base, pipeline.transformer, coder)(condition, STEPS, 1.0, 7)
    assert len(calls) == STEPS
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pictures", ["separate"], indirect=True)
def test_text_depends_on_the_images(say, pictures):
    images = tensors(pictures)
    one, other = say([WORDS, WORDS], [images, images[::-1]])
    assert one["tokens"].shape == other["tokens"].shape and not torch.allclose(one["tokens"], other["tokens"])


@pytest.mark.parametrize("pictures", ["canvas"], indirect=True)
def test_a_prompt_of_too_many_tokens_is_named(say, pictures):
    with pytest.raises(ValueError, match=r"1 images are \d+ tokens; expected at most 1024.*'gold gold"):
        say(["gold " * 1024], [tensors(pictures)])


@pytest.mark.parametrize("zero_cond_t", [False, True], ids=["2509", "2511"])
@pytest.mark.parametrize("pictures", ["separate"], indirect=True)
def test_prompts_of_other_lengths_beside_it_change_nothing(base, say, condition, pictures, zero_cond_t):
    """A batch of two, each under a query of its own and with a bank that does something, is each alone."""
    model = QwenImageTransformer2DModel.from_pretrained(base, subfolder="transformer", zero_cond_t=zero_cond_t)
    settings = BankConfig(num_loras=2, rank=2, key_dim=4, query_dim=6)
    torch.manual_seed(0)
    tuner = LoRWeBModel(model, LoRWeBConfig(bank=settings, target_modules=QWEN_EDIT.targets))
    x_t, t, query = torch.randn(2, 16, 12, 8), torch.tensor([0.3, 0.8]), torch.randn(2, 6)
    told = say([WORDS, WORDS + " and much darker than it was"], [tensors(pictures)] * 2)

    def ask(rows):
        shown = tuple(latents.expand(len(rows), -1, -1, -1) for latents in condition.references)
        asked = replace(condition, references=shown, text=joined([told[row] for row in rows]), query=query[rows])
        return QWEN_EDIT.velocity(tuner, x_t[rows], t[rows], asked)

    with torch.no_grad():
        plain = ask([0])
        for layer in tuner.tuner_layers.values():
            torch.nn.init.normal_(layer.lora_B["default"].weight)
        assert "mask" in joined(told) and not torch.allclose(ask([0]), plain, atol=1e-2)
        torch.testing.assert_close(ask([0, 1]), torch.cat([ask([0]), ask([1])]), rtol=1e-5, atol=1e-5)


def test_latents_come_back_and_gradients_with_them(coder):
    """Decoding undoes the normalisation of encoding: what comes is what the autoencoder itself decodes."""
    pixels = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = coder.encode_pixels(pixels)
    assert latents.shape == (2, QWEN_EDIT.coder.channels, 4, 6) and 0.5 < latents.std() < 2
    plain = coder.vae.decode(coder.vae.encode(pixels[:, :, None]).latent_dist.mode()).sample[:, :, 0]
    torch.testing.assert_close(coder.decode_pixels(latents), plain, rtol=1e-4, atol=1e-4)
    (gradient,) = torch.autograd.grad(coder.pixels(latents.requires_grad_()).sum(), latents)
    assert gradient.isfinite().all() and gradient.any()


def test_a_basis_lies_on_twelve_layers_of_every_block():
    """720 of the sixty blocks of the released models."""
    with torch.device("meta"):
        model = QwenImageTransformer2DModel(num_layers=3, num_attention_heads=2)
    layers = [name for name, _ in model.named_modules() if re.fullmatch(QWEN_EDIT.targets, name)]
    assert len(layers) == 3 * 12 and all(map(QWEN_IMAGE.knows, layers))


def test_caches_of_text_are_of_analogies():
    """As many tokens as the real processor makes of a picture of 384 x 384, and room for the words."""
    seen = Qwen2VLImageProcessor().get_number_of_image_patches(384, 384, {}) // 4
    assert seen < QWEN_EDIT.image_tokens < seen + 32
    config = load_config(QWEN_EDIT.recipe, ["run=r", "data.manifest=m", "data.cache_latents=10"])
    assert text_tokens(QWEN_EDIT, config, []) == 10 * 3 * QWEN_EDIT.image_tokens
    config.objective.caption_dropout, config.bank.layout = 0.1, "canvas"
    assert text_tokens(QWEN_EDIT, config, []) == 2 * 10 * QWEN_EDIT.image_tokens
