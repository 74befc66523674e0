"""Recipes: what they refuse, what they promise, and their way through training.prepare into analogies."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from training.data import AnalogySampler, Manifest, load_image
from training.pictures import render
from training.pictures.edits import COMPOSITIONS, EDITS, HELD_OUT_EDITS, IDENTITY, TRAINING_EDITS
from training.pictures.recipe import Recipe, tasks
from training.prepare import main as prepare

SHIPPED = {path.stem: path for path in Path("training/starter/recipes").glob("*.yaml")}
SMALL = {"side": 16, "edits": ["invert", "remove_red"], "draws_per_edit": 2, "pairs_per_draw": 3, "seed": 4}


@pytest.fixture
def recipe(tmp_path):
    """recipe(**settings) -> a recipe file of a few small pairs whose images go below tmp_path."""

    def write(**settings):
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(SMALL | {"images": str(tmp_path / "images")} | settings))
        return path

    return write


def pictures(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.png"))}


def test_shipped_recipes_load_and_keep_held_out_things_apart():
    recipes = {name: Recipe.load(path) for name, path in SHIPPED.items()}
    assert set(recipes) == {
        "training", "held_out_photographs", "held_out_edits", "held_out_parameters", "compositions",
    }  # fmt: skip
    for name, loaded in recipes.items():
        assert loaded.photographs == ("training" if name == "training" else "held-out")
        assert loaded.held_parameters == (name == "held_out_parameters")
    edits = {name: set(loaded.edit_names()) for name, loaded in recipes.items()}
    # Of a pair that is left as it was, no answer is nearer to the truth than b itself.
    assert edits["training"] == edits["held_out_photographs"] | {IDENTITY} == set(TRAINING_EDITS)
    assert edits["held_out_edits"] == set(HELD_OUT_EDITS) and edits["compositions"] == set(COMPOSITIONS)
    assert edits["held_out_parameters"] == {name for name in TRAINING_EDITS if EDITS[name].spans}
    assert len({loaded.seed for loaded in recipes.values()}) == len({loaded.images for loaded in recipes.values()}) == 5


def test_tasks_are_draws_of_parameters(recipe):
    drawn = tasks(Recipe.load(recipe(edits=["invert", "mirror"], draws_per_edit=3)))
    assert [task.name for task in drawn] == [f"{e}/{n:02d}" for e in ("invert", "mirror") for n in range(3)]
    assert len({task.parameters["gain"] for task in drawn[:3]}) == 3


def test_a_pair_depends_on_seed_task_and_number_only(recipe):
    first, second = tasks(Recipe.load(recipe(edits=["invert"])))
    pair = first.pair(1)
    more = tasks(Recipe.load(recipe(edits=["mirror", "invert"], draws_per_edit=5, pairs_per_draw=9)))
    same = next(task for task in more if task.name == first.name)
    assert same.parameters == first.parameters
    assert all(np.array_equal(*images) for images in zip(pair, same.pair(1)))
    other_seed = tasks(Recipe.load(recipe(edits=["invert"], seed=5)))[0]
    for other in (first.pair(2), second.pair(1), other_seed.pair(1)):
        assert not np.array_equal(pair[0], other[0])


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"pairs_per_drow": 2}, "there is no key 'pairs_per_drow'; did you mean 'pairs_per_draw'"),
        ({"edits": ["tint_reed"]}, "there is no edit 'tint_reed'; did you mean 'tint_red'"),
        ({"edits": "trainings"}, "edits is 'trainings'; expected training, changing, held-out, compositions"),
        ({"photographs": "mine"}, "photographs is 'mine'; expected one of training, held-out"),
        ({"pairs_per_draw": 1}, "pairs_per_draw at least 2"),
        ({"side": "wide"}, "side: Value 'wide'"),
    ],
)
def test_a_recipe_that_does_not_fit_is_refused(recipe, settings, message):
    path = recipe(**settings)
    with pytest.raises(ValueError) as error:
        Recipe.load(path)
    assert str(path) in str(error.value) and message in str(error.value)


@pytest.mark.parametrize(
    "text, message", [("- a\n- b\n", "a recipe is a mapping"), ("a: [", "recipe.yaml: while parsing")]
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path, text, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        Recipe.load(path)


def test_a_recipe_needs_a_folder_of_images(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("edits: training\n")
    with pytest.raises(ValueError, match="images"):
        Recipe.load(path)


def test_rendering_goes_on_where_it_stopped(recipe, tmp_path):
    path, folder = recipe(), tmp_path / "images"
    assert render.main([str(path)]) == 0
    whole = pictures(folder)
    assert len(whole) == 2 * 2 * 3 * 2 and "remove_red/01/after/002.png" in whole
    gone, kept = folder / "invert/00/after/001.png", folder / "invert/00/after/002.png"
    gone.unlink()
    written = kept.stat().st_mtime_ns
    assert render.main([str(path)]) == 0
    assert pictures(folder) == whole and kept.stat().st_mtime_ns == written


def test_processes_draw_the_same(recipe, tmp_path):
    path = recipe(draws_per_edit=2 * render._BUSY)
    few = Recipe.load(path)
    assert [task.name for task, *_ in render.render(few, tmp_path / "together")] == [
        task.name for task in tasks(few) for _ in range(3)
    ]
    assert render.main([str(recipe()), "--out", str(tmp_path / "alone")]) == 0
    alone, together = (pictures(tmp_path / name) for name in ("alone", "together"))
    assert len(alone) == 24 and len(together) == 2 * 64 * 3 * 2 and alone.items() <= together.items()


def test_a_recipe_may_grow_in_its_folder(recipe, tmp_path):
    render.main([str(recipe())])
    few = pictures(tmp_path / "images")
    assert render.main([str(recipe(pairs_per_draw=5, edits=["invert", "remove_red", "mirror"]))]) == 0
    many = pictures(tmp_path / "images")
    assert len(many) == 3 * 2 * 5 * 2 and few.items() <= many.items()


def test_images_of_another_recipe_are_not_mixed_in(recipe, tmp_path, capsys):
    render.main([str(recipe())])
    before = pictures(tmp_path / "images")
    assert render.main([str(recipe(seed=9))]) == 1
    assert "'seed': 4" in capsys.readouterr().err and pictures(tmp_path / "images") == before


def test_images_of_an_edit_that_changed_are_not_mixed_in(recipe, tmp_path, capsys):
    render.main([str(recipe())])
    stale = tmp_path / "images/remove_red/00/after/000.png"
    Image.new("RGB", (16, 16), "red").save(stale)
    assert render.main([str(recipe(pairs_per_draw=4))]) == 1
    assert f"{stale} was drawn by another version of remove_red" in capsys.readouterr().err


def test_the_sheet_shows_every_edit(recipe, tmp_path):
    assert render.main([str(recipe(edits="held-out")), "--sheet", str(tmp_path / "sheets" / "sheet.png")]) == 0
    with Image.open(tmp_path / "sheets" / "sheet.png") as sheet:
        rows = -(-len(HELD_OUT_EDITS) // 4)
        assert sheet.height >= rows * 16 and sheet.width >= 4 * 4 * 2 * 16
        assert len(sheet.getcolors(1 << 20)) > 1000
    assert not (tmp_path / "images").exists()


def test_prepare_takes_a_recipe_like_any_other_source(recipe, tmp_path, capsys):
    path, out = recipe(), tmp_path / "manifest.jsonl"
    assert prepare([str(path), "--out", str(out), "--workers", "1"]) == 0
    assert "layout procedural" in capsys.readouterr().out
    manifest = Manifest.load(out)
    assert {name: len(numbers) for name, numbers in manifest.tasks.items()} == {
        name: 3 for name in ("invert/00", "invert/01", "remove_red/00", "remove_red/01")
    }
    analogy = AnalogySampler(manifest, seed=1)[0]
    assert analogy.example.task == analogy.answer.task and analogy.example.before.key != analogy.answer.before.key
    task = next(task for task in tasks(Recipe.load(path)) if task.name == analogy.answer.task)
    number = int(analogy.answer.after.path.stem)
    assert np.abs(load_image(analogy.answer.after).numpy() - task.pair(number)[1]).max() <= 0.51 / 255


def test_prepare_reports_a_bad_recipe(recipe, tmp_path, capsys):
    path = recipe(edit=["invert"])
    assert prepare([str(path), "--out", str(tmp_path / "manifest.jsonl")]) == 1
    assert f"error: {path}: there is no key 'edit'; did you mean 'edits'?" in capsys.readouterr().err
