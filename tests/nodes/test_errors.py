"""The first words of the nodes' errors say what is wrong: the page shows no more of a message."""

import os
from pathlib import Path

import folder_paths
import pytest
import torch
from lorweb_pack.lorweb_core import BasisBank, MixingCoefficients
from lorweb_pack.lorweb_core.card import CardError
from lorweb_pack.nodes import NODES
from lorweb_pack.nodes.apply import RUNTIME, Apply
from lorweb_pack.nodes.basis import LoadBasis
from lorweb_pack.nodes.coefficients import AdjustCoefficients, BlendCoefficients
from lorweb_pack.nodes.edits import LoadEdit
from lorweb_pack.nodes.errors import in_plain_words
from lorweb_pack.nodes.export import SaveLoRA
from safetensors.torch import load_file, save_file

from harness.small_models import SMALL_HIDDEN, flux_layers, random_bank

SHOWN = 60  # letters


def a_bank(folder: Path, name: str = "bank", hidden: int = SMALL_HIDDEN, seed: int = 0) -> Path:
    return random_bank(folder / f"{name}.safetensors", flux_layers(hidden, 1, 1), 4, 2, 8, 24, torch.float32, seed=seed)


def mix(bank: BasisBank) -> MixingCoefficients:
    return bank.mix(torch.ones(24))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where ComfyUI looks for banks and cards, and puts files."""
    for name in ("lorweb", "lorweb_edits"):
        monkeypatch.setitem(folder_paths.folder_names_and_paths, name, ([str(tmp_path)], {".safetensors", ".png"}))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    return tmp_path


def refusal(node, *args) -> str:
    """A node's error as the page has it: of a class of Python's own, whose module it does not show."""
    with pytest.raises(Exception) as caught:
        node.execute(*args)
    assert type(caught.value).__module__ == "builtins"
    return str(caught.value)


@pytest.mark.parametrize(
    ("lost", "words"),
    [
        ("lora_B", "bank.safetensors: lora_B missing in layer transformer_blocks"),
        (None, "bank.safetensors: not a readable safetensors file"),
    ],
)
def test_a_damaged_bank(folder, lost, words):
    path = a_bank(folder)
    tensors = {k: v.clone() for k, v in load_file(path).items()}
    path.write_bytes(path.read_bytes()[:100])
    if lost:
        save_file({k: v for k, v in tensors.items() if not k.endswith("transformer_blocks.0.attn.to_q." + lost)}, path)
    message = refusal(LoadBasis, path.name)
    assert message.startswith(words[:SHOWN]) and message.endswith(f"(in {folder})")


def test_a_bank_that_changed(folder):
    bank = BasisBank.load(a_bank(folder))
    coefficients = mix(bank)
    os.utime(bank.path, (1, 1))
    assert refusal(Apply, None, bank, coefficients, 1.0).startswith("bank.safetensors: the file has changed since")
    saved = refusal(SaveLoRA, bank, coefficients, "loras/x", "diffusers", 0, "float16")
    assert saved.startswith("bank.safetensors: the file has changed since")


def test_a_card_that_is_none(folder):
    (folder / "card.png").write_bytes(b"no picture")
    message = refusal(LoadEdit, "lorweb_edits/card.png")
    assert message.startswith("card.png: no edit can be read: the file is neither a PNG")


def test_a_misspelt_file(folder):
    a_bank(folder, "my_bank")
    assert refusal(LoadBasis, "mybank.safetensors").startswith(
        "there is no bank 'mybank.safetensors'; did you mean 'my_bank.safetensors'?"
    )
    assert refusal(LoadEdit, "lorweb_edits/absent.png").startswith("there is no edit card 'lorweb_edits/absent.png'")


def test_another_bank_s_coefficients(folder):
    one, other = (BasisBank.load(a_bank(folder, name, seed=seed)) for seed, name in enumerate("xy"))
    assert refusal(Apply, None, one, mix(other), 1.0).startswith("these coefficients are of another bank: they were")
    blended = refusal(BlendCoefficients, mix(one), mix(other), 0.5)
    assert blended.startswith("coefficients of different banks do not blend: ")


@pytest.mark.parametrize("mode", ["patch", RUNTIME])
def test_another_base(folder, small_flux, mode):
    bank = BasisBank.load(a_bank(folder, hidden=128))
    assert refusal(Apply, small_flux, bank, mix(bank), 1.0, mode).startswith("the bank does not fit this model: ")


def test_edits_that_no_number_holds(folder):
    bank = BasisBank.load(a_bank(folder))
    huge = mix(bank).scale_blocks([("*", 1e9)])
    assert refusal(Apply, None, bank, huge, 1.0).startswith("bank.safetensors: the edit is too large for half precis")
    text = refusal(AdjustCoefficients, mix(bank), 1.0, 0, "nowhere = 1", "")
    assert text.startswith("block_scales: 'nowhere' matches none of the ")


def test_other_errors_are_left_as_they_are():
    error = FileNotFoundError(2, "No such file", "/x/y")
    with pytest.raises(FileNotFoundError) as caught:
        in_plain_words(lambda: (_ for _ in ()).throw(error))()
    assert caught.value is error
    with pytest.raises(ValueError, match=r"^what$") as caught:
        in_plain_words(lambda: (_ for _ in ()).throw(CardError("what")))()
    assert type(caught.value) is ValueError


def test_every_node_speaks_so():
    assert all(hasattr(node.execute, "__wrapped__") for node in NODES)
