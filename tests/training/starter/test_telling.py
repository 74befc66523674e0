"""What the starter's base is told of an edit, in numbers."""

import numpy as np
import pytest
import torch

from training.pictures.edits import EDITS, TRAINING_EDITS
from training.starter.base import Base, BaseSettings
from training.starter.shards import Drawn
from training.starter.telling import NOTHING, Vocabulary, about_parameters, parameters_of


@pytest.mark.parametrize(
    ("gain", "expected"), [(0.7, {0: 1.0}), (0.775, {0: 0.5, 1: 0.5}), (0.85, {1: 1.0}), (0.97, {1: 0.2, 2: 0.8})]
)
def test_parameters_are_told_between_knots(gain, expected):
    told = about_parameters(EDITS["invert"], {"gain": gain})  # of 0.7 to 1
    assert told == pytest.approx({f"invert.gain.{knot}": weight for knot, weight in expected.items()})


def test_every_task_can_be_told():
    vocabulary = Vocabulary()
    task = Drawn(("invert", "mirror"), ({"gain": 0.775}, {}))
    assert parameters_of(task) == pytest.approx({"invert.gain.0": 0.5, "invert.gain.1": 0.5})
    for name in TRAINING_EDITS:
        values = EDITS[name].parameters(np.random.default_rng(0))
        told = about_parameters(EDITS[name], values)
        assert sum(told.values()) == pytest.approx(len(EDITS[name].spans)) and all(0 < w <= 1 for w in told.values())
        assert vocabulary.spell([told]).sum() == pytest.approx(len(EDITS[name].spans))


def test_what_is_told_adds_up():
    vocabulary = Vocabulary(("invert", "mirror"))
    base = Base(BaseSettings(heads=1, single=1), vocabulary, 32)
    told = {NOTHING: 1.0, "invert": 1.0, "invert.gain.1": 0.4, "invert.gain.2": 0.6}
    rows = base.instructions.weight
    expected = torch.stack((rows[0], sum(weight * rows[vocabulary.numbers[name]] for name, weight in told.items())))
    torch.testing.assert_close(base.pooled(vocabulary.spell([{NOTHING: 1.0}, told])), expected)
    assert set(vocabulary.prompts()) == {NOTHING, "tone_and_colour", "geometry", "invert", "mirror"}
