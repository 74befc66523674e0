"""The composed LoRA: exact factors, truncation, files that diffusers' names and ComfyUI's names both carry."""

import tracemalloc

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from lorweb_core import BasisBank, MixingCoefficients
from lorweb_core.export import balance
from lorweb_core.layers import fused_modules
from lorweb_core.lora import largest_element, truncate_factors

from .conftest import LAYERS, Spec, reference_delta, relative_error

QKV = ("attn.to_q", "attn.to_k", "attn.to_v")


@pytest.fixture
def composed(make_bank):
    path, tensors = make_bank(Spec(bias=False), alpha=6)
    bank = BasisBank.load(path)
    return bank.compose(bank.mix(torch.randn(36, generator=torch.Generator().manual_seed(3)))), tensors


def delta(lora, name):
    down, up = lora.factors(name)
    return up @ down


def test_factors_are_exact(composed):
    lora, tensors = composed
    assert lora.names == tuple(lora.bank.layers)
    for name, (features_in, features_out) in LAYERS.items():
        down, up = lora.factors(name)
        assert down.shape == (18, features_in) and up.shape == (features_out, 18)
        expected = reference_delta(tensors, name, lora.coefficients.for_layer(name), scale=2.0)
        assert relative_error(up @ down, expected) <= 1e-6
        assert torch.equal(up @ down, lora.bank.delta(name, lora.coefficients))


def test_bias_variant(make_bank):
    path, tensors = make_bank(Spec(bias=True), alpha=6)
    bank = BasisBank.load(path)
    lora = bank.compose(bank.mix(torch.randn(36)))
    for name in LAYERS:
        c = lora.coefficients.for_layer(name).double()
        expected = 2.0 * c @ tensors[f"transformer.{name}.lora_up_bias"].double()
        assert relative_error(lora.bias(name), expected) <= 1e-6


def test_an_analogy_costs_nothing_beyond_the_bank(make_bank):
    """A composed LoRA holds the bank and N numbers a layer: far below 1 MB even for 494 layers of 32."""
    bank = BasisBank.load(make_bank()[0])
    c = bank.mix(torch.randn(36))
    tracemalloc.start()
    lora = bank.compose(c)
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert lora.bank is bank and grown < 100_000
    assert lora.layer_coefficients("transformer_blocks.0.attn.to_q").untyped_storage().data_ptr() == (
        c.values.untyped_storage().data_ptr()
    )


def test_coefficients_of_another_bank(make_bank):
    bank = BasisBank.load(make_bank()[0])
    with pytest.raises(ValueError, match=r"for 1 layers of 6 .* but bank.safetensors has 11 layers of 6"):
        bank.compose(MixingCoefficients(torch.ones(1, 6), ("transformer_blocks.0.attn.to_q",)))
    with pytest.raises(ValueError, match="a batch of 2"):
        bank.compose(bank.mix(torch.randn(2, 36)))


@pytest.mark.parametrize("rank", [1, 5, 17, 18, 40])
def test_truncation_is_the_best_of_its_rank(composed, rank):
    """Against the SVD of the dense delta, which the product itself never forms."""
    lora, _ = composed
    truncated = lora.truncate(rank)
    for name in LAYERS:
        dense = delta(lora, name).double()
        u, s, vh = torch.linalg.svd(dense)
        k = min(rank, 18, *dense.shape)
        best = (u[:, :k] * s[:k]) @ vh[:k]
        down, up = truncated.factors(name)
        assert down.shape[0] == up.shape[1] == k
        assert relative_error(up @ down, best) < 1e-5
        expected = float((dense - best).norm() / dense.norm())
        assert truncated.errors[name] == pytest.approx(expected, abs=1e-6)


def test_truncation_refuses_rank_0(composed):
    with pytest.raises(ValueError, match="at least 1"):
        composed[0].truncate(0)


def test_truncating_nothing():
    (down, up), error = truncate_factors(torch.randn(4, 8), torch.zeros(6, 4), 2)
    assert error == 0 and (up @ down).abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_diffusers_file(composed, tmp_path, dtype):
    lora, _ = composed
    path = tmp_path / "lora.safetensors"
    lora.save(path, format="diffusers", dtype=dtype, metadata={"lorweb_bank": "bank"})
    tensors = load_file(path)
    assert len(tensors) == 2 * len(LAYERS)
    for name in LAYERS:
        down, up = (tensors[f"transformer.{name}.lora_{x}.weight"] for x in "AB")
        assert down.dtype == up.dtype == dtype
        tolerance = {torch.float32: 1e-7, torch.float16: 1e-3, torch.bfloat16: 1e-2}[dtype]
        assert relative_error(up.float() @ down.float(), delta(lora, name).double()) <= tolerance
    with safe_open(path, framework="pt") as file:
        assert file.metadata()["lorweb_bank"] == "bank"


def test_comfyui_file_fuses_q_k_v(composed, tmp_path):
    lora, _ = composed
    path = tmp_path / "lora.safetensors"
    lora.save(path, format="comfyui")
    tensors = load_file(path)

    def fused(module):
        down, up = tensors[f"{module}.lora_down.weight"], tensors[f"{module}.lora_up.weight"]
        return float(tensors[f"{module}.alpha"]) / len(down) * (up @ down)

    expected = torch.cat([delta(lora, f"transformer_blocks.0.{part}") for part in QKV])
    torch.testing.assert_close(fused("lora_unet_double_blocks_0_img_attn_qkv"), expected)
    expected = torch.cat([delta(lora, f"single_transformer_blocks.0.{part}") for part in (*QKV, "proj_mlp")])
    torch.testing.assert_close(fused("lora_unet_single_blocks_0_linear1"), expected)
    torch.testing.assert_close(
        fused("lora_unet_double_blocks_10_img_mlp_2"), delta(lora, "transformer_blocks.10.ff.net.2")
    )
    # Fused modules, each with down, up and alpha: qkv, mlp.0, mlp.2 and mod of the double blocks, linear1 and 2.
    assert len(tensors) == 3 * 6


def test_alpha_is_the_rank_in_every_precision(make_bank, tmp_path):
    """bfloat16 has no 261: three truncated layers of rank 87."""
    bank = BasisBank.load(make_bank(Spec(num_loras=87, rank=1))[0])
    bank.compose(bank.mix(torch.randn(36))).save(tmp_path / "lora.safetensors", "comfyui", torch.bfloat16)
    tensors = load_file(tmp_path / "lora.safetensors")
    key = "lora_unet_double_blocks_0_img_attn_qkv"
    assert tensors[f"{key}.alpha"].item() == len(tensors[f"{key}.lora_down.weight"]) == 261


def test_comfyui_file_carries_biases(make_bank, tmp_path):
    bank = BasisBank.load(make_bank(Spec(bias=True))[0])
    lora = bank.compose(bank.mix(torch.randn(36)))
    lora.save(tmp_path / "lora.safetensors", format="comfyui")
    found = load_file(tmp_path / "lora.safetensors")["lora_unet_double_blocks_0_img_attn_qkv.diff_b"]
    torch.testing.assert_close(found, torch.cat([lora.bias(f"transformer_blocks.0.{part}") for part in QKV]))
    with pytest.raises(ValueError, match="bias delta of layer"):
        lora.save(tmp_path / "other.safetensors", format="diffusers")
    assert not (tmp_path / "other.safetensors").exists()


def test_truncated_file_has_the_small_rank(composed, tmp_path):
    truncated = composed[0].truncate(2)
    truncated.save(tmp_path / "lora.safetensors")
    tensors = load_file(tmp_path / "lora.safetensors")
    assert all(2 in tensor.shape for tensor in tensors.values())


def test_unknown_format(composed, tmp_path):
    with pytest.raises(ValueError, match="'ckpt'; expected one of diffusers, comfyui"):
        composed[0].save(tmp_path / "x", format="ckpt")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("transformer_blocks.0.attn.to_q",), "needs layers that this bank lacks: .*to_k.*to_v"),
        (("x_embedder",), "x_embedder: it is no linear layer of FLUX.1's blocks"),
        (("transformer_blocks.0.attn.norm_q",), "no linear layer"),
    ],
)
def test_layers_that_do_not_fuse(names, message):
    with pytest.raises(ValueError, match=message):
        fused_modules(names)


def test_half_precision_is_balanced():
    """Coefficients times B fall into float16's subnormal range; balanced, the product keeps its precision."""
    down, up = torch.randn(4, 64), 1e-6 * torch.randn(32, 4)
    exact = (up @ down).double()
    plain = up.half().float() @ down.half().float()
    balanced_down, balanced_up = (x.half().float() for x in balance(down, up, torch.float16))
    assert relative_error(plain, exact) > 1e-2
    assert relative_error(balanced_up @ balanced_down, exact) < 1e-3
    zero_down, zero_up = balance(down, torch.zeros(32, 4), torch.float16)
    assert torch.equal(zero_down, down) and not zero_up.any()


def test_balance_of_the_smallest_numbers_there_are():
    """8 over 1e-39 is beyond float32, and infinity times the 0 beside it is NaN."""
    for down, up in ((8.0, 1e-39), (1e-39, 8.0), (3e38, 1e-45), (1e-45, 3e38)):
        balanced = balance(torch.full((1, 2), down), torch.tensor([[up], [0.0]]), torch.float16)
        assert all(torch.isfinite(x).all() for x in balanced) and balanced[1][1] == 0
        largest = [float(x.abs().max()) for x in balanced]
        assert largest == pytest.approx([(down * torch.tensor(up).item()) ** 0.5] * 2, rel=0.5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sharpened_coefficients_save_finite(make_bank, tmp_path, dtype):
    """A temperature of 0.05 makes shares of 1e-38 and less."""
    bank = BasisBank.load(make_bank(change=lambda t: [x.mul_(3) for n, x in t.items() if n.endswith("lora_A")])[0])
    for seed in range(5):
        c = bank.mix(3 * torch.randn(36, generator=torch.Generator().manual_seed(seed))).temperature(0.05)
        assert c.values[c.values > 0].min() < 1e-30
        lora = bank.compose(c)
        lora.save(tmp_path / "lora.safetensors", dtype=dtype)
        tensors = load_file(tmp_path / "lora.safetensors")
        for name in LAYERS:
            down, up = (tensors[f"transformer.{name}.lora_{x}.weight"].float() for x in "AB")
            assert relative_error(up @ down, delta(lora, name).double()) < 2e-2


def test_what_half_precision_does_not_hold_is_not_saved(composed, tmp_path):
    lora, _ = composed
    strong = lora.bank.compose(lora.coefficients.scale_blocks([("*", 1000.0)]))
    strong.bank.layers["transformer_blocks.0.attn.to_q"].A.mul_(1e9)
    with pytest.raises(
        ValueError, match=r"x\.safetensors: float16 does not hold transformer\..*would be NaN or infinite"
    ):
        strong.save(tmp_path / "x.safetensors", dtype=torch.float16)
    assert not (tmp_path / "x.safetensors").exists()
    strong.save(tmp_path / "x.safetensors", dtype=torch.bfloat16)


def test_the_reach_of_a_delta_is_never_below_its_largest_element():
    assert largest_element(torch.tensor([[2.0, -5.0]]), torch.tensor([[3.0], [1.0]])) == pytest.approx(15)
    down, up = torch.randn(4, 64), torch.randn(32, 4)
    down[:, 7] *= 1000
    up[5] *= 1000
    assert float((up @ down).abs().max()) <= largest_element(down, up)


def test_truncation_of_a_lopsided_bank(make_bank):
    """A of 1e25 and B of 1e-25 make an ordinary edit, though the squares of A leave float32."""

    def lopsided(tensors):
        for name, tensor in tensors.items():
            tensor.mul_(1e25 if name.endswith("lora_A") else 1e-25 if name.endswith("lora_B") else 1)

    bank = BasisBank.load(make_bank(change=lopsided)[0])
    lora = bank.compose(bank.mix(torch.randn(36)))
    truncated = lora.truncate(18)
    for name in LAYERS:
        assert relative_error(delta(truncated, name), delta(lora, name).double()) < 1e-5
