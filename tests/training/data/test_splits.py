"""Splits: nothing leaks, nothing moves when data is appended."""

import json

import pytest

from training.data import DataError, Manifest, split


def keys(manifest):
    return {image.key for pair in manifest for image in (pair.before, pair.after)}


def names(manifest):
    return {(pair.task, pair.before.key, pair.after.key) for pair in manifest}


@pytest.fixture
def fake(tmp_path):
    """fake([(task, before hash, after hash)]): a manifest whose images need not exist."""

    def build(pairs, name="m"):
        lines = (
            {"task": t, "before": b, "after": a, "prompt": "", "size": [8, 8], "hashes": [b, a]} for t, b, a in pairs
        )
        path = tmp_path / f"{name}.jsonl"
        path.write_text("\n".join(map(json.dumps, lines)))
        return Manifest.load(path)

    return build


def pairs_of(tasks, per_task, first=0):
    return [(f"t{t}", f"b{t}.{i}", f"a{t}.{i}") for t in tasks for i in range(first, first + per_task)]


def test_every_pair_lands_on_one_side(fake):
    manifest = fake(pairs_of(range(50), 20))
    parts = split(manifest, tasks=0.2, images=0.1, seed=3)
    sides = (parts.train, parts.held_out_images, parts.held_out_tasks)
    assert sum(map(len, sides)) == len(manifest) == len(set.union(*map(names, sides)))
    assert set(parts.held_out_tasks.tasks).isdisjoint(parts.train.tasks)
    assert set(parts.held_out_images.tasks) <= set(parts.train.tasks)
    assert keys(parts.held_out_images).isdisjoint(keys(parts.train))
    assert 4 <= len(parts.held_out_tasks.tasks) <= 17
    assert 0.06 < len(parts.held_out_images) / (len(manifest) - len(parts.held_out_tasks)) < 0.14


def test_appending_moves_nothing(fake):
    old = fake(pairs_of(range(20), 20))
    new = fake(pairs_of(range(30), 20) + pairs_of(range(20), 10, first=20), "new")
    before, after = (split(m, tasks=0.2, images=0.1) for m in (old, new))
    for side in ("train", "held_out_images", "held_out_tasks"):
        assert names(getattr(before, side)) == names(getattr(after, side)) & names(old), side
    assert names(after.train) - names(old) and names(after.held_out_images) - names(old)


def test_pairs_of_every_task_are_held_out_where_four_are_there(fake, caplog):
    small = [("small", f"x{i}", f"y{i}") for i in range(3)]
    manifest = fake(pairs_of(range(3), 5) + small)
    parts = split(manifest, pairs=2)
    assert {task: len(numbers) for task, numbers in parts.held_out_images.tasks.items()} == {"t0": 2, "t1": 2, "t2": 2}
    assert {task: len(n) for task, n in parts.train.tasks.items()} == {"t0": 3, "t1": 3, "t2": 3, "small": 3}
    assert keys(parts.held_out_images).isdisjoint(keys(parts.train)) and parts.held_out_tasks is None
    assert "task 'small' has 3 pairs, too few to hold out 2; all are trained on" in caplog.messages
    assert names(split(manifest, pairs=2, seed=1).train) != names(parts.train)


def test_an_image_of_several_tasks_is_held_out_of_all(fake):
    manifest = fake([(task, f"photo{i}", f"{task}{i}") for task in ("grey", "blur", "sepia") for i in range(6)])
    parts = split(manifest, pairs=2)
    assert len(parts.held_out_images) == 6 and len(parts.train) == 12
    assert len({pair.before.key for pair in parts.held_out_images}) == 2


@pytest.mark.parametrize("settings", [{"pairs": 1}, {"pairs": 2, "images": 0.1}])
def test_pairs_are_held_out_by_number_or_by_share(fake, settings):
    with pytest.raises(DataError, match="give one of them, and two pairs at least: an analogy needs two"):
        split(fake(pairs_of(range(2), 9)), **settings)


def test_the_seed_decides(fake):
    manifest = fake(pairs_of(range(40), 4))
    assert names(split(manifest, tasks=0.5).train) == names(split(manifest, tasks=0.5).train)
    assert names(split(manifest, tasks=0.5, seed=1).train) != names(split(manifest, tasks=0.5, seed=2).train)


def test_an_image_shared_by_tasks_is_not_both_seen_and_unseen(fake):
    photographs = [f"photo{i}" for i in range(60)]
    undone = [("colour", f"grey of {p}", p) for p in photographs]
    manifest = fake([(task, p, f"{task} of {p}") for task in ("grey", "blur") for p in photographs] + undone)
    parts = split(manifest, images=0.2)
    assert keys(parts.held_out_images).isdisjoint(keys(parts.train))
    unseen = {pair.before.key for pair in parts.held_out_images if pair.task == "grey"}
    assert unseen == {pair.before.key for pair in parts.held_out_images if pair.task == "blur"} != set()
    assert len(parts.train) > 60


def test_a_held_out_task_is_not_trained_on_under_another_name(fake, caplog):
    pairs = [("make it snow", f"b{i}", f"a{i}") for i in range(4)]
    manifest = fake([*pairs, *(("Make it snow.", b, a) for _, b, a in pairs), *pairs_of(range(3), 2)])
    parts = split(manifest, tasks=["make it snow"])
    assert keys(parts.held_out_tasks).isdisjoint(keys(parts.train)) and len(parts.train) == 6
    assert "4 training pairs are left out" in caplog.text


def test_tasks_can_be_named(fake):
    manifest = fake(pairs_of(range(5), 2))
    parts = split(manifest, tasks=["t1", "t3"])
    assert set(parts.held_out_tasks.tasks) == {"t1", "t3"}
    assert parts.held_out_images is None
    with pytest.raises(DataError, match="no task 't9' to hold out; known: t0, t1"):
        split(manifest, tasks=["t9"])


def test_no_split_is_everything(fake):
    manifest = fake(pairs_of(range(3), 2))
    parts = split(manifest)
    assert parts.train.digest == manifest.digest
    assert parts.held_out_images is parts.held_out_tasks is None


def test_an_empty_side_and_a_wrong_share_are_errors(fake):
    manifest = fake(pairs_of(range(2), 2))
    with pytest.raises(DataError, match="leaves no pairs for held-out images"):
        split(manifest, images=1e-9)
    with pytest.raises(DataError, match="leaves no pairs for training"):
        split(manifest, tasks=["t0", "t1"])
    for wrong in ({"images": 1.0}, {"tasks": -0.1}):
        with pytest.raises(DataError, match="share to hold out"):
            split(manifest, **wrong)
