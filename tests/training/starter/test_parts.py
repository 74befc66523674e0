"""The starter's parts, made end to end on a handful of pictures: data, autoencoder, image encoder, base, bank."""

import shutil
from dataclasses import replace
from pathlib import Path

import lpips
import pytest
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import load_file

from lorweb_core import BasisBank
from lorweb_core.canvas import stack_quadrants
from training import prepare
from training.encoders import EmbeddedPrompts, LatentCoder, VisionEncoder
from training.starter import __main__ as starter
from training.starter.autoencoder import Trained, make_autoencoder, make_canvases, split_canvases
from training.starter.base import NOTHING, Base, Curriculum, about_parameters, edit_of
from training.starter.edits import EDITS, TRAINING_EDITS
from training.starter.encoder import EncoderSettings, contrast, draw_examples, edits_to_draw
from training.starter.recipe import Recipe, tasks
from training.tracking import read_metrics
from training.train import main as train_bank

RECIPE = """
images: {images}
edits: [invert, mirror]
draws_per_edit: 1
pairs_per_draw: 3
"""
SMALL = {"encoder": ("encoder.patch=32", "encoder.width=96", "encoder.depth=2", "encoder.bf16=false")}
LOOP = "loop.steps=2", "loop.batch=2", "loop.checkpoint=1", "loop.log=1"


def run_part(part, run, manifest, *overrides):
    loop = [*SMALL.get(part, ()), *(f"{part}.{setting}" for setting in LOOP)]
    data = [f"manifest={manifest}", f"recipe={manifest.parent / 'recipe.yaml'}"]
    assert starter.main([part, f"run={run}", *data, *loop, *overrides]) == 0


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run folder with every part after two steps, and the manifest."""
    run = tmp_path_factory.mktemp("starter")
    recipe, manifest = run / "recipe.yaml", run / "pairs.jsonl"
    recipe.write_text(RECIPE.format(images=(run / "images").as_posix()))
    assert prepare.main([str(recipe), "--out", str(manifest)]) == 0
    run_part("autoencoder", run, manifest, "autoencoder.loop.batch=4")
    run_part("encoder", run, manifest)
    run_part("base", run, manifest, "base.alone=1", "base.alone_batch=3")
    return run, manifest


def test_the_base_is_a_folder_that_bank_training_takes(made, tmp_path):
    run, manifest = made
    overrides = [
        f"run={tmp_path}", f"base.path={run / 'base' / 'base'}", f"bank.encoder={run / 'encoder' / 'encoder'}",
        f"data.manifest={manifest}", f"data.cache={tmp_path / 'cache'}", "data.cache_latents=4", "train.steps=2",
        "train.batch=2", "validation.every=2", "validation.steps=1", "validation.analogies=1", "log.trackers=[csv]",
        "train.precision=no",
    ]  # fmt: skip
    assert train_bank(["--config", "training/configs/starter.yaml", *overrides]) == 0
    bank = BasisBank.load(tmp_path / "bank.safetensors")
    assert len(bank.layers) == 14 + 3 * 6 and bank.config.query_dim == 128
    assert list((tmp_path / "validation").glob("*.png"))


def test_an_interrupted_part_ends_as_one_that_never_was_whoever_draws(made, tmp_path):
    _, manifest = made
    run_part("encoder", tmp_path, manifest, "encoder.loop.steps=1", "encoder.optimizer.schedule=constant")
    run_part("encoder", tmp_path, manifest, "encoder.optimizer.schedule=constant")
    whole = tmp_path / "whole"
    run_part("encoder", whole, manifest, "encoder.optimizer.schedule=constant", "encoder.loop.workers=2")
    resumed, uninterrupted = (
        load_file(folder / "encoder" / "encoder" / "model.safetensors") for folder in (tmp_path, whole)
    )
    assert all(torch.equal(resumed[name], uninterrupted[name]) for name in uninterrupted)
    assert [row["step"] for row in read_metrics(tmp_path / "encoder" / "metrics.csv")] == ["1", "2"]


def test_a_checkpoint_of_other_settings_is_refused(made, tmp_path, caplog):
    _, manifest = made
    run_part("encoder", tmp_path, manifest)
    settings = [f"run={tmp_path}", f"manifest={manifest}", "encoder.loop.steps=3", "encoder.depth=1"]
    assert starter.main(["encoder", *settings]) == 1
    folder = tmp_path / "encoder" / "checkpoints"
    assert f"{folder}: the checkpoint of step 2 is of a run with other settings; give another run=" in caplog.text


def test_the_image_encoder_sees_the_edits_that_it_is_to_see_twice_as_often():
    drawn = edits_to_draw(EncoderSettings(twice=["mirror"]))
    assert {name for name in drawn if drawn.count(name) == 2} == {"mirror"} and len(drawn) == len(TRAINING_EDITS) + 1
    before, after = draw_examples(0, ("astronaut",), 40, 64, edits=("mirror",)).flatten(0, 1).unbind(1)
    assert 0.5 < (before == after.flip(2)).flatten(1).all(1).float().mean() < 0.9  # the others have a second edit
    with pytest.raises(ValueError, match=r"training edit \(encoder\.twice\) 'mirrors'; did you mean 'mirror'"):
        edits_to_draw(EncoderSettings(twice=["mirrors"]))


@pytest.mark.parametrize(
    ("part", "weights"),
    [("autoencoder", "vae/diffusion_pytorch_model.safetensors"), ("encoder", "encoder/model.safetensors")],
)
def test_a_part_begins_with_the_weights_it_is_given(part, weights, made, tmp_path):
    run, manifest = made
    start = run / part / weights
    rest = f"{part}.optimizer.lr=0", f"{part}.loop.batch=4"
    run_part(part, tmp_path, manifest, f"{part}.start={start.parent}", *rest)
    before, after = load_file(start), load_file(tmp_path / part / weights)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_base_begins_with_the_weights_and_the_words_it_is_given(made, tmp_path):
    run, manifest = made
    start, again = run / "base" / "base", tmp_path / "base" / "base"
    shutil.copytree(run / "autoencoder" / "vae", tmp_path / "autoencoder" / "vae")
    run_part("base", tmp_path, manifest, f"base.start={start}", "base.alone=0", "base.optimizer.lr=0")
    weights = "transformer/diffusion_pytorch_model.safetensors"
    before, after = load_file(start / weights), load_file(again / weights)
    assert all(torch.equal(before[name], after[name]) for name in before)
    words, same_words = (load_file(folder / "prompts.safetensors")["pooled"] for folder in (start, again))
    torch.testing.assert_close(same_words, words)


def test_a_base_that_is_looked_at_trains_its_decoder_and_leaves_latents_alone(made, lpips_weights, tmp_path):
    run, manifest = made
    shutil.copytree(run / "autoencoder" / "vae", tmp_path / "autoencoder" / "vae")
    looking = "base.objective.perceptual=0.5", f"base.objective.lpips={lpips_weights[1]}"
    run_part("base", tmp_path, manifest, "base.alone=1", "base.alone_batch=3", *looking)
    vae = "vae/diffusion_pytorch_model.safetensors"
    before, after = (load_file(folder / "base" / "base" / vae) for folder in (run, tmp_path))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith("decoder.") for name in changed)
    assert all(float(row["lpips"]) > 0 for row in read_metrics(tmp_path / "base" / "metrics.csv"))


def test_a_base_that_was_told_other_edits_is_no_beginning(made, tmp_path, caplog):
    run, _ = made
    recipe, manifest = tmp_path / "recipe.yaml", tmp_path / "pairs.jsonl"
    recipe.write_text(RECIPE.format(images=(tmp_path / "images").as_posix()).replace("mirror", "darken"))
    assert prepare.main([str(recipe), "--out", str(manifest)]) == 0
    shutil.copytree(run / "autoencoder" / "vae", tmp_path / "autoencoder" / "vae")
    start = run / "base" / "base"
    settings = f"run={tmp_path}", f"manifest={manifest}", f"recipe={recipe}", f"base.start={start}"
    assert starter.main(["base", *settings]) == 1
    assert f"{start / 'prompts.safetensors'}: these prompts are either only there" in caplog.text
    assert "['darken', 'geometry', 'mirror']" in caplog.text


def test_blocks_that_were_never_trained_are_skipped_exactly(made):
    run, _ = made
    images = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    whole = AutoencoderTiny.from_pretrained(run / "base" / "base" / "vae")
    with torch.no_grad():
        expected = whole.encode(images.movedim(-1, 1) * 2 - 1).latents
    coder = LatentCoder(str(run / "base" / "base"), "cpu", torch.float32)
    blocks = [type(layer).__name__ for layer in coder.vae.encoder.layers].count("AutoencoderTinyBlock")
    assert blocks < [type(layer).__name__ for layer in whole.encoder.layers].count("AutoencoderTinyBlock")
    torch.testing.assert_close(coder.encode(images), expected, atol=1e-5, rtol=1e-5)


def test_lpips_joins_the_loss_and_is_not_trained():
    perceive = lpips.LPIPS(net="alex", pretrained=False, pnet_rand=True, verbose=False).requires_grad_(False)
    images = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    plain, perceiving = (Trained(make_autoencoder(0), *extra) for extra in ((), (perceive, 0.5)))
    noise = torch.randn(4, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    losses = [part.losses(images, noise)["loss"] for part in (plain, perceiving)]
    with torch.no_grad():
        decoded = plain.decode(plain.encode(images) + 0.1 * noise)
    difference = perceive(decoded, images, normalize=True).mean()
    assert difference != 0
    torch.testing.assert_close(losses[1] - losses[0], 0.5 * difference, atol=1e-5, rtol=1e-4)
    assert perceiving.state_dict().keys() == plain.state_dict().keys()


def test_four_pictures_lie_on_a_canvas_as_an_analogy_does():
    images = torch.rand(8, 3, 4, 6)
    canvases = make_canvases(images)
    assert torch.equal(canvases.movedim(1, -1), stack_quadrants(*images.movedim(1, -1).unflatten(0, (2, 4)).unbind(1)))
    assert torch.equal(canvases[0, :, :4, 6:], images[1]) and torch.equal(canvases[1, :, 4:, :6], images[6])
    assert canvases.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(split_canvases(canvases), images)


def test_latents_that_leak_over_a_quadrants_edge_cost():
    images = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    model = make_autoencoder(0)
    free, bound = (Trained(model, local=local) for local in (0.0, 0.5))
    losses = [part.losses(images, torch.zeros(4, 16, 8, 8)) for part in (free, bound)]
    assert losses[0]["leak"] > 0
    torch.testing.assert_close(losses[1]["loss"] - losses[0]["loss"], 0.5 * losses[0]["leak"], atol=1e-5, rtol=1e-4)


def test_a_batch_that_fills_no_canvas_is_refused(tmp_path, caplog):
    assert starter.main(["autoencoder", f"run={tmp_path}", "autoencoder.loop.batch=6"]) == 1
    assert "the batch is 6; a canvas holds four pictures: make it a multiple of 4" in caplog.text


@pytest.mark.parametrize("shape", ["encoder.width=64", "encoder.width=100", "encoder.patch=24"])
def test_an_encoder_that_cannot_be_made_is_refused(shape, tmp_path, caplog):
    assert starter.main(["encoder", f"run={tmp_path}", shape]) == 1
    setting, value = shape.split("=")
    assert f"{setting} is {value}; " in caplog.text


def test_the_encoder_reads_as_a_clip(made):
    run, _ = made
    encoder = VisionEncoder(str(run / "encoder" / "encoder"))
    assert encoder.side == 128 and encoder.pooled(torch.rand(2, 64, 128, 3), stretch=True).shape == (2, 128)


def test_embedded_prompts(made):
    run, _ = made
    prompts = EmbeddedPrompts(run / "base" / "base" / "prompts.safetensors")
    tokens, pooled = prompts([NOTHING, "invert", NOTHING])
    assert tokens.shape == (3, 1, 64) and pooled.shape == (3, 128)
    assert torch.equal(pooled[0], pooled[2]) and not torch.equal(pooled[0], pooled[1])
    with pytest.raises(ValueError, match=r"prompts\.safetensors knows 5 prompts, and 'snow' is none"):
        prompts(["snow"])


@pytest.fixture
def curriculum():
    tasks = {"invert/00": [0, 1, 2], "invert/01": [3, 4], "mirror/00": [5, 6, 7]}
    parameters = {"invert/00": {"invert.gain.0": 1.0}, "invert/01": {"invert.gain.1": 0.4, "invert.gain.2": 0.6}}
    return Curriculum(tasks, {"mirror/00": {}, **parameters}, starter.BaseSettings())


ABOUT = {"invert": [NOTHING, "tone_and_colour", "invert"], "mirror": [NOTHING, "geometry", "mirror"]}


def task_of(curriculum, number):
    return next(task for task, numbers in curriculum.numbers.items() if number in numbers)


def test_canvases_are_told_as_often_as_they_should(curriculum):
    lessons = [curriculum.canvas(i) for i in range(4000)]
    told = [lesson for lesson in lessons if len(lesson.told) > 1]
    for lesson in told:
        task = task_of(curriculum, lesson.answer)
        assert task == task_of(curriculum, lesson.example) and lesson.example != lesson.answer
        assert lesson.told == dict.fromkeys(ABOUT[edit_of(task)][: len(lesson.told)], 1.0)
    assert len(told) / 4000 == pytest.approx(0.65, abs=0.03)
    assert sum(len(lesson.told) == 3 for lesson in lessons) / 4000 == pytest.approx(0.5, abs=0.03)
    # Told nothing, half of the examples are right; the others show any edit, here one of two.
    untold = [lesson for lesson in lessons if lesson.told == {NOTHING: 1.0}]
    assert len(told) + len(untold) == 4000
    same = sum(edit_of(task_of(curriculum, x.example)) == edit_of(task_of(curriculum, x.answer)) for x in untold)
    assert same / len(untold) == pytest.approx(0.75, abs=0.05)


def test_images_alone_are_told_their_edit_and_mostly_its_parameters(curriculum):
    lessons = [curriculum.image(i) for i in range(4000)]
    assert {lesson.answer for lesson in lessons} == set(range(8))
    for lesson in lessons:
        task = task_of(curriculum, lesson.answer)
        about = dict.fromkeys(ABOUT[edit_of(task)], 1.0)
        assert lesson.told in (about, about | curriculum.parameters[task])
    inversions = [lesson for lesson in lessons if "invert" in lesson.told]
    share = sum(len(lesson.told) > 3 for lesson in inversions) / len(inversions)
    assert share == pytest.approx(0.75, abs=0.03)


@pytest.mark.parametrize(
    ("gain", "expected"), [(0.7, {0: 1.0}), (0.775, {0: 0.5, 1: 0.5}), (0.85, {1: 1.0}), (0.97, {1: 0.2, 2: 0.8})]
)
def test_parameters_are_told_between_knots(gain, expected):
    told = about_parameters(EDITS["invert"], {"gain": gain})  # of 0.7 to 1
    assert told == pytest.approx({f"invert.gain.{knot}": weight for knot, weight in expected.items()})


def test_every_parameter_of_a_recipe_can_be_told():
    recipe = Recipe.load(Path("training/starter/recipes/training.yaml"))
    for task in tasks(replace(recipe, draws_per_edit=3)):
        told = about_parameters(task.edit, task.parameters)
        assert sum(told.values()) == pytest.approx(len(task.edit.spans)) and all(0 < w <= 1 for w in told.values())


def test_what_is_told_adds_up(curriculum):
    base = Base(curriculum.settings, curriculum.names())
    assert set(curriculum.prompts()) == {*ABOUT["invert"], *ABOUT["mirror"]}
    about = curriculum.prompts()["invert"] | curriculum.parameters["invert/01"]
    assert about == dict.fromkeys(ABOUT["invert"], 1.0) | {"invert.gain.1": 0.4, "invert.gain.2": 0.6}
    rows = base.instructions.weight
    expected = torch.stack((rows[0], sum(weight * rows[base.numbers[name]] for name, weight in about.items())))
    torch.testing.assert_close(base.pooled(base.spell([{NOTHING: 1.0}, about])), expected)


def test_contrast_finds_the_same_edit():
    edits = torch.eye(8)
    result = contrast(edits + 0.01, edits - 0.01)
    assert result["found"] == 1 and result["loss"] < contrast(edits, edits.roll(1, 0))["loss"]
    assert contrast(edits, edits.roll(1, 0))["found"] == 0


def test_the_base_wants_an_autoencoder(tmp_path, caplog):
    assert starter.main(["base", f"run={tmp_path}", "manifest=none.jsonl"]) == 1
    assert "there is no autoencoder; train it with `python -m training.starter autoencoder`" in caplog.text


def test_pairs_of_another_recipe_are_refused(made, tmp_path, caplog):
    run, manifest = made
    other = tmp_path / "other.yaml"
    other.write_text(RECIPE.format(images="images").replace("mirror", "flip"))
    assert starter.main(["base", f"run={run}", f"manifest={manifest}", f"recipe={other}"]) == 1
    assert f"{manifest}: {other} does not draw its task mirror/00; prepare the manifest from that recipe" in caplog.text


def test_a_misspelt_setting_is_named(caplog):
    assert starter.main(["base", "base.loop.stepps=3"]) == 1
    assert "stepps" in caplog.text
