"""Edit cards: what is written is read, and what strangers made gets one clear error each."""

import json
import struct
import zlib

import pytest
import torch
from PIL import Image

from harness.small_models import random_bank
from lorweb_core import BasisBank, MixingCoefficients
from lorweb_core.card import CHUNK, Card, fingerprint, read_card, write_card

LAYERS = {"transformer_blocks.0.attn.to_q": (8, 8), "transformer_blocks.0.attn.to_k": (8, 8)}


def load_bank(folder, name="bank", **sizes):
    sizes = {"num_loras": 4, "rank": 2, "key_dim": 4, "query_dim": 6, **sizes}
    return BasisBank.load(random_bank(folder / f"{name}.safetensors", LAYERS, **sizes))


@pytest.fixture
def bank(tmp_path):
    return load_bank(tmp_path)


@pytest.fixture
def card(bank):
    return Card.of(bank, bank.mix(torch.randn(6, generator=torch.Generator().manual_seed(0))), "sepia", "make it old")


@pytest.fixture
def path(card, tmp_path):
    a = torch.rand(12, 20, 3, generator=torch.Generator().manual_seed(1))
    write_card(tmp_path / "sepia.png", card, a, 1 - a)
    return tmp_path / "sepia.png"


def test_what_is_written_is_read(card, path):
    found = read_card(path)
    assert torch.equal(found.coefficients.values, card.coefficients.values)
    assert found.coefficients.layers == card.coefficients.layers and found.coefficients.softmax
    facts = ("name", "prompt", "strength", "bank", "fingerprint", "query_mode", "encoder", "base_model", "layout")
    assert all(getattr(found, fact) == getattr(card, fact) for fact in facts)
    with Image.open(path) as picture:
        assert picture.width > picture.height > 192


def test_coefficients_as_json_are_an_edit_too(card, tmp_path):
    (tmp_path / "edit.json").write_text(card.coefficients.to_json(), encoding="utf-8")
    found = read_card(tmp_path / "edit.json")
    assert torch.equal(found.coefficients.values, card.coefficients.values) and not found.fingerprint
    (tmp_path / "card.json").write_text(card.to_json(), encoding="utf-8")
    assert read_card(tmp_path / "card.json").fingerprint == card.fingerprint


def test_a_bank_of_equal_shape_is_another_bank(card, bank, tmp_path):
    other, renamed = load_bank(tmp_path, "other", seed=7), tmp_path / "renamed.safetensors"
    bank.save(renamed)
    card.require_bank(bank)
    card.require_bank(BasisBank.load(renamed))
    assert fingerprint(other) != fingerprint(bank) and len(fingerprint(bank)) == 32
    with pytest.raises(
        ValueError, match=r"'sepia' was made with the bank bank.safetensors .* other.safetensors is ano"
    ):
        card.require_bank(other)


def changed(card, **changes):
    document = json.loads(card.to_json()) | changes
    return json.dumps({name: value for name, value in document.items() if value is not ...})


HOSTILE = {
    "version": ({"version": 2}, "of version 2"),
    "no values": ({"values": ...}, "no base64"),
    "short values": ({"values": "AAAA"}, "3 bytes; expected 32"),
    "NaN": ({"values": "AADAfwAAwH8AAMB/AADAfwAAwH8AAMB/AADAfwAAwH8="}, "NaN"),
    "no layers": ({"layers": []}, "layers are"),
    "layers twice": ({"layers": ["x", "x"]}, "none of them twice"),
    "numbers for layers": ({"layers": [1, 2]}, "layers are"),
    "many elements": ({"elements": 10**9}, "elements 1000000000"),
    "true elements": ({"elements": True}, "elements True"),
    "softmax": ({"softmax": "yes"}, "softmax 'yes'"),
    "strength": ({"strength": float("nan")}, "strength is nan"),
    "long prompt": ({"prompt": "x" * 5000}, "at most 4000 letters"),
    "name": ({"name": ["x"]}, "name is"),
}


@pytest.mark.parametrize("changes, message", HOSTILE.values(), ids=HOSTILE)
def test_wrong_contents_are_named(card, changes, message):
    with pytest.raises(ValueError, match=message):
        Card.from_json(changed(card, **changes))


def with_chunk(path, kind, data):
    """The file with a chunk of its own before the end."""
    chunk = struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    content = path.read_bytes()
    path.write_bytes(content[:-12] + chunk + content[-12:])


def cut(path):
    path.write_bytes(path.read_bytes()[:-200])


def flip(path):
    content = bytearray(path.read_bytes())
    content[content.index(CHUNK.encode()) + 40] ^= 255
    path.write_bytes(content)


def bomb(path):
    Image.new("RGB", (8, 8)).save(path)
    with_chunk(path, b"zTXt", CHUNK.encode() + b"\0\0" + zlib.compress(b" " * 10**8))


def deep(path):
    Image.new("RGB", (8, 8)).save(path)
    with_chunk(path, b"tEXt", CHUNK.encode() + b"\0" + b"[" * 10**6)


def bare(path):
    Image.new("RGB", (8, 8)).save(path)


def picture_only(path):
    path.write_bytes(b"\xff\xd8\xff\xe0 no text at all")


@pytest.mark.parametrize("harm", [cut, flip, bomb, deep, bare, picture_only], ids=lambda harm: harm.__name__)
def test_harmed_cards_are_refused_by_name(path, harm):
    harm(path)
    with pytest.raises(ValueError, match=r"sepia.png: "):
        read_card(path)


def test_a_missing_or_huge_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"none.png: "):
        read_card(tmp_path / "none.png")
    with open(tmp_path / "huge.png", "wb") as file:
        file.truncate(65 * 2**20)
    with pytest.raises(ValueError, match=r"huge.png: it is 68,157,440 bytes"):
        read_card(tmp_path / "huge.png")


def test_a_card_of_the_released_size_is_small(tmp_path, photographs):
    layers = tuple(f"single_transformer_blocks.{number}.attn.to_q" for number in range(494))
    edit = MixingCoefficients(torch.rand(494, 32).softmax(-1), layers)
    a = torch.tensor(photographs["astronaut"]) / 255
    write_card(tmp_path / "edit.png", Card(edit, "inverted"), a, 1 - a)
    assert 100_000 < (tmp_path / "edit.png").stat().st_size < 300_000
