"""FLUX.1-Kontext's latents, with the numbers of a released autoencoder."""

import pytest
import torch
from diffusers import FluxKontextPipeline

from training.bases.kontext import KontextCoder
from training.bases.tiny import _vae

SHIFT, SCALE = 0.1159, 0.3611  # of FLUX.1's autoencoder; the tiny base's has no shift


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    vae = _vae().eval()
    vae.register_to_config(shift_factor=SHIFT, scaling_factor=SCALE)
    return vae


@torch.no_grad()
def test_latents_are_shifted_and_scaled_as_the_pipeline_s(vae):
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    coder = KontextCoder(vae, torch.device("cpu"))
    latents = coder.encode_pixels(pixels)
    torch.testing.assert_close(latents, (vae.encode(pixels).latent_dist.mode() - SHIFT) * SCALE)
    pipeline = FluxKontextPipeline(None, vae, None, None, None, None, None)
    torch.testing.assert_close(latents, pipeline._encode_vae_image(pixels, torch.Generator()))
    torch.testing.assert_close(coder.decode_pixels(latents), vae.decode(latents / SCALE + SHIFT).sample)
    torch.testing.assert_close(coder.decode_pixels(latents), vae.decode(vae.encode(pixels).latent_dist.mode()).sample)
