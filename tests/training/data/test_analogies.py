"""Sampling is a pure function of the position; canvases hold what they should."""

import math
import pickle
from collections import Counter

import pytest
import torch
from torch.utils.data import DataLoader

from lorweb_core.canvas import fit_image
from training.data import (
    AnalogyDataset,
    AnalogySampler,
    DataError,
    ImageError,
    Manifest,
    collate,
    geometry_of,
    load_image,
    load_quadrant,
    load_quadrants,
    square_canvas,
)
from training.data.analogies import couple_of
from training.data.layouts import CANVAS, SEPARATE
from training.data.sources import reader_of
from training.data.writer import write_manifest
from training.hashing import Seen, permuted


def test_two_different_pairs_of_one_task(manifest):
    sampler = AnalogySampler(manifest({"a": 2, "b": 5}))
    for i in range(300):
        analogy = sampler[i]
        assert analogy.example.task == analogy.answer.task
        assert analogy.example.before != analogy.answer.before


def test_all_ordered_couples_come_up_alike(manifest):
    sampler = AnalogySampler(manifest({"a": 4}))
    counts = Counter((sampler[i].example.prompt, sampler[i].answer.prompt) for i in range(2400))
    assert len(counts) == 12
    assert max(counts.values()) < 1.4 * 200 and min(counts.values()) > 0.6 * 200


def test_uniform_over_tasks_or_over_pairs(manifest):
    loaded = manifest({"small": 2, "large": 8})

    def share_of_small(over):
        sampler = AnalogySampler(loaded, over=over)
        return sum(sampler[i].example.task == "small" for i in range(2000)) / 2000

    assert abs(share_of_small("tasks") - 0.5) < 0.05
    assert abs(share_of_small("pairs") - 0.2) < 0.05


def test_over_pairs_every_pair_is_an_example_alike(manifest):
    sampler = AnalogySampler(manifest({"a": 2, "b": 1, "c": 6}), over="pairs")
    counts = Counter(sampler[i].example.prompt for i in range(2400))
    assert len(counts) == 8
    assert max(counts.values()) < 1.3 * 300 and min(counts.values()) > 0.7 * 300


def test_over_analogies_every_couple_comes_once_a_round_either_way(manifest):
    loaded = manifest({"a": 2, "b": 1, "c": 6})
    sampler = AnalogySampler(loaded, seed=1, over="analogies")
    couples = [frozenset((sampler[i].example.prompt, sampler[i].answer.prompt)) for i in range(10 * 16)]
    rounds = [couples[i : i + 16] for i in range(0, len(couples), 16)]
    assert all(len(set(found)) == 16 and all(len(couple) == 2 for couple in found) for found in rounds)
    assert len({tuple(found) for found in rounds}) == 10
    counts = Counter(sampler[i].example.prompt < sampler[i].answer.prompt for i in range(1600))
    assert 700 < counts[True] < 900
    other = AnalogySampler(loaded, seed=2, over="analogies")
    assert [other[i] for i in range(16)] != [sampler[i] for i in range(16)]


@pytest.mark.parametrize("over", ["tasks", "pairs", "analogies"])
def test_distinct_analogies_end_where_all_have_come(manifest, over):
    sampler = AnalogySampler(manifest({"a": 2, "b": 1, "c": 3}), over=over)
    positions = sampler.distinct(100)
    assert len(positions) == 8 == len({sampler[i].key for i in positions}) and sampler.distinct(3) == positions[:3]
    assert all(sampler[i].key in {sampler[n].key for n in positions} for i in range(50))


def test_couples_are_numbered():
    assert [couple_of(number) for number in range(6)] == [(1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2)]
    last = math.comb(10**9, 2) - 1
    assert couple_of(last) == (10**9 - 1, 10**9 - 2)


@pytest.mark.parametrize("count", [1, 2, 3, 17, 64, 65])
def test_a_permutation_takes_every_place_once(count):
    one, other = ([permuted(place, count, "key", seed) for place in range(count)] for seed in (0, 1))
    assert sorted(one) == sorted(other) == list(range(count))
    assert count < 17 or one != other != list(range(count)) != one


def test_what_was_met_is_known():
    seen = Seen()
    assert all(seen.add(str(number)) for number in range(1000))
    assert not any(seen.add(str(number)) for number in range(1000))
    assert "999" in seen and "1000" not in seen and "\ud800" not in seen and seen.add("\ud800")


@pytest.mark.parametrize("caption", ["answer", "example"])
def test_the_caption_is_the_answer_s_or_the_example_s(manifest, caption):
    sampler = AnalogySampler(manifest({"a": 5}))
    dataset = AnalogyDataset(sampler, square_canvas(64), pixels=False, caption=caption)
    for i in range(20):
        assert dataset[i]["prompt"] == dataset.prompt(i) == getattr(sampler[i], caption).prompt
    assert any(sampler[i].example.prompt != sampler[i].answer.prompt for i in range(20))


def test_swapping_turns_both_pairs_and_drops_the_prompt(manifest):
    loaded = manifest({"a": 5})
    plain, swapped, half = (AnalogySampler(loaded, seed=4, swap=s) for s in (0, 1, 0.5))
    for i in range(50):
        assert (plain[i].example.before, plain[i].answer.after) == (swapped[i].example.after, swapped[i].answer.before)
        assert plain[i].answer.prompt and swapped[i].answer.prompt == ""
        assert half[i] in (plain[i], swapped[i])
    assert 70 < sum(half[i] == swapped[i] for i in range(200)) < 130


def test_examples_are_of_the_task_and_never_the_answer(manifest):
    loaded = manifest({"a": 2, "b": 4, "c": 9})
    sampler, seen = AnalogySampler(loaded, seed=3, swap=0.5), set()
    for i in range(300):
        analogy, examples = sampler[i], sampler.examples(i, 4)
        pairs = len(loaded.tasks[analogy.answer.task])
        assert analogy.example in examples and analogy.answer not in examples
        assert len(set(examples)) == len(examples) == min(4, pairs - 1)
        assert {(pair.task, pair.prompt == "") for pair in examples} == {
            (analogy.answer.task, analogy.answer.prompt == "")
        }
        assert sampler.examples(i, 1) == [analogy.example]
        seen |= {pair.before for pair in examples if pair.task == "c"}
    assert len(seen) == 18  # of both directions


def test_a_position_is_the_whole_state(manifest):
    loaded = manifest({"a": 5, "b": 5})
    whole = [AnalogySampler(loaded, seed=7, swap=0.5)[i] for i in range(100)]
    resumed = AnalogySampler(Manifest.load(loaded.path), seed=7, swap=0.5)
    assert [resumed[i] for i in reversed(range(60, 100))] == whole[:59:-1]
    assert [AnalogySampler(loaded, seed=8, swap=0.5)[i] for i in range(100)] != whole


def test_key_tells_analogies_apart_by_content(manifest):
    loaded = manifest({"a": 4})
    plain, swapped = AnalogySampler(loaded), AnalogySampler(loaded, swap=1)
    assert len({plain[i].key for i in range(400)} | {swapped[i].key for i in range(400)}) == 24
    copy = AnalogySampler(manifest({"a": 4}, "copy"))
    assert [copy[i].key for i in range(20)] == [plain[i].key for i in range(20)]


def test_single_pair_tasks_are_left_out_and_named(manifest, caplog):
    loaded = manifest({"a": 3, "b": 2})
    sampler = AnalogySampler(loaded.subset([0, 1, 3]))
    assert {sampler[i].answer.task for i in range(50)} == {"a"}
    assert "1 tasks have a single pair and are not sampled, such as 'b'" in caplog.text
    with pytest.raises(DataError, match="no task has the two pairs"):
        AnalogySampler(loaded.subset([0, 3]))


def test_wrong_arguments(manifest):
    loaded = manifest({"a": 2})
    for wrong in ({"swap": 1.5}, {"over": "images"}):
        with pytest.raises(DataError, match="the sampler got"):
            AnalogySampler(loaded, **wrong)
    for pixels in (0, 16, 500):
        with pytest.raises(DataError, match=f"canvas is {pixels} pixels"):
            square_canvas(pixels)


def test_a_canvas_has_the_size_that_is_sampled_and_so_has_an_answer_alone():
    canvas, answer = geometry_of(CANVAS, 128), geometry_of(SEPARATE, 128)
    assert (canvas.height, canvas.width) == (128, 128)
    assert (answer.frame.height, answer.frame.width) == (128, 128)


@pytest.fixture
def photograph_dataset(photographs, tmp_path):
    """photograph_dataset(fit, swap): analogies of the photographs on canvases of 128 pixels."""
    write_manifest(reader_of(photographs)[1](photographs), tmp_path / "m.jsonl", workers=2)
    loaded = Manifest.load(tmp_path / "m.jsonl")
    return lambda fit="crop", **kw: AnalogyDataset(AnalogySampler(loaded, **kw), square_canvas(128), fit)


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_canvases_hold_the_quadrants(photograph_dataset, fit):
    dataset = photograph_dataset(fit)
    item, analogy = dataset[5], dataset.sampler[5]
    images = (analogy.example.before, analogy.example.after, analogy.answer.before, analogy.answer.after)
    a, a_prime, b, b_prime = (fit_image(load_image(image)[None], 64, 64, fit)[0] for image in images)
    quadrants = {"reference": (a, a_prime, b, b), "target": (a, a_prime, b, b_prime)}
    for name, (top_left, top_right, bottom_left, bottom_right) in quadrants.items():
        canvas = item[name]
        assert canvas.shape == (128, 128, 3) and canvas.dtype == torch.float32
        assert torch.equal(canvas[:64, :64], top_left) and torch.equal(canvas[:64, 64:], top_right)
        assert torch.equal(canvas[64:, :64], bottom_left) and torch.equal(canvas[64:, 64:], bottom_right)
    assert torch.equal(item["a"], a) and torch.equal(item["a_prime"], a_prime) and torch.equal(item["b"], b)
    assert not torch.equal(b, b_prime)
    assert item["target"].min() >= 0 and item["target"].max() <= 1
    assert item["image_keys"] == tuple(image.key for image in images[:3])
    assert (item["index"], item["task"], item["prompt"]) == (5, analogy.answer.task, "")
    assert item["analogy_key"] == analogy.key


def test_quadrants_for_caches_are_those_of_the_canvas(photograph_dataset):
    dataset = photograph_dataset()
    analogy = dataset.sampler[0]
    images = [analogy.example.before, analogy.example.after]
    together = load_quadrants(images, dataset.geometry)
    assert torch.equal(together[0], load_quadrant(images[0], dataset.geometry))
    assert torch.equal(together[1], dataset[0]["a_prime"])


def test_without_pixels_nothing_is_read(manifest):
    loaded = manifest({"a": 3})
    with_pixels = AnalogyDataset(AnalogySampler(loaded), square_canvas(32))
    expected = {name: value for name, value in with_pixels[1].items() if not isinstance(value, torch.Tensor)}
    for path in {pair.before.path for pair in loaded}:
        path.unlink()
    assert AnalogyDataset(AnalogySampler(loaded), square_canvas(32), pixels=False)[1] == expected
    with pytest.raises(ImageError):
        with_pixels[1]


def test_collate_stacks_tensors_and_lists_the_rest(manifest):
    dataset = AnalogyDataset(AnalogySampler(manifest({"a": 3, "b": 3}), swap=0.5), square_canvas(32))
    items = [dataset[i] for i in (3, 1, 2)]
    batch = collate(items)
    assert batch["reference"].shape == (3, 32, 32, 3) and batch["b"].shape == (3, 16, 16, 3)
    assert torch.equal(batch["target"][1], items[1]["target"])
    assert batch["index"] == [3, 1, 2] and batch["prompt"] == [item["prompt"] for item in items]


@pytest.mark.parametrize(("context", "workers"), [("fork", 2), ("spawn", 1)])
def test_workers_give_what_one_process_gives(manifest, context, workers):
    """A process that is spawned has hashes of its own, as one of another day has."""
    dataset = AnalogyDataset(AnalogySampler(manifest({"a": 4, "b": 4}), swap=0.5), square_canvas(32))
    positions = [range(4), range(4, 8)]
    loader = DataLoader(
        dataset, batch_sampler=positions, num_workers=workers, collate_fn=collate, multiprocessing_context=context
    )
    for batch, indices in zip(loader, positions):
        expected = collate([dataset[i] for i in indices])
        assert all(torch.equal(batch[name], expected[name]) for name in ("reference", "target", "a", "a_prime", "b"))
        told = ("index", "task", "prompt", "analogy_key")
        assert [batch[name] for name in told] == [expected[name] for name in told]


def test_a_sampler_travels_to_other_processes(manifest):
    sampler = AnalogySampler(manifest({"a": 4}), swap=0.5)
    assert pickle.loads(pickle.dumps(sampler))[9] == sampler[9]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_breaks_during_training_is_named(manifest, truncate, workers):
    loaded = manifest({"a": 2})
    path = truncate(loaded[0].before.path)
    dataset = AnalogyDataset(AnalogySampler(loaded), square_canvas(32))
    with pytest.raises(ImageError, match=f"{path.name}: the file has changed"):
        next(iter(DataLoader(dataset, batch_sampler=[[0]], num_workers=workers, collate_fn=collate)))


def test_an_image_that_was_broken_when_quickly_prepared_is_named(relation, truncate, tmp_path):
    source = relation(tmp_path / "set", {"a": 2})
    path = truncate(source / "a" / "Group1" / "0.png")
    write_manifest(reader_of(source)[1](source), tmp_path / "m.jsonl", workers=1, quick=True)
    dataset = AnalogyDataset(AnalogySampler(Manifest.load(tmp_path / "m.jsonl")), square_canvas(32))
    with pytest.raises(ImageError, match=f"{path.name}: not a readable image"):
        dataset[0]
