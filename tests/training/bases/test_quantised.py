"""Quantised bases and 8-bit Adam, through the real entry points, with the real libraries."""

import json

import numpy as np
import pytest
import torch
from diffusers.quantizers.bitsandbytes import BnB4BitDiffusersQuantizer, BnB8BitDiffusersQuantizer
from safetensors.torch import load_file

from lorweb_core import BasisBank
from training.bases import targets_of
from training.bases.loading import check_quantisation, load_transformer
from training.config import BaseConfig, load_config
from training.evaluate import main as evaluate
from training.run.tracking import read_metrics
from training.tuner import LoRWeBConfig, LoRWeBModel

TINY, KONTEXT = "training/configs/tiny.yaml", "training/configs/kontext_24gb.yaml"
# Class and dtype of what holds a frozen weight.
WEIGHTS = {
    "nf4": ("Params4bit", torch.uint8),
    "int8": ("Int8Params", torch.int8),
    "torchao-int8": ("Int8Tensor", torch.int8),
}


@pytest.fixture
def lifted(monkeypatch):
    """bitsandbytes has kernels for the CPU, but diffusers asks for a GPU before it uses them."""
    pytest.importorskip("bitsandbytes")
    for quantizer in (BnB4BitDiffusersQuantizer, BnB8BitDiffusersQuantizer):
        monkeypatch.setattr(quantizer, "validate_environment", lambda *args, **kwargs: None)


@pytest.fixture
def needs_library():
    """Skip where the library of a quantisation is not installed."""
    return lambda quantise: pytest.importorskip("torchao" if quantise == "torchao-int8" else "bitsandbytes")


def stored(linear):
    """(class, dtype) of a weight as it lies in memory."""
    weight = linear.weight
    data = weight.qdata if hasattr(weight, "qdata") else weight
    return type(weight).__name__, data.dtype


def trained_tuner(run, config):
    """The tuner of a run that is over."""
    transformer = load_transformer(load_config(run / "config.yaml").base, torch.device("cpu"))
    bank = BasisBank.load(run / "bank.safetensors")
    tuner = LoRWeBModel(transformer, LoRWeBConfig(bank=bank.config, target_modules=targets_of(config)))
    (checkpoint,) = (run / "checkpoints").iterdir()
    tuner.load_adapter_state_dict(load_file(checkpoint / "adapter.safetensors"))
    return tuner, bank


@pytest.mark.parametrize("quantise", list(WEIGHTS))
def test_a_quantised_base_trains_and_is_evaluated(run_training, tmp_path, lifted, needs_library, quantise):
    needs_library(quantise)
    run = run_training(
        tmp_path / "run", f"base.quantise={quantise}", "train.steps=3", "base.gradient_checkpointing=true"
    )
    assert all(np.isfinite(float(row["loss"])) for row in read_metrics(run / "metrics.csv"))
    tuner, bank = trained_tuner(run, load_config(run / "config.yaml"))
    assert {stored(layer.base_layer) for layer in tuner.tuner_layers.values()} == {WEIGHTS[quantise]}
    query = torch.randn(bank.config.query_dim)
    coefficients = bank.mix(query)
    with tuner.mixing(query), torch.no_grad():
        for name, layer in tuner.tuner_layers.items():
            x = torch.randn(1, 3, layer.in_features)
            delta = x @ bank.delta(name, coefficients).T
            torch.testing.assert_close(layer(x), layer.base_layer(x) + delta, rtol=1e-5, atol=1e-5)
            assert delta.abs().max() > 0
    assert evaluate(["--run", str(run), "--analogies", "1", "validation.steps=1", "data.canvas=64"]) == 0
    summary = json.loads((run / "evaluation" / "metrics.json").read_text())
    assert np.isfinite(summary["held-out-tasks"]["run/bank"]["overall"]["psnr"])


def test_a_quantised_base_answers_nearly_like_its_original(parts, lifted, needs_library):
    device = torch.device("cpu")
    settings = load_config(TINY, [*parts, "run=none"]).base
    original = load_transformer(settings, device).get_submodule("transformer_blocks.0.ff.net.2")
    x = torch.randn(4, original.in_features)
    errors = {}
    for quantise in WEIGHTS:
        needs_library(quantise)
        base = load_transformer(BaseConfig(settings.path, "float32", quantise), device)
        found = base.get_submodule("transformer_blocks.0.ff.net.2")(x)
        errors[quantise] = ((found - original(x)).norm() / original(x).norm()).item()
    assert 0 < errors["torchao-int8"] < 0.01 and 0 < errors["int8"] < 0.02 and errors["int8"] < errors["nf4"] < 0.15


def test_the_24_gb_configuration_trains_on_a_small_base(run_training, tmp_path, lifted, overrides):
    """Its own settings but for the models, the data, and how much of it there is."""
    settings = ["train.steps=2", "data.canvas=32", "data.cache_latents=2", "train.batch=1", "data.prompt_tokens=128"]
    run = run_training(tmp_path / "run", *settings, "optimizer.warmup=0", config=KONTEXT)
    used, shipped = load_config(run / "config.yaml"), load_config(KONTEXT, [*overrides, "run=r"])
    assert (used.base, used.bank) == (shipped.base, shipped.bank) and used.base.quantise == "nf4"
    assert used.optimizer.name == shipped.optimizer.name == "adamw8bit" and used.train.accumulate == 6
    rows = read_metrics(run / "metrics.csv")
    assert len(rows) == 2 and all(np.isfinite(float(row["loss"])) for row in rows)
    bank = BasisBank.load(run / "bank.safetensors")
    assert (bank.config.num_loras, bank.config.rank, bank.config.key_dim) == (32, 4, 128)
    assert any(layer.B.abs().max() > 0 for layer in bank.layers.values())
    (checkpoint,) = (run / "checkpoints").iterdir()
    assert torch.uint8 in {tensor.dtype for tensor in load_file(checkpoint / "optimizer.safetensors").values()}


@pytest.mark.skipif(torch.cuda.is_available(), reason="tells what happens without a GPU")
@pytest.mark.parametrize("quantise", ["nf4", "int8"])
def test_bitsandbytes_without_a_gpu_is_refused_before_anything_long(run_training, tmp_path, needs_library, quantise):
    needs_library(quantise)
    with pytest.raises(ValueError, match=rf"base\.quantise is '{quantise}'.*No GPU found.*torchao-int8"):
        run_training(tmp_path / "run", f"base.quantise={quantise}")
    assert not (tmp_path / "run").exists()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("quantise", list(WEIGHTS))
def test_a_base_is_quantised_onto_the_gpu(parts, needs_library, quantise):
    needs_library(quantise)
    path = load_config(TINY, [*parts, "run=none"]).base.path
    settings = BaseConfig(path, "bfloat16", quantise)
    check_quantisation(settings)
    linear = load_transformer(settings, torch.device("cuda")).get_submodule("transformer_blocks.0.attn.to_q")
    assert stored(linear) == WEIGHTS[quantise] and linear.weight.device.type == "cuda"
