"""Apply in mode runtime, inside the real ComfyUI: what the model makes of it, and that nothing of it stays behind."""

import logging
import os

import comfy.model_management
import comfy.sd
import comfy.utils
import pytest
import torch
from comfy_api.torch_helpers import set_torch_compile_wrapper
from lorweb_pack.lorweb_core import BasisBank
from lorweb_pack.lorweb_core.checkpoint import write_bank
from lorweb_pack.nodes.adapter import BasisAdapter
from lorweb_pack.nodes.apply import PATCH, RUNTIME, Apply
from lorweb_pack.nodes.runtime import KEY
from torch import nn

from harness.small_flux_pack.loader import load_small_flux
from harness.small_models import SMALL_FLUX, SMALL_HIDDEN, flux_layers, random_bank

from .dense import float_weights, raw_weights, relative, sample

LAYERS = flux_layers(SMALL_HIDDEN, 2, 2)
SIZES = {"num_loras": 6, "rank": 3, "key_dim": 16, "query_dim": 24, "dtype": torch.float32}


@pytest.fixture(scope="module")
def load_flux(small_models):
    return lambda dtype=torch.float32: load_small_flux(small_models / "diffusion_models" / SMALL_FLUX, dtype)


@pytest.fixture(scope="module")
def flux32(load_flux):
    return load_flux()


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    """Of the bias variant."""
    folder, generator = tmp_path_factory.mktemp("bank"), torch.Generator().manual_seed(7)
    plain = BasisBank.load(random_bank(folder / "plain.safetensors", LAYERS, **SIZES))
    layers = {
        name: {
            "lora_A": layer.A, "lora_B": layer.B, "lora_keys": torch.randn(6, 16, generator=generator),
            "att_lora_to_q.weight": torch.randn(16, 24, generator=generator),
            "lora_up_bias": torch.randn(6, layer.out_features, generator=generator),
        } for name, layer in plain.layers.items()
    }  # fmt: skip
    write_bank(folder / "biased.safetensors", layers, plain.config)
    return BasisBank.load(folder / "biased.safetensors")


@pytest.fixture(scope="module")
def edits(bank):
    """Two edits."""
    return [bank.mix(torch.randn(24, generator=torch.Generator().manual_seed(seed))) for seed in (0, 1)]


@pytest.fixture(autouse=True)
def _as_comfyui_runs_nodes():
    with torch.inference_mode():
        yield


def apply(model, bank, coefficients, mode=RUNTIME, strength=1.0):
    return Apply.execute(model, bank, coefficients, strength, mode).args[0]


def replaced(model):
    """Modules of a model whose forward is not their class's."""
    return [name for name, module in model.model.named_modules() if "forward" in vars(module)]


@pytest.mark.parametrize("strength", [1.0, -0.7])
@pytest.mark.parametrize("kept", [None, 2])
def test_it_agrees_with_the_patched_model(flux32, bank, edits, strength, kept):
    edit = edits[0] if kept is None else edits[0].top_k(kept)
    model, report = Apply.execute(flux32, bank, edit, strength, RUNTIME).args
    assert f"{len(LAYERS)} of {len(LAYERS)} layers at run time" in report
    expected = sample(apply(flux32, bank, edit, PATCH, strength))
    assert relative(sample(model), expected) < 1e-5
    assert relative(expected, sample(flux32)) > 0.05, "the edit must change the output for this test to mean anything"


def test_weights_stay_and_on_off_on_gives_the_same_bits(flux32, bank, edits):
    before, weights = sample(flux32), raw_weights(flux32)
    on = [apply(flux32, bank, edit) for edit in edits]
    first = [sample(model) for model in on]
    assert not replaced(flux32)
    assert torch.equal(sample(flux32), before)
    assert all(torch.equal(sample(model), found) for model, found in zip(reversed(on), reversed(first)))
    assert torch.equal(sample(flux32), before) and not torch.equal(*first)
    after = raw_weights(flux32)
    assert all(torch.equal(after[name], tensor) for name, tensor in weights.items())
    assert not flux32.wrappers and not flux32.additional_models and not on[0].patches


@pytest.mark.parametrize("failure", ["interrupt", "error"])
def test_a_run_that_ends_early_leaves_the_model_as_it_was(flux32, bank, edits, monkeypatch, failure):
    before, model = sample(flux32), apply(flux32, bank, edits[0])
    block = flux32.model.diffusion_model.single_blocks[0]
    seen = []

    def stop(*args):
        seen.append(replaced(flux32))
        if failure == "error":
            raise RuntimeError("out of memory")
        comfy.model_management.interrupt_current_processing()

    handle = block.register_forward_pre_hook(stop)
    with pytest.raises((RuntimeError, comfy.model_management.InterruptProcessingException)):
        sample(model)
    handle.remove()
    assert seen[0] and not replaced(flux32)
    assert torch.equal(sample(flux32), before)


@pytest.mark.parametrize("mode", [PATCH, RUNTIME])
def test_a_bank_that_was_written_into_is_refused_before_a_weight_changes(flux32, tmp_path, mode):
    """Its pages are read while ComfyUI patches: those of a file that was cut off would end the server."""
    bank = BasisBank.load(random_bank(tmp_path / "bank.safetensors", LAYERS, **SIZES))
    before, model = sample(flux32), apply(flux32, bank, bank.mix(torch.ones(24)), mode)
    assert not torch.equal(sample(model), before)
    os.utime(bank.path, (1, 1))
    with pytest.raises(ValueError, match=r"^bank\.safetensors: the file has changed since the bank was loaded"):
        sample(model)
    assert not replaced(flux32) and torch.equal(sample(flux32), before)


def test_a_bank_that_is_written_into_between_two_steps_is_refused(flux32, tmp_path):
    bank = BasisBank.load(random_bank(tmp_path / "bank.safetensors", LAYERS, **SIZES))
    model = apply(flux32, bank, bank.mix(torch.ones(24)))
    block = flux32.model.diffusion_model.single_blocks[0]
    handle = block.register_forward_pre_hook(lambda *_: os.utime(bank.path, (1, 1)))
    with pytest.raises(ValueError, match=r"^bank\.safetensors: the file has changed since the bank was loaded"):
        sample(model)
    handle.remove()
    assert not replaced(flux32)


def stock(model, bank, edit, folder):
    """The model with an edit as an ordinary LoRA file by ComfyUI's own loader."""
    bank.compose(edit).save(folder / "lora.safetensors", format="comfyui")
    lora = comfy.utils.load_torch_file(str(folder / "lora.safetensors"))
    return comfy.sd.load_lora_for_models(model, None, lora, 0.8, 0)[0]


def test_it_stacks_with_loras_and_with_itself(flux32, bank, edits, tmp_path):
    one, other = edits
    expected = sample(apply(stock(flux32, bank, other, tmp_path), bank, one, PATCH))
    stacks = [
        apply(stock(flux32, bank, other, tmp_path), bank, one),
        stock(apply(flux32, bank, one), bank, other, tmp_path),
        apply(apply(flux32, bank, other, RUNTIME, 0.8), bank, one),
        apply(apply(flux32, bank, other, PATCH, 0.8), bank, one),
    ]
    assert max(relative(sample(model), expected) for model in stacks) < 1e-5
    assert len(stacks[2].get_additional_models_with_key(KEY)) == 1, "one bank's factors take their memory once"


def expected_of(load_flux, weights, bank, edit):
    """What a float32 model with these weights makes of the edit in them."""
    model = load_flux()
    model.model.diffusion_model.load_state_dict(weights)
    return sample(apply(model, bank, edit, PATCH))


def test_fp8_base(load_flux, bank, edits):
    """Nothing of the edit is rounded to fp8."""
    base = load_flux(torch.float8_e4m3fn)
    expected = expected_of(load_flux, float_weights(base), bank, edits[0])
    assert relative(sample(apply(base, bank, edits[0])), expected) < 1e-5
    assert relative(sample(apply(base, bank, edits[0], PATCH)), expected) < 0.1


def replace_linears(model, replace):
    """Put ``replace(linear)`` in place of every linear layer of the blocks."""
    for path, module in list(model.model.diffusion_model.named_modules()):
        if isinstance(module, nn.Linear) and "_blocks." in path:
            comfy.utils.set_attr(model.model.diffusion_model, path, replace(module))


def four_bits(linear):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    packed = bitsandbytes.nn.Linear4bit(
        linear.in_features, linear.out_features, linear.bias is not None, torch.float32, quant_type="nf4"
    )
    packed.load_state_dict(linear.state_dict())
    return packed.to("cpu")


class Packed(nn.Module):
    """A layer whose weight has neither the usual name nor the usual shape."""

    def __init__(self, linear):
        super().__init__()
        self.register_buffer("qweight", linear.weight.detach().flatten())
        self.register_buffer("qbias", linear.bias.detach())

    def forward(self, x):
        return nn.functional.linear(x, self.qweight.view(len(self.qbias), -1), self.qbias)


@torch.inference_mode(False)
@torch.no_grad()
def packed_flux(load_flux, pack):
    """A small FLUX with packed layers, and the weights that they stand for."""
    import bitsandbytes

    model, weights = load_flux(), {}
    replace_linears(model, pack)
    for path, module in model.model.diffusion_model.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            weights[f"{path}.weight"] = bitsandbytes.functional.dequantize_4bit(
                module.weight.data, module.weight.quant_state
            ).float()
    return model, float_weights(load_flux()) | weights


@pytest.mark.parametrize("pack", [four_bits, Packed])
def test_packed_weights_take_the_edit(load_flux, bank, edits, pack):
    pytest.importorskip("bitsandbytes")
    model, weights = packed_flux(load_flux, pack)
    expected = expected_of(load_flux, weights, bank, edits[0])
    assert relative(sample(apply(model, bank, edits[0])), expected) < 1e-5
    with pytest.raises(ValueError, match=r"choose mode runtime|is in this model"):
        apply(model, bank, edits[0], PATCH)


def test_a_layer_that_never_runs_is_named(flux32, bank, edits, caplog, monkeypatch):
    """As in a model whose loader fuses layers."""
    block = flux32.model.diffusion_model.double_blocks[0].img_mlp
    monkeypatch.setattr(block, "forward", lambda x: x)
    with caplog.at_level(logging.WARNING):
        sample(apply(flux32, bank, edits[0]))
    assert f"2 of {len(LAYERS)} layers did not run" in caplog.text
    assert "transformer_blocks.0.ff.net.0.proj" in caplog.text


def test_another_width_is_refused(flux32, tmp_path):
    layers = {**LAYERS, "transformer_blocks.0.attn.to_out.0": (SMALL_HIDDEN, SMALL_HIDDEN // 2)}
    bank = BasisBank.load(random_bank(tmp_path / "bank.safetensors", layers, **SIZES))
    with pytest.raises(ValueError, match=r"layer transformer_blocks.0.attn.to_out.0 .*256 to 128.* from 256 to 256"):
        apply(flux32, bank, bank.mix(torch.randn(24)))


def test_a_layer_that_is_no_module_is_refused(load_flux, bank, edits):
    model = load_flux()
    mlp = model.model.diffusion_model.double_blocks[0].img_mlp
    del mlp[0]
    vars(mlp)["0"] = "fused"
    with pytest.raises(ValueError, match=r"double_blocks.0.img_mlp.0 \(str\).*choose mode patch"):
        apply(model, bank, edits[0])


def test_the_factors_lie_in_the_file_again_after_the_gpu(flux32, bank, edits):
    """Moved to another dtype and back, which stands for another device."""
    (factors,) = apply(flux32, bank, edits[0]).get_additional_models_with_key(KEY)
    layer = bank.layers["transformer_blocks.0.attn.to_q"]
    index = list(bank.layers).index("transformer_blocks.0.attn.to_q")
    factors.model.to(torch.float64)
    assert factors.model[index].A.dtype == torch.float64
    moved = factors.model[index].A.data_ptr()
    factors.model.to(torch.float64)  # ComfyUI moves every module, and then the model
    assert factors.model[index].A.data_ptr() == moved
    factors.model.to(torch.float32)
    assert factors.model[index].A.data_ptr() == layer.A.data_ptr()


@torch.inference_mode(False)
def test_the_output_is_differentiable_in_the_coefficients(bank, edits):
    name = "transformer_blocks.0.attn.to_q"
    layer, generator = bank.layers[name], torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, layer.in_features, generator=generator)
    base = torch.randn(2, 5, layer.out_features, generator=generator)
    c = edits[0].for_layer(name).clone().requires_grad_()
    adapter = BasisAdapter.of(layer, c, 0.5)
    adapter.multiplier = 3.0
    delta = adapter.h(x, base)
    dense = 1.5 * torch.einsum("n,nir,nro->oi", c, layer.A, layer.B)
    expected = x @ dense.T + 1.5 * c @ layer.bias
    assert relative(delta.detach(), expected.detach()) < 1e-6
    found, wanted = (torch.autograd.grad(y.square().sum(), c)[0] for y in (delta, expected))
    assert relative(found, wanted) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.bfloat16, torch.float16])
def test_it_is_computed_in_the_dtype_of_the_model_and_never_below_float16(bank, edits, dtype):
    name = "transformer_blocks.0.attn.to_q"
    x, adapter = torch.randn(5, 256).to(dtype), BasisAdapter.of(bank.layers[name], edits[0].for_layer(name), 0.5)
    delta = adapter.h(x, torch.zeros_like(x))
    assert delta.dtype == (torch.float16 if dtype == torch.float8_e4m3fn else dtype)


def test_a_compiled_model_takes_the_edit_and_loses_it_again(flux32, bank, edits):
    def compiled(model):
        model = model.clone()
        # What the node TorchCompileModel calls, here for one block.
        set_torch_compile_wrapper(model, backend="eager", keys=["diffusion_model.single_blocks.0"])
        return model

    def breaks():
        return sum(torch._dynamo.utils.counters["graph_break"].values())

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    before, expected = sample(flux32), sample(apply(flux32, bank, edits[0]))
    assert relative(sample(compiled(flux32)), before) < 1e-5
    of_base = breaks()
    assert relative(sample(apply(compiled(flux32), bank, edits[0])), expected) < 1e-5
    assert breaks() - of_base <= of_base, "the edit breaks the graph no oftener than the base does"
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    other = compiled(apply(flux32, bank, edits[1]))
    assert relative(sample(other), sample(apply(flux32, bank, edits[1]))) < 1e-5
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs, "another edit compiles nothing anew"
    assert torch.equal(sample(flux32), before)
    torch._dynamo.reset()
