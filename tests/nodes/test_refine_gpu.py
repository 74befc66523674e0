"""Refine Edit on the GPU: its gradient where attention, 8-bit weights and streamed ones go other ways than a CPU's."""

from contextlib import nullcontext

import comfy.model_management
import comfy.sd
import comfy.utils
import pytest
import torch
from lorweb_pack.lorweb_core import BasisBank
from lorweb_pack.lorweb_core.tasks import Pair, Task
from lorweb_pack.nodes.fitting import FittedModel
from lorweb_pack.nodes.layouts import LAYOUTS

from benchmarks._flux import FP8, random_flux
from benchmarks._gpu.memory import novram
from harness.small_models import CONTEXT, flux_layers, random_bank, small_vae

from .dense import float_weights, relative

pytestmark = pytest.mark.gpu
SIZE = (256, 1, 1)
# With the canvas and its reference, 1856 tokens: 64 over a multiple of 128, where cuDNN's attention gives NaN.
HEIGHT, WIDTH, TEXT = 256, 224, 64
KINDS = {"bf16": torch.bfloat16, "fp8": FP8}


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    path = random_bank(tmp_path_factory.mktemp("bank") / "bank.safetensors", flux_layers(*SIZE), 6, 3, 16, 24)
    with torch.inference_mode():
        return BasisBank.load(path)


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    path = small_vae(tmp_path_factory.mktemp("vae") / "vae.safetensors")
    return comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(path)))


@pytest.fixture(scope="module")
def task():
    a, a_prime, b, b_prime = torch.rand(4, HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(0))
    return Task(Pair(a, a_prime), Pair(b, b_prime))


@pytest.fixture(autouse=True)
def _nothing_stays_loaded():
    yield
    comfy.model_management.unload_all_models()


def flux_of(dtype):
    with torch.inference_mode():
        return random_flux(*SIZE, dtype=dtype, offload=torch.device("cpu"))


@torch.inference_mode()
def exactly(flux):
    """The same weights in float32."""
    exact, weights = flux_of(torch.float32), float_weights(flux)
    kept = exact.model.diffusion_model.state_dict()
    exact.model.diffusion_model.load_state_dict({name: tensor for name, tensor in weights.items() if name in kept})
    return exact


def gradient(flux, bank, vae, task):
    """Of one loss in the coefficients."""
    generator = torch.Generator().manual_seed(1)
    told = {"pooled_output": torch.randn(1, CONTEXT, generator=generator), "guidance": 2.5}
    conditioning = [[torch.randn(1, TEXT, CONTEXT, generator=generator), told]]
    fitted = FittedModel(flux, bank, conditioning, vae, LAYOUTS["canvas"])
    with torch.inference_mode(False):
        query = torch.randn(24, generator=torch.Generator().manual_seed(2))
        values = bank.mix(query).values.clone().requires_grad_()
        return torch.autograd.grad(fitted.losses(values, [task], 3).sum(), values)[0]


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_that_of_float32(bank, vae, task, kind, streamed):
    flux = flux_of(KINDS[kind])
    expected = gradient(exactly(flux), bank, vae, task)
    with novram() if streamed else nullcontext():
        found = gradient(flux, bank, vae, task)
    assert found.isfinite().all() and expected.norm() > 0
    assert relative(found, expected) < 0.1
