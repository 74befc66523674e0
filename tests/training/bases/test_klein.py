"""FLUX.2-klein: what we ask of the model is what its own pipeline asks, on a tiny model of the real classes."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import Flux2KleinPipeline
from PIL import Image
from safetensors.torch import load_file

from training.bases import KLEIN, Conditioning, family_of
from training.bases.loading import load_transformer
from training.bases.tiny_klein import make_klein
from training.config import BaseConfig
from training.data.layouts import LAYOUTS

CPU = torch.device("cpu")
WORDS, STEPS, GUIDANCE = "make it gold", 2, 3.0
SIZES = {"separate": [(64, 80)] * 3, "canvas": [(128, 64)]}  # width and height of the references


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return str(make_klein(tmp_path_factory.mktemp("klein") / "base"))


@pytest.fixture(scope="module")
def pipeline(base):
    pipeline = Flux2KleinPipeline.from_pretrained(base)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def coder(base):
    return KLEIN.load_coder(base, CPU, torch.float32)


@pytest.fixture
def pictures(request):
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in SIZES[request.param]]


@pytest.fixture
def condition(base, coder, pictures):
    """What our path makes of the pictures and the words."""
    images = [torch.from_numpy(np.asarray(picture) / np.float32(255))[None] for picture in pictures]
    layout = LAYOUTS["canvas" if len(pictures) == 1 else "separate"]
    told, negative = KLEIN.load_prompts(base, CPU, torch.float32, 32)([WORDS, ""], [(), ()])
    batched = [{"tokens": one["tokens"][None]} for one in (told, negative)]
    return Conditioning(KLEIN, layout, tuple(map(coder.encode, images)), batched[0], negative=batched[1])


def run(pipeline, pictures, guidance):
    """The pipeline's picture, and the calls of its transformer with what came of them."""
    calls, forward = [], pipeline.transformer.forward

    def recorded(**told):
        calls.append((told, forward(**told)[0]))
        return calls[-1][1:]

    pipeline.transformer.forward = recorded
    width, height = pictures[-1].size
    picture = pipeline(
        image=pictures, prompt=WORDS, height=height, width=width, num_inference_steps=STEPS, guidance_scale=guidance,
        generator=torch.Generator().manual_seed(7), max_sequence_length=32, output_type="pt",
    ).images[0]  # fmt: skip
    pipeline.transformer.forward = forward
    return picture.movedim(0, -1), calls


def test_the_folder_tells_the_family(base):
    assert family_of(base) is KLEIN


@pytest.mark.parametrize("pictures", SIZES, indirect=True)
def test_the_velocity_is_the_pipelines(pipeline, coder, condition, pictures):
    _, calls = run(pipeline, pictures, guidance=1.0)
    told, output = calls[-1]
    size = tuple(condition.references[-1].shape[-2:])
    count = size[0] * size[1]
    x_t = told["hidden_states"][:, :count].transpose(1, 2).unflatten(2, size)
    torch.testing.assert_close(told["encoder_hidden_states"], condition.text["tokens"])
    references = torch.cat([latents.flatten(2).transpose(1, 2) for latents in condition.references], dim=1)
    torch.testing.assert_close(told["hidden_states"][:, count:], references, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        found = KLEIN.velocity(pipeline.transformer, x_t, told["timestep"], condition)
    expected = output[:, :count].transpose(1, 2).unflatten(2, size)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pictures", SIZES, indirect=True)
def test_what_is_sampled_is_the_pipelines(base, pipeline, coder, condition, pictures):
    expected, calls = run(pipeline, pictures, GUIDANCE)
    found = KLEIN.sampler(base, pipeline.transformer, coder)(condition, STEPS, GUIDANCE, 7)
    assert len(calls) == 2 * STEPS  # with and without words
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pictures", ["separate"], indirect=True)
def test_a_distilled_model_is_not_guided(base, pipeline, coder, condition, pictures, tmp_path):
    distilled = tmp_path / "distilled"
    shutil.copytree(base, distilled)
    settings = json.loads((distilled / "model_index.json").read_text())
    (distilled / "model_index.json").write_text(json.dumps({**settings, "is_distilled": True}))
    expected, _ = run(pipeline, pictures, guidance=1.0)
    found = KLEIN.sampler(str(distilled), pipeline.transformer, coder)(condition, STEPS, GUIDANCE, 7)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_latents_come_back(coder):
    """Decoding undoes the normalisation of encoding: what comes is what the autoencoder itself decodes."""
    pixels = torch.rand(1, 3, 32, 48) * 2 - 1
    plain = coder.vae.decode(coder.vae.encode(pixels).latent_dist.mode()).sample
    torch.testing.assert_close(coder.decode_pixels(coder.encode_pixels(pixels)), plain, rtol=1e-4, atol=1e-4)
    assert coder.encode_pixels(pixels).shape == (1, KLEIN.coder.channels, 2, 3)


def test_weights_that_are_no_safetensors_are_refused(base, tmp_path):
    folder = shutil.copytree(base, tmp_path / "base")
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(ValueError, match=r"the transformer of .* cannot be read"):
        load_transformer(BaseConfig(path=str(folder), dtype="float32"), CPU)
