"""Apply inside the real ComfyUI: what it does to the weights, to the forward pass, and what it leaves behind."""

import logging

import comfy.lora
import comfy.sd
import pytest
import torch
from comfy_api.torch_helpers import set_torch_compile_wrapper
from lorweb_pack.lorweb_core import BasisBank, MixingCoefficients
from lorweb_pack.lorweb_core.checkpoint import write_bank
from lorweb_pack.nodes.adapter import BasisAdapter
from lorweb_pack.nodes.apply import RUNTIME, Apply
from safetensors.torch import load_file, save_file

from harness.small_flux_pack.loader import load_small_flux
from harness.small_models import SMALL_FLUX, SMALL_HIDDEN, flux_layers, random_bank

from .dense import (
    add_by_hand,
    checksums,
    dequantised,
    edit_strengths,
    float_weights,
    forward,
    patched,
    raw_weights,
    relative,
    sample,
)

LAYERS = flux_layers(SMALL_HIDDEN, 2, 2)


@pytest.fixture(scope="module")
def flux32(small_models):
    """The small FLUX in float32, where agreement can be exact."""
    return load_small_flux(small_models / "diffusion_models" / SMALL_FLUX, torch.float32)


def load_bank(folder, layers=None, **sizes) -> BasisBank:
    sizes = {"num_loras": 6, "rank": 3, "key_dim": 16, "query_dim": 24, "dtype": torch.float32, **sizes}
    return BasisBank.load(random_bank(folder / "bank.safetensors", layers or LAYERS, **sizes))


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    return load_bank(tmp_path_factory.mktemp("bank"))


@pytest.fixture(scope="module")
def coefficients(bank):
    return bank.mix(torch.randn(bank.config.query_dim, generator=torch.Generator().manual_seed(0)))


@pytest.fixture(autouse=True)
def _as_comfyui_runs_nodes():
    """ComfyUI runs every node without gradients."""
    with torch.no_grad():
        yield


def apply(model, bank, coefficients, strength=1.0):
    return Apply.execute(model, bank, coefficients, strength)


@pytest.mark.parametrize("strength", [1.0, -0.7, 2.5])
def test_patched_forward_equals_dense_deltas_by_hand(flux32, bank, coefficients, strength):
    model, report = apply(flux32, bank, coefficients, strength).args
    assert f"{len(LAYERS)} of {len(LAYERS)} layers patched" in report
    expected = float_weights(flux32)
    base = forward(flux32.model.diffusion_model)
    add_by_hand(expected, bank, coefficients, strength, SMALL_HIDDEN)
    with patched(model) as diffusion_model:
        weights, found = raw_weights(model), forward(diffusion_model)
    by_hand = load_weights_and_run(flux32, expected)
    assert max(relative(weights[name], expected[name]) for name in expected) < 1e-6
    assert relative(found, by_hand) < 1e-5
    assert relative(base, by_hand) > 0.05, "the bank must change the output for this test to mean anything"


def test_a_layer_whose_halves_comfyui_swaps(flux32, tmp_path):
    """diffusers has the scale of the last norm first, FLUX's files the shift."""
    bank = load_bank(tmp_path, {"norm_out.linear": (SMALL_HIDDEN, 2 * SMALL_HIDDEN)})
    coefficients = bank.mix(torch.randn(bank.config.query_dim))
    key, delta = "final_layer.adaLN_modulation.1.weight", bank.delta("norm_out.linear", coefficients)
    before = raw_weights(flux32)[key]
    with patched(apply(flux32, bank, coefficients).args[0]):
        added = raw_weights(flux32)[key] - before
    assert relative(added.cpu(), torch.cat(delta.chunk(2)[::-1])) < 1e-5
    with pytest.raises(ValueError, match=r"mode runtime does not suit this model: for layer norm_out\.linear"):
        Apply.execute(flux32, bank, coefficients, 1.0, RUNTIME)


def load_weights_and_run(model, weights, size=16):
    """The forward pass with weights put in by plain assignment, and the model's own put back."""
    diffusion_model = model.model.diffusion_model
    original = raw_weights(model)
    diffusion_model.load_state_dict(weights)
    try:
        return forward(diffusion_model, size)
    finally:
        diffusion_model.load_state_dict(original)


def test_on_then_off_is_bit_identical(flux32, bank, coefficients):
    before, output = raw_weights(flux32), forward(flux32.model.diffusion_model)
    model = apply(flux32, bank, coefficients).args[0]
    with patched(model) as diffusion_model:
        assert not torch.equal(forward(diffusion_model), output)
    after = raw_weights(flux32)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(forward(flux32.model.diffusion_model), output)
    assert not flux32.patches


def test_strength_0_returns_the_model_itself(flux32, bank, coefficients):
    model, report = apply(flux32, bank, coefficients, 0.0).args
    assert model is flux32 and "untouched" in report


def test_stacks_with_an_ordinary_lora_in_any_order(flux32, bank, coefficients, tmp_path):
    other = bank.mix(torch.randn(bank.config.query_dim))
    bank.compose(other).save(tmp_path / "other.safetensors")
    lora = load_file(tmp_path / "other.safetensors")

    def stock(model):
        return comfy.sd.load_lora_for_models(model, None, lora, 0.8, 0)[0]

    expected = float_weights(flux32)
    add_by_hand(expected, bank, coefficients, 1.0, SMALL_HIDDEN)
    add_by_hand(expected, bank, other, 0.8, SMALL_HIDDEN)
    for model in (stock(apply(flux32, bank, coefficients).args[0]), apply(stock(flux32), bank, coefficients).args[0]):
        with patched(model):
            weights = raw_weights(model)
        assert max(relative(weights[name], expected[name]) for name in expected) < 1e-6


def test_two_analogies_stack(flux32, bank, coefficients):
    twice = apply(apply(flux32, bank, coefficients, 0.5).args[0], bank, coefficients, 0.5).args[0]
    with patched(twice):
        stacked = raw_weights(twice)
    once = apply(flux32, bank, coefficients).args[0]
    with patched(once):
        whole = raw_weights(once)
    assert max(relative(stacked[name], whole[name]) for name in whole) < 1e-6


@pytest.mark.parametrize("format", ["diffusers", "comfyui"])
def test_stock_lora_loader_gives_the_same_model(flux32, bank, coefficients, tmp_path, format):
    bank.compose(coefficients).save(tmp_path / "lora.safetensors", format=format)
    stock = comfy.sd.load_lora_for_models(flux32, None, load_file(tmp_path / "lora.safetensors"), 0.9, 0)[0]
    ours = apply(flux32, bank, coefficients, 0.9).args[0]
    with patched(stock) as diffusion_model:
        expected = forward(diffusion_model)
    with patched(ours) as diffusion_model:
        found = forward(diffusion_model)
    assert relative(found, expected) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_base(small_models, bank, coefficients, dtype):
    base = load_small_flux(small_models / "diffusion_models" / SMALL_FLUX, dtype)
    expected = float_weights(base)
    add_by_hand(expected, bank, coefficients, 1.0, SMALL_HIDDEN)
    model = apply(base, bank, coefficients).args[0]
    before = raw_weights(base)
    with patched(model):
        weights = raw_weights(model)
    for name, weight in weights.items():
        assert weight.dtype == dtype
        torch.testing.assert_close(weight.float(), expected[name], rtol=2**-8, atol=1e-6)
    assert all(torch.equal(before[name], tensor) for name, tensor in raw_weights(base).items())


def test_fp8_base(small_models, bank, coefficients, tmp_path):
    """An fp8-cast base takes the edit as it takes an ordinary LoRA, to the bit, and loses it again without a trace."""
    base = load_small_flux(small_models / "diffusion_models" / SMALL_FLUX, torch.float8_e4m3fn)
    before = raw_weights(base)
    assert before["double_blocks.0.img_attn.qkv.weight"].dtype == torch.float8_e4m3fn
    expected = float_weights(base)
    add_by_hand(expected, bank, coefficients, 1.0, SMALL_HIDDEN)
    model = apply(base, bank, coefficients).args[0]
    with patched(model) as diffusion_model:
        weights = raw_weights(model)
        assert torch.isfinite(forward(diffusion_model)).all()
    # ComfyUI rounds to fp8 stochastically: single values are off, the edit as a whole has its strength.
    strengths = edit_strengths(weights, expected, bank, coefficients, SMALL_HIDDEN)
    assert all(strength == pytest.approx(1, abs=0.03) for strength in strengths.values())
    bank.compose(coefficients).save(tmp_path / "lora.safetensors")
    stock = comfy.sd.load_lora_for_models(base, None, load_file(tmp_path / "lora.safetensors"), 1.0, 0)[0]
    with patched(stock):
        stock_weights = raw_weights(stock)
    same = [(weights[n].view(torch.uint8) == w.view(torch.uint8)).float().mean() for n, w in stock_weights.items()]
    assert min(same) > 0.999
    assert all(torch.equal(before[n].view(torch.uint8), t.view(torch.uint8)) for n, t in raw_weights(base).items())


def scale_to_fp8(source, target):
    """A checkpoint as those named fp8_scaled are: every matrix in fp8 beside the scale that its largest entry takes."""
    tensors = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    for name, tensor in load_file(source).items():
        if tensor.dim() == 2:
            scale = tensor.abs().max().float() / torch.finfo(torch.float8_e4m3fn).max
            tensors[name.removesuffix("weight") + "scale_weight"] = scale
            tensor = (tensor.float() / scale).to(torch.float8_e4m3fn)
        tensors[name] = tensor
    save_file(tensors, target)
    return target


@pytest.mark.slow
@pytest.mark.parametrize("weight_dtype", ["default", "fp8_e4m3fn", "scaled"])
def test_real_width_through_the_stock_loader(wide_flux_path, tmp_path, weight_dtype):
    """FLUX's real width, one double and one single block, a bank of the released sizes, ComfyUI's own UNETLoader."""
    import folder_paths
    import nodes

    path = wide_flux_path
    if weight_dtype == "scaled":
        path, weight_dtype = scale_to_fp8(path, tmp_path / "wide_fp8_scaled.safetensors"), "default"
    folder_paths.add_model_folder_path("diffusion_models", str(path.parent))
    base = nodes.UNETLoader().load_unet(path.name, weight_dtype)[0]
    bank = load_bank(
        tmp_path, flux_layers(3072, 1, 1), num_loras=32, rank=4, key_dim=128, query_dim=2304, dtype=torch.float16
    )
    coefficients = bank.mix(torch.randn(2304))
    model, report = apply(base, bank, coefficients).args
    assert "20 of 20 layers patched" in report
    # As it is stored: newer ComfyUI's scaled weights pass for the type that they are computed in.
    before, dtype = checksums(base), base.model.diffusion_model.state_dict()["img_in.weight"].dtype
    expected = float_weights(base)
    add_by_hand(expected, bank, coefficients, 1.0, 3072)
    with patched(model) as diffusion_model:
        found = forward(diffusion_model, size=8)
        weights = dequantised(diffusion_model.state_dict())
        errors = {name: relative(weight, expected[name]) for name, weight in weights.items()}
        strengths = edit_strengths(weights, expected, bank, coefficients, 3072)
    assert checksums(base) == before
    assert all(strength == pytest.approx(1, abs=0.03) for strength in strengths.values())
    if dtype == torch.float8_e4m3fn:
        assert torch.isfinite(found).all()
    else:
        assert max(errors.values()) < 1e-5
        expected = {name: tensor.to(dtype) for name, tensor in expected.items()}
        assert relative(found, load_weights_and_run(base, expected, size=8)) < 1e-5
    assert (dtype == torch.float8_e4m3fn) == (weight_dtype != "default" or path != wide_flux_path)


def test_bias_variant(flux32, tmp_path):
    generator = torch.Generator().manual_seed(7)
    plain = load_bank(tmp_path)
    layers = {}
    for name, layer in plain.layers.items():
        layers[name] = {
            "lora_A": layer.A, "lora_B": layer.B, "lora_keys": torch.randn(6, 16, generator=generator),
            "att_lora_to_q.weight": torch.randn(16, 24, generator=generator),
            "lora_up_bias": torch.randn(6, layer.out_features, generator=generator),
        }  # fmt: skip
    write_bank(tmp_path / "biased.safetensors", layers, plain.config)
    bank = BasisBank.load(tmp_path / "biased.safetensors")
    coefficients = bank.mix(torch.randn(24))
    expected = float_weights(flux32)
    add_by_hand(expected, bank, coefficients, 1.5, SMALL_HIDDEN)
    model = apply(flux32, bank, coefficients, 1.5).args[0]
    with patched(model):
        weights = raw_weights(model)
    assert max(relative(weights[name], expected[name]) for name in expected) < 1e-6
    bank.compose(coefficients).save(tmp_path / "lora.safetensors", format="comfyui")
    stock = comfy.sd.load_lora_for_models(flux32, None, load_file(tmp_path / "lora.safetensors"), 1.5, 0)[0]
    with patched(stock):
        weights = raw_weights(stock)
    assert max(relative(weights[name], expected[name]) for name in expected) < 1e-6


def test_layers_that_the_model_lacks_are_named(flux32, tmp_path, caplog):
    """A bank for a deeper model: what fits is applied, what is missing is said."""
    bank = load_bank(tmp_path, flux_layers(SMALL_HIDDEN, 3, 2))
    with caplog.at_level(logging.WARNING):
        model, report = apply(flux32, bank, bank.mix(torch.randn(24))).args
    assert f"{len(LAYERS)} of {len(LAYERS) + 14} layers patched" in report
    assert "transformer_blocks.2." in report and "and others" in report and report in caplog.text
    assert model.patches


def test_no_layer_in_common_is_refused(flux32, tmp_path):
    bank = load_bank(tmp_path, {"decoder.block.0.attn": (8, 8)})
    with pytest.raises(ValueError, match=r"none of the 1 layers of bank.safetensors is in this model \(Flux\).*GGUF"):
        apply(flux32, bank, bank.mix(torch.randn(24)))


def test_another_width_is_refused_before_anything_is_patched(flux32, tmp_path):
    bank = load_bank(tmp_path, {**LAYERS, "transformer_blocks.0.attn.to_k": (SMALL_HIDDEN, SMALL_HIDDEN // 2)})
    with pytest.raises(ValueError, match=r"bank does not fit .*blocks.0.attn.to_k .* 128 x 256 delta.*768 x 256"):
        apply(flux32, bank, bank.mix(torch.randn(24)))
    assert not flux32.patches


def test_coefficients_of_another_bank_are_refused(flux32, bank):
    other = MixingCoefficients(torch.ones(1, 6), ("x",))
    with pytest.raises(ValueError, match="use the bank that they were made with"):
        apply(flux32, bank, other)


def test_the_adapter_copies_nothing_and_can_be_rebuilt(flux32, bank, coefficients):
    """ComfyUI may move an adapter by rebuilding it from ``loaded_keys`` and its moved ``weights``."""
    model = apply(flux32, bank, coefficients).args[0]
    adapters = [patch[1] for patches in model.patches.values() for patch in patches]
    assert len(adapters) == len(LAYERS) and all(isinstance(adapter, BasisAdapter) for adapter in adapters)
    shared = {layer.A.data_ptr() for layer in bank.layers.values()}
    assert {adapter.weights[0].data_ptr() for adapter in adapters} == shared
    adapter = adapters[0]
    moved = tuple(w.clone() if isinstance(w, torch.Tensor) else w for w in adapter.weights)
    rebuilt = type(adapter)(adapter.loaded_keys, moved)
    shape = (adapter.weights[1].shape[2], adapter.weights[0].shape[1])
    results = [
        x.calculate_weight(torch.zeros(shape), "key", 0.5, 1.0, None, lambda delta: delta) for x in (adapter, rebuilt)
    ]
    assert torch.equal(*results) and results[0].any()


@pytest.mark.parametrize("compiled_first", [True, False])
def test_a_compiled_model_takes_the_edit_and_loses_it_again(flux32, bank, coefficients, compiled_first):
    def compiled(model):
        model = model.clone()
        # What the node TorchCompileModel calls, here for one block.
        set_torch_compile_wrapper(model, backend="eager", keys=["diffusion_model.single_blocks.0"])
        return model

    def edited(model):
        return apply(model, bank, coefficients).args[0]

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    before, expected = sample(flux32), sample(edited(flux32))
    found = sample(edited(compiled(flux32)) if compiled_first else compiled(edited(flux32)))
    assert relative(expected, before) > 1e-2
    assert relative(found, expected) < 1e-5
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert torch.equal(sample(flux32), before)
    torch._dynamo.reset()
