"""Runs that are killed, cut short or out of disk, and go on: to the very parameters of a run that never stopped."""

import json
import os
import shutil
import signal
import time

import pytest
import torch
from safetensors.torch import load_file

import training.run.setup as setup
import training.train as train_module
from lorweb_core import BasisBank
from training.config import load_config
from training.run.checkpointing import Checkpoints
from training.run.locking import locked
from training.run.loop import Trainer
from training.run.stopping import Stopped, StopSignals
from training.run.tracking import read_metrics


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
    cut = shutil.copytree(whole, tmp_path / "cut")
    shutil.rmtree(cut / "checkpoints" / "step-00000004")
    (cut / "bank.safetensors").unlink()
    run_training(cut, "train.steps=4", *settings)
    for file in ["adapter", "optimizer", *(["ema"] if "optimizer.ema=0.9" in settings else [])]:
        assert_identical(whole, cut, 4, file)
    assert_same_bank(whole, cut)
    assert [row["loss"] for row in read_metrics(whole / "metrics.csv")] == [
        row["loss"] for row in read_metrics(cut / "metrics.csv")
    ]


def test_a_run_killed_at_a_checkpoint_resumes_to_identical_parameters(run_training, launch, tmp_path):
    """Killed while it writes a checkpoint, with a complete one before that."""
    settings = ["train.steps=8", "checkpoint.every=1", "checkpoint.keep=10", "bank.key_dim=4"]
    killed, deadline = tmp_path / "killed", time.monotonic() + 300
    checkpoints, process = killed / "checkpoints", launch(killed, *settings)
    while not (list(checkpoints.glob("step-*")) and list(checkpoints.glob(".step-*.tmp"))):
        assert process.poll() is None and time.monotonic() < deadline, process.stdout.read()
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    reached = Checkpoints(checkpoints, 10).steps()
    assert reached and 8 not in reached
    whole = run_training(tmp_path / "whole", *settings)
    run_training(killed, *settings)
    assert_identical(whole, killed, 8)
    assert_identical(whole, killed, 8, "optimizer")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_told_to_stop_saves_its_step_and_goes_on_as_if_nothing_was(
    run_training, shared_run, tmp_path, monkeypatch, number
):
    settings = ["train.steps=4", "bank.key_dim=4", "optimizer.ema=0.5"]
    step = Trainer._train_step

    def told(self, batches):
        if self.step == 1:
            os.kill(os.getpid(), number)
        return step(self, batches)

    before = signal.getsignal(number)
    with (
        monkeypatch.context() as patch,
        pytest.raises(Stopped, match="stopped after step 2, which is saved") as stopped,
    ):
        patch.setattr(Trainer, "_train_step", told)
        run_training(tmp_path / "run", *settings)
    assert stopped.value.signal == number and signal.getsignal(number) == before
    assert BasisBank.load(tmp_path / "run" / "bank.safetensors").metadata["step"] == "2"
    run, whole = run_training(tmp_path / "run", *settings), shared_run(*settings)
    for file in ("adapter", "optimizer", "ema"):
        assert_identical(whole, run, 4, file)
    assert [row["loss"] for row in read_metrics(whole / "metrics.csv")] == [
        row["loss"] for row in read_metrics(run / "metrics.csv")
    ]


def test_a_second_signal_stops_at_once():
    with StopSignals() as signals, pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.received == signal.SIGTERM
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (Stopped(7, signal.SIGTERM), 143, "stopped after step 7, which is saved; the same command goes on from there"),
        (KeyboardInterrupt(), 130, "the same command goes on from the last checkpoint, and with what is cached"),
        (torch.OutOfMemoryError("8 GiB\nmore"), 1, "out of memory (8 GiB). Lower: train.batch=1 train.accumulate=4"),
    ],
)
def test_how_a_run_ended_is_said_in_a_line(monkeypatch, caplog, tmp_path, error, status, said):
    def end(config):
        raise error

    monkeypatch.setattr(train_module, "train", end)
    assert train_module.main(["--config", "training/configs/tiny.yaml", f"run={tmp_path}"]) == status
    assert said in caplog.messages[-1]


def test_a_damaged_checkpoint_is_passed_over(run_training, tmp_path, caplog):
    settings = ["train.steps=3", "checkpoint.every=1", "checkpoint.keep=2", "bank.key_dim=4"]
    run = run_training(tmp_path / "run", *settings)
    whole = shutil.copytree(run, tmp_path / "whole")
    damaged = run / "checkpoints" / "step-00000003" / "optimizer.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    run_training(run, *settings)
    said = f"{damaged}: is damaged; its state says another checksum; going back to an older checkpoint"
    assert said in caplog.messages
    assert {path.name for path in (run / "checkpoints").iterdir()} == {
        "damaged-step-00000003", "step-00000002", "step-00000003",
    }  # fmt: skip
    assert_identical(whole, run, 3)
    assert_identical(whole, run, 3, "optimizer")


def test_two_trainings_in_one_folder_do_not_meet(run_training, tmp_path):
    with (
        locked(tmp_path / "run"),
        pytest.raises(ValueError, match=rf"process {os.getpid()} on .* trains in this folder"),
    ):
        run_training(tmp_path / "run", "train.steps=1")
    assert [path.name for path in (tmp_path / "run").iterdir()] in ([], [".lock"])


def test_a_run_killed_before_its_last_bank_is_written_writes_it(run_training, tmp_path):
    settings = ["train.steps=2", "checkpoint.every=1", "optimizer.ema=0.5"]
    whole = run_training(tmp_path / "whole", *settings)
    run = shutil.copytree(whole, tmp_path / "run")
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
def test_a_run_does_not_go_on_as_another(run_training, shared_run, tmp_path, setting, message):
    run = shutil.copytree(shared_run("train.steps=1"), tmp_path / "run")
    before = (run / "config.yaml").read_text(), (run / "bank.safetensors").read_bytes()
    with pytest.raises(ValueError) as error:
        run_training(run, "train.steps=2", setting)
    assert message in str(error.value)
    assert before == ((run / "config.yaml").read_text(), (run / "bank.safetensors").read_bytes())


def test_a_run_killed_while_it_saves_its_configuration_goes_on(run_training, shared_run, tmp_path, monkeypatch):
    run = shutil.copytree(shared_run("train.steps=1"), tmp_path / "run")

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


def test_a_run_that_goes_on_with_other_data_says_so_and_names_all_of_it(run_training, tmp_path, caplog):
    run = run_training(tmp_path / "run", "train.steps=1", "bank.key_dim=4")
    first, before = (
        BasisBank.load(run / "bank.safetensors").metadata["data_hash"],
        (run / "bank.safetensors").read_bytes(),
    )
    with pytest.raises(
        ValueError, match=r"this run reached its last step, 1, with other data .* raise train\.steps to go on"
    ):
        run_training(run, "train.steps=1", "bank.key_dim=4", "data.hold_images=0.3")
    assert (run / "bank.safetensors").read_bytes() == before
    for _ in range(2):
        run_training(run, "train.steps=2", "bank.key_dim=4", "data.hold_images=0.3")
        hashes = BasisBank.load(run / "bank.safetensors").metadata["data_hash"].split()
        assert hashes[0] == first and len(set(hashes)) == 2
    assert "settings changed since this run began: data.hold_images: 0.2 -> 0.3" in caplog.text
    assert sum("the run goes on with other data than before" in text for text in caplog.messages) == 1
    begun = run_training(
        tmp_path / "begun", "train.steps=1", "bank.key_dim=4", f"bank.start={run / 'bank.safetensors'}"
    )
    assert BasisBank.load(begun / "bank.safetensors").metadata["data_hash"].split() == hashes


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


def test_a_finished_run_is_not_overwritten_unless_resumed(run_training, shared_run, tmp_path):
    run = shared_run("train.steps=1")
    with pytest.raises(ValueError, match=r"holds a run that reached step 1; give another run="):
        run_training(run, "train.steps=2", "checkpoint.resume=false")
