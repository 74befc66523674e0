"""FLUX.1-Kontext: what we ask of the model is what its own pipeline asks, on a tiny model of the real classes."""

import pytest
import torch
from diffusers import FluxKontextPipeline

from training.bases import KONTEXT, Conditioning, joined
from training.config import load_config
from training.data.layouts import CANVAS

CPU = torch.device("cpu")
WORDS, GUIDANCE, SIDES = "make it gold", 2.5, (64, 96)  # height and width of the canvas


@pytest.fixture(scope="module")
def base(parts):
    return load_config("training/configs/tiny.yaml", parts).base.path


@pytest.fixture(scope="module")
def pipeline(base):
    pipeline = FluxKontextPipeline.from_pretrained(base)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def recorded_call(pipeline, picture):
    """What the pipeline tells its transformer at its last step, and the answer."""
    calls, forward = [], pipeline.transformer.forward

    def recorded(**told):
        calls.append((told, forward(**told)[0]))
        return calls[-1][1:]

    pipeline.transformer.forward = recorded
    pipeline(
        image=picture.movedim(-1, 1), prompt=WORDS, height=SIDES[0], width=SIDES[1], max_area=SIDES[0] * SIDES[1],
        num_inference_steps=2, guidance_scale=GUIDANCE, generator=torch.Generator().manual_seed(7),
        max_sequence_length=16, output_type="pt", _auto_resize=False,
    )  # fmt: skip
    pipeline.transformer.forward = forward
    return calls[-1]


def test_the_velocity_is_the_pipelines(base, pipeline):
    picture = torch.rand(1, *SIDES, 3, generator=torch.Generator().manual_seed(0))
    told, output = recorded_call(pipeline, picture)
    count = told["hidden_states"].shape[1] // 2
    reference = KONTEXT.load_coder(base, CPU, torch.float32).encode(picture)
    text = joined(KONTEXT.load_prompts(base, CPU, torch.float32, 16)([WORDS]))
    condition = Conditioning(KONTEXT, CANVAS, (reference,), text, guidance=torch.tensor([GUIDANCE]))
    torch.testing.assert_close(told["encoder_hidden_states"], text["tokens"])
    torch.testing.assert_close(told["pooled_projections"], text["pooled"])

    def unpacked(tokens):
        return FluxKontextPipeline._unpack_latents(tokens, *reference.shape[-2:], vae_scale_factor=1)

    torch.testing.assert_close(unpacked(told["hidden_states"][:, count:]), reference, rtol=1e-5, atol=1e-5)
    x_t = unpacked(told["hidden_states"][:, :count])
    with torch.no_grad():
        found = KONTEXT.velocity(pipeline.transformer, x_t, told["timestep"], condition)
    torch.testing.assert_close(found, unpacked(output[:, :count]), rtol=1e-5, atol=1e-5)
