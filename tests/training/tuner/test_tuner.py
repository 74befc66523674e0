"""The tuner against PEFT's LoRA, finite differences, the core's deltas, checkpointing, autocast, compile."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

from lorweb_core import BankConfig, BasisBank
from lorweb_core.checkpoint import write_bank
from training.bases import KONTEXT
from training.tuner import LoRWeBConfig, LoRWeBModel

Q = 6


class Blocks(nn.Module):
    """Two blocks of two linears on [B, S, 8]; checkpointed the way diffusers does it."""

    def __init__(self, checkpointing=False):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8)) for _ in range(2))
        self.checkpointing = checkpointing

    def forward(self, x):
        for block in self.blocks:
            x = x + (checkpoint(block, x, use_reentrant=False) if self.checkpointing else block(x))
        return x


def bank_config(**changes):
    return BankConfig(**{"num_loras": 3, "rank": 2, "key_dim": 4, "query_dim": Q, "query_mode": "caa'b", **changes})


def tune(model, targets=r"blocks\.\d+\.[02]", seed=1, std=0.5, **changes):
    """A tuner whose every trained tensor is random, so that nothing is zero by initialisation."""
    tuner = LoRWeBModel(model, LoRWeBConfig(bank=bank_config(**changes), target_modules=targets))
    torch.manual_seed(seed)
    for p in tuner.parameters():
        if p.requires_grad:
            nn.init.normal_(p, std=std)
    return tuner


def trained(model):
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


def gradients(tuner, x, z):
    tuner.zero_grad()
    tuner(x, query=z).square().mean().backward()
    return {n: p.grad.clone() for n, p in trained(tuner).items()}


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(5)
    return torch.randn(2, 5, 8, generator=generator), torch.randn(2, Q, generator=generator)


def test_initialisation_follows_the_method():
    torch.manual_seed(0)
    base = nn.ModuleDict({"a": nn.Linear(400, 30)})
    tuner = LoRWeBModel(
        base, LoRWeBConfig(bank=bank_config(num_loras=64, key_dim=64, query_dim=400), target_modules="a")
    )
    a, b = (tuner.bank_tensors(tuner.adapter_state_dict())["a"][name] for name in ("lora_A", "lora_B"))
    assert a.shape == (64, 400, 2) and b.shape == (64, 2, 30)
    assert b.abs().max() == 0
    bound = 400**-0.5
    for tensor in (a, tuner.mixer.to_q):
        assert 0.98 * bound < tensor.abs().max() <= bound
    assert abs(tuner.mixer.keys.std() - 1) < 0.05 and tuner.mixer.keys.shape == (1, 64, 64)
    assert not base.get_submodule("a").base_layer.weight.requires_grad


@pytest.mark.parametrize("rank", [1, 9])
def test_the_released_initialisation_has_a_s_three_dimensional_fan(rank):
    torch.manual_seed(0)
    config = LoRWeBConfig(bank=bank_config(rank=rank, num_loras=64), init="released", target_modules="a")
    layer = LoRWeBModel(nn.ModuleDict({"a": nn.Linear(400, 3)}), config).tuner_layers["a"]
    bound = (400 * rank) ** -0.5
    assert 0.98 * bound < layer.lora_A["default"].weight.abs().max() <= bound * (1 + 1e-6)


def test_untrained_tuner_leaves_the_base_unchanged(inputs):
    x, z = inputs
    expected = Blocks()(x)
    tuner = LoRWeBModel(Blocks(), LoRWeBConfig(bank=bank_config(), target_modules=r"blocks\.\d+\.[02]"))
    assert torch.equal(tuner(x, query=z), expected)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_one_basis_lora_is_pefts_lora(inputs, dtype, tolerance):
    x, z = (t.to(dtype) for t in inputs)
    tuner = tune(Blocks().to(dtype), std=0.2, num_loras=1, alpha=3.0)
    lora = get_peft_model(Blocks().to(dtype), LoraConfig(r=2, lora_alpha=3.0, target_modules=r"blocks\.\d+\.[02]"))
    theirs = {n.removeprefix("base_model."): p for n, p in trained(lora).items()}
    ours = {n: p for n, p in trained(tuner).items() if not n.startswith("mixer.")}
    assert ours.keys() == theirs.keys()
    for name, p in theirs.items():
        p.data.copy_(ours[name].data)
    torch.testing.assert_close(tuner(x, query=z), lora(x), rtol=tolerance, atol=tolerance)
    grads = gradients(tuner, x, z)
    lora(x).square().mean().backward()
    for name, p in theirs.items():
        torch.testing.assert_close(grads[name], p.grad, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "settings", [{}, {"softmax": False, "heads": 2}, {"projection": "none", "key_dim": Q, "heads": 2}]
)
def test_gradients_agree_with_finite_differences(inputs, settings):
    x, z = (t.double() for t in inputs)
    tuner = tune(Blocks().double(), **settings)
    named = trained(tuner)
    assert {p.dtype for p in named.values()} == {torch.float64}
    assert {n.split(".")[-2] for n in named} >= {"mixer", "default"}

    def loss(*values):
        return torch.func.functional_call(tuner, dict(zip(named, values, strict=True)), (x,), {"query": z})

    assert torch.autograd.gradcheck(loss, tuple(named.values()), atol=1e-7, rtol=1e-5)


def test_per_sample_coefficients_equal_one_sample_at_a_time(inputs):
    x, z = inputs
    tuner = tune(Blocks())
    together = tuner(x, query=z)
    for i in range(2):
        torch.testing.assert_close(together[i : i + 1], tuner(x[i : i + 1], query=z[i]))
    assert not torch.allclose(together[:1], tuner(x[:1], query=z[1]), atol=1e-3)


def test_one_query_serves_a_whole_batch_and_a_flat_input():
    tuner = tune(nn.ModuleDict({"a": nn.Linear(8, 3)}), targets="a")
    layer, x = tuner.tuner_layers["a"], torch.randn(4, 8)
    with tuner.mixing(torch.randn(Q)) as c:
        assert c.shape == (1, 1, 3)
        torch.testing.assert_close(layer(x)[2], layer(x[None, 2:3])[0, 0])


@pytest.mark.parametrize("settings", [{}, {"softmax": False}, {"projection": "none", "key_dim": Q}, {"alpha": 1.0}])
def test_exported_bank_gives_the_tuners_own_deltas(inputs, settings, tmp_path):
    _, z = inputs
    tuner = tune(Blocks(), **settings)
    write_bank(tmp_path / "bank.safetensors", tuner.bank_tensors(tuner.adapter_state_dict()), tuner.bank_config)
    bank = BasisBank.load(tmp_path / "bank.safetensors")
    assert bank.config == tuner.bank_config and set(bank.layers) == set(tuner.tuner_layers)
    coefficients = bank.mix(z[0])
    with tuner.mixing(z[0]):
        for name, layer in tuner.tuner_layers.items():
            dense = layer(torch.eye(layer.in_features)) - layer.base_layer(torch.eye(layer.in_features))
            torch.testing.assert_close(bank.delta(name, coefficients), dense.T, rtol=1e-5, atol=1e-5)


def test_checkpointing_changes_no_gradient(inputs):
    expected = gradients(tune(Blocks()), *inputs)
    found = gradients(tune(Blocks(checkpointing=True)), *inputs)
    assert max(g.abs().max() for n, g in expected.items() if n.startswith("mixer.")) > 1e-4
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-6, atol=1e-8)


def test_autocast_mixes_in_float32_and_trains_in_bfloat16(inputs):
    x, z = inputs
    tuner = tune(Blocks().bfloat16(), seed=3)
    exact = gradients(tune(Blocks(), seed=3), x, z)
    with torch.autocast("cpu", torch.bfloat16):
        out = tuner(x.bfloat16(), query=z)
    assert out.dtype == torch.bfloat16 and tuner.coefficients.dtype == torch.float32
    torch.testing.assert_close(tuner.coefficients, tune(Blocks(), seed=3).set_query(z))
    out.float().square().mean().backward()
    for name, p in trained(tuner).items():
        assert p.dtype == torch.float32
        torch.testing.assert_close(p.grad, exact[name], rtol=0.1, atol=0.1 * float(exact[name].abs().max()))


def test_compiled_blocks_agree_and_do_not_recompile(inputs):
    x, z = inputs
    expected = gradients(tune(Blocks(checkpointing=True)), x, z)
    tuner = tune(Blocks(checkpointing=True))
    counter = CompileCounterWithBackend("aot_eager")
    for block in tuner.model.blocks:
        block.compile(backend=counter)
    found = gradients(tuner, x, z)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-7)
    graphs = counter.frame_count
    assert graphs > 0
    gradients(tuner, x, z + 1)
    assert counter.frame_count == graphs


def test_missing_or_unfitting_queries_are_refused(inputs):
    x, z = inputs
    tuner = tune(Blocks())
    with pytest.raises(RuntimeError, match="no analogy query is set"):
        tuner(x)
    with pytest.raises(ValueError, match=r"needs \[6\]"):
        tuner(x, query=z[:, :4])
    with pytest.raises(ValueError, match="2 analogy queries do not go with a batch of 3"):
        tuner(torch.randn(3, 5, 8), query=z)


def test_targets_that_are_no_linear_layer_are_refused():
    with pytest.raises(ValueError, match=r"blocks\.0\.1 is a GELU"):
        tune(Blocks(), targets=r"blocks\.\d+\.1")


def test_disabled_adapters_give_the_base_output(inputs):
    x, z = inputs
    tuner = tune(Blocks())
    assert not torch.allclose(tuner(x, query=z), Blocks()(x))
    tuner.disable_adapter_layers()
    assert torch.equal(tuner(x, query=z), Blocks()(x))


def test_adapter_state_goes_round_and_refuses_another_model(inputs, tmp_path):
    x, z = inputs
    tuner = tune(Blocks())
    state = tuner.adapter_state_dict()
    assert len(state) == len(trained(tuner)) == 10
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "adapter.safetensors")
    other = tune(Blocks(), seed=9)
    assert not torch.allclose(other(x, query=z), tuner(x, query=z))
    other.load_adapter_state_dict(state)
    assert torch.equal(other(x, query=z), tuner(x, query=z))
    with pytest.raises(ValueError, match=r"does not fit this model: 1 names differ, such as mixer\.to_q"):
        tune(Blocks(), projection="none", key_dim=Q).load_adapter_state_dict(state)


class QuantisedLinear(nn.Module):
    """Int8 storage, float32 result: what bitsandbytes and torchao layers look like from outside."""

    def __init__(self, linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        scale = linear.weight.detach().abs().amax() / 127
        self.register_buffer("scale", scale)
        self.weight = nn.Parameter((linear.weight.detach() / scale).round().to(torch.int8), requires_grad=False)

    def forward(self, x):
        return x @ (self.weight.float() * self.scale).T


def test_a_quantised_base_layer_is_only_called(inputs):
    x, z = inputs
    base = Blocks()
    for block in base.blocks:
        block[0], block[2] = QuantisedLinear(block[0]), QuantisedLinear(block[2])
    expected = base(x)
    tuner = tune(base)
    assert all(layer.base_layer.weight.dtype == torch.int8 for layer in tuner.tuner_layers.values())
    grads = gradients(tuner, x, z)
    assert all(g.abs().max() > 0 for g in grads.values())
    tuner.disable_adapter_layers()
    assert torch.equal(tuner(x, query=z), expected)


def test_flux_targets_are_the_494_layers_of_the_method():
    from diffusers import FluxTransformer2DModel

    with torch.device("meta"):
        flux = FluxTransformer2DModel(guidance_embeds=True)
        bank = bank_config(num_loras=32, rank=4, key_dim=128, query_dim=2304, query_mode="cat-aa'b")
        tuner = LoRWeBModel(flux, LoRWeBConfig(bank=bank, target_modules=KONTEXT.targets))
    assert len(tuner.tuner_layers) == 494
    assert sum(p.numel() for p in tuner.parameters() if p.requires_grad) == 835_051_520
