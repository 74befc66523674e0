"""ComfyUI's interrupt ends whatever a node is at in the middle of it, and leaves no file."""

from contextlib import contextmanager
from pathlib import Path

import comfy.model_management
import folder_paths
import pytest
import torch
from comfy.model_management import InterruptProcessingException
from lorweb_pack.nodes.analogy import EncodeAnalogy
from lorweb_pack.nodes.apply import Apply
from lorweb_pack.nodes.coefficients import AdjustCoefficients
from lorweb_pack.nodes.edits import FindEdits, SaveEdit
from lorweb_pack.nodes.export import SaveLoRA
from lorweb_pack.nodes.starter import LoadStarter

PICTURE = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def starter():
    """The starter's outputs."""
    return LoadStarter.execute().args


@pytest.fixture(scope="module")
def basis(starter):
    return starter[3]


@pytest.fixture(scope="module")
def coefficients(basis):
    return basis.mix(torch.ones(basis.config.query_dim))


@pytest.fixture
def output(tmp_path, monkeypatch):
    """ComfyUI's output folder, where Find Similar Edits looks for cards."""
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    cards = ([str(tmp_path / "lorweb_edits")], {".png"})
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "lorweb_edits", cards)
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    return tmp_path


@contextmanager
def interrupted(monkeypatch, checks: int):
    """Somebody presses the button; the node has looked for it a few times by then."""
    looked = 0

    def look() -> None:
        nonlocal looked
        looked += 1
        comfy.model_management.interrupt_current_processing(looked == checks)
        ask()

    ask = comfy.model_management.throw_exception_if_processing_interrupted
    monkeypatch.setattr(comfy.model_management, "throw_exception_if_processing_interrupted", look)
    with pytest.raises(InterruptProcessingException):
        yield
    assert looked == checks


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


def test_while_the_starter_loads(monkeypatch):
    with interrupted(monkeypatch, 10):
        LoadStarter.execute()


def test_while_images_are_encoded(monkeypatch, starter):
    many = PICTURE.expand(40, -1, -1, -1)  # three forward passes
    with interrupted(monkeypatch, 2):
        EncodeAnalogy.execute(starter[3], starter[2], many, many, PICTURE, "crop", "center")


@pytest.mark.parametrize("texts", [("*=1\n" * 9, ""), ("", "* 0=1\n" * 9)])
def test_while_lines_are_read(monkeypatch, coefficients, texts):
    with interrupted(monkeypatch, 9):
        AdjustCoefficients.execute(coefficients, 1.0, 0, *texts)


def test_while_layers_are_checked(monkeypatch, starter, coefficients):
    with interrupted(monkeypatch, len(coefficients.layers)):
        Apply.execute(starter[0], starter[3], coefficients, 1.0)
    assert not starter[0].patches


@pytest.mark.parametrize("rank", [0, 8])
def test_while_a_lora_is_written(monkeypatch, basis, coefficients, output, rank):
    """After the check of the layers, and in the middle of cutting the rank or of balancing the factors."""
    with interrupted(monkeypatch, len(coefficients.layers) + 10):
        SaveLoRA.execute(basis, coefficients, "loras/x", "diffusers", rank, "float16")
    assert not files(output)


@pytest.mark.parametrize("checks", [2, 4])
def test_while_cards_are_looked_through(monkeypatch, coefficients, output, checks):
    """Three are read, then those that are like the edit are drawn."""
    for factor in (0.5, 2.0, 3.0):
        SaveEdit.execute(coefficients.scale_blocks([("*", factor)]), "lorweb_edits/x", "")
    with interrupted(monkeypatch, checks):
        FindEdits.execute(coefficients, "all", 8)
