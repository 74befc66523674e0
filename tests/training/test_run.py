"""Whole runs: loss, bank, caches, what is refused."""

import importlib.util
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch._dynamo.utils import counters

import training.train as train_module
from lorweb_core import BasisBank
from training.config import load_config
from training.data import Manifest
from training.run.accelerator import make_accelerator
from training.run.tracking import read_metrics
from training.run.validation import Validator


def parameters(run, step):
    return load_file(run / "checkpoints" / f"step-{step:08d}" / "adapter.safetensors")


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
    assert str(config.run) == str(run) and bank.canvas == config.data.canvas == 32
    coefficients = bank.mix(torch.randn(3 * 768))
    assert bank.delta("transformer_blocks.0.attn.to_q", coefficients).abs().max() > 0


def test_a_bank_may_be_saved_in_half_precision_and_goes_on_in_whole(run_training, shared_run, tmp_path):
    whole = shared_run("train.steps=1", "bank.key_dim=4")
    half = run_training(tmp_path / "half", "train.steps=1", "bank.key_dim=4", "bank.save_dtype=float16")
    tensors, halves = (load_file(run / "bank.safetensors") for run in (whole, half))
    assert {t.dtype for t in halves.values()} == {torch.float16}
    assert all(torch.equal(halves[name], tensor.half()) for name, tensor in tensors.items())
    assert all(torch.equal(value, parameters(half, 1)[name]) for name, value in parameters(whole, 1).items())
    name, large = "transformer.transformer_blocks.0.attn.to_q.lora_A", BasisBank.load(whole / "bank.safetensors")
    tensors[name] = tensors[name].clone().index_fill_(0, torch.tensor([1]), 7e4)
    save_file(tensors, tmp_path / "large.safetensors", metadata=large.metadata)
    settings = ["train.steps=1", "bank.key_dim=4", "optimizer.lr=0", f"bank.start={tmp_path / 'large.safetensors'}"]
    with pytest.raises(ValueError, match=r"to_q\.lora_A\.weight holds 7e\+04, which is beyond float16; the checkpoint"):
        run_training(tmp_path / "large", *settings, "bank.save_dtype=float16")
    kept = run_training(tmp_path / "large", *settings)
    assert torch.equal(load_file(kept / "bank.safetensors")[name], tensors[name])


def test_rows_are_means_over_the_steps_since_the_last(run_training, tmp_path):
    settings = ["train.steps=5", "checkpoint.every=2"]
    every, some = (run_training(tmp_path / f"log{n}", *settings, f"log.every={n}") for n in (1, 3))
    losses = [float(row["loss"]) for row in read_metrics(every / "metrics.csv")]
    rows = [(int(row["step"]), float(row["loss"])) for row in read_metrics(some / "metrics.csv")]
    means = [(2, sum(losses[:2]) / 2), (3, losses[2]), (4, losses[3]), (5, losses[4])]
    assert [step for step, _ in rows] == [step for step, _ in means]
    assert [loss for _, loss in rows] == pytest.approx([loss for _, loss in means], rel=1e-5)


def test_accumulated_batches_reach_the_parameters_of_one(run_training, tmp_path):
    whole = run_training(tmp_path / "whole", "train.steps=3", "train.batch=2")
    parts = run_training(tmp_path / "parts", "train.steps=3", "train.batch=1", "train.accumulate=2")
    for name, value in parameters(whole, 3).items():
        torch.testing.assert_close(parameters(parts, 3)[name], value, rtol=0, atol=1e-5)


def test_processes_wait_for_the_caches_longer_than_nccl_allows(overrides, tmp_path):
    config = load_config("training/configs/tiny.yaml", [*overrides, f"run={tmp_path}"])
    assert make_accelerator(config, []).init_handler.timeout.days >= 1


def test_the_command_line_names_a_misspelt_key_and_trains_nothing(tmp_path, caplog):
    arguments = ["--config", "training/configs/tiny.yaml", f"run={tmp_path / 'run'}", "train.step=5"]
    assert train_module.main(arguments) == 1
    assert "train.step=5: there is no key 'train.step'; did you mean 'train.steps'?" in caplog.text
    assert not (tmp_path / "run").exists()


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


def test_divergence_stops_the_run(run_training, tmp_path):
    with pytest.raises(ValueError, match=r"the loss is (nan|inf) at step \d+: the run has diverged"):
        run_training(tmp_path / "run", "train.steps=30", "optimizer.lr=1e18", "optimizer.warmup=0", "optimizer.clip=0")
    assert not (tmp_path / "run" / "bank.safetensors").exists()


def test_weights_that_are_no_numbers_never_reach_a_checkpoint(run_training, tmp_path):
    """The step that spoils them has a loss like any other: Adam divides A's gradient, 0 at first, by eps."""
    settings = ["train.steps=2", "checkpoint.every=1", "optimizer.eps=0"]
    with pytest.raises(ValueError, match="weights that are no numbers at step 1: the run has diverged"):
        run_training(tmp_path / "run", *settings)
    assert not list((tmp_path / "run" / "checkpoints").glob("step-*"))


def test_validation_shows_the_averaged_bank(run_training, tmp_path):
    """The grid of a run with an average is that of its bank, which a run that learns nothing begins with."""
    shown = ["validation.every=1", "validation.steps=1", "validation.analogies=1"]
    averaged = run_training(tmp_path / "averaged", "train.steps=3", "optimizer.lr=1e-1", "optimizer.ema=0.9", *shown)
    begin = [f"bank.start={averaged / 'bank.safetensors'}", "train.steps=1", "optimizer.lr=0"]
    still = run_training(tmp_path / "still", *begin, *shown)
    last = [sorted((run / "validation").glob("*.png"))[-1] for run in (averaged, still)]
    assert "3" in last[0].name and last[0].read_bytes() == last[1].read_bytes()


def test_a_step_is_saved_before_its_validation_fails(run_training, tmp_path, monkeypatch):
    def fail(self, step):
        raise RuntimeError("no memory")

    monkeypatch.setattr(Validator, "__call__", fail)
    with pytest.raises(RuntimeError, match="no memory"):
        run_training(tmp_path / "run", "train.steps=4", "checkpoint.every=2", "validation.every=2")
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*")] == ["step-00000002"]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("base.path=/nowhere/base", "base.path: there is no folder /nowhere/base"),
        ("bank.encoder=./encoder", "bank.encoder: there is no folder"),
        ("optimizer.name=prodigy", "set optimizer.mixer_lr=null"),
        ("optimizer.schedule=steep", "optimizer.schedule is 'steep'; expected one of linear, cosine"),
        ("log.trackers=[csv,neptune]", "log.trackers holds 'neptune'; expected csv, tensorboard, wandb"),
        ("data.canvas=40", "a multiple of 32"),
        ("data.hold_images=0.00001", "the split leaves no pairs for held-out images"),
        ("bank.heads=3", "does not divide the key width"),
    ],
)
def test_unusable_settings_are_named_before_anything_is_encoded(run_training, tmp_path, setting, message):
    cache = tmp_path / "cache"
    with pytest.raises(ValueError) as error:
        run_training(tmp_path / "run", f"data.cache={cache}", setting)
    assert message in str(error.value)
    assert not cache.exists() and not (tmp_path / "run" / "config.yaml").exists()


def test_held_out_sets_without_analogies_are_refused_before_anything_is_encoded(run_training, parts, tmp_path):
    manifest = load_config("training/configs/tiny.yaml", [*parts, "run=r"]).data.manifest
    pairs = Manifest.load(manifest)
    (tmp_path / "m.jsonl").write_text("".join(lonely(pairs)))
    settings = [f"data.manifest={tmp_path / 'm.jsonl'}", f"data.cache={tmp_path / 'cache'}", "data.hold_images=0"]
    with pytest.raises(ValueError, match=r"held-out-tasks: .* no task has the two pairs .*; hold out more, or nothing"):
        run_training(tmp_path / "run", *settings)
    assert not (tmp_path / "cache").exists()


def lonely(pairs):
    """Lines of a manifest in which the task that tiny.yaml holds out has a single pair."""
    for pair in (pairs[number] for task, numbers in pairs.tasks.items() for number in numbers[: 1 + (task != "sepia")]):
        images = {"before": str(pair.before.path), "after": str(pair.after.path)}
        hashes = [pair.before.hash, pair.after.hash]
        yield json.dumps({"task": pair.task, **images, "prompt": "", "size": pair.size, "hashes": hashes}) + "\n"


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


@pytest.mark.skipif(torch.accelerator.is_available(), reason="tells what happens without a GPU")
@pytest.mark.parametrize(("capability", "warned"), [("AVX2", True), ("AVX512", False)])
def test_slow_bfloat16_is_warned_of(run_training, tmp_path, monkeypatch, caplog, capability, warned):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    run_training(tmp_path / "run", "train.steps=1", "train.precision=bf16")
    assert any("set train.precision=no" in message for message in caplog.messages) == warned
