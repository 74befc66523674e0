"""What links bring past ComfyUI's own checks, and names of files to save: the right value or an error that says it."""

import re

import folder_paths
import pytest
import torch
from lorweb_pack.lorweb_core import BasisBank
from lorweb_pack.nodes.apply import Apply
from lorweb_pack.nodes.canvas import Canvas, CropResult
from lorweb_pack.nodes.coefficients import AdjustCoefficients, BlendCoefficients
from lorweb_pack.nodes.export import SaveLoRA, output_path
from lorweb_pack.nodes.values import rgb

from harness.small_models import random_bank

NAN, INFINITY = float("nan"), float("inf")
IMAGE = torch.rand(1, 32, 48, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    layers = {"transformer_blocks.0.attn.to_q": (8, 8)}
    return BasisBank.load(random_bank(tmp_path_factory.mktemp("bank") / "bank.safetensors", layers, 4, 2, 8, 24))


@pytest.fixture(scope="module")
def coefficients(bank):
    return bank.mix(torch.ones(24))


def test_grey_becomes_rgb_and_alpha_goes():
    grey = IMAGE[..., :1]
    for images in (grey, torch.cat((grey, torch.zeros_like(grey)), -1)):
        assert torch.equal(rgb(images, "b"), grey.repeat(1, 1, 1, 3))
    assert torch.equal(rgb(torch.cat((IMAGE, grey), -1), "b"), IMAGE)
    assert rgb(torch.ones(1, 512, 512, 3, dtype=torch.float16), "b").sum() > 0, "half precision sums overflow"


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (torch.zeros(1, 32, 48), "image_b is of shape 1 x 32 x 48; .*Convert Mask to Image"),
        (torch.zeros(0, 32, 48, 3), "image_b is of shape 0 x 32 x 48 x 3; .*at least one image"),
        (torch.zeros(1, 0, 48, 3), "image_b is of shape 1 x 0 x 48 x 3; .*at least one"),
        (IMAGE * NAN, "image_b is nan"),
        (IMAGE * INFINITY, "image_b is inf"),
    ],
)
def test_what_is_no_image_is_named(images, words):
    with pytest.raises(ValueError, match=words):
        Canvas.execute(IMAGE, IMAGE, images, 1.0, 128, "crop")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"long_side": 10**12}, r"long_side is 1000000000000; it can be from 0 to 8192"),
        ({"megapixels": NAN}, "megapixels is nan; it can be from 0.0 to 8.0"),
        ({"megapixels": 10.0**12}, "megapixels is 1000000000000.0; it can be"),
        ({"fit": "cut"}, "fit is 'cut'; it can be crop, pad, stretch"),
    ],
)
def test_a_canvas_of_no_size_is_refused(value, words):
    with pytest.raises(ValueError, match=words):
        Canvas.execute(IMAGE, IMAGE, IMAGE, **{"megapixels": 1.0, "long_side": 128, "fit": "crop", **value})


def test_the_pixels_of_a_mask_are_no_canvas():
    geometry = Canvas.execute(IMAGE, IMAGE, IMAGE, 1.0, 128, "crop").args[1]
    with pytest.raises(ValueError, match="image is of shape"):
        CropResult.execute(torch.zeros(1, geometry.height, geometry.width), geometry)


@pytest.mark.parametrize("number", [NAN, INFINITY, -1e30])
def test_numbers_that_make_black_pictures_are_refused(bank, coefficients, number):
    with pytest.raises(ValueError, match=re.escape(f"strength is {number}")):
        Apply.execute(None, bank, coefficients, number)
    if number != -1e30:
        with pytest.raises(ValueError, match=f"blend is {number}"):
            BlendCoefficients.execute(coefficients, coefficients, number)
        with pytest.raises(ValueError, match=f"temperature is {number}"):
            AdjustCoefficients.execute(coefficients, number, 0, "", "")


@pytest.mark.parametrize("wrong", [{"dtype": "float8"}, {"format": "kohya"}, {"max_rank": -1}])
def test_save_refuses_what_its_widgets_do_not_offer(bank, coefficients, wrong):
    values = {"filename_prefix": "loras/x", "format": "diffusers", "max_rank": 0, "dtype": "float16", **wrong}
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"{name} is {value!r}; it can be"):
        SaveLoRA.execute(bank, coefficients, **values)


@pytest.fixture
def output(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("prefix", "first", "listed"),
    [
        ("loras/lorweb", "loras/lorweb_00001_.safetensors", True),
        ("loras/", "loras/lorweb_00001_.safetensors", True),
        ("", "loras/lorweb_00001_.safetensors", True),
        ("./", "lorweb_00001_.safetensors", False),
        ("mine/edit", "mine/edit_00001_.safetensors", False),
        ("loras/mine/edit", "loras/mine/edit_00001_.safetensors", True),
    ],
)
def test_a_saved_lora_replaces_no_file(bank, coefficients, output, prefix, first, listed):
    """Saved twice: two files; and the node says when the stock loader does not list them."""
    saved = [SaveLoRA.execute(bank, coefficients, prefix, "diffusers", 0, "float16") for _ in range(2)]
    files = {str(path.relative_to(output)) for path in output.rglob("*.safetensors")}
    assert files == {first, first.replace("00001", "00002")}
    assert saved[0].args == (first.removeprefix("loras/") if listed else first,)
    text = saved[0].ui.as_dict()["text"][0]
    assert ("ComfyUI's LoRA loader does not list it" in text) != listed


def test_a_name_that_is_taken_is_passed_over(output):
    """ComfyUI counts the names that it can read: a link to nowhere and another case are taken, too."""
    (output / "loras").mkdir()
    (output / "loras" / "x_00001_.safetensors").symlink_to("nowhere")
    path, name, _ = output_path("loras/x")
    assert (path, name) == (str(output / "loras" / "x_00002_.safetensors"), "x_00002_.safetensors")


def test_a_prefix_outside_the_output_folder_is_refused(output):
    with pytest.raises(Exception, match="outside the output"):
        output_path("..")
