"""Refine Edit inside the real ComfyUI: loss and gradient on its own MODEL, and that nothing of it stays behind."""

import comfy.model_management
import comfy.sd
import comfy.utils
import pytest
import torch
from comfy.model_sampling import EPS
from lorweb_pack.lorweb_core import BasisBank, MixingCoefficients
from lorweb_pack.lorweb_core.tasks import Pair, Task
from lorweb_pack.nodes.apply import PATCH, RUNTIME, Apply
from lorweb_pack.nodes.fitting import FittedModel
from lorweb_pack.nodes.layouts import LAYOUTS
from lorweb_pack.nodes.refine import RefineEdit

from harness.small_flux_pack.loader import load_small_flux
from harness.small_models import SMALL_FLUX, SMALL_HIDDEN, SMALL_VAE, flux_layers, random_bank

from .dense import raw_weights, relative
from .test_runtime import Packed, four_bits, replace_linears, replaced

LAYERS = flux_layers(SMALL_HIDDEN, 2, 2)
SIZES = {"num_loras": 6, "rank": 3, "key_dim": 16, "query_dim": 24, "dtype": torch.float32}
CANVAS = LAYOUTS["canvas"]


@pytest.fixture(scope="module")
def load_flux(small_models):
    def load(dtype=torch.float32):
        with torch.inference_mode():  # as ComfyUI's loaders do: autograd takes no tensors that are made in it
            return load_small_flux(small_models / "diffusion_models" / SMALL_FLUX, dtype)

    return load


@pytest.fixture(scope="module")
def flux32(load_flux):
    return load_flux()


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bank")
    with torch.inference_mode():
        return BasisBank.load(random_bank(folder / "bank.safetensors", LAYERS, **SIZES))


@pytest.fixture(scope="module")
def edits(bank):
    return [bank.mix(torch.randn(24, generator=torch.Generator().manual_seed(seed))) for seed in (0, 1)]


@pytest.fixture(scope="module")
def vae(small_models):
    return comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(small_models / "vae" / SMALL_VAE)))


@pytest.fixture(scope="module")
def told(flux32):
    return random_prompt(flux32)


def random_prompt(model):
    generator, params = torch.Generator().manual_seed(0), model.model.diffusion_model.params
    context = torch.randn(1, 4, params.context_in_dim, generator=generator)
    pooled = torch.randn(1, params.vec_in_dim, generator=generator)
    return [[context, {"pooled_output": pooled, "guidance": 2.5}]]


@pytest.fixture(scope="module")
def pictures():
    """Three pairs of 32 x 32 pixels: a, and a darker a'."""
    a = torch.rand(3, 32, 32, 3, generator=torch.Generator().manual_seed(0))
    return a, 0.5 * a


@pytest.fixture(autouse=True)
def _as_comfyui_runs_nodes():
    with torch.inference_mode():
        yield


@pytest.fixture
def task(pictures):
    first, second, _ = (Pair(*pair) for pair in zip(*pictures))
    return Task(first, second)


def fitted(model, bank, told, vae, layout=CANVAS):
    return FittedModel(model, bank, told, vae, layout, sampling_steps=2)


@torch.inference_mode(False)
def loss_and_gradient(model, values, task, seed=3):
    values = values.clone().requires_grad_()
    loss = model.losses(values, [task], seed)
    return loss.detach(), torch.autograd.grad(loss.sum(), values)[0]


def slope(model, values, task, direction, h=2e-3, seed=3):
    """The derivative along a direction, from four losses."""
    near, far = (
        [model.losses(values + sign * step * direction, [task], seed) for sign in (1, -1)] for step in (h, 2 * h)
    )
    return (8 * (near[0] - near[1]) - (far[0] - far[1])) / (12 * h)


@torch.inference_mode(False)
def by_hand(model, task, vae, told, seed=2 * 3 * 2**20):
    """The loss from the model's own layers: velocity against noise less picture, in the last quadrant."""
    canvas = torch.cat([torch.cat(list(task.example), 1), torch.cat([task.answer.before, task.answer.before], 1)])
    target = torch.cat([torch.cat(list(task.example), 1), torch.cat(list(task.answer), 1)])
    with torch.inference_mode():
        comfy.model_management.load_models_gpu([model])
        reference, x_0 = (model.model.process_latent_in(vae.encode(x[None])) for x in (canvas, target))
        generator = torch.Generator().manual_seed(seed)
        noise, u = torch.randn(x_0.shape, generator=generator), torch.randn((), generator=generator).sigmoid().item()
        sigma = torch.tensor([float(model.model.model_sampling.percent_to_sigma(u))])
        flux, (context, rest) = model.model.diffusion_model, told[0]
        velocity = flux(
            (1 - sigma) * x_0 + sigma * noise, sigma, context=context, y=rest["pooled_output"],
            guidance=torch.tensor([rest["guidance"]]), ref_latents=[reference],
        )  # fmt: skip
        return (velocity - (noise - x_0))[..., 4:, 4:].square().mean()


def test_the_loss_is_the_flow_loss_of_the_patched_model(flux32, bank, edits, vae, told, task):
    model = fitted(flux32, bank, told, vae)
    loss = model.losses(edits[0].values, [task], 3)
    patched = Apply.execute(flux32, bank, edits[0], 1.0, PATCH).args[0]
    expected, before = (by_hand(model, task, vae, told) for model in (patched, flux32))
    assert relative(loss, expected[None]) < 1e-5
    assert relative(before[None], expected[None]) > 5e-3, "the edit must change the loss"
    assert model.seen.latent.shape == (1, 16, 4, 4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_gradient_is_the_slope_of_the_loss(flux32, bank, edits, vae, told, task, layout):
    model = fitted(flux32, bank, told, vae, LAYOUTS[layout])
    loss, gradient = loss_and_gradient(model, edits[0].values, task)
    assert torch.equal(loss, model.losses(edits[0].values, [task], 3))
    assert (gradient.abs().amax(-1) > 0).all(), "every layer of the bank has a part in the loss"
    for direction in (gradient / gradient.norm(), gradient.sign() / gradient.numel() ** 0.5):
        expected = (gradient * direction).sum()[None]
        assert relative(slope(model, edits[0].values, task, direction), expected) < 5e-3


def fp8(load_flux):
    return load_flux(torch.float8_e4m3fn)


def packed(load_flux, pack):
    model = load_flux()
    with torch.inference_mode(False), torch.no_grad():
        replace_linears(model, pack)
    return model


@pytest.mark.parametrize("kind", ["fp8", "nf4", "packed"])
def test_a_quantised_base_is_differentiated(load_flux, bank, edits, vae, told, task, kind):
    if kind == "nf4":
        pytest.importorskip("bitsandbytes")
    base = fp8(load_flux) if kind == "fp8" else packed(load_flux, {"nf4": four_bits, "packed": Packed}[kind])
    model = fitted(base, bank, told, vae)
    loss, gradient = loss_and_gradient(model, edits[0].values, task)
    assert torch.isfinite(loss).all()
    direction = gradient / gradient.norm()
    assert relative(slope(model, edits[0].values, task, direction, h=4e-3), gradient.norm()[None]) < 2e-2
    assert not replaced(base)


@pytest.mark.parametrize("mode", [PATCH, RUNTIME])
def test_an_edit_that_is_on_the_model_already_counts(flux32, bank, edits, vae, told, task, mode):
    one, other = edits
    on_top = fitted(Apply.execute(flux32, bank, other, 1.0, mode).args[0], bank, told, vae)
    together = fitted(flux32, bank, told, vae)
    found = loss_and_gradient(on_top, one.values, task)
    expected = loss_and_gradient(together, one.values + other.values, task)
    assert all(relative(x, y) < 1e-4 for x, y in zip(found, expected))


def refine(model, bank, edit, vae, told, a, a_prime, steps=2, **others):
    return RefineEdit.execute(
        model, bank, edit, vae, told, a, a_prime, steps=steps, seed=0, tie=0.0, long_side=64, fit="crop", **others
    ).args


def checked(refined, guess: MixingCoefficients):
    edit, report, plot = refined
    assert edit.layers == guess.layers and edit.fingerprint == guess.fingerprint
    assert torch.allclose(edit.values.sum(-1), guess.values.sum(-1)) and not edit.values.requires_grad
    assert plot.shape == (1, 400, 640, 3)
    return edit, report


def test_several_pairs(flux32, bank, edits, vae, told, pictures):
    before, weights = raw_weights(flux32), [id(p) for p in flux32.model.parameters()]
    edit, report = checked(refine(flux32, bank, edits[0], vae, told, *pictures, steps=5, draws=1), edits[0])
    assert "3 example pairs of 32 x 32 pixels" in report
    assert ("refined in" in report) == (not torch.equal(edit.values, edits[0].values))
    assert_untouched(flux32, before)
    assert weights == [id(p) for p in flux32.model.parameters()]
    assert not flux32.wrappers and not flux32.additional_models


def test_a_single_pair(flux32, bank, edits, vae, told, pictures):
    a, a_prime = pictures
    _, report = checked(
        refine(
            flux32, bank, edits[0], vae, told, a[:1], a_prime[:1], image_b=a[1:2], steps=1, draws=1, sampling_steps=2
        ),
        edits[0],
    )
    assert "1 example pair of" in report and "of the single pair, the edit allows" in report


def assert_untouched(model, before):
    after = raw_weights(model)
    assert all(torch.equal(after[name].view(torch.uint8), tensor.view(torch.uint8)) for name, tensor in before.items())
    assert not replaced(model) and not getattr(comfy.model_management, "in_training", False)


@pytest.mark.parametrize("failure", ["interrupt", "error"])
@pytest.mark.parametrize("call", [3, 7])
def test_a_run_that_ends_early_leaves_the_model_as_it_was(flux32, bank, edits, vae, told, pictures, failure, call):
    """Early on while it judges, and later on the way back."""
    before, calls = raw_weights(flux32), []

    def stop(*_):
        calls.append(replaced(flux32))
        if len(calls) < call:
            return
        if failure == "error":
            raise RuntimeError("out of memory")
        comfy.model_management.interrupt_current_processing()

    handle = flux32.model.diffusion_model.single_blocks[0].linear2.register_forward_pre_hook(stop)
    with pytest.raises((RuntimeError, comfy.model_management.InterruptProcessingException)):
        refine(flux32, bank, edits[0], vae, told, *(x[:2] for x in pictures), draws=1)
    handle.remove()
    assert calls[-1]
    assert_untouched(flux32, before)
    comfy.model_management.interrupt_current_processing(False)


def test_what_cannot_be_refined_is_refused(flux32, bank, edits, vae, told, pictures, tmp_path, monkeypatch):
    a, a_prime = pictures
    other = BasisBank.load(random_bank(tmp_path / "other.safetensors", LAYERS, **SIZES, seed=9))
    with pytest.raises(ValueError, match=r"bank.safetensors.*other.safetensors"):
        refine(flux32, other, edits[0], vae, told, a, a_prime)
    with pytest.raises(ValueError, match="image_a holds 3 images and image_a_prime 2"):
        refine(flux32, bank, edits[0], vae, told, a, a_prime[:2])
    strange = BasisBank.load(random_bank(tmp_path / "strange.safetensors", {"blocks.0.attn": (8, 8)}, **SIZES))
    with pytest.raises(ValueError, match="is in this model"):
        refine(flux32, strange, strange.mix(torch.randn(24)), vae, told, a, a_prime)
    part = [[context, {**rest, "end_percent": 0.5}] for context, rest in told]
    with pytest.raises(ValueError, match="from before ConditioningSetTimestepRange"):
        refine(flux32, bank, edits[0], vae, part, a, a_prime)
    for_noise = flux32.clone()
    for_noise.add_object_patch("model_sampling", EPS())
    with pytest.raises(ValueError, match="takes no reference latents"):
        refine(for_noise, bank, edits[0], vae, told, a, a_prime)
    extra_conds = type(flux32.model).extra_conds
    monkeypatch.setattr(
        type(flux32.model), "extra_conds", lambda *args, reference_latents, **named: extra_conds(*args, **named)
    )
    with pytest.raises(ValueError, match=r"this model \(Flux\) takes no reference latents"):
        refine(flux32, bank, edits[0], vae, told, a, a_prime)


def test_in_a_graph_of_the_server(comfy):
    """The starter with two pairs, of which the second is b and the true b'."""
    graph = {
        "starter": {"class_type": "LoRWeBLoadStarter", "inputs": {}},
        "example": {"class_type": "LoRWeBStarterExample", "inputs": {"example": "tint_blue"}},
        "a": {"class_type": "ImageBatch", "inputs": {"image1": ["example", 0], "image2": ["example", 2]}},
        "a_prime": {"class_type": "ImageBatch", "inputs": {"image1": ["example", 1], "image2": ["example", 3]}},
        "encode": {
            "class_type": "LoRWeBEncodeAnalogy",
            "inputs": {
                "basis": ["starter", 3], "clip_vision": ["starter", 2], "image_a": ["a", 0],
                "image_a_prime": ["a_prime", 0], "image_b": ["example", 2], "fit": "crop", "encoder_crop": "center",
            },
        },
        "refine": {
            "class_type": "LoRWeBRefineEdit",
            "inputs": {
                "model": ["starter", 0], "basis": ["starter", 3], "coefficients": ["encode", 0], "vae": ["starter", 1],
                "conditioning": ["starter", 4], "image_a": ["a", 0], "image_a_prime": ["a_prime", 0], "steps": 1,
                "seed": 0, "tie": 0.0, "long_side": 0, "fit": "crop", "draws": 1,
            },
        },
        "report": {"class_type": "PreviewAny", "inputs": {"source": ["refine", 1]}},
    }  # fmt: skip
    outputs = comfy.run(graph)
    assert "2 example pairs of 128 x 128 pixels; 1 of at most 1 steps" in str(outputs)
