"""The memory of Refine Edit is counted on tensors without data: what those with data take at a small size."""

import pytest
import torch

from benchmarks._live import LiveBytes
from benchmarks.refine_memory import DTYPES, counted, empty_flux
from harness.small_models import flux_layers, random_bank
from lorweb_core import BasisBank

SIZES = 256, 2, 3
NUMBERS = {"num_loras": 4, "key_dim": 8, "query_dim": 24}


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    path = tmp_path_factory.mktemp("bank") / "bank.safetensors"
    return BasisBank.load(random_bank(path, flux_layers(*SIZES), **NUMBERS))


@pytest.mark.parametrize("graded", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_tensors_without_data_count_as_those_with_data(bank, dtype, graded):
    model = empty_flux(SIZES, DTYPES[dtype])
    for weight in model.model.parameters():
        weight.data = torch.full(weight.shape, 0.01).to(weight.dtype)
    without, with_data = (counted(model, bank, 128, graded, fake) for fake in (True, False))
    assert without == pytest.approx(with_data, rel=1e-3) and with_data > 128**2


def test_blocks_are_computed_again_rather_than_kept(bank):
    """A further block costs what goes into it, and not what it makes on its way, which is over ten times that."""
    shallow, deep = (counted(empty_flux((256, 2, single), torch.bfloat16), bank, 128, True) for single in (12, 20))
    tokens = 2 * (128 // 16) ** 2 + 512
    entering = tokens * 256 * 2  # bytes
    assert 0.9 * 8 * entering <= deep - shallow <= 2 * 8 * entering


def test_bytes_are_counted_while_they_are_in_use():
    given = torch.zeros(1000)
    with LiveBytes([given]) as live:
        made = given + 1
        view = made[10:]
        assert live.now == 4000
        del made
        assert live.now == 4000
        del view
        assert (live.now, live.peak) == (0, 4000)
