"""The catalogue of edits: what every one of them must be, and what some of them must do."""

from functools import cache

import numpy as np
import pytest

from training.pictures import photographs, scenes, textures
from training.pictures.edits import (
    COMPOSITIONS,
    EDITS,
    FAMILIES,
    HELD_OUT_EDITS,
    IDENTITY,
    TRAINING_EDITS,
    Choice,
    Span,
    compose,
    followers,
)
from training.pictures.recipe import PHOTOGRAPHS, TRAINING_SUBJECTS
from training.pictures.scenes import PALETTE, Background, Scene, Thing

SIDE, SMALL = 64, 32
EVERY = EDITS | COMPOSITIONS
CHANGING = [name for name in EVERY if name != IDENTITY]


def draw(edit, number, side=SIDE, held=False, names=photographs.TRAINING_IN_WHEELS):
    rng = np.random.default_rng([5, number])
    return edit.pair(rng, edit.parameters(rng, held), side, names)


def psnr(first, second):
    return -10 * np.log10(np.mean((first - second) ** 2) + 1e-9)


@pytest.fixture(scope="module")
def drawn():
    """drawn(name, number) -> a small pair of an edit, each drawn once."""
    return cache(lambda name, number: draw(EVERY[name], number, SMALL, names=photographs.HELD_OUT_IN_WHEELS))


@pytest.mark.parametrize("name", EVERY)
def test_pairs_are_images_and_functions_of_the_seed(name, drawn):
    pair = drawn(name, 0)
    again = draw(EVERY[name], 0, SMALL, names=photographs.HELD_OUT_IN_WHEELS)
    assert all(np.array_equal(*images) for images in zip(pair, again))
    assert not np.array_equal(pair[0], drawn(name, 1)[0])
    for image in pair:
        assert image.shape == (SMALL, SMALL, 3) and image.dtype == np.float32
        assert image.min() >= 0 and image.max() <= 1


def is_visible(before, after):
    """Whether the change is of some grey levels on the whole, or clear at one place."""
    change = 255 * abs(after - before).mean(-1)
    return change.mean() > 1.5 or change.reshape(8, 4, 8, 4).mean((1, 3)).max() > 8


@pytest.mark.parametrize("name", CHANGING)
def test_every_edit_can_be_seen_on_nearly_every_subject(name, drawn):
    assert sum(is_visible(*drawn(name, number)) for number in range(4)) >= 3


def test_the_edit_that_changes_nothing_is_trained_and_follows_no_other(drawn):
    assert np.array_equal(*drawn(IDENTITY, 0)) and IDENTITY in TRAINING_EDITS
    assert not any(IDENTITY in followers(first) for first in TRAINING_EDITS)


@pytest.mark.parametrize("name", [name for name, edit in EVERY.items() if edit.apply])
def test_any_image_can_be_edited_again_with_the_same_parameters(name):
    edit, rng = EVERY[name], np.random.default_rng(3)
    parameters = edit.parameters(rng)
    before, after = edit.pair(rng, parameters, SMALL, TRAINING_SUBJECTS)
    # The subject lies otherwise in memory, so that sums round otherwise; a pixel may fall over a threshold.
    assert np.abs(edit.apply(before, parameters) - after).mean() < 1e-3


@pytest.mark.parametrize("side", [7, 30])
def test_edits_work_at_any_side(side):
    image = np.random.default_rng(0).random((side, side, 3), dtype=np.float32)
    for name, edit in EDITS.items():
        if edit.apply:
            after = edit.apply(image, edit.parameters(np.random.default_rng(0)))
            assert after.shape == image.shape and after.dtype == np.float32, name
            assert np.isfinite(after).all(), name


def test_where_nothing_varies_an_edit_is_finite():
    """Beside what varies from very little to much, running sums do not come back to zero."""
    image = np.zeros((64, 64, 3), np.float32)
    image[:, :32] = np.random.default_rng(70).random((64, 32, 1)) ** 20
    for name, edit in EDITS.items():
        if edit.apply:
            assert np.isfinite(edit.apply(image, edit.parameters(np.random.default_rng(0)))).all(), name


def test_edits_draw_scenes_and_the_named_photographs(monkeypatch):
    asked = []

    def crop(rng, name, side):
        asked.append(name)
        return np.zeros((side, side, 3), np.float32)

    monkeypatch.setattr(photographs, "random_crop", crop)
    for number in range(200):
        draw(EDITS["invert"], number, names=photographs.HELD_OUT_IN_WHEELS)
    assert set(asked) == set(photographs.HELD_OUT_IN_WHEELS) and 120 < len(asked) < 180


def test_the_catalogue_is_as_large_as_promised_and_split_by_family():
    assert len(EDITS) >= 400 and len(FAMILIES) == 10 and len(HELD_OUT_EDITS) >= len(EDITS) / 10
    assert set(TRAINING_EDITS).isdisjoint(HELD_OUT_EDITS) and set(TRAINING_EDITS) | set(HELD_OUT_EDITS) == set(EDITS)
    for names in (TRAINING_EDITS, HELD_OUT_EDITS):
        assert {EDITS[name].family for name in names} == set(FAMILIES)


def test_photographs_are_split():
    assert set(photographs.TRAINING).isdisjoint(photographs.HELD_OUT) and len(photographs.HELD_OUT) >= 2
    for name in photographs.TRAINING + photographs.HELD_OUT:
        image = photographs.load(name)
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3


def test_compositions_are_of_trained_edits_of_two_families():
    for name, edit in COMPOSITIONS.items():
        first, second = name.split("+")
        assert {first, second} <= set(TRAINING_EDITS) and EDITS[first].family != EDITS[second].family
        assert edit.family == "composition" and name not in EDITS


def test_no_held_out_composition_can_be_trained_in_either_order():
    for name in COMPOSITIONS:
        first, second = name.split("+")
        assert second not in followers(first) and first not in followers(second)
    after_invert = {"border_white", "insert_yellow_star", "half_turn", "move_right"}
    can_follow = {name for name in TRAINING_EDITS if EDITS[name].apply is not None}
    assert set(followers("invert")) == can_follow - after_invert - {IDENTITY}


def test_held_out_parameters_lie_outside_what_training_draws():
    rng = np.random.default_rng(0)
    for span in {span for edit in EDITS.values() for span in edit.spans.values()}:
        seen, unseen = ([span.draw(rng, held) for _ in range(60)] for held in (False, True))
        if isinstance(span, Choice):
            assert set(seen) == set(span.trained) and set(unseen) == set(span.held) and not set(seen) & set(unseen)
            continue
        assert isinstance(span, Span)
        low, high = span.held
        assert span.low < low <= min(unseen) and max(unseen) <= high < span.high
        assert not any(low <= value <= high for value in seen)
        assert min(seen) < low and max(seen) > high and span.low <= min(seen) and max(seen) <= span.high


def thumbnail(image, side=8):
    """Means of blocks: what dots and hatches look like from afar."""
    block = len(image) // side
    return image.reshape(side, block, side, block, 3).mean((1, 3))


@pytest.mark.parametrize("name", EVERY)
def test_larger_images_show_the_same(name, drawn):
    small, large = drawn(name, 0)[1], draw(EVERY[name], 0, 2 * SMALL, names=photographs.HELD_OUT_IN_WHEELS)[1]
    assert psnr(thumbnail(small), thumbnail(large)) > 15  # other subjects are at about 12


def test_a_second_edit_of_scenes_is_refused():
    with pytest.raises(ValueError, match="remove_red edits scenes only and cannot follow invert"):
        compose(EDITS["invert"], EDITS["remove_red"])


def test_an_oblong_image_is_refused():
    with pytest.raises(ValueError, match=r"vignette edits square colour images, but this one is \[8, 12, 3\]"):
        EDITS["vignette"].apply(np.zeros((8, 12, 3), np.float32), {"strength": 4.0})


@pytest.fixture
def photo():
    return photographs.random_crop(np.random.default_rng(1), "coffee", SIDE)


def apply(name, image, **parameters):
    return EDITS[name].apply(image, parameters)


def test_geometry_moves_pixels(photo):
    assert np.array_equal(apply("mirror", photo), photo[:, ::-1])
    assert np.array_equal(apply("flip", photo), photo[::-1])
    assert np.array_equal(apply("quarter_turn", photo)[0], photo[::-1, 0])  # clockwise: the left side becomes the top
    assert np.array_equal(apply("three_quarter_turn", apply("quarter_turn", photo)), photo)
    assert np.allclose(apply("zoom_in", photo, factor=2.0)[32, 32], photo[32, 32], atol=0.1)
    moved = apply("shift_right", photo, distance=0.25)
    assert np.array_equal(moved[:, 16:], photo[:, :-16]) and np.array_equal(moved[:, 0], photo[:, 0])


def test_hues_turn_and_channels_swap():
    red = np.zeros((8, 8, 3), np.float32) + np.array([0.6, 0.2, 0.2], np.float32)
    assert np.allclose(apply("hue_forward", red, turn=1 / 3)[0, 0], [0.2, 0.6, 0.2], atol=1e-6)
    assert np.allclose(apply("swap_red_blue", red, gain=1.0)[0, 0], [0.2, 0.2, 0.6])
    assert np.allclose(apply("invert", red, gain=1.0), 1 - red)


def test_overlays_cover_their_place_only(photo):
    framed = apply("border_white", photo, width=0.125)
    assert (framed[:8] == 1).all() and np.array_equal(framed[9:-9, 9:-9], photo[9:-9, 9:-9])
    shaded = apply("shade_left", photo, opacity=0.9)
    assert np.array_equal(shaded[:, 33:], photo[:, 33:]) and np.allclose(shaded[:, :31], 0.1 * photo[:, :31], atol=1e-6)
    marked = apply("badge_top_right", photo, size=0.25, hue=0.0)
    assert np.array_equal(marked[40:], photo[40:]) and np.allclose(marked[14, 50], marked[16, 46])


def test_motion_smears_one_direction():
    image = np.zeros((SIDE, SIDE, 3), np.float32)
    image[32, 32] = 1
    for name, lit in (("horizontal", (1, 21)), ("vertical", (21, 1)), ("diagonal", (15, 15))):
        smeared = apply(f"motion_blur_{name}", image, length=0.33)
        rows, columns = np.nonzero(smeared[..., 0])
        assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == lit
        assert np.isclose(smeared.sum(), 3, atol=1e-4)


def test_insertions_put_the_object_where_they_are_told(photo):
    edited = apply("insert_blue_square", photo, x=0.3, y=0.7, size=0.2)
    assert np.allclose(edited[44, 19], PALETTE["blue"], atol=1e-6)
    changed = np.argwhere((edited != photo).any(-1))
    assert (changed.min(0) >= 31).tolist() == [True, False] and changed.max() <= 57


@pytest.mark.parametrize("name", ["remove_all", "remove_discs", "remove_red", "keep_left", "red_to_blue", "all_blue"])
def test_what_an_edit_of_objects_leaves_alone_stays_as_it_was(name):
    for number in range(6):
        before, after = draw(EDITS[name], number)
        assert 0.04 < (before != after).any(-1).mean() < 0.8


@pytest.mark.parametrize("colour, other", [("red", "blue"), ("blue", "yellow")])
def test_recolouring_takes_one_colour_for_another(colour, other):
    def share(image, name):
        shades = image[..., None, :] / np.maximum(image.max(-1)[..., None, None], 1e-3)
        return np.mean(np.linalg.norm(shades - np.array(PALETTE[name]) / max(PALETTE[name]), axis=-1) < 0.08)

    for number in range(6):
        before, after = draw(EDITS[f"{colour}_to_{other}"], number)
        assert share(before, colour) > 0.03 and share(after, colour) < 0.01
        assert share(after, other) > share(before, other) + 0.03


def test_scenes_are_drawn_where_they_say():
    scene = Scene(
        Background("flat", (0.0, 0.0, 0.0)),
        (Thing("square", "white", (0.5, 0.5), 0.25), Thing("ring", "red", (0.15, 0.15), 0.12)),
    )
    image = scenes.draw(scene, 80)
    assert np.isclose(image[22:, 22:].sum() / image.size, (2 * 0.88 * 0.25) ** 2, atol=0.01)  # the square's area
    assert np.allclose(image[12, 12], 0) and np.allclose(image[12, 4], PALETTE["red"])
    assert ((image > 0.1) & (image < 0.9)).any()  # soft edges
    for kind in scenes.BACKGROUNDS:
        drawn = scenes.draw_background(Background(kind, (0.1, 0.2, 0.3), (0.9, 0.8, 0.7), 0.4, 3.0, 0.2), 32)
        assert drawn.shape == (32, 32, 3) and drawn.min() >= 0.1 - 1e-5 and drawn.max() <= 0.9 + 1e-5


def test_objects_of_scenes_keep_apart_and_inside():
    for number in range(50):
        scene = scenes.random_scene(np.random.default_rng(number), (2, 4))
        assert scene.things
        for thing in scene.things:
            assert all(thing.size <= c <= 1 - thing.size for c in thing.centre)
            others = (other for other in scene.things if other is not thing)
            assert all(np.hypot(*np.subtract(thing.centre, o.centre)) > thing.size + o.size for o in others)


def test_crops_are_random_and_not_flat():
    rng = np.random.default_rng(0)
    crops = [photographs.random_crop(rng, name, 32) for name in 15 * photographs.HELD_OUT_IN_WHEELS]
    assert len({crop.tobytes() for crop in crops}) == 30
    assert np.mean([crop.std((0, 1)).mean() > 0.07 for crop in crops]) > 0.9


def test_training_crops_come_in_other_colours_and_held_out_ones_do_not(monkeypatch):
    # In its own colours, the channels of a grey photograph vary alike but for a tint of a tenth.
    monkeypatch.setattr(photographs, "_RECOLOURED", 0.5)
    rng = np.random.default_rng(0)
    spreads = [photographs.random_crop(rng, "camera", 32).std((0, 1)) for _ in range(60)]
    assert 12 < sum(spread.max() > 1.3 * spread.min() for spread in spreads) < 40
    monkeypatch.setattr(photographs, "_recoloured", None)
    for name in 20 * photographs.HELD_OUT_IN_WHEELS:
        photographs.random_crop(rng, name, 32)
    with pytest.raises(TypeError):
        for _ in range(20):
            photographs.random_crop(rng, "camera", 32)


@pytest.mark.parametrize("kind", textures.KINDS)
def test_textures_are_pictures_that_vary(kind):
    rng = np.random.default_rng(0)
    pictures = np.stack([textures.KINDS[kind](rng, 64) for _ in range(30)])
    assert pictures.dtype == np.float32 and pictures.shape == (30, 64, 64, 3)
    assert pictures.min() >= 0 and pictures.max() <= 1
    assert np.std(pictures.mean((1, 2)), axis=0).min() > 0.05
    assert np.mean(pictures.std((1, 2)).mean(1) > 0.05) > 0.9
    # As in photographs, neighbours are alike and the likeness falls with the distance.
    grey = pictures.mean(-1)
    near, far = (np.corrcoef(grey[:, :, d:].ravel(), grey[:, :, :-d].ravel())[0, 1] for d in (1, 12))
    assert near > 0.8 and near > far


def test_training_draws_textures_and_held_out_sets_draw_none():
    assert set(textures.KINDS) <= set(TRAINING_SUBJECTS) and set(textures.KINDS).isdisjoint(PHOTOGRAPHS["held-out"])
