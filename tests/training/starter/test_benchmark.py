"""The starter's benchmark: its arithmetic, and all of it but ComfyUI on tiny parts."""

import json
import shutil

import numpy as np
import pytest
import torch

from benchmarks import _starter_refine, _starter_rivals, starter
from benchmarks._starter_coefficients import nearest_neighbours, rising, two_tasks
from benchmarks._starter_quality import ASKED, DECODED, TOLD, Analogy, cause_of_miss, contestants
from benchmarks._starter_refine import LOGITS, MAIN, MEAN
from benchmarks._starter_rivals import RIVALS, trained_steps
from benchmarks._starter_samplers import difference
from benchmarks._starter_setting import CONFIG, LPIPS_VGG, SETS, SHIPPED, SINGLE, family_of
from lorweb_core.refine import Settings
from training.config import load_config
from training.evaluate import COPY
from training.judge.intervals import mean, ratio, share
from training.pictures.recipe import Recipe, edit_of, tasks

RECIPE = """
images: {images}
side: 16
photographs: held-out
edits: {edits}
held_parameters: {held}
draws_per_edit: 2
pairs_per_draw: 3
"""


def test_wilsons_interval():
    estimate = share([True] * 8 + [False] * 2)
    assert estimate.value == 0.8
    assert (estimate.low, estimate.high) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert share([True] * 20).low < 1 == share([True] * 20).high


def test_bootstrapped_means_and_ratios():
    values = np.random.default_rng(0).normal(3, 2, 400)
    estimate = mean(values)
    assert estimate.value == pytest.approx(values.mean()) and estimate == mean(values)
    # The normal approximation holds for this many.
    half = 1.96 * values.std() / 20
    assert (estimate.low, estimate.high) == pytest.approx((estimate.value - half, estimate.value + half), abs=0.03)
    # Numerators and denominators are drawn together, so a constant ratio has no spread.
    steady = ratio(2 * values, values)
    assert (steady.low, steady.value, steady.high) == pytest.approx((2, 2, 2))
    assert f"{mean([1.0, 1.0]):+.1f}" == "+1.0 (+1.0 to +1.0)"
    with pytest.raises(ValueError, match="at least two"):
        mean([1.0])


def test_neighbours_come_from_other_tasks():
    names = ["sepia/00", "sepia/00", "sepia/01", "invert/00", "mirror/00"]
    # The nearest of sepia/00 is its own twin, which does not count; then comes sepia/01. Its nearest is invert/00.
    vectors = torch.tensor([[1.0, 0.0], [1.0, 0.01], [0.7, 0.7], [0.6, 0.8], [-3.0, -1.5]])
    hits, chance = nearest_neighbours(vectors, names, edit_of)
    assert hits == [True, True, False]  # invert and mirror have no partner in another task
    assert chance == pytest.approx((1 / 3 + 1 / 3 + 2 / 4) / 3)
    assert family_of("invert/00") == family_of("sepia/01") != family_of("mirror/00")


def test_rising():
    assert rising([0, 1, 2]) and not rising([0, 1, 1]) and not rising([0, 2, 1])


def test_blends_are_of_two_edits(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(images=tmp_path.as_posix(), edits="[invert, mirror]", held="false"))
    drawn, rng = tasks(Recipe.load(recipe)), np.random.default_rng(0)
    for _ in range(20):
        first, second = two_tasks(rng, drawn)
        assert first.edit.name != second.edit.name
    with pytest.raises(ValueError, match="two edits"):
        two_tasks(rng, [task for task in drawn if task.edit.name == "invert"])


def test_figures_of_answers():
    def analogy(copied, shipped, single):
        psnr = {COPY: copied, SHIPPED: shipped, SINGLE: single}
        return Analogy(
            "invert/00", {name: {"psnr": value, "lpips": 40 / value, LPIPS_VGG: 1.0} for name, value in psnr.items()}
        )

    found = [analogy(10, 20, 18), analogy(20, 10, 12), analogy(10, 20, 12), analogy(10, 20, 20)]
    found[0].answers["now and then"] = {"psnr": 1.0, "lpips": 1.0}
    table = contestants(found)
    assert list(table) == [COPY, SHIPPED, SINGLE]
    nearer, psnr, lpips, ratio_to_copy, by_vgg, better, gain = (cell.split(" (")[0] for cell in table[SHIPPED])
    assert (nearer, psnr, lpips) == ("75.0%", "17.50", "2.500")
    assert ratio_to_copy == f"{2.5 / 3.5:.2f}" and by_vgg == "1.00"
    assert (better, gain) == ("50.0%", "+2.00")  # a draw is no win
    assert table[SINGLE][-2:] == ("–", "–") and table[COPY][0] == "–"


@pytest.mark.parametrize(
    ("shipped", "asked", "told", "decoded", "cause"),
    [
        (11, 9, 9, 9, None),
        (10, 11, 9, 12, "image encoder"),
        (9, 10, 11, 12, "bank"),
        (9, 9, 9, 12, "base"),
        (9, 9, 9, 10, "autoencoder"),
    ],
)
def test_a_miss_is_put_down_to_the_first_part_that_would_have_saved_it(shipped, asked, told, decoded, cause):
    psnr = {COPY: 10, SHIPPED: shipped, ASKED: asked, TOLD: told, DECODED: decoded}
    analogy = Analogy("sepia/00", {name: {"psnr": value} for name, value in psnr.items()})
    assert cause_of_miss(analogy) == cause


def test_differences_are_in_steps_of_eight_bits():
    one, other = np.array([[0, 255]], dtype=np.uint8), np.array([[3, 254]], dtype=np.uint8)
    assert difference(one, other) == difference(other, one) == (3, 2.0)


def test_rivals_fit_the_configuration():
    ours = load_config(CONFIG).bank
    theirs = {name: load_config(CONFIG, overrides).bank for name, overrides in RIVALS.items()}
    same_size = {bank.num_loras for bank in theirs.values() if bank.num_loras * bank.rank == 64}
    assert same_size == {1, 4, 16, 32} and theirs["n16"] == ours and ours.num_loras * ours.rank == 64
    assert theirs[SINGLE].num_loras == 1 and not theirs["tanh"].softmax and ours.softmax


def test_bad_options_are_named(tmp_path, caplog):
    assert starter.main(["retrieval", "--run", str(tmp_path), "--banks", "nameless.safetensors"]) == 1
    assert "--banks nameless.safetensors: write name=path" in caplog.text
    assert starter.main(["retrieval", "--run", str(tmp_path), "--fewer", "1"]) == 1
    assert "must be at least 2" in caplog.text
    assert starter.main(["train", "--run", str(tmp_path), "--together", "0"]) == 1
    assert "--together must be at least 1" in caplog.text


@pytest.fixture
def tiny(parts, tmp_path, monkeypatch):
    """The command line of the benchmark on tiny parts, with two rivals that it trained itself."""
    monkeypatch.setattr(_starter_rivals, "RIVALS", {name: RIVALS[name] for name in (SINGLE, "tanh")})
    recipes = tmp_path / "recipes"
    recipes.mkdir()
    for name in SETS:
        edits = "[invert+border_white, mirror+tint_red]" if name == "compositions" else "[invert, darken, sepia]"
        held = str(name == "held_out_parameters").lower()
        images = (tmp_path / "images" / name).as_posix()
        (recipes / f"{name}.yaml").write_text(RECIPE.format(images=images, edits=edits, held=held))
    settings = [
        *parts, "data.canvas=32", "data.prompt_tokens=4", "data.cache_latents=4", "train.batch=2", "validation.every=0",
        "validation.steps=1", "log.trackers=[csv]", "optimizer.warmup=0", "bank.targets=transformer_blocks.*ff.*proj",
        "train.precision=no",
    ]  # fmt: skip
    command = [
        "--starter",
        str(tmp_path),
        "--run",
        str(tmp_path / "run"),
        "--recipes",
        str(recipes),
        "--set",
        *settings,
    ]
    assert starter.main(["train", "--steps", "1", *command]) == 0
    shutil.copy(tmp_path / "run" / "banks" / "tanh" / "bank.safetensors", tmp_path)
    return command


def test_everything_on_tiny_parts(tiny, tmp_path, capsys, monkeypatch):
    rivals = sorted((tmp_path / "run" / "banks").glob("*/bank.safetensors"))
    written = [path.stat().st_mtime_ns for path in rivals]
    assert [trained_steps(path) for path in rivals] == [1, 1]
    assert starter.main(["train", "--steps", "1", *tiny]) == 0
    assert [path.stat().st_mtime_ns for path in rivals] == written
    monkeypatch.setattr(_starter_refine, "FIT", Settings(steps=1, draws=1, judged=1))
    monkeypatch.setattr(_starter_refine, "MOST", 2)
    monkeypatch.setattr(_starter_refine, "MEASURED", SETS[1:2])
    for measure in ("quality", "outside", "ablations", "retrieval", "interpolation", "refine"):
        assert starter.main([measure, "--analogies", "4", "--fewer", "3", *tiny]) == 0
    tables = {
        path.stem: json.loads(path.read_text())["table"] for path in (tmp_path / "run" / "results").glob("*.json")
    }
    assert [row["who"] for row in tables["quality-held_out_photographs"]] == [
        COPY, SHIPPED, SINGLE, "the true b', decoded", "starter, asked for the edit from b to the true b'",
        "the base, told the edit",
    ]  # fmt: skip
    assert len(tables["quality-compositions"]) == 5  # the base knows no words for them
    causes = tables["misses-held_out_photographs"]
    assert [row["part"] for row in causes] == ["image encoder", "bank", "base", "autoencoder"]
    assert "misses-compositions" not in tables
    assert [row["bank"] for row in tables["ablations-held_out_edits"]] == [SHIPPED, SINGLE, "tanh"]
    assert {row["steps"] for row in tables["ablations-held_out_edits"]} == {"1"}
    assert [row["t"] for row in tables["interpolation"]] == ["0.0", "0.25", "0.5", "0.75", "1.0"]
    refined = tables["refining-held_out_edits"]
    assert tuple(row["who"] for row in refined) == MAIN and len(tables["refining-ways-held_out_edits"]) == 9
    written = tmp_path / "run" / "results" / "refining-held_out_edits.jsonl"
    lines = written.read_text().splitlines()
    assert len(lines) == 2 * 9 + 2 * 3  # of four analogies two are further ones
    assert [row["who"] for row in tables["refining-fresh-held_out_edits"]] == [COPY, MEAN, LOGITS]
    written.write_text("\n".join(lines[:-1]) + "\n")
    assert starter.main(["refine", "--analogies", "4", "--fewer", "3", *tiny]) == 0
    assert written.read_text().splitlines()[:-1] == lines[:-1], "a run that was ended goes on where it was"
    assert all(float(row["PSNR (dB)"].split()[0]) > 0 for row in refined)
    assert len(tables["retrieval"]) == 8 and len(tables["monotony"]) == 3
    assert [row["who"] for row in tables["quality-outside"]][:3] == [COPY, SHIPPED, SINGLE]
    assert [row["analogies"] for row in tables["likeness-outside"]] == ["4"]
    assert "### held_out_photographs: 4 analogies" in capsys.readouterr().out


def test_rivals_train_together(tiny, tmp_path):
    assert starter.main(["train", "--steps", "2", "--together", "2", *tiny]) == 0
    assert [trained_steps(path) for path in (tmp_path / "run" / "banks").glob("*/bank.safetensors")] == [2, 2]


def test_samplers_are_compared_on_the_shipped_parts_only(tmp_path, caplog):
    assert starter.main(["samplers", "--starter", str(tmp_path), "--run", str(tmp_path)]) == 1
    assert "compare the samplers without --starter" in caplog.text
