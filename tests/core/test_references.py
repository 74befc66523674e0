"""The separate layout: three reference pictures and an answer of its own, and where a bank says that it is meant."""

import json

import pytest
import torch
from safetensors import safe_open

from lorweb_core import BankError, BasisBank, Frame
from lorweb_core.canvas import MULTIPLE
from lorweb_core.card import EditCard
from lorweb_core.config import LAYOUTS
from lorweb_core.info import describe
from lorweb_core.references import reference_frame, references

from .test_canvas import SHAPES, image


@pytest.mark.parametrize("megapixels", [0.25, 1.0])
@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_an_answer_has_bs_aspect_ratio_and_the_chosen_size(height, width, megapixels):
    frame = Frame.plan(height, width, megapixels)
    assert frame.height % MULTIPLE == 0 == frame.width % MULTIPLE
    assert abs(frame.content_width - frame.content_height * width / height) <= 0.5 + 0.5 * max(1, width / height)
    assert abs(frame.height * frame.width / (megapixels * 1024**2) - 1) < 0.35
    assert 0.8 * 640 <= max((side := Frame.plan(height, width, long_side=640)).height, side.width) <= 640


def test_a_square_megapixel_is_1024():
    frame = Frame.plan(700, 700)
    assert (frame.height, frame.width, frame.content_height, frame.content_width) == (1024,) * 4


@pytest.mark.parametrize(("height", "width"), SHAPES)
@pytest.mark.parametrize("answer", [Frame.plan(512, 512, 0.25), Frame.plan(427, 640, 1.0)], ids=["512", "768x1152"])
def test_references_are_no_larger_than_the_answer_and_never_enlarged(height, width, answer):
    frame = reference_frame(answer, height, width)
    assert frame.height % MULTIPLE == 0 == frame.width % MULTIPLE
    assert frame.height * frame.width <= answer.height * answer.width
    assert frame.content_height <= height and frame.content_width <= width
    assert frame.height - frame.content_height < MULTIPLE or frame.width - frame.content_width < MULTIPLE
    ratio = min(frame.content_height / height, frame.content_width / width)
    sides = (frame.content_height, frame.content_width)
    assert all(abs(side - ratio * own) <= 1 for side, own in zip(sides, (height, width), strict=True))
    fits = -(-height // MULTIPLE) * -(-width // MULTIPLE) * MULTIPLE**2 <= answer.height * answer.width
    assert not fits or sides == (height, width)


@pytest.mark.parametrize("side", [512, 700, 1000, 2048, 3001])
def test_a_pair_of_the_answers_shape_has_its_frame(side):
    answer = Frame.plan(side, side, 0.25)
    frame = reference_frame(answer, side, side)
    assert (frame.height, frame.width) == (answer.height, answer.width) == (512, 512)


def test_references_are_a_a_prime_b_in_this_order():
    a, b = torch.full((1, 40, 64, 3), 0.1), torch.full((2, 64, 96, 3), 0.3)
    a_prime = torch.cat((torch.full((1, 80, 64, 3), 0.2), torch.full((1, 80, 64, 3), 0.4)), dim=2)  # of another shape
    pictures = references(Frame.whole(64, 96), a, a_prime, b)
    assert [tuple(picture.shape) for picture in pictures] == [(1, 48, 64, 3), (1, 48, 64, 3), (2, 64, 96, 3)]
    assert [float(picture[0, 20, 4, 0]) for picture in pictures] == pytest.approx([0.1, 0.2, 0.3])
    assert float(pictures[1][0, 20, 60, 0]) == pytest.approx(0.4)


def test_b_prime_comes_back_at_bs_own_size():
    for height, width in [(64, 64), (61, 90), (300, 301)]:
        b = image(height, width, batch=2)
        frame = Frame.whole(height, width)
        assert torch.equal(frame.crop(frame.fill(b, "stretch")), b)
    b = image(90, 61)
    frame = Frame.plan(90, 61, long_side=160)
    assert frame.crop(frame.fill(b, "stretch")).shape == b.shape
    assert frame.crop(frame.fill(b), original_size=False).shape[1:3] == (frame.content_height, frame.content_width)


def test_errors_name_the_picture():
    frame = Frame.plan(64, 64, long_side=64)
    with pytest.raises(ValueError, match="the picture is 128 x 128 pixels, but its geometry says 64 x 64"):
        frame.crop(torch.zeros(1, 128, 128, 3))
    with pytest.raises(ValueError, match="fits a picture with a longer side of 32 pixels"):
        Frame.plan(10, 4000, long_side=32)
    assert "The picture is 2016 x 112: its sides differ" in Frame.plan(100, 1800, 0.2).warning


def test_a_bank_says_its_layout(make_bank, tmp_path):
    plain = BasisBank.load(make_bank()[0])
    assert plain.config.layout == "canvas" and "layout: canvas (a, a', b and b' on one 2x2 picture" in describe(plain)
    assert BasisBank.load(make_bank(layout="canvas", name="said.safetensors")[0]).config.layout == "canvas"
    separate = BasisBank.load(make_bank(layout="separate", name="separate.safetensors")[0])
    assert separate.config.layout == "separate" and "layout: separate (a, a', b as three" in describe(separate)
    for bank in (plain, separate):
        bank.save(tmp_path / "again.safetensors")
        assert BasisBank.load(tmp_path / "again.safetensors").config == bank.config
        with safe_open(tmp_path / "again.safetensors", "pt") as file:
            header = json.loads(file.metadata()["lorweb_config"])
        assert header.get("layout", "absent") == ("absent" if bank is plain else "separate")


@pytest.mark.parametrize("value", ["grid", "", 3, None, ["canvas"]])
def test_an_unknown_layout_is_refused(make_bank, value):
    path, _ = make_bank(layout=value)
    with pytest.raises(BankError, match=f"layout is .*; expected one of {', '.join(LAYOUTS)}"):
        BasisBank.load(path)


def test_a_released_bank_is_of_the_canvas_layout(make_bank):
    assert BasisBank.load(make_bank(yaml_kwargs={"lora_heads": 4})[0]).config.layout == "canvas"


def test_cards_say_a_layout_that_is_not_the_canvas(make_bank):
    bank = BasisBank.load(make_bank()[0])
    edit = bank.mix(torch.zeros(bank.config.query_dim))
    assert EditCard(edit, "red", layout="separate").describe().endswith(", layout separate")
    assert "layout" not in EditCard(edit, "red").describe()
