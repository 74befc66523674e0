"""The picture of how refining went."""

import numpy as np
import pytest
import torch

from lorweb_core.losscurve import CURVE, FITTED, HELD_OUT, beside, loss_curve
from lorweb_core.plot import INK
from lorweb_core.refine import Record

NAN = float("nan")
FALLING = [Record(0, NAN, 0.5), Record(4, 0.6, 0.4), Record(8, 0.4, 0.3)]
BELOW_WORDS = 45


def places(picture, colour):
    """(x, y) of the pixels of a colour below the words."""
    rows, columns = np.nonzero((picture == colour).all(-1))
    return columns[rows > BELOW_WORDS], rows[rows > BELOW_WORDS]


@pytest.mark.parametrize("colour", [FITTED, HELD_OUT])
def test_a_falling_loss_falls(colour):
    picture = loss_curve(FALLING, 8)
    assert picture.shape == (CURVE[1], CURVE[0], 3) and picture.dtype == np.uint8
    x, y = places(picture, colour)
    first, last = y[x < x.min() + 8].mean(), y[x > x.max() - 8].mean()
    assert last > first + 50
    assert x.max() > CURVE[0] - 40


def test_what_was_kept_is_ringed():
    for step in (0, 4, 8):
        x, _ = places(loss_curve(FALLING, step), INK)
        assert x.mean() == pytest.approx(64 + step / 8 * (CURVE[0] - 92), abs=4)
    assert not len(places(loss_curve(FALLING), INK)[0])


def test_a_curve_that_goes_on_leaves_room_for_the_steps_to_come():
    x, _ = places(loss_curve(FALLING[:2], steps=16), HELD_OUT)
    assert x.max() < CURVE[0] / 2
    assert len(places(loss_curve(FALLING[:1]), HELD_OUT)[0]), "the guess alone is a point"


def test_a_picture_stands_beside_it():
    curve, answer = loss_curve(FALLING), torch.full((32, 16, 3), 0.5)
    assert np.array_equal(np.asarray(beside(curve, None)), curve)
    both = np.asarray(beside(curve, answer))
    assert both.shape == (CURVE[1], CURVE[0] + CURVE[1] // 2, 3)
    assert np.array_equal(both[:, : CURVE[0]], curve) and (both[:, CURVE[0] :] == 128).all()
