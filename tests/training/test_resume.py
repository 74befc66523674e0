"""Runs that are killed, cut short or out of disk, and go on: to the very parameters of a run that never stopped."""

import json
import shutil
import signal
import time

import pytest
import torch
from safetensors.torch import load_file

import training.setup as setup
import training.train as train_module
from lorweb_core import BasisBank
from training.checkpointing import Checkpoints
from training.config import load_config
from training.tracking import read_metrics


def parameters(run, step):
    return load_file(run / "checkpoints" / f"step-{step:08d}" / "adapter.safetensors")


def assert_identical(one, other, step, file="adapter"):
    assert_same_tensors(*(run / "checkpoints" / f"step-{step:08d}" / f"{file}.safetensors" for run in (one, other)))


def assert_same_tensors(one, other):
    a, b = load_file(one), load_file(other)
    assert a.keys() == b.keys() and len(a) > 10
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def assert_same_bank(one, other):
    paths = [run / "bank.safetensors" for run in (one, other)]
    assert_same_tensors(*paths)
    headers = [BasisBank.load(path).metadata for path in paths]
    assert headers[0] == headers[1]


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
    shutil.rmtree(cut / "checkpoints" / "step-00000004")
    (cut / "bank.safetensors").unlink()
    run_training(cut, "train.steps=4", *settings)
    for file in ["adapter", "optimizer", *(["ema"] if "optimizer.ema=0.9" in settings else [])]:
        assert_identical(whole, cut, 4, file)
    assert_same_bank(whole, cut)
    assert [row["loss"] for row in read_metrics(whole / "metrics.csv")] == [
        row["loss"] for row in read_metrics(cut / "metrics.csv")
    ]


@pytest.mark.parametrize("moment", ["step-*", ".step-*.tmp"], ids=["after", "while"])
def test_a_run_killed_at_a_checkpoint_resumes_to_identical_parameters(run_training, launch, tmp_path, moment):
    settings = ["train.steps=12", "checkpoint.every=3", "checkpoint.keep=10"]
    killed = tmp_path / "killed"
    process = launch(killed, *settings)
    deadline = time.monotonic() + 300
    while not list((killed / "checkpoints").glob(moment)) and time.monotonic() < deadline:
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    reached = Checkpoints(killed / "checkpoints", 10).steps()
    assert (reached or moment != "step-*") and 12 not in reached
    whole = run_training(tmp_path / "whole", *settings)
    run_training(killed, *settings)
    assert_identical(whole, killed, 12)
    assert_identical(whole, killed, 12, "optimizer")


def test_a_run_killed_before_its_last_bank_is_written_writes_it(run_training, tmp_path):
    settings = ["train.steps=2", "checkpoint.every=1", "optimizer.ema=0.5"]
    run, whole = (run_training(tmp_path / name, *settings) for name in ("run", "whole"))
    shutil.copy(run_training(tmp_path / "first", *settings, "train.steps=1") / "bank.safetensors", run)
    run_training(run, *settings)
    assert_same_bank(whole, run)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("bank.rank=2", "its rank is 4, but this run trains a bank with 2"),
        ("bank.softmax=false", "its softmax is True, but"),
        ("bank.query_mode=ca'-ca", "trains with queries cat-aa'b and adamw, and cannot go on with ca'-ca and adamw"),
        ("optimizer.name=adamw8bit", "cannot go on with cat-aa'b and adamw8bit; give another run="),
    ],
)
def test_a_run_does_not_go_on_as_another(run_training, tmp_path, setting, message):
    run = run_training(tmp_path / "run", "train.steps=1")
    before = (run / "config.yaml").read_text(), (run / "bank.safetensors").read_bytes()
    with pytest.raises(ValueError) as error:
        run_training(run, "train.steps=2", setting)
    assert message in str(error.value)
    assert before == ((run / "config.yaml").read_text(), (run / "bank.safetensors").read_bytes())


def test_a_run_killed_while_it_saves_its_configuration_goes_on(run_training, tmp_path, monkeypatch):
    run = run_training(tmp_path / "run", "train.steps=1")

    def cut_short(config, path):
        path.write_text("run: [")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(setup, "save_config", cut_short)
        run_training(run, "train.steps=2")
    run_training(run, "train.steps=2")
    assert load_config(run / "config.yaml").train.steps == 2


def test_a_full_disk_stops_the_run_and_room_lets_it_end_as_if_nothing_was(run_training, small_disk, tmp_path):
    settings = ["train.steps=3", "checkpoint.every=1", "checkpoint.keep=1", "bank.key_dim=4"]
    whole = run_training(tmp_path / "whole", *settings)
    checkpoint = sum(path.stat().st_size for path in (whole / "checkpoints" / "step-00000003").iterdir())
    bank = (whole / "bank.safetensors").stat().st_size
    run = small_disk(f"{int(1.5 * checkpoint + bank)}") / "run"
    with pytest.raises(OSError, match=r"checkpoint of step 2 cannot be written .* The last good checkpoint is 1: make"):
        run_training(run, *settings)
    assert Checkpoints(run / "checkpoints", 1).steps() == [1] and BasisBank.load(run / "bank.safetensors")
    small_disk("500m")
    run_training(run, *settings)
    for file in ("adapter", "optimizer"):
        assert_identical(whole, run, 3, file)
    assert_same_bank(whole, run)


def test_a_disk_too_full_for_the_bank_keeps_the_checkpoint(run_training, small_disk, tmp_path):
    settings = ["train.steps=1", "bank.key_dim=4"]
    whole = run_training(tmp_path / "whole", *settings)
    checkpoint = sum(path.stat().st_size for path in (whole / "checkpoints" / "step-00000001").iterdir())
    run = small_disk(f"{checkpoint + 500_000}") / "run"
    with pytest.raises(OSError, match=r"the bank cannot be written .* The checkpoint of step 1 is good: make room"):
        run_training(run, *settings)
    assert not list(run.glob("*bank*"))
    small_disk("500m")
    run_training(run, *settings)
    assert_same_bank(whole, run)


def test_a_resumed_run_takes_the_rates_of_now(run_training, tmp_path):
    settings = ["checkpoint.every=2", "optimizer.warmup=0", "optimizer.schedule=linear"]
    run = run_training(tmp_path / "run", "train.steps=2", "optimizer.lr=1e-3", *settings)
    run_training(run, "train.steps=4", "optimizer.lr=4e-4", "optimizer.mixer_lr=null", *settings)
    assert [float(row["lr"]) for row in read_metrics(run / "metrics.csv")][2:] == pytest.approx([1e-4, 0])
    groups = json.loads((run / "checkpoints" / "step-00000004" / "state.json").read_text())["optimizer"]["groups"]
    assert [group["initial_lr"] for group in groups] == [4e-4, 4e-4]


def test_a_resumed_run_says_that_the_data_is_another(run_training, tmp_path, caplog):
    run = run_training(tmp_path / "run", "train.steps=1")
    run_training(run, "train.steps=2", "data.hold_images=0.3")
    assert "settings changed since this run began: data.hold_images: 0.2 -> 0.3" in caplog.text
    assert "the run goes on with other data than before" in caplog.text


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


def test_a_finished_run_is_not_overwritten_unless_resumed(run_training, tmp_path):
    run = run_training(tmp_path / "run", "train.steps=1")
    with pytest.raises(ValueError, match=r"holds a run that reached step 1; give another run="):
        run_training(run, "train.steps=2", "checkpoint.resume=false")
