"""Fixtures of every tier: photographs, small models, a running ComfyUI."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

import pytest

from harness.launch import cure_torchvision

cure_torchvision()

ROOT = Path(__file__).resolve().parent.parent


def pytest_addoption(parser):
    parser.addoption("--gpu-tests-anywhere", action="store_true", help="run tests marked gpu without a GPU too")


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not item.config.getoption("--gpu-tests-anywhere"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")


@pytest.fixture(scope="session")
def photographs():
    """name -> photograph, uint8 [H, W, 3]."""
    from harness.small_models import photographs

    return photographs()


@pytest.fixture(scope="session")
def small_models() -> Path:
    """A models folder (diffusion_models/, vae/, clip_vision/, text_encoders/, lorweb/) of small random models."""
    from harness import small_models

    return small_models.small_models()


@pytest.fixture(scope="session")
def archive(tmp_path_factory) -> Path:
    """The folder into which the Comfy registry's archive of this pack was unpacked.

    The registry packs the files that git tracks, less those that ``.comfyignore`` names.
    """
    from harness.comfyui import PACK_NAME

    folder = tmp_path_factory.mktemp("registry")
    with zipfile.ZipFile(folder / "node.zip", "w", zipfile.ZIP_STORED) as file:
        for name in listed(folder / "git"):
            file.write(ROOT / name, name)
    with zipfile.ZipFile(folder / "node.zip") as file:
        file.extractall(folder / PACK_NAME)
    return folder / PACK_NAME


def listed(repository: Path) -> list[str]:
    """What git would track, less what ``.comfyignore`` names; an empty repository, so that no checkout is needed."""
    subprocess.run(["git", "init", "--quiet", "--bare", str(repository)], check=True)
    command = ["git", f"--git-dir={repository}", f"--work-tree={ROOT}", "ls-files", "-z", "--others"]
    command += ["--exclude-standard", "--exclude-from=.comfyignore"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
    return done.stdout.decode("utf-8").rstrip("\0").split("\0")


@pytest.fixture(scope="session")
def comfy(archive, small_models, tmp_path_factory):
    """A running ComfyUI with this pack as the registry hands it out, the small models and LoadSmallFlux; one for the
    whole session."""
    from harness.comfyui import ComfyServer
    from harness.edit_graph import SMALL_FLUX_PACK

    base = tmp_path_factory.mktemp("comfyui")
    with ComfyServer(base, small_models, pack=archive, extra_packs=[SMALL_FLUX_PACK]) as server:
        yield server
