"""Loading and saving: where the configuration comes from, what stays in memory, what is written."""

import json
import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from lorweb_core import BankConfig, BankError, BasisBank
from lorweb_core.checkpoint import write_bank

from .conftest import LAYERS, Spec, reference_coefficients, relative_error

LAYER = "transformer_blocks.0.attn.to_q"


def test_config_from_shapes(make_bank, caplog):
    with caplog.at_level(logging.WARNING):
        bank = BasisBank.load(make_bank()[0])
    config = bank.config
    assert (config.num_loras, config.rank, config.key_dim, config.query_dim) == (6, 3, 16, 36)
    assert (config.heads, config.softmax, config.mixing, config.query_mode, config.scale) == (
        1,
        True,
        "mean",
        "cat-aa'b",
        1,
    )
    assert config.projection == "linear" and config.encoder == "openai/clip-vit-large-patch14"
    assert bank.assumed == ("softmax", "query_mode", "heads", "mixing", "encoder")
    assert "does not say softmax, query_mode, heads, mixing, encoder" in caplog.text and "mixing mean" in caplog.text


def test_config_from_yaml(make_bank):
    path, _ = make_bank(
        yaml_kwargs={
            "loras_num": 6, "lora_keys_dim": 16, "lora_heads": 4, "lora_softmax": False, "mixing_coeffs_type": "sum",
            "query_mode": "ca'-ca", "external_query_model": "google/siglip2-base-patch16-224",
            "query_projection_type": "linear", "linear_alpha": 12,
        }
    )  # fmt: skip
    bank = BasisBank.load(path)
    config = bank.config
    assert (config.heads, config.softmax, config.mixing, config.query_mode) == (4, False, "sum", "ca'-ca")
    assert (config.alpha, config.scale, config.encoder) == (3, 1, "google/siglip2-base-patch16-224")
    assert config.base_model == "some/base" and bank.assumed == ()
    assert config.embedding_dim == 36


def test_config_yaml_named_config(make_bank):
    path, _ = make_bank(yaml_kwargs={"lora_heads": 4})
    path.with_suffix(".yaml").rename(path.with_name("config.yaml"))
    assert BasisBank.load(path).config.heads == 4


def test_config_yaml_beside_two_banks_is_the_one_of_its_name(make_bank, caplog):
    path, _ = make_bank(yaml_kwargs={"lora_heads": 4})
    other, _ = make_bank(name="other.safetensors")
    path.with_suffix(".yaml").rename(path.with_name("config.yaml"))
    with caplog.at_level(logging.WARNING):
        bank = BasisBank.load(other)
    assert bank.config.heads == 1 and "heads" in bank.assumed and "config.yaml may be another bank's" in caplog.text
    assert BasisBank.load(path).config.heads == 4


def test_an_embedding_is_a_part_of_the_query():
    config = BankConfig(num_loras=2, rank=1, key_dim=4, query_dim=36)
    widths = {mode: replace(config, query_mode=mode).embedding_dim for mode in ("cat-aa'b", "ca'-ca", "cat-paa'b")}
    assert widths == {"cat-aa'b": 12, "ca'-ca": 36, "cat-paa'b": 12}


@pytest.mark.parametrize(("query_dim", "mode"), [(3 * 768, "cat-aa'b"), (768, "ca'-ca+cb"), (35, "ca'-ca+cb")])
def test_query_mode_from_the_width(make_bank, query_dim, mode):
    assert BasisBank.load(make_bank(Spec(query_dim=query_dim))[0]).config.query_mode == mode


def test_layers_stand_in_model_order(make_bank):
    names = list(BasisBank.load(make_bank()[0]).layers)
    assert names.index("transformer_blocks.2.norm1.linear") < names.index("transformer_blocks.10.ff.net.2")
    assert names.index("transformer_blocks.10.ff.net.2") < names.index("single_transformer_blocks.0.proj_out")
    assert sorted(names) == sorted(LAYERS)


@pytest.mark.parametrize("bias", [False, True])
def test_save_and_load_again(make_bank, tmp_path, bias):
    path, tensors = make_bank(Spec(bias=bias), yaml_kwargs={"lora_softmax": False, "lora_heads": 2})
    bank = BasisBank.load(path)
    saved = tmp_path / "saved.safetensors"
    bank.save(saved)
    again = BasisBank.load(saved)
    assert again.config == bank.config and again.assumed == ()
    written = load_file(saved)
    assert written.keys() == {name.replace("lora_up_bias", "lora_B_bias") for name in tensors}
    assert all(torch.equal(written[name.replace("lora_up_bias", "lora_B_bias")], tensors[name]) for name in tensors)
    query = torch.randn(36)
    assert torch.equal(again.mix(query).values, bank.mix(query).values)


def test_saved_file_is_the_released_layout_plus_a_header(make_bank, tmp_path):
    path, tensors = make_bank()
    BasisBank.load(path).save(tmp_path / "saved.safetensors")
    with safe_open(tmp_path / "saved.safetensors", framework="pt") as file:
        assert set(file.keys()) == set(tensors)
        assert json.loads(file.metadata()["lorweb_config"])["num_loras"] == 6


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_a_saved_bank_is_as_readable_as_any_file(make_bank, tmp_path):
    path, _ = make_bank()
    BasisBank.load(path).save(tmp_path / "saved.safetensors")
    (tmp_path / "other").touch()
    assert (tmp_path / "saved.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_saving_over_the_file_it_came_from(make_bank):
    path, tensors = make_bank()
    BasisBank.load(path).save(path)
    assert all(torch.equal(load_file(path)[name], tensors[name]) for name in tensors)
    assert BasisBank.load(path).assumed == ()


def test_saving_after_the_source_changed(make_bank, tmp_path):
    path, _ = make_bank()
    bank = BasisBank.load(path)
    path.unlink()
    make_bank(Spec(layers={"transformer_blocks.0.attn.to_q": (24, 24)}))
    with pytest.raises(BankError, match="changed since the bank was loaded"):
        bank.save(tmp_path / "saved.safetensors")
    assert not (tmp_path / "saved.safetensors").exists()


def test_extra_header_entries_survive(make_bank, tmp_path):
    path, tensors = make_bank()
    config = BasisBank.load(path).config
    layers = {name: {} for name in LAYERS}
    for key, tensor in tensors.items():
        name = next(name for name in LAYERS if key.startswith(f"transformer.{name}."))
        layers[name][key.removeprefix(f"transformer.{name}.")] = tensor
    write_bank(tmp_path / "a.safetensors", layers, config, {"lorweb_step": "42"})
    BasisBank.load(tmp_path / "a.safetensors").save(tmp_path / "b.safetensors")
    assert BasisBank.load(tmp_path / "b.safetensors").metadata["lorweb_step"] == "42"


def test_write_bank_refuses_a_config_that_contradicts(make_bank, tmp_path):
    layers = {"transformer_blocks.0.attn.to_q": {
        "lora_A": torch.zeros(2, 8, 1), "lora_B": torch.zeros(2, 1, 8), "lora_keys": torch.zeros(2, 4),
        "att_lora_to_q.weight": torch.zeros(4, 9),
    }}  # fmt: skip
    with pytest.raises(BankError, match=r"num_loras = 3, but the tensors say 2"):
        write_bank(tmp_path / "x.safetensors", layers, BankConfig(num_loras=3, rank=1, key_dim=4, query_dim=9))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_old_file(make_bank, tmp_path):
    """The write stops half way, as on a full disk: a limit on the size of files stands in for the disk."""
    pytest.importorskip("resource")
    path, tensors = make_bank()
    script = (
        "import resource, signal, sys\n"
        "from lorweb_core import BasisBank\n"
        "bank = BasisBank.load(sys.argv[1])\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "bank.save(sys.argv[1])\n"
    )
    result = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True)
    assert result.returncode != 0
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert all(torch.equal(load_file(path)[name], tensors[name]) for name in tensors)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's list of memory mappings")
def test_factors_stay_in_the_file(make_bank):
    """A and B are views of the memory-mapped file, and nothing else of it stays mapped."""
    path, _ = make_bank()
    bank = BasisBank.load(path)
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(path))]
    mappings = [tuple(int(end, 16) for end in line[0].split("-")) for line in lines]
    assert len(mappings) == 1
    for layer in bank.layers.values():
        for tensor in (layer.A, layer.B):
            assert any(start <= tensor.data_ptr() < end for start, end in mappings)


def test_progress_counts_both_passes(make_bank):
    seen = []
    BasisBank.load(make_bank()[0], progress=lambda done, total: seen.append((done, total)))
    once = [(i + 1, len(LAYERS)) for i in range(len(LAYERS))]
    assert seen == once + once


def test_projection_none_of_a_large_width(make_bank):
    """Un-pooled tokens: d = q = 196,608. An identity in place of the projection would take 309 GB."""
    width = 196_608
    spec = Spec(num_loras=2, rank=1, key_dim=width, query_dim=width, projection=False, layers={LAYER: (4, 4)})
    path, tensors = make_bank(spec, heads=2, query_mode="paa'b", projection="none")
    query = torch.randn(width)
    found = BasisBank.load(path).mix(query).for_layer(LAYER)
    assert relative_error(found, reference_coefficients(tensors, LAYER, query, heads=2)) <= 1e-6


def test_a_narrow_projection_is_not_folded(make_bank):
    """d = 1: folded, keys and projection of 0.2 MB would become 3.6 GB."""
    spec = Spec(num_loras=30_000, rank=1, key_dim=1, query_dim=30_000, layers={LAYER: (1, 1)})
    path, tensors = make_bank(spec)
    query = torch.randn(2, 30_000)
    found = BasisBank.load(path).mix(query).values[1, 0]
    assert relative_error(found, reference_coefficients(tensors, LAYER, query[1])) <= 1e-6


@pytest.mark.parametrize(
    ("changes", "header", "message"),
    [
        ({"lora_A": -1e30, "lora_B": 1e20}, {}, "they reach 1e+30 and 1e+20"),
        ({"lora_A": 1e30, "lora_B": 1e20}, {}, "they reach 1e+30 and 1e+20"),
        ({"lora_A": 2e19, "lora_B": 2e18}, {}, "they reach 2e+19 and 2e+18"),  # 18 such products are added
        ({"lora_A": 1e20}, {"alpha": 1e300}, "with a scale of 3.33e+299"),
        ({"lora_A": 1e20}, {"alpha": -1e300}, "with a scale of -3.33e+299"),
        ({"lora_up_bias": 3e38}, {}, "more than float32 holds"),
        ({"lora_keys": 1e25, "att_lora_to_q.weight": 1e25}, {}, "reach 4e+50"),
        ({"lora_keys": 1e16, "att_lora_to_q.weight": 1e16}, {}, "reach 4e+32"),
    ],
)  # fmt: skip
def test_banks_whose_products_overflow(make_bank, changes, header, message):
    """Every value is finite, but not what is made of them."""

    def spoil(tensors):
        for name, value in changes.items():
            tensors[f"transformer.{LAYER}.{name}"].fill_(value)

    path, _ = make_bank(Spec(bias=True), change=spoil, **header)
    with pytest.raises(BankError) as caught:
        BasisBank.load(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and "layer transformer_blocks.0." in text and message in text


def test_edits_that_half_precision_does_not_hold(make_bank):
    """Nobody means them, and pictures would be noise or NaN: the file and the layer are named instead."""
    bank = BasisBank.load(make_bank()[0])
    c = bank.mix(torch.randn(36))
    assert torch.isfinite(bank.delta(LAYER, c.override([(LAYER, 0, 300.0)]))).all()
    with pytest.raises(BankError, match=rf"{bank.path}: the edit is too large .*{LAYER} .* lower block scales"):
        bank.compose(c.scale_blocks([(LAYER, 1e6)]))
    with pytest.raises(BankError, match="half precision ends at 65,504"):
        BasisBank.load(make_bank(alpha=1e9)[0]).compose(c)
    path, _ = make_bank(Spec(bias=True), change=lambda t: t[f"transformer.{LAYER}.lora_up_bias"].fill_(1e10))
    biased = BasisBank.load(path)
    with pytest.raises(BankError, match=f"in layer {LAYER} it may reach"):
        biased.compose(biased.mix(torch.randn(36)))


@pytest.mark.parametrize(("text", "side"), [("128", 128), ("0", 512), ("9" * 5000, 512), ("x", 512), ("-3", 512)])
def test_canvas_of_the_header(make_bank, text, side):
    assert BasisBank.load(make_bank(metadata={"canvas": text})[0]).canvas == side


def test_names_of_many_digits_or_letters(make_bank):
    digits = f"transformer_blocks.{'9' * 100}.x"
    assert BasisBank.load(make_bank(Spec(layers={digits: (4, 4), LAYER: (4, 4)}))[0]).mix(torch.randn(36))
    for name in (f"transformer_blocks.{'9' * 5000}.x", "x" * 100_000):
        path, _ = make_bank(Spec(layers={name: (4, 4), LAYER: (4, 4)}))
        with pytest.raises(BankError, match="4 tensors are not part of a bank") as caught:
            BasisBank.load(path)
        assert len(str(caught.value)) < 2000
