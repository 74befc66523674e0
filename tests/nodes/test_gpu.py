"""Apply on the GPU, through ComfyUI's own loading and sampling: weights that wait in main memory, whole or streamed."""

import comfy.model_management
import pytest
import torch
from lorweb_pack.lorweb_core import BasisBank
from lorweb_pack.nodes.apply import PATCH, RUNTIME, Apply

from benchmarks._flux import FP8, Sampler, random_flux
from harness.small_models import flux_layers, random_bank

from .dense import add_by_hand, dequantised, edit_strengths, float_weights, forward, patched, raw_weights, relative

pytestmark = pytest.mark.gpu
DEVICE, CPU = comfy.model_management.get_torch_device(), torch.device("cpu")
SIZE = (256, 1, 1)
KINDS = {
    "bf16": {"dtype": torch.bfloat16},
    "fp16": {"dtype": torch.float16},
    "fp8": {"dtype": FP8},
    "scaled fp8": {"dtype": torch.bfloat16, "scaled": True},
}


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    path = tmp_path_factory.mktemp("bank") / "bank.safetensors"
    return BasisBank.load(random_bank(path, flux_layers(*SIZE), 6, 3, 16, 24))


@pytest.fixture(scope="module")
def analogies(bank):
    """Coefficients of two analogies."""
    generator = torch.Generator().manual_seed(0)
    return [bank.mix(torch.randn(24, generator=generator)) for _ in range(2)]


@pytest.fixture(scope="module", params=KINDS)
def flux(request):
    """One FLUX for each kind of weights."""
    return random_flux(*SIZE, **KINDS[request.param], offload=CPU)


@pytest.fixture(autouse=True)
def _as_comfyui_runs_nodes():
    with torch.inference_mode():
        yield
    comfy.model_management.unload_all_models()


def apply(flux, bank, coefficients, strength=1.0, mode=PATCH):
    return Apply.execute(flux, bank, coefficients, strength, mode=mode).args[0]


def bits(weights):
    return {name: tensor.cpu().reshape(-1).view(torch.uint8) for name, tensor in weights.items()}


def changed(before, after):
    """Names of weights whose bits differ."""
    return [name for name, tensor in before.items() if not torch.equal(tensor, after[name])]


def is_fp8(flux):
    return flux.model.diffusion_model.double_blocks[0].img_mlp[0].weight.dtype == FP8


def by_hand(flux, bank, coefficients, strength=1.0):
    """The weights with dense deltas added, float32, on the device."""
    weights = {name: tensor.to(DEVICE) for name, tensor in float_weights(flux).items()}
    add_by_hand(weights, bank, coefficients, strength, SIZE[0])
    return weights


def run_by_hand(flux, weights):
    """The forward pass with weights put in by plain assignment, in float32."""
    exact = random_flux(*SIZE, dtype=torch.float32)
    kept = exact.model.diffusion_model.state_dict()
    exact.model.diffusion_model.load_state_dict({name: tensor for name, tensor in weights.items() if name in kept})
    return forward(exact.model.diffusion_model, device=DEVICE)


@pytest.mark.parametrize("strength", [2.0, -1.5])
def test_patched_forward_equals_dense_deltas_by_hand(flux, bank, analogies, strength):
    expected = by_hand(flux, bank, analogies[0], strength)
    base, exact = (run_by_hand(flux, weights) for weights in (by_hand(flux, bank, analogies[0], 0.0), expected))
    with patched(apply(flux, bank, analogies[0], strength)) as diffusion_model:
        found = forward(diffusion_model, device=DEVICE)
        weights = dequantised(diffusion_model.state_dict())
    shares = edit_strengths(weights, expected, bank, analogies[0], SIZE[0])
    assert all(share == pytest.approx(1, abs=0.03 * abs(strength)) for share in shares.values())
    assert relative(found, exact) < (0.5 if is_fp8(flux) else 0.1) * relative(base, exact)


def sample(model):
    return Sampler(canvas=64, text_tokens=8)(model, 1)


def test_on_off_on_and_another_strength_are_bit_identical(flux, bank, analogies):
    """Through ComfyUI's own loading, which patches and unpatches as the models come."""
    before = bits(raw_weights(flux))
    results = [sample(apply(flux, bank, analogies[0], strength)) for strength in (1.0, 0.0, 0.5, 1.0, 0.0)]
    on, off, half, again, off_again = results
    assert torch.equal(on, again) and torch.equal(off, off_again)
    assert not torch.equal(on, off) and not torch.equal(half, on) and not torch.equal(half, off)
    comfy.model_management.unload_all_models()
    assert changed(before, bits(raw_weights(flux))) == []


def test_two_clones_keep_their_own_edits(flux, bank, analogies):
    clones = [apply(flux, bank, coefficients) for coefficients in analogies]
    first, second, first_again, second_again = (sample(clone) for clone in clones * 2)
    assert torch.equal(first, first_again) and torch.equal(second, second_again) and not torch.equal(first, second)


def test_an_edit_at_run_time_is_the_one_in_the_weights(flux, bank, analogies):
    """Strong enough to stand out from the rounding of the weights, which it spares."""
    base, patched, at_run_time, off = (
        sample(apply(flux, bank, analogies[0], strength, mode)).float()
        for strength, mode in ((0.0, PATCH), (2.0, PATCH), (2.0, RUNTIME), (0.0, RUNTIME))
    )
    assert torch.equal(base, off)
    assert relative(at_run_time, patched) < (0.5 if is_fp8(flux) else 0.1) * relative(patched, base)


def test_streamed_weights_take_the_edit_and_lose_it(flux, bank, analogies):
    """Weights that stay in main memory are patched every time that they are used: ComfyUI's lowvram mode."""
    before = bits(raw_weights(flux))
    edited = apply(flux, bank, analogies[0], 2.0)
    with patched(flux) as diffusion_model:
        base = forward(diffusion_model, device=DEVICE)
    with patched(edited) as diffusion_model:
        whole = forward(diffusion_model, device=DEVICE)
    edited.patch_model(DEVICE, lowvram_model_memory=1)
    assert edited.lowvram_patch_counter() == len(edited.patches) > 0
    streamed = [forward(edited.model.diffusion_model, device=DEVICE) for _ in range(2)]
    edited.detach()
    assert torch.equal(*streamed)
    assert relative(streamed[0], whole) < (0.5 if is_fp8(flux) else 0.1) * relative(whole, base)
    assert changed(before, bits(raw_weights(flux))) == []
