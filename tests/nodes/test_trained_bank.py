"""What the trainer writes, the nodes load: the real training entry point, then the real ComfyUI."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from harness.comfyui import ROOT
from harness.edit_graph import edit_graph, sepia
from lorweb_core import BasisBank


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The bank of a short run of ``training/configs/tiny.yaml``."""
    run = tmp_path_factory.mktemp("training") / "run"
    command = [sys.executable, "-m", "training.train", "--config", "training/configs/tiny.yaml", f"run={run}"]
    command += ["train.steps=4", "checkpoint.every=4", "validation.every=0"]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return run / "bank.safetensors"


def test_a_trained_bank_edits_in_comfyui(comfy, trained, photographs):
    bank = BasisBank.load(trained)
    assert bank.assumed == () and bank.metadata["step"] == "4" and bank.metadata["data_hash"]
    folder = comfy.base / "models" / "lorweb"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(trained, folder / "trained.safetensors")
    a = np.ascontiguousarray(photographs["astronaut"][::4, ::4])
    names = [comfy.upload(image, f"trained_{i}.png") for i, image in enumerate((a, sepia(a), a[::-1].copy()))]
    graph = edit_graph(*names, long_side=256, steps=1)
    graph["basis"]["inputs"]["basis_name"] = "trained.safetensors"
    outputs = comfy.run(graph)
    (folder / "trained.safetensors").unlink()
    layers = len(bank.layers)
    assert f"trained.safetensors: {layers} of {layers} layers patched" in outputs["apply"]["text"][0]
    assert comfy.images(outputs, "b_prime")[0].shape == a.shape
