"""Every family through every command, in every layout that it takes, on tiny models of the real classes."""

import json
import logging
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from lorweb_core import BankConfig, BasisBank
from lorweb_core.card import load_card
from training.bases import FAMILIES, family_of, targets_of
from training.bases.loading import load_transformer
from training.config import load_config
from training.evaluate import main as evaluate
from training.refine import main as refine
from training.run.setup import prepare_run
from training.run.tracking import read_metrics
from training.tuner import LoRWeBConfig, LoRWeBModel

CONFIGS = {"klein": "training/configs/tiny_klein.yaml", "qwen": "training/configs/tiny_qwen.yaml"}
WAYS = [(name, layout) for name in CONFIGS for layout in ("separate", "canvas")]
LAYERS = {"klein": 16, "qwen": 24}


@pytest.fixture(scope="session")
def base_of(tmp_path_factory):
    """Name of a family -> the override that names its tiny base, made once."""
    made = {}

    def make(name):
        if name not in made:
            config = load_config(CONFIGS[name], [f"run={tmp_path_factory.mktemp(name)}"])
            prepare_run(config, is_main=True)
            made[name] = f"base.path={config.base.path}"
        return made[name]

    return make


@pytest.fixture
def train(run_training, base_of):
    """Train a family's tiny base: folder, family, layout and settings -> run folder."""

    def start(folder, name, layout, *settings):
        ours = [base_of(name), f"bank.layout={layout}", "data.cache_latents=2", "validation.steps=1", *settings]
        return run_training(folder, *ours, config=CONFIGS[name])

    return start


@pytest.mark.parametrize(("name", "layout"), WAYS)
def test_a_bank_is_trained_resumed_evaluated_and_refined(train, base_of, tmp_path, caplog, name, layout):
    whole = train(tmp_path / "whole", name, layout, "train.steps=3", "validation.every=3", "validation.analogies=1")
    cut = train(tmp_path / "cut", name, layout, "train.steps=2", "checkpoint.every=2")
    cut = train(cut, name, layout, "train.steps=3")
    one, other = (load_file(run / "bank.safetensors") for run in (whole, cut))
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    bank = BasisBank.load(whole / "bank.safetensors")
    assert (bank.config.layout, bank.canvas, len(bank.layers)) == (layout, 32, LAYERS[name])
    grids = sorted(path.name for path in (whole / "validation").iterdir())
    assert grids == ["held-out-images-00000003.png", "held-out-tasks-00000003.png"]

    assert evaluate(["--run", str(whole), "--analogies", "1", "--out", str(tmp_path / "judged")]) == 0
    rows = json.loads((tmp_path / "judged" / "analogies.json").read_text())
    assert {row["set"] for row in rows} == {"held-out-images", "held-out-tasks"}
    assert all(np.isfinite(answer["psnr"]) for row in rows for answer in row["answers"].values())

    for side, seed in (("before", 0), ("after", 1)):
        (tmp_path / "pairs" / side).mkdir(parents=True)
        for number in range(2):
            picture = np.random.default_rng([seed, number]).integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(picture).save(tmp_path / "pairs" / side / f"{number}.png")
    config = load_config(whole / "config.yaml")
    arguments = ["--bank", str(whole / "bank.safetensors"), "--base", config.base.path, "--pairs"]
    arguments += [str(tmp_path / "pairs"), "--out", str(tmp_path / "edit.png"), "--encoder", config.bank.encoder]
    arguments += ["--config", CONFIGS[name], "--steps", "1", "--draws", "1", "data.prompt_tokens=4"]
    with caplog.at_level(logging.INFO):
        assert refine([*arguments, "validation.steps=1"]) == 0, caplog.text
    card = load_card(tmp_path / "edit.png")
    assert card.layout == layout and card.coefficients.fingerprint == bank.fingerprint


@pytest.mark.parametrize("name", CONFIGS)
def test_caches_give_what_the_encoders_give(train, tmp_path, monkeypatch, name):
    """The same step on the first two analogies whether text and latents were cached or are made as they are needed."""
    train(tmp_path / "caching", name, "separate", "train.steps=1")
    with monkeypatch.context() as absent:
        for family in FAMILIES:
            absent.delattr(type(family), "load_prompts")
        cached = train(tmp_path / "cached", name, "separate", "train.steps=1")
    live = train(tmp_path / "live", name, "separate", "train.steps=1", "data.cache=null", "data.cache_latents=0")
    one, other = (load_file(run / "bank.safetensors") for run in (cached, live))
    for key in one:
        torch.testing.assert_close(one[key], other[key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_quantised_base_trains(train, tmp_path, name):
    pytest.importorskip("torchao")
    run = train(tmp_path / "run", name, "separate", "train.steps=1", "base.quantise=torchao-int8")
    assert np.isfinite(float(read_metrics(run / "metrics.csv")[0]["loss"]))
    model = load_transformer(load_config(run / "config.yaml").base, torch.device("cpu"))
    weight = model.get_submodule("transformer_blocks.0.attn.to_q").weight
    assert (type(weight).__name__, weight.qdata.dtype) == ("Int8Tensor", torch.int8)


@pytest.mark.parametrize("name", CONFIGS)
def test_two_processes_reach_the_bank_of_one(train, launch, finish, base_of, tmp_path, name):
    alone = train(tmp_path / "alone", name, "separate", "train.steps=2", "train.batch=2")
    settings = [base_of(name), "bank.layout=separate", "data.cache_latents=2", "train.steps=2", "train.batch=1"]
    launcher = "training/configs/accelerate_ddp.yaml"
    output = finish(launch(tmp_path / "pair", *settings, launcher=launcher, config=CONFIGS[name]))
    assert "2 process(es), MULTI_CPU" in output
    one, other = (load_file(run / "bank.safetensors") for run in (alone, tmp_path / "pair"))
    for key in one:
        torch.testing.assert_close(one[key], other[key], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_launch_that_shards_finds_the_blocks_of_the_base(base_of, name):
    """accelerate wraps what the model calls indivisible, where its configuration names no class of one family."""
    launcher = yaml.safe_load(Path("training/configs/accelerate_fsdp.yaml").read_text(encoding="utf-8"))
    assert launcher["fsdp_config"].keys().isdisjoint({"fsdp_transformer_layer_cls_to_wrap"})
    config = load_config(CONFIGS[name], [base_of(name)])
    bank = BankConfig(num_loras=1, rank=1, key_dim=1, query_dim=1)
    transformer = load_transformer(config.base, torch.device("cpu"))
    tuner = LoRWeBModel(transformer, LoRWeBConfig(bank=bank, target_modules=targets_of(config)))
    classes = {type(module).__name__ for block, module in tuner.named_modules() if re.search(r"blocks\.\d+$", block)}
    assert set(tuner._no_split_modules) == classes


def test_a_layout_that_a_base_cannot_be_shown_is_refused(run_training, tmp_path):
    with pytest.raises(ValueError, match=r"'separate', which FLUX\.1-Kontext has no place for; expected canvas"):
        run_training(tmp_path / "run", "train.steps=1", "bank.layout=separate")


def test_a_transformer_of_no_family_is_named(tmp_path):
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text(json.dumps({"_class_name": "SD3Transformer2DModel"}))
    with pytest.raises(ValueError, match=r"is a SD3Transformer2DModel; expected one of FLUX\.1-Kontext \(Flux"):
        family_of(str(tmp_path))


def test_every_family_has_its_recipe():
    for family in FAMILIES:
        config = load_config(family.recipe, ["run=r", "data.manifest=m"])
        family.check_layout(config.layout)
