"""The core where its tensors lie on a GPU."""

import pytest
import torch

from harness.small_models import flux_layers, random_bank
from lorweb_core import BasisBank
from lorweb_core.mixing import composed_factors

pytestmark = pytest.mark.gpu
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def test_a_query_and_factors_on_the_gpu_give_what_the_cpu_gives(tmp_path):
    path = random_bank(tmp_path / "bank.safetensors", flux_layers(64, 1, 1), 4, 2, 8, 24, device=DEVICE)
    bank = BasisBank.load(path)
    query = torch.randn(24, generator=torch.Generator().manual_seed(0))
    coefficients = bank.mix(query)
    torch.testing.assert_close(bank.mix(query.to(DEVICE)).values, coefficients.values, rtol=0, atol=0)
    lora = bank.compose(coefficients)
    for name, layer in bank.layers.items():
        a, b, c = (t.to(DEVICE, torch.float32) for t in (layer.A, layer.B, lora.layer_coefficients(name)))
        down, up = composed_factors(a, b, c, bank.config.scale)
        torch.testing.assert_close((up @ down).cpu(), bank.delta(name, coefficients), rtol=1e-5, atol=1e-6)
