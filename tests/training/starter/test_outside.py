"""The set of edits that others wrote."""

import sys

import numpy as np
import pytest

from benchmarks import _starter_outside
from benchmarks._starter_outside import ANALOGIES_EACH, OutsideSet, likeness
from benchmarks._starter_transformations import TRANSFORMATIONS, Pixels, transform
from training.pictures import photographs
from training.pictures.edits import EDITS
from training.pictures.recipe import edit_of

SIDE = 64


@pytest.fixture(scope="module")
def crops() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [(255 * photographs.random_crop(rng, name, SIDE)).astype(np.uint8) for name in ("chelsea", "flower")]


def test_there_are_forty_that_the_generator_has_nothing_like():
    assert sum(likeness(name) == "like none" for name in TRANSFORMATIONS) >= 40
    assert {edit.like for edit in TRANSFORMATIONS.values()} - {""} <= set(EDITS)
    assert ANALOGIES_EACH * len(TRANSFORMATIONS) >= 200


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_transformations_are_seen_and_fall_alike(name, crops):
    errors = []
    for crop in crops:
        changed = transform(name, crop)
        assert changed.shape == crop.shape and changed.dtype == np.uint8
        assert (transform(name, crop) == changed).all()
        errors.append(np.mean((changed / 255 - crop / 255) ** 2))
    assert np.mean(errors) > 1e-3  # 30 dB


def test_lengths_follow_the_side():
    assert [Pixels(0.2).at(side) for side in (64, 128)] == [13, 26]
    assert [Pixels(0.2, odd=True).at(side) for side in (4, 64, 128)] == [3, 13, 27]


def test_example_and_answer_show_different_photographs_and_every_transformation_comes_in_turn(monkeypatch):
    drawn, pair = [], _starter_outside.pair_of
    monkeypatch.setattr(_starter_outside, "pair_of", lambda *key: drawn.append(key) or pair(*key))
    dataset = OutsideSet(32)
    items = [dataset[number] for number in (0, 1, len(TRANSFORMATIONS), len(dataset) - 1)]
    names = list(TRANSFORMATIONS)
    assert [item["task"] for item in items] == [f"outside/{name}" for name in (names[0], names[1], names[0], names[-1])]
    assert edit_of(items[0]["task"]) not in EDITS  # some are called as an edit of the generator is
    for (task, example, *_), (same, answer, *_) in zip(drawn[::2], drawn[1::2]):
        assert task == same and example != answer and {example, answer} <= set(photographs.HELD_OUT)
    item = items[0]
    assert item["target"].shape == item["reference"].shape == (64, 64, 3) and item["b"].shape == (32, 32, 3)
    assert (item["target"][:32] == item["reference"][:32]).all()
    expected = transform(names[0], (item["b"].numpy() * 255 + 0.5).astype(np.uint8)) / np.float32(255)
    assert np.array_equal(item["target"][32:, 32:], expected)


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "albumentations", None)
    with pytest.raises(ValueError, match="needs albumentations; pip install albumentations"):
        transform("jpeg", np.zeros((8, 8, 3), np.uint8))
