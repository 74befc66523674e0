"""Caches of a run: encoders go when they are done, only new content is encoded, other weights are other caches."""

import gc
import shutil

import pytest
import torch
from transformers import CLIPTextModel, CLIPVisionModelWithProjection, T5EncoderModel

from training.config import load_config
from training.data import EmbeddingCache
from training.encoders.encoding import live_encoding
from training.encoders.weights import describe_weights
from training.run.setup import analogies, load_data, make_encoding

ENCODERS = (CLIPTextModel, CLIPVisionModelWithProjection, T5EncoderModel)
CPU = torch.device("cpu")


def alive():
    """Names of the encoders that are in memory."""
    gc.collect()
    return sorted(type(thing).__name__ for thing in gc.get_objects() if isinstance(thing, ENCODERS))


@pytest.fixture
def encode(overrides, tmp_path):
    """Make a run's encoding with caches of its own -> (encoding, analogies that are trained on)."""

    def make(*settings):
        cache = f"data.cache={tmp_path / 'cache'}"
        config = load_config("training/configs/tiny.yaml", [*overrides, f"run={tmp_path}", cache, *settings])
        manifest, splits = load_data(config)
        training = analogies(config, splits.train)
        return make_encoding(config, CPU, manifest, training), training

    return make


def test_encoders_are_freed_after_caching(encode):
    before = alive()
    encoding, _ = encode()
    assert alive() == before and encoding.vision is None and not encoding.needs_pixels
    live, _ = encode("data.cache=null", "data.cache_latents=0")
    live.prompts([""], {})  # which is when text encoders are loaded
    assert len(alive()) == len(before) + 3 and live.needs_pixels


def test_full_caches_load_no_encoder(encode, monkeypatch):
    first, training = encode()

    def refuse(*args, **kwargs):
        raise AssertionError("an encoder was loaded")

    for encoder in ENCODERS:
        monkeypatch.setattr(encoder, "from_pretrained", refuse)
    second, _ = encode()
    prompt = training[0]["prompt"]
    for one, other in zip(first.prompts([prompt, ""], {}), second.prompts([prompt, ""], {})):
        assert one.keys() == {"tokens", "pooled"} and all(torch.equal(one[name], other[name]) for name in one)


def test_known_prompts_free_the_text_encoders(overrides, tmp_path):
    config = load_config("training/configs/tiny.yaml", [*overrides, f"run={tmp_path}"])
    before = alive()
    (expected,) = live_encoding(config, CPU).prompts(["make it grey"], {})
    encoding = live_encoding(config, CPU, ["", "make it grey"])
    assert alive() == sorted([*before, "CLIPVisionModelWithProjection"])
    (found,) = encoding.prompts(["make it grey"], {})
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("size", [100, 2**16 * 64 + 5])
def test_a_change_anywhere_in_weights_or_settings_is_noticed(tmp_path, size):
    weights, settings = tmp_path / "vae" / "w.safetensors", tmp_path / "vae" / "config.json"
    weights.parent.mkdir()
    weights.write_bytes(bytes(size)), settings.write_text('{"scaling_factor": 1.0}')
    shutil.copytree(tmp_path / "vae", tmp_path / "copy")
    seen = [describe_weights(str(tmp_path), "vae")]
    assert describe_weights(str(tmp_path), "copy") == seen[0]
    for place in (0, size // 2, -1):
        flip(weights, place)
        seen.append(describe_weights(str(tmp_path), "vae"))
    settings.write_text('{"scaling_factor": 2.0}')
    seen.append(describe_weights(str(tmp_path), "vae"))
    assert len({str(each) for each in seen}) == 5
    assert describe_weights(str(tmp_path), "missing") == {}


def test_training_that_spreads_over_large_weights_is_noticed(tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(bytes(40 * 2**20))
    before = describe_weights(str(tmp_path))
    with path.open("r+b") as file:
        file.seek(30 * 2**20)
        file.write(b"\1" * 2**20)  # one tensor of forty
    assert describe_weights(str(tmp_path)) != before


def test_the_fingerprints_name_what_the_tensors_depend_on(encode, tmp_path):
    encode()
    kept = {kind: sorted(path.name for path in (tmp_path / "cache" / kind).iterdir()) for kind in ("images", "latents")}
    encode("data.fit=pad")
    for kind, before in kept.items():
        assert len(list((tmp_path / "cache" / kind).iterdir())) == len(before) + 1
    assert len(list((tmp_path / "cache" / "prompts").iterdir())) == 1
    encode("data.prompt_tokens=5")
    assert len(list((tmp_path / "cache" / "prompts").iterdir())) == 2
    assert isinstance(encode()[0].prompts.cache, EmbeddingCache)
