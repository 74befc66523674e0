"""Training that begins with a bank that is there."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from lorweb_core import BasisBank
from training.run.start import check_start_fits


@pytest.fixture
def first(shared_run):
    """The bank of a short run."""
    return shared_run("train.steps=3", "optimizer.lr=1e-2") / "bank.safetensors"


def test_a_run_begins_with_the_bank_that_it_is_given(run_training, tmp_path, first):
    kept = run_training(tmp_path / "kept", "train.steps=1", "optimizer.lr=0", f"bank.start={first}", "train.seed=5")
    one, other = load_file(first), load_file(kept / "bank.safetensors")
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert any(tensor.abs().max() > 0 for name, tensor in one.items() if name.endswith("lora_B"))
    settings = ["train.steps=1", "optimizer.lr=1e-3", "optimizer.warmup=0", f"bank.start={first}"]
    moved = load_file(run_training(tmp_path / "moved", *settings) / "bank.safetensors")
    steps = torch.stack([(moved[name] - one[name]).abs().max() for name in one])
    assert 0 < steps.max() < 2e-3  # a step of Adam from where the bank is


def test_a_resumed_run_goes_on_from_its_checkpoint_and_not_from_the_start(run_training, tmp_path, first):
    settings = ["optimizer.lr=1e-3", "optimizer.warmup=0", f"bank.start={first}"]
    whole = run_training(tmp_path / "whole", "train.steps=4", *settings)
    run_training(tmp_path / "cut", "train.steps=2", *settings)
    cut = run_training(tmp_path / "cut", "train.steps=4", *settings)
    one, other = (load_file(run / "bank.safetensors") for run in (whole, cut))
    assert all(torch.equal(one[name], other[name]) for name in one)


def narrow_encoder(folder):
    """An image encoder whose embeddings have 96 numbers."""
    config = CLIPVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=32, patch_size=16,
        projection_dim=96,
    )  # fmt: skip
    CLIPVisionModelWithProjection(config).save_pretrained(folder / "narrow")
    return folder / "narrow"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("bank.rank=2", "its rank is 4, but this run trains a bank with 2"),
        ("bank.softmax=false", "its softmax is True, but this run trains a bank with False"),
        ("bank.encoder=narrow", "its query_dim is 2304, but this run trains a bank with 288"),
        (r"bank.targets=transformer_blocks\..*to_q", "layers are in this bank or in bank.targets only, such as"),
        ("bank.start=nowhere.safetensors", "nowhere.safetensors: there is no such file"),
    ],
)
def test_a_bank_of_another_kind_is_refused(run_training, tmp_path, first, setting, message):
    if setting == "bank.encoder=narrow":
        setting = f"bank.encoder={narrow_encoder(tmp_path)}"
    cache = tmp_path / "cache"
    with pytest.raises(ValueError) as error:
        run_training(tmp_path / "run", "train.steps=1", f"bank.start={first}", f"data.cache={cache}", setting)
    assert not cache.exists()
    assert message in str(error.value)
    assert not list((tmp_path / "run").glob("config.yaml"))


def test_a_bank_of_another_base_is_refused_by_layer(run_training, tmp_path, first):
    tensors, other = load_file(first), tmp_path / "other.safetensors"
    name = "transformer.transformer_blocks.0.attn.to_q.lora_A"
    tensors[name] = tensors[name][:, :-8].contiguous()
    save_file(tensors, other, metadata=BasisBank.load(first).metadata)
    settings = ["train.steps=1", f"bank.start={other}", f"data.cache={tmp_path / 'cache'}"]
    with pytest.raises(ValueError, match=r"other.safetensors: layer transformer_blocks.0.attn.to_q maps \d+ features"):
        run_training(tmp_path / "run", *settings)
    assert not (tmp_path / "cache").exists()


def test_of_a_bank_with_another_query_the_loras_are_taken(run_training, tmp_path, first, caplog):
    settings = ["train.steps=1", "optimizer.lr=0", "bank.query_mode=ca'-ca"]
    fresh = load_file(run_training(tmp_path / "fresh", *settings) / "bank.safetensors")
    begun = load_file(run_training(tmp_path / "begun", *settings, f"bank.start={first}") / "bank.safetensors")
    loras = load_file(first)
    for name in begun:
        origin = loras if "lora_A" in name or "lora_B" in name else fresh
        assert torch.equal(begun[name], origin[name]), name
    assert any("was trained with queries cat-aa'b, not ca'-ca: its LoRAs are taken" in text for text in caplog.messages)


def test_another_canvas_is_said(tmp_path, first, caplog):
    bank = BasisBank.load(first)
    layers = {name: (layer.in_features, layer.out_features) for name, layer in bank.layers.items()}
    check_start_fits(first, bank.config, layers, bank.canvas)
    assert not caplog.messages
    check_start_fits(first, bank.config, layers, 64)
    assert caplog.messages == [f"{first} was trained on canvases of 32 pixels, and goes on with data.canvas=64"]


def test_another_encoder_is_said(run_training, tmp_path, first, caplog):
    other = tmp_path / "other.safetensors"
    metadata = BasisBank.load(first).metadata
    renamed = metadata["lorweb_config"].replace('"encoder": "encoder"', '"encoder": "clip"')
    save_file(load_file(first), other, metadata=metadata | {"lorweb_config": renamed})
    run_training(tmp_path / "run", "train.steps=1", f"bank.start={other}")
    said = f"{other} was trained with the encoder clip, and goes on with encoder"
    assert said in caplog.messages
    run_training(tmp_path / "same", "train.steps=1", f"bank.start={first}")
    assert caplog.messages.count(said) == 1 and not any(f"{first} was trained" in text for text in caplog.messages)


def test_a_bank_with_biases_is_refused(run_training, tmp_path, first):
    tensors, other = load_file(first), tmp_path / "biased.safetensors"
    for name in [name for name in tensors if name.endswith("lora_B")]:
        layers, _, width = tensors[name].shape
        tensors[name.removesuffix("lora_B") + "lora_up_bias"] = torch.zeros(layers, width)
    save_file(tensors, other, metadata=BasisBank.load(first).metadata)
    with pytest.raises(ValueError, match=r"40 layers have biases, such as .*, which are not trained here"):
        run_training(tmp_path / "run", "train.steps=1", f"bank.start={other}")
