"""Edit cards: what is saved is what is read, a bank knows its own edits, and hostile files get one clear error."""

import json
import struct
import time
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from harness.small_models import flux_layers
from lorweb_core import BasisBank, MixingCoefficients
from lorweb_core.__main__ import main
from lorweb_core.card import KEYWORD, CardError, EditCard, is_card, load_card
from lorweb_core.cardpicture import card_picture, contact_sheet, load_picture, save_card
from lorweb_core.fingerprint import Fingerprint, FingerprintTaker
from lorweb_core.gallery import Gallery, centred_cosines, nearest
from lorweb_core.pngtext import SIGNATURE

from .conftest import Spec

MARK = Fingerprint("0123456789abcdef" * 2, "mine.safetensors")
LAYERS = ("transformer_blocks.0.attn.to_q", "single_transformer_blocks.0.proj_out")


def edit(seed=0, **settings):
    values = torch.randn(2, 6, generator=torch.Generator().manual_seed(seed)).softmax(-1)
    return MixingCoefficients(values, LAYERS, **{"fingerprint": MARK, **settings})


def write(path, card, photo=None):
    save_card(card, path, card_picture(card, photo, photo))
    return path


def png(*chunks):
    """A PNG file of chunks (kind, body), with their checksums."""
    parts = [struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in chunks]
    return SIGNATURE + b"".join(parts)


def with_text(text, side=1):
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return png((b"IHDR", header), (b"tEXt", KEYWORD.encode() + b"\0" + text), (b"IEND", b""))


@pytest.mark.parametrize("softmax", [True, False])
@pytest.mark.parametrize("mark", [MARK, None])
def test_a_card_comes_back_as_it_was(tmp_path, softmax, mark):
    card = EditCard(
        edit(softmax=softmax, fingerprint=mark), "sepia \u8910", "aa'bb'", "clip", "flux", "column", 'a "b"', 0.7
    )
    loaded = load_card(write(tmp_path / "card.png", card))
    assert torch.equal(loaded.coefficients.values, card.coefficients.values)
    assert replace(loaded, coefficients=card.coefficients) == card
    c = loaded.coefficients
    assert (c.layers, c.softmax, c.fingerprint) == (LAYERS, softmax, mark)
    assert mark is None or c.fingerprint.bank == "mine.safetensors"
    assert "layout" not in json.loads(replace(card, layout="canvas").to_json())


def test_a_card_shows_the_edit(tmp_path):
    photo = np.full((60, 120, 3), (200, 30, 40), dtype=np.uint8)
    path = write(tmp_path / "card.png", EditCard(edit(), "redder"), photo)
    with Image.open(path) as picture:
        assert picture.format == "PNG" and picture.width == 480
        for x in (120, 360):
            assert np.abs(np.array(picture.convert("RGB").getpixel((x, 90)), int) - (200, 30, 40)).max() < 12
    assert load_picture(path, load_card(path)).shape[1] == 480
    assert is_card(path) and not is_card(tmp_path / "absent.png")
    with pytest.raises(FileExistsError, match=r"card\.png"):
        write(path, EditCard(edit()))


def test_a_card_of_flux_has_100_to_300_kb(tmp_path, photographs):
    """Of noise, too, which no PNG makes smaller."""
    layers = tuple(flux_layers(3072, 19, 38))
    assert len(layers) == 494
    values = torch.randn(494, 32, generator=torch.Generator().manual_seed(0)).softmax(-1)
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    for name, photo in (("noise", noise), ("photo", photographs["astronaut"])):
        path = write(tmp_path / f"{name}.png", EditCard(MixingCoefficients(values, layers, True, MARK)), photo)
        assert 100_000 <= path.stat().st_size <= 300_000
        assert torch.equal(load_card(path).coefficients.values, values)


def test_plain_coefficients_are_read_too(tmp_path):
    path = tmp_path / "plot.json"
    path.write_text(edit().to_json(), encoding="utf-8")
    card = load_card(path)
    assert torch.equal(card.coefficients.values, edit().values) and card.coefficients.fingerprint == MARK
    path.write_text(EditCard(edit(), "as JSON").to_json(), encoding="utf-8")
    assert load_card(path).name == "as JSON" and load_picture(path, load_card(path)).shape[1] == 480


def changed(**entries):
    return json.dumps({**json.loads(EditCard(edit()).to_json()), **entries}).encode()


WHOLE = with_text(EditCard(edit()).to_json().encode())
NAN = MixingCoefficients(torch.zeros(2, 6), LAYERS)
object.__setattr__(NAN, "values", torch.full((2, 6), torch.nan))
HOSTILE = {
    "empty": (b"", "neither a PNG picture nor a JSON"),
    "another kind": (b"GIF89a" + bytes(50), "neither a PNG picture nor a JSON"),
    "truncated": (WHOLE[:-20], "cut off"),
    "a header alone": (SIGNATURE, "cut off"),
    "a chunk of 4 GB": (SIGNATURE + b"\xff\xff\xff\xfftEXt" + bytes(99), "cut off"),
    "a flipped bit": (WHOLE.replace(b"to_q", b"to_k"), "checksum"),
    "a photograph": (png((b"IHDR", bytes([0, 0, 0, 1] * 2) + bytes(5)), (b"IEND", b"")), "0 texts named lorweb_edit"),
    "a huge picture": (with_text(EditCard(edit()).to_json().encode(), 2**31 - 1), "2,147,483,647 pixels|x 2,147"),
    "huge text": (with_text(b"[" * 25_000_000), "at most 24,000,000"),
    "a huge file": (SIGNATURE + bytes(33_000_000), "larger than 32,000,000"),
    "deep JSON": (with_text(b'{"a":' * 5000), "nested deeper"),
    "deep lists": (with_text(b"[" * 100_000), "more parts"),
    "millions of lists": (with_text(b'{"a": [' + b"[]," * 2_000_000 + b"[]]}"), "more parts"),
    "millions of numbers": (with_text(b'{"a": [' + b"1," * 2_000_000 + b"1]}"), "more parts"),
    "escaped quotes": (with_text(b'{"a": "' + b'\\"' * 2_000_000), "not JSON"),
    "a number of a million digits": (with_text(b'{"a": ' + b"9" * 1_000_000 + b"}"), "no edit can be read"),
    "no JSON": (with_text(b"{}}"), "not JSON"),
    "UTF-16": (with_text("{}".encode("utf-16")), "not JSON"),
    "a list": (with_text(b"[]"), "not an object"),
    "another format": (with_text(b'{"format": "png"}'), "lorweb-edit"),
    "another version": (with_text(changed(version=2)), "version 2, and this pack reads 1"),
    "no version": (with_text(changed(version=None)), "version None"),
    "short values": (with_text(changed(values="AAAA")), "64 letters of base64; found 4"),
    "no values": (with_text(changed(values=None)), "found None"),
    "no base64": (with_text(changed(values="*" * 64)), "not base64"),
    "padded base64": (with_text(changed(values="A" * 62 + "==")), "46 bytes; expected 48"),
    "NaN": (with_text(EditCard(NAN).to_json().encode()), "NaN"),
    "a strength of NaN": (with_text(changed(strength=float("nan"))), "strength is nan"),
    "a strength of text": (with_text(changed(strength="1")), "strength is '1'"),
    "another N": (with_text(changed(num_loras=7)), "76 letters of base64; found 64"),
    "no N": (with_text(changed(num_loras=True)), "num_loras is True"),
    "huge N": (with_text(changed(num_loras=10**30)), "num_loras is 1000"),
    "a layer less": (with_text(changed(layers=LAYERS[:1])), "32 letters of base64; found 64"),
    "no layers": (with_text(changed(layers=[])), "0 layers"),
    "layers of numbers": (with_text(changed(layers=[1, 2])), "module paths"),
    "twice a layer": (with_text(changed(layers=[LAYERS[0]] * 2)), "come twice"),
    "long layers": (with_text(changed(layers=["x" * 300, "y"])), "more than 200 letters"),
    "another activation": (with_text(changed(activation="relu")), "activation is 'relu'"),
    "no fingerprint": (with_text(changed(fingerprint="x" * 5000)), "fingerprint is 'xxx"),
    "a long bank": (with_text(changed(bank="x" * 5000)), "bank's name"),
    "a long prompt": (with_text(changed(prompt="x" * 20_000)), "prompt is"),
    "a name of numbers": (with_text(changed(name=[1])), "name is"),
    "JSON cut off": (EditCard(edit()).to_json().encode()[:100], "not JSON"),
    "two widths": (b'{"format":"lorweb-coefficients","softmax":true,"layers":{"a":[1],"b":[1,2]}}', "layer b"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_cards_get_one_clear_error(tmp_path, case):
    content, words = HOSTILE[case]
    path = tmp_path / "stranger.png"
    path.write_bytes(content)
    start = time.process_time()
    with pytest.raises(CardError, match=words) as caught:
        load_card(path)
    assert str(caught.value).startswith(f"{path}: ") and len(str(caught.value)) < 2000
    assert time.process_time() - start < 5


def test_no_file_and_a_folder(tmp_path):
    for path, words in ((tmp_path / "absent.png", "No such file"), (tmp_path, "not a file")):
        with pytest.raises(CardError, match=words):
            load_card(path)


def test_a_damaged_picture_is_a_card_error(tmp_path):
    path = tmp_path / "card.png"
    path.write_bytes(WHOLE)
    with pytest.raises(CardError, match=r"card\.png: .*picture is damaged"):
        load_picture(path, load_card(path))


def test_what_makes_no_card():
    for settings, words in (
        ({"coefficients": MixingCoefficients(torch.ones(2, 2, 6), LAYERS)}, "batch"),
        ({"name": "x" * 301}, "name is"),
        ({"strength": float("inf")}, "strength is inf"),
    ):
        with pytest.raises(ValueError, match=words):
            EditCard(**{"coefficients": edit(), **settings})


def test_a_bank_refuses_the_edits_of_another(make_bank):
    """Of equal layers, N and settings: nothing but the fingerprint tells."""
    mine, other = (BasisBank.load(make_bank(Spec(seed=seed), name=f"{name}.safetensors")[0])
                   for seed, name in ((0, "mine"), (1, "other")))  # fmt: skip
    c = mine.mix(torch.randn(36))
    assert c.fingerprint == mine.fingerprint != other.fingerprint
    with pytest.raises(ValueError, match=f"mixed by mine.safetensors .*{mine.fingerprint.digest}.* is other.safetens"):
        other.compose(c)
    with pytest.raises(ValueError, match=r"do not blend: mine\.safetensors .* and other\.safetensors"):
        MixingCoefficients.blend([c, other.mix(torch.randn(36))])
    unknown = replace(c, fingerprint=None)
    assert other.compose(unknown) and MixingCoefficients.blend([unknown, c]).fingerprint == mine.fingerprint
    for changed in (c.mean(), c.temperature(2), c.top_k(2), c.scale_blocks([]), c.override([]),
                    MixingCoefficients.blend([c, c]), MixingCoefficients.from_json(c.to_json())):  # fmt: skip
        assert mine.compose(changed) and changed.fingerprint.bank == "mine.safetensors"


def test_fingerprints(make_bank, tmp_path):
    """A copy of a bank is the bank; one value of a key, or another dtype, makes another."""
    path, _ = make_bank(name="one.safetensors")
    bank = BasisBank.load(path)
    bank.save(tmp_path / "copy.safetensors")
    assert BasisBank.load(tmp_path / "copy.safetensors").fingerprint == bank.fingerprint
    assert BasisBank.load(path, mmap=False).fingerprint == bank.fingerprint
    for name in ("lora_keys", "lora_A", "lora_B", "att_lora_to_q.weight"):
        tensor = f"transformer.{LAYERS[0]}.{name}"
        altered, _ = make_bank(change=lambda t, tensor=tensor: t[tensor].flatten()[3].add_(1e-3), name="x.safetensors")
        assert BasisBank.load(altered).fingerprint != bank.fingerprint, name


@pytest.mark.parametrize("place", [0, 63, 32 * 3072 * 2, -64, -1])
def test_samples_of_large_tensors_lie_at_both_ends_and_in_the_middle(place):
    tensor = torch.zeros(32, 3072, 4, dtype=torch.float16)

    def digest():
        taker = FingerprintTaker()
        taker.add("x", tensor)
        return taker.fingerprint("x").digest

    before = digest()
    tensor.view(-1)[place] = 1
    assert digest() != before


@pytest.fixture
def folder(tmp_path):
    """Three edits near, far and farther from edit 0, one of another bank, a photograph and a text."""
    near = MixingCoefficients.blend([edit(0), edit(1)], [0.9, 0.1])
    for name, c in (("near", near), ("far", edit(1)), ("farther", edit(2)), ("self", edit(0))):
        write(tmp_path / f"{name}.png", EditCard(c, name))
    write(tmp_path / "other.png", EditCard(edit(3, fingerprint=Fingerprint("f" * 32, "other.safetensors")), "other"))
    Image.new("RGB", (4, 4)).save(tmp_path / "photo.png")
    (tmp_path / "notes.txt").write_text("not listed", encoding="utf-8")
    return tmp_path


def test_nearest_edits(folder):
    gallery = Gallery.of_folder(folder).like(edit(0))
    assert {path.name for path in gallery.cards} == {"near.png", "far.png", "farther.png"}
    reasons = {path.name: reason for path, reason in gallery.refused.items()}
    assert "0 texts" in reasons["photo.png"] and "the very edit" in reasons["self.png"]
    assert "other.safetensors" in reasons["other.png"]
    matches = nearest(edit(0), gallery.cards, 2)
    values = torch.stack([card.coefficients.values.flatten() for card in gallery.cards.values()]).double()
    query = edit(0).values.flatten().double() - values.mean(0)
    expected = {p.name: float(torch.cosine_similarity(query, v - values.mean(0), dim=0))
                for p, v in zip(gallery.cards, values, strict=True)}  # fmt: skip
    assert [match.path.name for match in matches] == sorted(expected, key=expected.get)[:-3:-1]
    assert matches[0].path.name == "near.png"
    assert all(match.cosine == pytest.approx(expected[match.path.name], abs=1e-5) for match in matches)
    assert contact_sheet(matches).shape[1] == 2 * 314 + 14
    with pytest.raises(ValueError, match="k is 0"):
        nearest(edit(0), gallery.cards, 0)
    assert nearest(edit(0), {}, 3) == []


def test_layers_in_another_order_are_the_same_edit():
    flipped = replace(edit(0), values=edit(0).values.flip(0), layers=LAYERS[::-1])
    assert Gallery({"x": EditCard(flipped)}, {}).like(edit(0)).refused["x"] == (
        "x: the very edit that others are sought for"
    )


def test_cosines_of_the_mean_are_0():
    vectors = torch.eye(3)
    assert torch.equal(centred_cosines(vectors.mean(0)[None], vectors), torch.zeros(1, 3))


def test_commands(folder, capsys):
    assert main(["edits", str(folder)]) == 0
    out, err = capsys.readouterr()
    assert "near.png: near: 2 layers x 6, of mine.safetensors" in out and "left out:" in err and "photo.png" in err
    sheet = folder / "sheet.png"
    assert main(["edits", str(folder), "--like", str(folder / "self.png"), "--top", "2", "--sheet", str(sheet)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and "near.png" in lines[0] and sheet.is_file()
    assert main(["edits", str(folder / "absent")]) == 1
    assert "no such folder" in capsys.readouterr().err
    assert main(["edits", str(folder), "--like", str(folder / "photo.png")]) == 1
    with pytest.raises(SystemExit):
        main(["edits", str(folder), "--sheet", str(sheet)])
