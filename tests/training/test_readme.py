"""The Python examples of the README, word for word, on small random models under the names that they use."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from harness.edit_graph import sepia
from harness.small_models import flux_layers, random_bank
from training.bases import KLEIN
from training.bases.tiny import make_base, make_encoder
from training.bases.tiny_klein import make_klein

README = Path(__file__).parents[2] / "README.md"
# What in them takes a GPU or minutes, and what a CPU does in seconds.
SMALLER = {"megapixels=1.0": "megapixels=0.01", 'device, steps = "cuda", 28': 'device, steps = "cpu", 2'}
SMALLER_KLEIN = {"megapixels=0.25": "megapixels=0.01", '"cuda"': '"cpu"', "steps=28": "steps=2"}


def python_blocks():
    return re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def folder(tmp_path, photographs, monkeypatch):
    """The working folder: a bank, three images, and small models where the hub's names lead to."""
    a = np.ascontiguousarray(photographs["astronaut"][::8, ::8])
    b = np.ascontiguousarray(photographs["chelsea"][::4, ::4])
    for name, image in {"a": a, "a_prime": sepia(a), "b": b}.items():
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    random_bank(tmp_path / "bank.safetensors", flux_layers(256, 2, 2), num_loras=4, rank=4, key_dim=16)
    make_base(tmp_path / "black-forest-labs" / "FLUX.1-Kontext-dev")
    make_encoder(tmp_path / "openai" / "clip-vit-large-patch14")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_examples_run(folder):
    compose, sample, _, steer = python_blocks()
    assert len(compose.splitlines()) <= 15
    for large, small in SMALLER.items():
        assert (compose + sample).count(large) == 1
        compose, sample = compose.replace(large, small), sample.replace(large, small)
    names = {}
    exec(compose + sample, names)
    with Image.open(folder / "b.png") as b, Image.open(folder / "b_prime.png") as b_prime:
        assert b_prime.size == b.size
    layers = flux_layers(256, 2, 2)
    saved = load_file(folder / "edit.safetensors")
    assert {name.split(".lora_")[0] for name in saved} == {f"transformer.{name}" for name in layers}
    check_that_it_samples_with_the_lora(names)

    exec(steer, names)
    assert names["small"].errors.keys() == layers.keys()
    assert names["small"].factors("transformer_blocks.0.ff.net.2")[0].shape == (16, 1024)


def test_the_example_of_separate_references_runs(folder):
    compose, _, separate, _ = python_blocks()
    for large, small in SMALLER_KLEIN.items():
        assert separate.count(large) == 1
        separate = separate.replace(large, small)
    transformer = KLEIN.transformer.from_pretrained(
        make_klein(folder / "black-forest-labs" / "FLUX.2-klein-base-4B"), subfolder="transformer"
    )
    linear = {name: module for name, module in transformer.named_modules() if re.fullmatch(KLEIN.targets, name)}
    layers = {name: (module.in_features, module.out_features) for name, module in linear.items()}
    random_bank(folder / "bank.safetensors", layers, num_loras=4, rank=4, key_dim=16)
    names = {}
    exec(compose + separate, names)
    assert names["made"].shape[-2:] == (names["answer"].height, names["answer"].width)
    assert {name for name, _ in names["klein"].transformer.named_modules() if name.endswith("lora_A.default_0")} == {
        f"{name}.lora_A.default_0" for name in layers
    }
    with Image.open(folder / "b.png") as b, Image.open(folder / "b_prime.png") as b_prime:
        assert b_prime.size == b.size


def check_that_it_samples_with_the_lora(names):
    """Without it, the same noise gives another picture."""
    pipe, results = names["pipe"], []
    call = {**names["size"], "_auto_resize": False, "num_inference_steps": 1, "output_type": "pt"}
    for _ in range(2):
        generator = torch.Generator().manual_seed(0)
        results.append(pipe(names["reference"], names["prompt"], **call, generator=generator).images)
        pipe.unload_lora_weights()
    assert not torch.allclose(*results)
