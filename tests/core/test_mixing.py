"""Coefficients and deltas agree with the paper's formulas in float64, for every kind of bank."""

import pytest
import torch

from lorweb_core import BasisBank
from lorweb_core.mixing import attention_logits, fold_projection, mixing_coefficients

from .conftest import LAYERS, Spec, reference_coefficients, reference_delta, relative_error

TOLERANCE = 1e-6


@pytest.mark.parametrize("projection", [True, False], ids=["linear", "none"])
@pytest.mark.parametrize("heads", [1, 2, 4, 16])
@pytest.mark.parametrize("mixing", ["mean", "sum"])
@pytest.mark.parametrize("softmax", [True, False], ids=["softmax", "tanh"])
def test_coefficients_and_deltas(make_bank, softmax, mixing, heads, projection):
    spec = Spec(projection=projection, query_dim=36 if projection else 16)
    path, tensors = make_bank(
        spec,
        yaml_kwargs={"lora_heads": heads, "lora_softmax": softmax, "mixing_coeffs_type": mixing, "linear_alpha": 6},
    )
    bank = BasisBank.load(path)
    query = torch.randn(spec.query_dim, generator=torch.Generator().manual_seed(1))
    c = bank.mix(query)
    assert c.values.shape == (len(LAYERS), spec.num_loras)
    for name in LAYERS:
        expected = reference_coefficients(tensors, name, query, heads, softmax, mixing)
        assert relative_error(c.for_layer(name), expected) <= TOLERANCE
        delta = bank.delta(name, c)
        assert delta.dtype == torch.float32
        assert relative_error(delta, reference_delta(tensors, name, expected)) <= TOLERANCE


def test_the_clamp_of_sum_mixing_is_reached(make_bank):
    """With heads that agree, the sum leaves [0, 1] and [-1, 1], so the clamp is what holds it there."""
    logits = torch.tensor([[9.0, 0.0], [9.0, 0.0]])
    assert torch.equal(mixing_coefficients(logits, True, "sum")[0], torch.tensor(1.0))
    assert torch.equal(mixing_coefficients(-logits, False, "sum")[0], torch.tensor(-1.0))


def test_released_width(make_bank):
    """The released numbers: N = 32, d = 128, q = 2304, CLIP-sized queries, half precision file."""
    layers = {"single_transformer_blocks.0.attn.to_q": (64, 64)}
    spec = Spec(32, 4, 128, 2304, dtype=torch.float16, layers=layers)
    path, tensors = make_bank(spec)
    query = 0.6 * torch.randn(2304, generator=torch.Generator().manual_seed(2))
    name = next(iter(layers))
    found = BasisBank.load(path).mix(query).for_layer(name)
    assert relative_error(found, reference_coefficients(tensors, name, query)) <= TOLERANCE


def test_batch_equals_single(make_bank):
    bank = BasisBank.load(make_bank()[0])
    queries = torch.randn(5, 36)
    batch = bank.mix(queries)
    assert batch.values.shape == (5, len(LAYERS), 6)
    for query, values in zip(queries, batch.values):
        torch.testing.assert_close(bank.mix(query).values, values, rtol=1e-5, atol=1e-7)


def test_projection_folds_into_the_keys():
    """The identity that mix rests on: ``logit = (keys @ to_q) @ z``, per head."""
    keys, to_q, z = torch.randn(6, 16).double(), torch.randn(16, 36).double(), torch.randn(36).double()
    for heads in (1, 4):
        folded = fold_projection(keys, to_q, heads) @ z
        torch.testing.assert_close(folded, attention_logits(keys, to_q @ z, heads))


def test_gradients_flow_through_the_formula():
    """The trainer differentiates these very functions."""
    keys = torch.randn(2, 4, 8, dtype=torch.float64, requires_grad=True)
    u = torch.randn(3, 2, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda k, q: mixing_coefficients(attention_logits(k, q, 2)), (keys, u))


def test_unknown_mixing():
    with pytest.raises(ValueError, match="'median'; expected one of mean, sum"):
        mixing_coefficients(torch.zeros(1, 2), True, "median")


@pytest.mark.parametrize("shape", [(35,), (2, 37), (1, 2, 36)])
def test_a_query_of_another_width(make_bank, shape):
    with pytest.raises(ValueError, match=r"this bank needs \[36\] or \[batch, 36\]"):
        BasisBank.load(make_bank()[0]).mix(torch.zeros(shape))


def test_a_query_with_nan(make_bank):
    with pytest.raises(ValueError, match="NaN"):
        BasisBank.load(make_bank()[0]).mix(torch.full((36,), float("nan")))
