"""Two processes, started with the launch files that are shipped, on the CPU with gloo."""

import math
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from lorweb_core import BasisBank
from training.config import load_config
from training.run.accelerator import check_several, check_sharding
from training.run.optim import check_optimizer
from training.run.tracking import read_metrics

KONTEXT = "training/configs/kontext_24gb.yaml"
DDP, FSDP = ("training/configs/accelerate_ddp.yaml", "training/configs/accelerate_fsdp.yaml")
FSDP_ON_CPU = ["tests/training/run/fsdp_on_cpu.py"]
SETTINGS = ["train.steps=4", "checkpoint.every=2", "validation.every=2", "validation.analogies=1", "validation.steps=1"]


def parameters(run, step, file="adapter"):
    return load_file(run / "checkpoints" / f"step-{step:08d}" / f"{file}.safetensors")


def assert_close(run, other, step):
    one, two = parameters(run, step), parameters(other, step)
    assert one.keys() == two.keys() and len(one) > 80
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-5)


@pytest.fixture
def alone(shared_run):
    """The same training in one process, with the batch of both."""
    return shared_run(*SETTINGS, "train.batch=2")


def test_two_processes_reach_the_parameters_of_one(launch, finish, alone, tmp_path):
    output = finish(launch(tmp_path / "pair", *SETTINGS, "train.batch=1", launcher=DDP))
    assert "2 process(es), MULTI_CPU" in output
    assert_close(alone, tmp_path / "pair", 4)
    losses = [[float(row["loss"]) for row in read_metrics(run / "metrics.csv")] for run in (alone, tmp_path / "pair")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.slow
def test_sharded_processes_reach_the_parameters_of_one_and_resume(launch, finish, alone, tmp_path):
    run = tmp_path / "sharded"

    def train():
        return finish(launch(run, *SETTINGS, "train.batch=1", launcher=FSDP, program=FSDP_ON_CPU))

    assert "2 process(es), FSDP" in train()
    assert_close(alone, run, 4)
    assert {path.name for path in (run / "validation").iterdir()} == {
        f"held-out-{what}-0000000{step}.png" for what in ("images", "tasks") for step in (2, 4)
    }
    expected = {file: parameters(run, 4, file) for file in ("adapter", "optimizer")}
    shutil.rmtree(run / "checkpoints" / "step-00000004")
    (run / "bank.safetensors").unlink()
    assert "resumed from step 2" in train()
    for file, tensors in expected.items():
        found = parameters(run, 4, file)
        assert found.keys() == tensors.keys()
        assert [name for name, value in tensors.items() if not torch.equal(found[name], value)] == []
    bank = BasisBank.load(run / "bank.safetensors")
    assert len(bank.layers) == 40 and bank.metadata["step"] == "4"
    assert all(math.isfinite(float(row["loss"])) for row in read_metrics(run / "metrics.csv"))


def test_fsdp_without_gpus_is_refused(run_training, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.raises(ValueError, match=r"1 process\(es\) on .*accelerate_ddp\.yaml"):
        run_training(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_sharded_is_refused():
    def settings(*overrides):
        return load_config(KONTEXT, ["run=r", "data.manifest=m", *overrides])

    with pytest.raises(ValueError, match=r"not nf4; set base\.quantise=none"):
        check_sharding(settings(), SimpleNamespace(is_fsdp2=True))
    check_optimizer(settings("optimizer.name=adamw").optimizer, sharded=True)
    pytest.importorskip("bitsandbytes")
    with pytest.raises(ValueError, match=r"set optimizer\.name=adamw"):
        check_optimizer(settings().optimizer, sharded=True)
    with pytest.raises(ValueError, match=r"optimizer\.ema does not work with FSDP's"):
        check_optimizer(settings("optimizer.name=adamw", "optimizer.ema=0.9").optimizer, sharded=True)
    pytest.importorskip("prodigyopt")
    with pytest.raises(ValueError, match=r"with FSDP set optimizer\.name=adamw"):
        check_optimizer(settings("optimizer.name=prodigy").optimizer, sharded=True)


@pytest.mark.parametrize(
    ("setting", "instead"), [("train.minutes=1", "set train.steps"), ("base.quantise=torchao-int8", "int8 or nf4")]
)
def test_what_several_processes_cannot_do_is_refused(setting, instead):
    check_several(load_config(KONTEXT, ["run=r", "data.manifest=m"]))
    with pytest.raises(ValueError, match=instead):
        check_several(load_config(KONTEXT, ["run=r", "data.manifest=m", setting]))
