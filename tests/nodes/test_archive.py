"""The Comfy registry's archive of this pack, installed as ComfyUI's manager installs it.

The registry packs the files that git tracks, less those that ``.comfyignore`` names. Tests of other modules run again
on a server that has this copy of the pack alone.
"""

import os
import subprocess
import sys
import tomllib
import urllib.request
import zipfile

import numpy as np
import pytest

from harness.comfyui import PACK_NAME, ROOT, ComfyServer
from harness.edit_graph import SMALL_FLUX_PACK, sepia
from harness.small_models import SMALL_BANK

from .test_blueprint import test_comfyui_offers_it
from .test_server import (
    test_edit_by_example,
    test_every_input_has_a_tooltip_and_every_node_a_help_page,
    test_published_interface,
)
from .test_starter import test_the_workflow_answers_its_examples
from .test_workflows import test_comfyui_lists_and_serves_them_as_templates

__all__ = [
    "test_comfyui_lists_and_serves_them_as_templates",
    "test_comfyui_offers_it",
    "test_edit_by_example",
    "test_every_input_has_a_tooltip_and_every_node_a_help_page",
    "test_published_interface",
    "test_the_workflow_answers_its_examples",
]

LEFT_OUT = {".ci", "benchmarks", "dev.py", "harness", "tests"}
NEEDED = {
    "LICENSE", "README.md", "__init__.py", "assets", "locales", "lorweb_core", "nodes", "pyproject.toml",
    "requirements.txt", "starter", "subgraphs", "training", "web", "workflows",
}  # fmt: skip


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """The folder into which the archive was unpacked."""
    folder = tmp_path_factory.mktemp("registry")
    with zipfile.ZipFile(folder / "node.zip", "w", zipfile.ZIP_DEFLATED) as file:
        for name in listed(folder / "git"):
            file.write(ROOT / name, name)
    with zipfile.ZipFile(folder / "node.zip") as file:
        file.extractall(folder / PACK_NAME)
    return folder / PACK_NAME


def listed(repository):
    """What git would track, less what ``.comfyignore`` names; an empty repository, so that no checkout is needed."""
    subprocess.run(["git", "init", "--quiet", "--bare", str(repository)], check=True)
    command = ["git", f"--git-dir={repository}", f"--work-tree={ROOT}", "ls-files", "-z", "--others"]
    command += ["--exclude-standard", "--exclude-from=.comfyignore"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
    return done.stdout.decode("utf-8").rstrip("\0").split("\0")


@pytest.fixture(scope="module")
def comfy(archive, small_models, tmp_path_factory):
    """A server with the unpacked archive in place of the checkout."""
    base = tmp_path_factory.mktemp("comfyui_archive")
    with ComfyServer(base, small_models, pack=archive, extra_packs=[SMALL_FLUX_PACK]) as server:
        yield server


@pytest.fixture(scope="module")
def names(comfy, photographs):
    """As for the other tests of this tier, on this server."""
    a = np.ascontiguousarray(photographs["astronaut"][::4, ::4])
    b = np.ascontiguousarray(photographs["chelsea"][::3, ::3])
    return {name: comfy.upload(image, f"{name}.png") for name, image in {"a": a, "a_prime": sepia(a), "b": b}.items()}


def run(archive, *arguments):
    """Run a module of the archive from its folder, as its user would."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=archive, env=environment, capture_output=True, text=True)


def test_it_holds_what_users_need_and_no_more(archive):
    top = {path.name for path in archive.iterdir()}
    assert top & LEFT_OUT == set()
    assert top >= NEEDED


def test_its_bank_tool_runs(archive, small_models):
    done = run(archive, "lorweb_core", "info", str(small_models / "lorweb" / SMALL_BANK))
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith(f"{SMALL_BANK}: ")


def test_training_runs_from_it(archive, tmp_path):
    settings = [f"run={tmp_path}", "train.steps=1", "checkpoint.every=1", "validation.every=0"]
    done = run(archive, "training.train", "--config", "training/configs/tiny.yaml", *settings)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "bank.safetensors").is_file()


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
