"""What a run says it takes, and what it says to lower."""

import json
import logging
from dataclasses import replace

import pytest
import torch
from torch import nn

from lorweb_core.query import QUERY_MODES
from training.bases import KONTEXT
from training.config import OptimizerConfig, load_config
from training.data.units import size
from training.encoders.encoding import bank_config
from training.encoders.vision import VisionEncoder, embedding_width
from training.hub import locate
from training.run.optim import make_optimizer
from training.run.sizes import (
    count_parameters,
    describe_run,
    is_out_of_memory,
    latent_bytes,
    target_layers,
    what_to_lower,
)

PAPER = "training/configs/paper.yaml"
FLUX = {"num_layers": 19, "num_single_layers": 38, "attention_head_dim": 128, "num_attention_heads": 24}


@pytest.fixture
def paper(tmp_path):
    """Settings of the paper's run on a folder that holds FLUX.1's configuration and no weights."""
    settings = {"_class_name": "FluxTransformer2DModel", **FLUX, "joint_attention_dim": 4096, "guidance_embeds": True}
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text(json.dumps(settings))
    return lambda *changes: load_config(PAPER, ["run=r", "data.manifest=m", f"base.path={tmp_path}", *changes])


def test_the_size_of_the_released_bank_is_told_from_the_base_s_configuration(paper):
    config = paper()
    layers, width = target_layers(config)
    assert (len(layers), width) == (494, 4096)
    assert layers["single_transformer_blocks.37.proj_out"] == (15360, 3072)
    bank = bank_config(config, 768)
    assert count_parameters(bank, layers) == 835_051_520
    said = describe_run(config, bank, layers)
    assert "494 layers, 835,051,520 parameters: 3.3 GB of weights" in said
    assert "1.7 GB of adamw8bit's state; a bank file of 1.7 GB, checkpoints of 5.0 GB (3 at most)" in said


@pytest.mark.parametrize("name", ["adamw", "prodigy"])
def test_an_optimizer_keeps_what_is_said(paper, name):
    factors = nn.Parameter(torch.ones(64, 64))
    optimizer = make_optimizer(OptimizerConfig(name=name), {"model.a.lora_A": factors})
    factors.grad = torch.ones(64, 64)
    optimizer.step()
    state = optimizer.state[factors].values()
    kept = sum(x.nbytes for x in state if isinstance(x, torch.Tensor) and x.numel() == factors.numel())
    layers, bank = {"a": (4096, 4096)}, replace(bank_config(paper(), 768), num_loras=1000, key_dim=1, query_dim=1)
    count = count_parameters(bank, layers)
    for average in (0, 0.9):
        said = describe_run(paper(f"optimizer.name={name}", f"optimizer.ema={average}"), bank, layers)
        bytes_each = kept // factors.numel() + 4 * (average > 0)
        assert f"{size(count * bytes_each)} of {name}'s state" in said
        assert f"checkpoints of {size(count * (4 + bytes_each))}" in said


def test_latents_are_of_the_canvas_and_its_reference_or_of_three_references_and_the_answer(paper):
    canvas, separate = paper("data.canvas=512"), paper("data.canvas=512", "bank.layout=separate")
    assert latent_bytes(KONTEXT, canvas, 2) == 2 * 16 * 64 * 64 * 2
    assert latent_bytes(KONTEXT, separate, 2) == 4 * 16 * 64 * 64 * 2


def test_layers_that_are_not_there_or_not_linear_are_refused(paper):
    with pytest.raises(ValueError, match=r"bank\.targets: no layer of .* matches 'attn'"):
        target_layers(paper("bank.targets=attn"))
    with pytest.raises(
        ValueError, match=r"transformer_blocks\.0\.attn is a FluxAttention; a basis needs a linear layer"
    ):
        target_layers(paper(r"bank.targets=transformer_blocks\.0\.attn"))


@pytest.mark.parametrize("mode", ["cat-aa'b", "caa'", "cat-paa'b"])
def test_an_encoder_s_width_is_told_from_its_configuration(parts, mode):
    folder, spec = parts[1].partition("=")[2], QUERY_MODES[mode]
    encoder, image = VisionEncoder(folder), torch.rand(1, 40, 40, 3)
    found = encoder.pooled(image) if spec.hidden is None else encoder.tokens(image, spec.hidden).flatten(1)
    assert embedding_width(folder, spec) == found.shape[1]


def test_caches_take_what_is_said(run_training, tmp_path, caplog):
    caplog.set_level(logging.INFO, "training")
    cache = tmp_path / "cache"
    run_training(tmp_path / "run", "train.steps=1", f"data.cache={cache}", "data.canvas=64")
    (said,) = (text for text in caplog.messages if " will hold " in text)
    config = load_config("training/configs/tiny.yaml", ["data.canvas=64"])
    latents = 8 * latent_bytes(KONTEXT, config, 4)
    assert said == f"{cache} will hold prompts 12.3 kB, embeddings 442.4 kB, latents {latents / 1000:.1f} kB"
    shards = {
        kind: sum(p.stat().st_size for p in (cache / kind).glob("*/*.safetensors")) for kind in ("images", "latents")
    }
    assert latents < shards["latents"] < 1.1 * latents and 442_000 < shards["images"] < 1.1 * 442_400


def test_what_to_lower_is_what_is_not_lowest_yet():
    small = ["base.gradient_checkpointing=true", "base.quantise=nf4", "validation.every=0", "bank.num_loras=1"]
    config = load_config(
        PAPER, ["run=r", "data.manifest=m", "data.cache=c", "data.canvas=64", "data.prompt_tokens=64", *small]
    )
    assert what_to_lower(config) == "train.batch=1 train.accumulate=6 (the same steps)"
    config.train.batch, config.base.gradient_checkpointing, config.data.canvas = 1, False, 512
    assert what_to_lower(config) == "base.gradient_checkpointing=true, data.canvas=256"


def test_running_out_of_memory_is_told_from_other_errors():
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**50, dtype=torch.uint8)
    assert all(map(is_out_of_memory, (error.value, torch.OutOfMemoryError("x"), MemoryError())))
    assert not any(map(is_out_of_memory, (RuntimeError("shapes differ"), ValueError("out of memory"))))


@pytest.mark.parametrize("name", ["models/flux", "modles/flux", "model/flux"])
def test_a_mistyped_path_is_not_asked_of_the_hub(tmp_path, monkeypatch, name):
    (tmp_path / "models" / "kontext").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=rf"base.path: there is no folder {name}, but models/ is here with kontext"):
        locate(name, "base.path")


def test_paths_and_hub_ids_are_told_apart(tmp_path, monkeypatch):
    (tmp_path / "models" / "kontext").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert locate("models/kontext", "x")["local_files_only"]
    assert locate("openai/clip-vit-large-patch14", "x") == {
        "pretrained_model_name_or_path": "openai/clip-vit-large-patch14"
    }
    for name in ("./a/b", "a", "a/b/c", "a\\b", "C:\\a/b", "~/nothing", "/a", "a/", ""):
        with pytest.raises(ValueError, match=r"there is no folder"):
            locate(name, "x")
