"""Canvas warns of sizes far from those that a bank was trained on, and of nothing else."""

import pytest
import torch
from lorweb_pack.lorweb_core import BasisBank, CanvasGeometry
from lorweb_pack.nodes.canvas import Canvas, size_warning
from safetensors.torch import load_file, save_file

from harness.small_models import random_bank

LAYERS = {"transformer_blocks.0.attn.to_q": (8, 8)}


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A bank whose file does not say on what it was trained: on canvases of 512 pixels, as the released ones."""
    return BasisBank.load(random_bank(tmp_path_factory.mktemp("bank") / "bank.safetensors", LAYERS, 4, 2, 8, 24))


@pytest.fixture(scope="module")
def small(released, tmp_path_factory):
    """The same, trained on canvases of 128 pixels."""
    path = tmp_path_factory.mktemp("bank") / "small.safetensors"
    save_file(load_file(released.path), path, metadata=released.metadata | {"canvas": "128"})
    return BasisBank.load(path)


@pytest.mark.parametrize("shape", [(1000, 1000), (600, 900), (900, 300)])
@pytest.mark.parametrize("megapixels", [0.1, 0.25, 1.0])
def test_sizes_near_the_training_are_fine(released, shape, megapixels):
    assert size_warning(CanvasGeometry.plan(*shape, megapixels), released) == ""


@pytest.mark.parametrize("side", [192, 2048])
def test_far_sizes_are_named_with_what_to_do(released, side):
    text = size_warning(CanvasGeometry.plan(100, 100, long_side=side), released)
    assert f"{side} x {side}" in text and "bank.safetensors was trained on canvases of 512 x 512" in text
    assert "Set long_side to 512" in text


@pytest.mark.parametrize(("side", "far"), [(224, True), (256, False), (1056, False), (1120, True)])
def test_how_far_is_far(released, side, far):
    """A canvas may have 4.5 times more or fewer pixels than 512 x 512: 241 to 1086 pixels a side."""
    assert bool(size_warning(CanvasGeometry.plan(100, 100, long_side=side), released)) == far


def test_a_canvas_shows_the_first_of_several_pairs():
    pictures = torch.rand(2, 64, 64, 3)
    one, several = (
        Canvas.execute(a, a.flip(1), pictures[:1], 1.0, 128, "crop").args[0] for a in (pictures[:1], pictures)
    )
    assert one.shape == (1, 128, 128, 3) and torch.equal(one, several)


def test_the_node_shows_it_when_it_knows_the_bank(small):
    image = torch.rand(1, 64, 64, 3)
    for side, basis, warned in ((128, small, False), (1024, small, True), (1024, None, False)):
        shown = Canvas.execute(image, image, image, 1.0, side, "crop", basis).ui
        assert (shown is not None) == warned
        if warned:
            assert "trained on canvases of 128 x 128" in shown.as_dict()["text"][0]
