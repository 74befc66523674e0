"""Whole runs: loss, bank, resume after a kill, caches."""

import importlib.util
import json
import shutil
import signal
import time

import pytest
import torch
from safetensors.torch import load_file
from torch._dynamo.utils import counters

import training.train as train_module
from lorweb_core import BasisBank
from training.checkpointing import Checkpoints
from training.config import load_config
from training.tracking import read_metrics


def parameters(run, step):
    return load_file(run / "checkpoints" / f"step-{step:08d}" / "adapter.safetensors")


def assert_identical(one, other, step, file="adapter"):
    a, b = (load_file(run / "checkpoints" / f"step-{step:08d}" / f"{file}.safetensors") for run in (one, other))
    assert a.keys() == b.keys() and len(a) > 10
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def test_loss_falls_and_the_bank_is_read_by_the_core(run_training, tmp_path):
    run = run_training(
        tmp_path / "run", "train.steps=30", "checkpoint.every=30", "optimizer.lr=3e-3", "data.cache_latents=2",
        "validation.every=30", "validation.steps=1", "log.trackers=[csv,tensorboard]",
    )  # fmt: skip
    rows = read_metrics(run / "metrics.csv")
    losses = [float(row["loss"]) for row in rows]
    assert [int(row["step"]) for row in rows] == list(range(1, 31))
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
    assert all(1 <= float(row["effective_number"]) <= 4.0001 for row in rows)
    assert all(float(row["peak_memory_gib"]) > 0.001 for row in rows)
    assert {path.name for path in (run / "validation").iterdir()} == {
        "held-out-images-00000030.png", "held-out-tasks-00000030.png",
    }  # fmt: skip
    assert list(run.glob("lorweb/events*"))
    bank = BasisBank.load(run / "bank.safetensors")
    config = load_config(run / "config.yaml")
    assert (bank.config.num_loras, bank.config.rank, bank.config.query_dim) == (4, 4, 3 * 768)
    assert bank.config.base_model == "base" and bank.config.encoder == "encoder" and not bank.assumed
    assert bank.metadata["step"] == "30" and len(bank.metadata["data_hash"]) == 32 and len(bank.layers) == 40
    assert str(config.run) == str(run)
    coefficients = bank.mix(torch.randn(3 * 768))
    assert bank.delta("transformer_blocks.0.attn.to_q", coefficients).abs().max() > 0


@pytest.mark.parametrize(
    "settings",
    [
        ["optimizer.schedule=cosine", "optimizer.ema=0.9", "train.accumulate=2"],
        ["optimizer.name=prodigy", "optimizer.lr=1", "optimizer.mixer_lr=null"],
        ["optimizer.name=adamw8bit"],
    ],
    ids=["ema", "prodigy", "adamw8bit"],
)
def test_an_interrupted_run_ends_like_an_uninterrupted_one(run_training, tmp_path, settings):
    if "optimizer.name=adamw8bit" in settings:
        pytest.importorskip("bitsandbytes")
    settings = [*settings, "objective.entropy=0.01", "objective.balance=0.01", "checkpoint.every=2"]
    whole = run_training(tmp_path / "whole", "train.steps=4", *settings)
    cut = tmp_path / "cut"
    run_training(cut, "train.steps=4", *settings)
    for path in (cut / "checkpoints" / "step-00000004").iterdir():
        path.unlink()
    (cut / "checkpoints" / "step-00000004").rmdir()
    (cut / "bank.safetensors").unlink()
    run_training(cut, "train.steps=4", *settings)
    for file in ["adapter", "optimizer", *(["ema"] if "optimizer.ema=0.9" in settings else [])]:
        assert_identical(whole, cut, 4, file)
    one, other = (BasisBank.load(run / "bank.safetensors") for run in (whole, cut))
    assert one.metadata == other.metadata
    for name, layer in one.layers.items():
        assert torch.equal(layer.A, other.layers[name].A) and torch.equal(layer.B, other.layers[name].B)
    assert [row["loss"] for row in read_metrics(whole / "metrics.csv")] == [
        row["loss"] for row in read_metrics(cut / "metrics.csv")
    ]


def test_a_killed_run_resumes_to_identical_parameters(run_training, launch, tmp_path):
    settings = ["train.steps=12", "checkpoint.every=3", "checkpoint.keep=10"]
    killed = tmp_path / "killed"
    process = launch(killed, *settings)
    deadline = time.monotonic() + 300
    while not Checkpoints(killed / "checkpoints", 10).steps() and time.monotonic() < deadline:
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    reached = Checkpoints(killed / "checkpoints", 10).steps()
    assert reached and reached[-1] < 12
    whole = run_training(tmp_path / "whole", *settings)
    run_training(killed, *settings)
    assert_identical(whole, killed, 12)
    assert_identical(whole, killed, 12, "optimizer")


def test_caches_change_nothing(run_training, tmp_path):
    settings = ["train.steps=2", "checkpoint.every=2"]
    live = run_training(tmp_path / "live", *settings, "data.cache=null", "data.cache_latents=0")
    cached = run_training(tmp_path / "cached", *settings)
    for name, value in parameters(live, 2).items():
        torch.testing.assert_close(parameters(cached, 2)[name], value, rtol=1e-4, atol=1e-6)


def test_checkpointed_and_composite_queries_train(run_training, tmp_path):
    run = run_training(
        tmp_path / "run", "train.steps=2", "base.gradient_checkpointing=true", "bank.query_mode=caa'b",
        "data.cache_latents=0", "base.dtype=bfloat16", "train.precision=bf16",
    )  # fmt: skip
    assert BasisBank.load(run / "bank.safetensors").config.query_dim == 768


def resume_with_scaler(run_training, folder, *settings):
    """(gradient scaler's state, parameters) after four steps, uninterrupted and resumed after two."""
    results = []
    for name, steps in (("whole", [4]), ("cut", [2, 4])):
        for last in steps:
            run = run_training(folder / name, "checkpoint.every=2", f"train.steps={last}", *settings)
        state = json.loads((run / "checkpoints" / "step-00000004" / "state.json").read_text())
        results.append((state["scaler"], parameters(run, 4)))
    return results


def test_a_gradient_scaler_is_resumed(run_training, tmp_path, monkeypatch):
    """accelerate scales on GPUs only, so the scaler is put in by hand; it works on a CPU all the same."""
    make = train_module.make_accelerator

    def scaling(*arguments):
        accelerator = make(*arguments)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=3)
        return accelerator

    monkeypatch.setattr(train_module, "make_accelerator", scaling)
    (whole, expected), (cut, found) = resume_with_scaler(run_training, tmp_path)
    assert whole == cut and (whole["scale"], whole["_growth_tracker"]) == (8.0, 1)
    assert [name for name, value in expected.items() if not torch.equal(found[name], value)] == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="half precision needs a CUDA device")
def test_half_precision_is_resumed(run_training, tmp_path):
    (whole, expected), (cut, found) = resume_with_scaler(run_training, tmp_path, "train.precision=fp16")
    assert whole == cut != torch.amp.GradScaler().state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "cl"))), reason="torch.compile needs a C++ compiler")
def test_compiled_blocks_train_like_eager_ones(run_training, tmp_path):
    settings = ["train.steps=3", "base.gradient_checkpointing=true"]
    eager = run_training(tmp_path / "eager", *settings)
    torch._dynamo.reset()
    counters["stats"].clear()
    compiled = run_training(tmp_path / "compiled", *settings, "base.compile=true")
    assert 0 < counters["stats"]["unique_graphs"] <= 4  # each kind of block, the first and the later ones
    torch._dynamo.reset()
    losses = [[float(row["loss"]) for row in read_metrics(run / "metrics.csv")] for run in (eager, compiled)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    for name, value in parameters(eager, 3).items():
        torch.testing.assert_close(parameters(compiled, 3)[name], value, rtol=0, atol=1e-4)


def test_a_finished_run_is_not_overwritten_unless_resumed(run_training, tmp_path):
    run = run_training(tmp_path / "run", "train.steps=1")
    with pytest.raises(ValueError, match=r"holds a run that reached step 1; give another run="):
        run_training(run, "train.steps=2", "checkpoint.resume=false")


def test_divergence_stops_the_run(run_training, tmp_path):
    with pytest.raises(ValueError, match=r"the loss is (nan|inf) at step \d+: the run has diverged"):
        run_training(tmp_path / "run", "train.steps=30", "optimizer.lr=1e18", "optimizer.warmup=0", "optimizer.clip=0")
    assert not (tmp_path / "run" / "bank.safetensors").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("base.path=/nowhere/base", "base.path: there is no folder /nowhere/base"),
        ("bank.encoder=./encoder", "bank.encoder: there is no folder"),
        ("optimizer.name=prodigy", "set optimizer.mixer_lr=null"),
        ("optimizer.schedule=steep", "optimizer.schedule is 'steep'; expected one of linear, cosine"),
        ("log.trackers=[csv,neptune]", "log.trackers holds 'neptune'; expected csv, tensorboard, wandb"),
        ("data.canvas=40", "a multiple of 32"),
        ("bank.heads=3", "does not divide the key width"),
    ],
)
def test_unusable_settings_are_named(run_training, tmp_path, setting, message):
    with pytest.raises(ValueError) as error:
        run_training(tmp_path / "run", setting)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("setting", "package"),
    [
        ("optimizer.name=adamw8bit", "bitsandbytes"),
        ("optimizer.name=prodigy", "prodigyopt"),
        ("base.quantise=nf4", "bitsandbytes"),
        ("base.quantise=torchao-int8", "torchao"),
        ("log.trackers=[csv,wandb]", "wandb"),
    ],
)
def test_a_missing_package_is_named_before_anything_long(run_training, tmp_path, monkeypatch, setting, package):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == package else find(name, *rest))
    with pytest.raises(ValueError, match=f"needs {package}, which is not installed: pip install {package}"):
        run_training(tmp_path / "run", setting)
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.accelerator.is_available(), reason="tells what happens without a GPU")
def test_half_precision_without_a_gpu_is_refused(run_training, tmp_path):
    with pytest.raises(ValueError, match=r"train\.precision=fp16 needs a GPU"):
        run_training(tmp_path / "run", "train.precision=fp16")
