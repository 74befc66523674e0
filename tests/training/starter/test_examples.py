"""The starter's examples are what their code draws, whether photographs were fetched or not."""

import numpy as np
from PIL import Image

from harness.comfyui import ROOT
from training.pictures import photographs
from training.pictures.edits.edit import eight_bits
from training.starter.examples import examples

EXAMPLES = ROOT / "starter" / "examples"


def test_what_ships_is_what_is_drawn(monkeypatch):
    monkeypatch.setattr(photographs, "HELD_OUT", ("one_that_was_fetched", "another"))
    there = dict(examples())
    assert set(there) == {folder.name for folder in EXAMPLES.iterdir()}
    for name, images in there.items():
        for image, pixels in images.items():
            shipped = np.asarray(Image.open(EXAMPLES / name / f"{image}.png"))
            np.testing.assert_array_equal(shipped, eight_bits(pixels), f"{name}/{image}")
