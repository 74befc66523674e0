"""The Comfy registry's archive of this pack: what it holds, and its commands. The tests of the server run on it."""

import os
import shutil
import subprocess
import sys
import tomllib
import urllib.request

import numpy as np

from harness.comfyui import PACK_NAME, ROOT
from harness.edit_graph import edit_graph, sepia
from harness.small_models import SMALL_BANK
from lorweb_core import BasisBank

LEFT_OUT = {".ci", "dev.py", "harness", "tests"}
NEEDED = {
    "LICENSE", "README.md", "__init__.py", "assets", "locales", "lorweb_core", "nodes", "pyproject.toml",
    "requirements.txt", "starter", "subgraphs", "training", "web", "workflows",
}  # fmt: skip


def run(archive, *arguments):
    """Run a module of the archive from its folder, as its user would."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=archive, env=environment, capture_output=True, text=True)


def test_it_holds_what_users_need_and_no_more(archive):
    top = {path.name for path in archive.iterdir()}
    assert top & LEFT_OUT == set()
    assert top >= NEEDED
    # The README's figures are explained there.
    assert [path.name for path in (archive / "benchmarks").iterdir()] == ["RESULTS.md"]


def test_its_bank_tool_runs(archive, small_models):
    done = run(archive, "lorweb_core", "info", str(small_models / "lorweb" / SMALL_BANK))
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith(f"{SMALL_BANK}: ")


def test_a_bank_that_it_trains_edits_in_comfyui(archive, comfy, photographs, tmp_path):
    settings = [f"run={tmp_path}", "train.steps=2", "checkpoint.every=2", "validation.every=0"]
    done = run(archive, "training.train", "--config", "training/configs/tiny.yaml", *settings)
    assert done.returncode == 0, done.stderr[-3000:]
    bank = BasisBank.load(tmp_path / "bank.safetensors")
    assert bank.assumed == () and bank.metadata["step"] == "2" and bank.metadata["data_hash"]
    folder = comfy.base / "models" / "lorweb"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(tmp_path / "bank.safetensors", folder / "trained.safetensors")
    a = np.ascontiguousarray(photographs["astronaut"][::4, ::4])
    names = [comfy.upload(image, f"trained_{i}.png") for i, image in enumerate((a, sepia(a), a[::-1].copy()))]
    graph = edit_graph(*names, long_side=256, steps=1)
    graph["basis"]["inputs"]["basis_name"] = "trained.safetensors"
    outputs = comfy.run(graph)
    (folder / "trained.safetensors").unlink()
    layers = len(bank.layers)
    assert f"trained.safetensors: {layers} of {layers} layers patched" in outputs["apply"]["text"][0]
    assert comfy.images(outputs, "b_prime")[0].shape == a.shape


def test_the_registry_is_told_the_oldest_comfyui():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert settings["project"]["name"] == PACK_NAME
    assert settings["tool"]["comfy"]["requires-comfyui"] == ">=0.3.75"
    assert settings["project"]["dependencies"] == []
    assert "ComfyUI 0.3.75 or newer" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_registry_is_told_the_icon():
    comfy = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["comfy"]
    with urllib.request.urlopen(comfy["Icon"]) as icon:
        assert icon.headers.get_content_type() == "image/svg+xml"
        assert icon.read() == (ROOT / "assets" / "icon.svg").read_bytes()
