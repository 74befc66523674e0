"""The starter's parts, made end to end on a handful of pictures: pairs, autoencoder, image encoder, base, bank."""

from dataclasses import replace

import lpips
import pytest
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import load_file

from lorweb_core import BasisBank
from lorweb_core.canvas import stack_quadrants
from lorweb_core.packing import PACKED
from training.bases import KONTEXT
from training.bases.kontext import EmbeddedPrompts
from training.bases.loading import load_transformer
from training.config import BaseConfig
from training.encoders import VisionEncoder
from training.pictures.edits import IDENTITY
from training.run.tracking import read_metrics
from training.starter import __main__ as starter
from training.starter import together
from training.starter.autoencoder import Trained, make_autoencoder, make_canvases, split_canvases
from training.starter.encoder import contrast, draw_examples
from training.starter.export import export
from training.starter.lessons import Curriculum, LessonSettings
from training.starter.pool import Encoded, Pool, generator_of
from training.starter.shards import Drawn, DrawSettings, as_one, draw_shards, read_shard, shard_path
from training.starter.telling import NOTHING, Vocabulary
from training.starter.together import Timetable, TogetherSettings

CPU = torch.device("cpu")
DRAWN = DrawSettings(side=32, shards=2, tasks=3, pairs=3, workers=2)
SMALL = [
    *(f"draw.{name}={getattr(DRAWN, name)}" for name in ("side", "shards", "tasks", "pairs", "workers")),
    "encoder.patch=32", "encoder.width=96", "encoder.depth=1", "base.heads=1", "base.single=1", "base.alone=0.5",
    "base.alone_batch=3",
    *(f"{part}.loop.{setting}" for part in ("autoencoder", "encoder", "base") for setting in (
        "steps=2", "batch=4", "checkpoint=1", "log=1")),
    *(f"{part}.bf16=false" for part in ("autoencoder", "encoder", "base")),
    *(f"{part}.held_out=4" for part in ("autoencoder", "encoder")),
    "bank.set=[base.compile=false,train.steps=2,train.batch=2,train.precision=no,log.every=1,checkpoint.every=2]",
]  # fmt: skip


def run_part(part, run, *overrides):
    return starter.main([part, f"run={run}", *SMALL, *overrides])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run folder with every part after two steps, all by one command."""
    run = tmp_path_factory.mktemp("starter")
    assert run_part("together", run, "together.minutes=60") == 0
    return run


@pytest.fixture
def apart(made, tmp_path):
    """A run folder with the pairs and the autoencoder alone."""
    for part in ("pool", "autoencoder"):
        (tmp_path / part).symlink_to(made / part)
    return tmp_path


def test_the_bank_fits_its_base_and_encoder(made):
    bank = BasisBank.load(made / "bank" / "bank.safetensors")
    assert len(bank.layers) == 14 + 6 and bank.config.query_dim == 128 and bank.extra["step"] == "2"
    assert bank.extra["canvas"] == "64"
    assert len(read_metrics(made / "bank" / "metrics.csv")) == 2


def test_a_shard_is_the_same_whoever_draws_it(made, tmp_path):
    draw_shards(tmp_path, replace(DRAWN, workers=1))
    for number in range(DRAWN.shards):
        (one, images), (other, same) = (read_shard(shard_path(pool, number)) for pool in (made / "pool", tmp_path))
        assert one == other and torch.equal(images, same) and images.shape == (3, 3, 2, 32, 32, 3)
    assert not torch.equal(images, read_shard(shard_path(tmp_path, 0))[1])


def test_drawing_goes_on_with_the_shards_that_are_missing(tmp_path):
    draw_shards(tmp_path, replace(DRAWN, shards=1))
    written = shard_path(tmp_path, 0).stat().st_mtime_ns
    draw_shards(tmp_path, DRAWN)
    assert shard_path(tmp_path, 0).stat().st_mtime_ns == written and shard_path(tmp_path, 1).exists()


def test_the_edits_to_draw_are_those_that_are_named(tmp_path):
    draw_shards(tmp_path, replace(DRAWN, shards=1, composed=0.0, unchanged=0.0, edits=["mirror"]))
    tasks, images = read_shard(shard_path(tmp_path, 0))
    before, after = images.flatten(0, 1).unbind(1)
    assert tasks == 3 * [Drawn(("mirror",), ({},))] and torch.equal(after, before.flip(2))
    with pytest.raises(ValueError, match=r"training edit \(draw\.edits\) 'mirrors'; did you mean 'mirror'"):
        draw_shards(tmp_path, replace(DRAWN, edits=["mirrors"]))


def test_some_tasks_change_nothing(tmp_path):
    draw_shards(tmp_path, replace(DRAWN, shards=1, composed=1.0, unchanged=1.0))
    tasks, images = read_shard(shard_path(tmp_path, 0))
    before, after = images.flatten(0, 1).unbind(1)
    assert {task.edits for task in tasks} == {(IDENTITY,)} and torch.equal(before, after)


def test_a_task_of_two_edits_is_one_after_the_other():
    edit, parameters = as_one(Drawn(("invert", "darken"), ({"gain": 0.8}, {"keep": 0.5})))
    image = torch.rand(8, 8, 3, generator=torch.Generator().manual_seed(0)).numpy()
    assert edit.apply(image, parameters) == pytest.approx(0.5 * (1 - 0.8 * image), abs=1e-6)


@pytest.fixture(scope="module")
def pool(made):
    pool = Pool(made / "pool", DRAWN, CPU)
    pool.refresh()
    assert len(pool) == 18
    return pool


def test_an_analogy_is_two_pairs_of_a_task(pool):
    first, second, task = pool.analogies(2000, generator_of(0, 0, CPU))
    assert torch.equal(first // 3, task) and torch.equal(second // 3, task) and not (first == second).any()
    assert set(first.tolist()) == set(second.tolist()) == set(range(18))
    examples = pool.examples(5, generator_of(0, 0, CPU))
    first, second, _ = pool.analogies(5, generator_of(0, 0, CPU))
    assert torch.equal(examples[:, 0], pool.images[first]) and torch.equal(examples[:, 1], pool.images[second])


def test_a_pool_takes_what_is_there_and_refuses_other_shards(made, tmp_path):
    (tmp_path / "00000.safetensors").symlink_to(made / "pool" / "00000.safetensors")
    pool = Pool(tmp_path, DRAWN, CPU)
    for there in (9, 9):
        pool.refresh(wait_for=1)
        assert len(pool) == there
    with pytest.raises(ValueError, match=r"00000\.safetensors was drawn with other settings .*; delete"):
        Pool(made / "pool", replace(DRAWN, pairs=2), CPU).refresh()


def test_cached_latents_make_the_canvas_of_an_analogy(made, pool):
    coder = KONTEXT.load_coder(str(made / "autoencoder"), CPU, torch.float32)
    latents = Encoded(pool, coder)
    latents.refresh()
    (b, b_prime), a_pair = pool.images[4] / 255, pool.images[4] / 255
    for cached, corner in zip(latents.canvases(torch.tensor([4]), torch.tensor([4])), (b, b_prime)):
        whole = coder.encode(stack_quadrants(*(image[None] for image in (*a_pair, b, corner))))
        torch.testing.assert_close(cached, whole, atol=1e-5, rtol=1e-5)
    reference, target = latents.canvases(torch.tensor([1]), torch.tensor([7]))
    assert torch.equal(target[0, :, :4], latents.target[1, :, :4])
    assert torch.equal(reference[0, :, 4:], latents.reference[7, :, 4:])
    assert torch.equal(latents.images(torch.tensor([7]))[1][0], latents.target[7, :, 4:, 4:])


def test_an_interrupted_part_ends_as_one_that_never_was(apart):
    constant = "encoder.optimizer.schedule=constant"
    whole = apart / "whole"
    whole.mkdir()
    (whole / "pool").symlink_to(apart / "pool")
    assert run_part("encoder", apart, "encoder.loop.steps=1", constant) == 0
    assert run_part("encoder", apart, constant) == run_part("encoder", whole, constant) == 0
    resumed, uninterrupted = (
        load_file(folder / "encoder" / "encoder" / "model.safetensors") for folder in (apart, whole)
    )
    assert all(torch.equal(resumed[name], uninterrupted[name]) for name in uninterrupted)
    assert [row["step"] for row in read_metrics(apart / "encoder" / "metrics.csv")] == ["1", "2"]


def test_a_checkpoint_of_other_settings_is_refused(apart, caplog):
    assert run_part("encoder", apart) == 0
    assert run_part("encoder", apart, "encoder.loop.steps=3", "encoder.depth=2") == 1
    folder = apart / "encoder" / "checkpoints"
    assert f"{folder}: the checkpoint of step 2 is of a run with other settings; give another run=" in caplog.text


@pytest.mark.parametrize(
    ("part", "weights"),
    [("autoencoder", "vae/diffusion_pytorch_model.safetensors"), ("encoder", "encoder/model.safetensors")],
)
def test_a_part_begins_with_the_weights_it_is_given(part, weights, made, tmp_path):
    (tmp_path / "pool").symlink_to(made / "pool")
    start = made / part / weights
    assert run_part(part, tmp_path, f"{part}.start={start.parent}", f"{part}.optimizer.lr=0") == 0
    before, after = load_file(start), load_file(tmp_path / part / weights)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_base_begins_with_the_weights_and_the_words_it_is_given(made, apart):
    start, again = made / "base" / "base", apart / "base" / "base"
    assert run_part("base", apart, f"base.start={start}", "base.alone=0", "base.optimizer.lr=0") == 0
    weights = "transformer/diffusion_pytorch_model.safetensors"
    before, after = load_file(start / weights), load_file(again / weights)
    assert all(torch.equal(before[name], after[name]) for name in before)
    words, same_words = (load_file(folder / "prompts.safetensors")["pooled"] for folder in (start, again))
    torch.testing.assert_close(same_words, words, atol=1e-4, rtol=1e-4)


def test_a_run_begins_with_a_starter_and_takes_from_it_what_it_lacks(made, tmp_path):
    (tmp_path / "pool").symlink_to(made / "pool")
    start = tmp_path / "start"
    export(made, start)
    rest = "base.optimizer.lr=0", "base.loop.steps=1"
    assert run_part("base", tmp_path, f"start={start}", *rest) == run_part("bank", tmp_path, f"start={start}") == 0
    before, after = (
        load_transformer(BaseConfig(path=str(folder), dtype="float32"), CPU)
        for folder in (start / "base", tmp_path / "base" / "base")
    )
    assert all(torch.equal(p, q) for p, q in zip(before.parameters(), after.parameters()))
    assert not (tmp_path / "base" / "base" / "transformer" / PACKED).exists()
    bank = BasisBank.load(tmp_path / "bank" / "bank.safetensors")
    assert bank.extra["step"] == "2"
    settings = starter.load_settings([f"start={start}", "lpips=weights.tar.gz"])
    assert settings.bank.set == [
        "objective.lpips=weights.tar.gz", "objective.perceptual=0.3", f"bank.start={start / 'bank.safetensors'}"
    ]  # fmt: skip
    assert settings.encoder.start == str(start / "encoder") and settings.autoencoder.lpips == "weights.tar.gz"


def test_a_base_is_looked_at_where_its_settings_say(apart, lpips_weights):
    looking = "base.objective.perceptual=0.5", f"base.objective.lpips={lpips_weights[1]}"
    assert run_part("base", apart, *looking) == 0
    assert [float(row["lpips"]) > 0 for row in read_metrics(apart / "base" / "metrics.csv")] == [False, True]


def test_parts_end_when_their_minutes_are_over(apart):
    assert (
        run_part(
            "encoder", apart, "encoder.loop.steps=1000000", "encoder.loop.minutes=0.02", "encoder.optimizer.warmup=0"
        )
        == 0
    )
    *_, last = read_metrics(apart / "encoder" / "metrics.csv")
    assert float(last["lr"]) < 1e-6 and int(last["step"]) < 1000


def test_parts_without_a_share_of_the_time_are_left_alone():
    timetable, trained = Timetable(TogetherSettings(autoencoder=0, encoder=0)), []
    with together.beside_encoder([], timetable) as encoder:
        for part in ("autoencoder", "base"):
            together.train_here(lambda part, minutes: trained.append(part), part, timetable)
    assert encoder is None and trained == ["base"]


def test_a_part_whose_time_is_over_is_named():
    timetable = Timetable(TogetherSettings(minutes=10, base=0.5, bank=0.0))
    assert 4.9 < timetable.minutes_of("base") <= 5
    with pytest.raises(ValueError, match="the time of bank is over before it began"):
        timetable.minutes_of("bank")


def test_blocks_that_were_never_trained_are_skipped_exactly(made):
    images = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    whole = AutoencoderTiny.from_pretrained(made / "base" / "base" / "vae")
    with torch.no_grad():
        expected = whole.encode(images.movedim(-1, 1) * 2 - 1).latents
    coder = KONTEXT.load_coder(str(made / "base" / "base"), "cpu", torch.float32)
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
    encoder = VisionEncoder(str(made / "encoder" / "encoder"))
    assert encoder.side == 64 and encoder.pooled(torch.rand(2, 32, 64, 3), stretch=True).shape == (2, 128)


def test_embedded_prompts(made):
    prompts = EmbeddedPrompts(made / "base" / "base" / "prompts.safetensors")
    nothing, invert, again = prompts([NOTHING, "invert", NOTHING])
    assert nothing["tokens"].shape == (1, 64) and nothing["pooled"].shape == (128,)
    assert torch.equal(nothing["pooled"], again["pooled"]) and not torch.equal(nothing["pooled"], invert["pooled"])
    with pytest.raises(ValueError, match=r"prompts\.safetensors knows \d+ prompts, and 'snow' is none"):
        prompts(["snow"])


@pytest.fixture(scope="module")
def curriculum(pool):
    curriculum = Curriculum(pool, Vocabulary(), LessonSettings(0.5, 0.15, 0.5, 0.75))
    curriculum.refresh()
    return curriculum


def families(curriculum, spelled):
    start = 1
    return spelled[:, start : start + len(curriculum.vocabulary.families)]


def edits(curriculum, spelled):
    start = 1 + len(curriculum.vocabulary.families)
    return spelled[:, start : start + len(curriculum.vocabulary.edits)]


def test_canvases_are_told_as_often_as_they_should(curriculum):
    lessons = curriculum.canvases(4000, generator_of(0, 1, CPU))
    told, tasks = lessons.told.bool(), lessons.answers // 3
    assert (lessons.spelled[:, 0] == 1).all() and told.float().mean() == pytest.approx(0.65, abs=0.03)
    assert torch.equal(families(curriculum, lessons.spelled).any(1), told)
    assert edits(curriculum, lessons.spelled).any(1).float().mean() == pytest.approx(0.5, abs=0.03)
    expected = [set(curriculum.pool.tasks[task].edits) for task in tasks.tolist()]
    for row, names in zip(edits(curriculum, lessons.spelled), expected):
        said = {curriculum.vocabulary.edits[i] for i in row.nonzero()[:, 0].tolist()}
        assert said in (set(), names)
    # Told nothing, half of the examples are right; the others show any pair, of six tasks.
    right = lessons.examples // 3 == tasks
    assert right[told].all() and right[~told].float().mean() == pytest.approx(0.5 + 0.5 / 6, abs=0.05)


def test_images_alone_are_told_their_edit_and_mostly_its_parameters(curriculum):
    lessons = curriculum.images(4000, generator_of(0, 2, CPU))
    tasks = lessons.answers // 3
    assert set(lessons.answers.tolist()) == set(range(18)) and edits(curriculum, lessons.spelled).any(1).all()
    start = 1 + len(curriculum.vocabulary.families) + len(curriculum.vocabulary.edits)
    said = lessons.spelled[:, start:].any(1)
    some = torch.tensor([any(task.parameters) for task in curriculum.pool.tasks])[tasks]
    assert not said[~some].any() and said[some].float().mean() == pytest.approx(0.75, abs=0.04)


def test_held_out_examples_are_two_pairs_of_one_edit():
    examples = draw_examples(0, ("astronaut",), 3, 16, composed=0.0)
    assert examples.shape == (3, 2, 2, 16, 16, 3) and examples.dtype == torch.uint8


def test_contrast_finds_the_same_edit():
    edits = torch.eye(8)
    result = contrast(edits + 0.01, edits - 0.01)
    assert result["found"] == 1 and result["loss"] < contrast(edits, edits.roll(1, 0))["loss"]
    assert contrast(edits, edits.roll(1, 0))["found"] == 0


def test_the_base_wants_an_autoencoder(tmp_path, caplog):
    assert starter.main(["base", f"run={tmp_path}"]) == 1
    assert "there is no autoencoder; train it with `python -m training.starter autoencoder`" in caplog.text


def test_a_misspelt_setting_is_named(caplog):
    assert starter.main(["base", "base.loop.stepps=3"]) == 1
    assert "stepps" in caplog.text
