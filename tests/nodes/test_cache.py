"""A bank in ComfyUI's cache under RAM pressure, and on its way through the nodes."""

import bisect
import math

import comfy_execution.caching as caching
import pytest
import torch
from comfy_execution.caching import CacheKeySetID, RAMPressureCache
from execution import CacheEntry
from lorweb_pack.nodes.starter import LoadStarter

NEWER = hasattr(RAMPressureCache, "ram_release")


@pytest.fixture(scope="module")
def basis():
    """The starter's bank as its loader gives it."""
    return LoadStarter.execute().args[3]


def held_bytes(bank) -> int:
    """A and B of all layers as they are in the file, and the folded keys and projections, counted by hand."""
    config = bank.config
    folded = len(bank.layers) * config.heads * config.num_loras * config.query_dim * torch.float32.itemsize
    bases = [t for layer in bank.layers.values() for t in (layer.A, layer.B, layer.bias) if t is not None]
    return folded + sum(t.numel() * t.element_size() for t in bases)


def weigh(monkeypatch, output) -> float:
    """What the cache takes a node of one output to be worth throwing away."""
    scores = []
    monkeypatch.setattr(caching, "bisect", type("Listening", (), {"insort": lambda _, entry: scores.append(entry[0])}))
    cache = RAMPressureCache(CacheKeySetID)
    cache.cache, cache.timestamps = {"node": CacheEntry({}, [[output]])}, {"node": 0}
    cache.used_generation = {"node": cache.generation}
    if NEWER:
        cache.ram_release(math.inf, free_active=True)
    else:
        cache.poll(math.inf)
    monkeypatch.setattr(caching, "bisect", bisect)
    return scores[0]


def test_the_cache_counts_a_bank_by_its_bytes(basis, monkeypatch):
    """As it counts any tensor of as many: ComfyUI 0.3 looks at no outputs, newer ComfyUI at those in lists."""
    size = held_bytes(basis)
    found = weigh(monkeypatch, basis)
    assert found == weigh(monkeypatch, torch.empty(size, dtype=torch.uint8, device="cpu"))
    assert not NEWER or found == pytest.approx(size, abs=1)


def test_it_holds_the_bank_s_own_tensors(basis):
    layer = next(iter(basis.layers.values()))
    assert basis[0].data_ptr() == layer.A.data_ptr() and basis[1].data_ptr() == layer.B.data_ptr()


def test_it_is_told_apart_and_written_as_any_object(basis):
    """ComfyUI writes inputs into its error reports, and nodes keep banks as keys."""
    other = LoadStarter.execute().args[3]
    assert basis != other and len({basis, other}) == 2 and len(str(basis)) < 200
