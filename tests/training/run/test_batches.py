"""Batches: the same samples whatever the processes are, prompts dropped at the set rate, noise of each sample's own."""

from itertools import islice

import pytest
import torch

from training.config import load_config
from training.run.batches import Batches, Share, _generator, draw_query
from training.run.setup import analogies, load_data, make_encoding, training_items


@pytest.mark.parametrize(("processes", "batch", "accumulate"), [(1, 4, 1), (2, 2, 1), (1, 2, 2), (2, 1, 2)])
def test_processes_and_accumulation_share_the_positions_of_one_batch(processes, batch, accumulate):
    shares = [Share(number, processes, batch, accumulate) for number in range(processes)]
    for step in range(3):
        drawn = [positions for share in shares for positions in islice(share.positions(step), accumulate)]
        assert sorted(i for positions in drawn for i in positions) == list(range(4 * step, 4 * step + 4))
        assert all(len(positions) == batch for positions in drawn)


def test_every_stream_of_random_numbers_is_its_own():
    keys = ("noise", 0, 1), ("query", 0, 1), ("noise", 1, 1), ("noise", 0, 2)
    assert len({_generator(*key).initial_seed() for key in keys}) == len(keys)


@pytest.fixture
def make_batches(overrides, tmp_path):
    """Batches of a run with settings."""

    def make(*settings):
        config = load_config("training/configs/tiny.yaml", [*overrides, f"run={tmp_path}", *settings])
        manifest, splits = load_data(config)
        training, cpu = analogies(config, splits.train, config.data.swap), torch.device("cpu")
        encoding = make_encoding(config, cpu, manifest, training)
        share = Share(0, 1, config.train.batch, config.train.accumulate)
        return Batches(config, training_items(config, training, encoding), encoding, share, cpu, 1.0)

    return make


def equal(one, other):
    pairs = [(one.latents, other.latents), (one.draw.noise, other.draw.noise), (one.draw.t, other.draw.t)]
    pairs += zip(one.condition.references, other.condition.references)
    pairs += [(one.condition.text[name], other.condition.text[name]) for name in one.condition.text]
    pairs.append((one.condition.query, other.condition.query))
    return all(torch.equal(*pair) for pair in pairs)


def test_batches_from_a_step_on_are_those_that_come_there(make_batches):
    batches = make_batches("train.accumulate=2")
    drawn = list(islice(batches.from_step(0), 6))
    assert equal(drawn[4], next(batches.from_step(2))) and not equal(drawn[2], drawn[4])


def test_repeated_analogies_get_new_noise(make_batches):
    first, _, again = islice(make_batches("data.cache_latents=4").from_step(0), 3)
    assert torch.equal(first.latents, again.latents) and not torch.equal(first.draw.noise, again.draw.noise)


def test_workers_give_what_the_process_itself_gives(make_batches):
    settings = ["data.cache_latents=0", "data.swap=0.5"]
    drawn = [list(islice(make_batches(*settings, f"data.workers={n}").from_step(1), 2)) for n in (0, 2)]
    assert all(equal(*pair) for pair in zip(*drawn))


def test_cached_example_pairs_give_what_the_encoder_gives(make_batches):
    settings = ["bank.query_mode=caa'", "data.swap=0.5", "data.cache_latents=4"]
    live, cached = (make_batches(*settings, *more) for more in (["data.cache=null", "data.cache_latents=0"], []))
    assert not cached.dataset.pixels and cached.encoding.vision is None
    for one, other in zip(islice(live.from_step(0), 2), islice(cached.from_step(0), 2)):
        torch.testing.assert_close(one.condition.query, other.condition.query, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(one.latents, other.latents, rtol=1e-4, atol=1e-4)


def test_queries_of_several_examples_are_drawn_anew_each_time(make_batches):
    settings = ["data.cache_latents=4", "data.examples=3"]
    first, _, again = islice(make_batches(*settings).from_step(0), 3)
    assert torch.equal(first.latents, again.latents) and not torch.equal(first.condition.query, again.condition.query)
    assert equal(first, next(make_batches(*settings).from_step(0)))
    own = next(make_batches("data.cache_latents=4").from_step(0))
    assert torch.equal(first.latents, own.latents) and torch.equal(first.draw.noise, own.draw.noise)
    cosines = torch.cosine_similarity(first.condition.query, own.condition.query)
    assert first.condition.query.shape == own.condition.query.shape and cosines.min() > 0.5


def test_drawn_queries_lie_about_the_mean_as_a_further_example_would():
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(400, 3, 2, generator=generator) * torch.tensor([1.0, 3.0]) + torch.tensor([5.0, -2.0])
    drawn = torch.stack([draw_query(examples, generator) for examples in queries for _ in range(50)])
    torch.testing.assert_close(drawn.mean(0), torch.tensor([5.0, -2.0]), rtol=0, atol=0.3)
    torch.testing.assert_close(drawn.std(0), torch.tensor([1.0, 3.0]), rtol=0.1, atol=0)
    assert torch.equal(draw_query(queries[0, :1], generator), queries[0, 0])


def test_captions_are_dropped_at_the_set_rate(make_batches):
    batches = make_batches("objective.caption_dropout=0.3")
    kept = [batches._caption(position, "x") for position in range(2000)]
    assert set(kept) == {"x", ""} and abs(kept.count("") / 2000 - 0.3) < 0.03
    assert kept == [batches._caption(position, "x") for position in range(2000)]
    assert all(make_batches("objective.caption_dropout=0")._caption(position, "x") == "x" for position in range(100))
    empty = batches.encoding.prompts([""], {})[0]["tokens"]
    dropped = next(batches.from_step(kept.index("") // batches.share.batch)).condition.text["tokens"]
    assert torch.equal(dropped[kept.index("") % batches.share.batch], empty)
