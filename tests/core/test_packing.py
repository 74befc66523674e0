"""Packed weights."""

import pytest
import torch

from lorweb_core.packing import pack, unpack


@pytest.fixture
def weights():
    generator = torch.Generator().manual_seed(0)
    rows = torch.logspace(-3, 1, 64)[:, None]
    return {
        "large.weight": rows * torch.randn(64, 512, generator=generator),
        "large.bias": torch.randn(64, generator=generator),
        "zero.weight": torch.zeros(64, 512),
        "small.weight": torch.randn(8, 8, generator=generator),
    }


def test_rows_of_any_size_come_back_to_half_a_step(weights):
    packed = pack(weights)
    assert packed["large.weight"].dtype == torch.int8 and packed["small.weight"].dtype == torch.float16
    again = unpack(packed, torch.float32)
    assert again.keys() == weights.keys()
    step = weights["large.weight"].abs().amax(1, keepdim=True) / 127
    assert ((again["large.weight"] - weights["large.weight"]).abs() <= 0.501 * step).all()
    assert not again["zero.weight"].any()
    for name in ("large.bias", "small.weight"):
        assert torch.equal(again[name], weights[name].half().float())


def test_a_matrix_without_its_scale_is_named(weights):
    packed = pack(weights)
    del packed["large.weight.scale"]
    with pytest.raises(ValueError, match=r"large\.weight\.scale is missing; expected \[64, 1\]"):
        unpack(packed, torch.float16)
    with pytest.raises(ValueError, match=r"large\.weight\.scale is \[64\]; expected \[64, 1\]"):
        unpack(pack(weights) | {"large.weight.scale": torch.ones(64)}, torch.float16)
