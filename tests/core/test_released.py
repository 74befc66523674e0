"""Released banks, read as the released code reads them."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from benchmarks._hostile_cases import ALIASES, DIGITS, MERGES
from lorweb_core import BankError, BasisBank
from lorweb_core.query import build_query
from lorweb_core.released import sibling_yaml

from .conftest import LAYERS, Spec, reference_delta, relative_error, released_yaml
from .test_query import RecordingEncoder

LAYER = next(iter(LAYERS))


@pytest.mark.parametrize("alpha", [1, 12, "auto", None])
def test_linear_alpha_has_no_effect(make_bank, alpha):
    """With ``linear: 3, linear_alpha: 1`` an edit is as strong as with 3: the released code forces alpha = rank."""
    path, tensors = make_bank(yaml_kwargs={"query_mode": "ca'-ca", "linear_alpha": alpha})
    bank = BasisBank.load(path)
    c = bank.mix(torch.randn(36, generator=torch.Generator().manual_seed(1)))
    assert bank.config.scale == 1
    assert relative_error(bank.delta(LAYER, c), reference_delta(tensors, LAYER, c.for_layer(LAYER))) <= 1e-6


def test_alpha_of_a_header_counts(make_bank):
    assert BasisBank.load(make_bank(alpha=6)[0]).config.scale == 2


def test_rank_beside_linear_wins(make_bank):
    path, _ = make_bank()
    text = released_yaml(linear=64).replace("linear: 64", "linear: 64\n      rank: 3")
    path.with_suffix(".yaml").write_text(text)
    assert BasisBank.load(path).config.rank == 3
    path.with_suffix(".yaml").write_text(text.replace("rank: 3", "rank: 5"))
    with pytest.raises(BankError, match="rank = 5, but the tensors say 3"):
        BasisBank.load(path)


def test_a_yaml_without_query_mode(make_bank):
    """No YAML at all means the paper's setting, a YAML that is silent the released trainer's default."""
    bank = BasisBank.load(make_bank(yaml_kwargs={"lora_heads": 2})[0])
    assert bank.config.query_mode == "aa'bb'" and bank.assumed == ("softmax", "mixing", "encoder")


def test_the_half_canvas_of_released_banks_is_cropped_and_of_ours_squeezed(make_bank, tmp_path):
    images = [torch.rand(1, 8, 8, 3) for _ in range(3)]
    released = BasisBank.load(make_bank(yaml_kwargs={"query_mode": "caa'"})[0])
    released.save(tmp_path / "saved.safetensors")
    ours = BasisBank.load(make_bank(name="ours.safetensors", query_mode="caa'")[0])
    for bank, squeezed in ((released, False), (BasisBank.load(tmp_path / "saved.safetensors"), False), (ours, True)):
        encoder = RecordingEncoder()
        build_query(bank.config.query_mode, *images, encoder)
        assert [stretch for _, stretch in encoder.seen] == [squeezed]
        assert encoder.seen[0][0].shape == (1, 8, 16, 3)


@pytest.fixture
def folder(make_bank, tmp_path):
    """Two checkpoints and the last bank of a run ``wool_edits``, a bank of another run, and the run's one YAML."""
    names = ["wool_edits_000000250", "wool_edits_000000500", "wool_edits", "wool_edits_more", "wool"]
    paths = {name: make_bank(name=f"{name}.safetensors")[0] for name in names}
    text = released_yaml(lora_heads=4, lora_softmax=False, query_mode="ca'-ca").replace(
        "name: bank", "name: wool_edits"
    )
    (tmp_path / "config.yaml").write_text(text)
    return paths


def test_a_training_folder_has_one_yaml_for_its_checkpoints(folder):
    for name, path in folder.items():
        config, of_the_run = BasisBank.load(path).config, not name.endswith(("more", "wool"))
        assert (config.heads, config.softmax) == ((4, False) if of_the_run else (1, True)), name


def test_a_training_whose_name_is_a_number(make_bank, tmp_path):
    path, _ = make_bank(name="2024_000000250.safetensors")
    make_bank(name="x.safetensors")
    (tmp_path / "config.yaml").write_text(released_yaml(lora_heads=4).replace("name: bank", "name: 2024"))
    assert BasisBank.load(path).config.heads == 4


def test_a_yaml_of_its_own_comes_first(folder):
    path = folder["wool_edits_000000250"]
    path.with_suffix(".yaml").write_text(released_yaml(lora_heads=2))
    assert BasisBank.load(path).config.heads == 2


def test_a_yaml_in_the_folder_above(make_bank, tmp_path):
    """``lorweb_model/lorweb_model.safetensors`` and ``config.yaml``, as on the hub."""
    (tmp_path / "lorweb_model").mkdir()
    path, _ = make_bank(name="lorweb_model/lorweb_model.safetensors")
    (tmp_path / "config.yaml").write_text("theme: dark")
    assert BasisBank.load(path).config.heads == 1, "no configuration of a training"
    (tmp_path / "config.yaml").write_text(released_yaml(lora_heads=4))
    assert BasisBank.load(path).config.heads == 4
    make_bank(name="mine.safetensors")
    assert sibling_yaml(path) is None, "whose it is cannot be told"


@pytest.mark.parametrize("name", ["lora_B_bias", "lora_up_bias"])
def test_both_names_of_the_bias(make_bank, tmp_path, name):
    def rename(tensors):
        for key in [key for key in tensors if key.endswith("lora_up_bias")]:
            tensors[key.replace("lora_up_bias", name)] = tensors.pop(key)

    path, tensors = make_bank(Spec(bias=True), change=rename)
    bank = BasisBank.load(path)
    assert torch.equal(bank.layers[LAYER].bias, tensors[f"transformer.{LAYER}.{name}"])
    bank.save(tmp_path / "saved.safetensors")
    assert f"transformer.{LAYER}.lora_B_bias" in load_file(tmp_path / "saved.safetensors")


def test_a_bias_of_both_names_is_refused(make_bank):
    path, _ = make_bank(
        Spec(bias=True), change=lambda t: t.update({f"transformer.{LAYER}.lora_B_bias": torch.zeros(6, 24)})
    )
    with pytest.raises(BankError, match="the same biases as lora_B_bias and as lora_up_bias"):
        BasisBank.load(path)


@pytest.mark.parametrize(
    "value",
    ["2020-13-45", DIGITS, "0x" + "f" * 5000, "&a [*a]", "!!timestamp x", "!!bool maybe", "[" * 50_000, "x" * 200_000],
    ids=["date", "digits", "hexadecimal", "endless", "timestamp", "bool", "brackets", "long"],
)
@pytest.mark.parametrize("name", ["lora_heads", "query_mode", "lora_softmax"])
def test_yaml_values_that_nobody_means(make_bank, name, value):
    path, _ = make_bank()
    text = released_yaml().replace("external_query: true", f"external_query: true\n          {name}: {value}")
    path.with_suffix(".yaml").write_text(text)
    with pytest.raises(BankError) as caught:
        BasisBank.load(path)
    assert str(caught.value).startswith(f"{path}: bank.yaml") and len(str(caught.value)) < 2000


@pytest.mark.parametrize("text", [ALIASES + "\nconfig: *a9", MERGES + "\nconfig: *m9"], ids=["aliases", "merges"])
def test_nested_aliases_unfold_nowhere(make_bank, text):
    """Neither in memory nor in the message: either unfolds to a billion values."""
    path, _ = make_bank()
    path.with_suffix(".yaml").write_text(f"{text}\n")
    with pytest.raises(BankError) as caught:
        BasisBank.load(path)
    assert len(str(caught.value)) < 2000
    bomb, last = text.rsplit("\nconfig: ", 1)
    value = f"{{network: {{network_kwargs: {{loras_num: {last}}}}}}}"
    path.with_suffix(".yaml").write_text(f"{bomb}\nconfig: {{process: [{value}]}}")
    with pytest.raises(BankError, match=r"num_loras = |merge keys add up"):
        BasisBank.load(path)


@pytest.mark.parametrize("settings", ["[" * 100_000, f'{{"alpha": {DIGITS}}}', json.dumps({"alpha": 10**400})])
def test_headers_that_nobody_means(tmp_path, settings):
    save_file(Spec().tensors(), tmp_path / "bank.safetensors", {"lorweb_config": settings})
    with pytest.raises(BankError) as caught:
        BasisBank.load(tmp_path / "bank.safetensors")
    assert "bank.safetensors" in str(caught.value) and len(str(caught.value)) < 2000


def test_the_starters_header_says_how_it_was_trained():
    """Its encoder saw the whole top half, squeezed; so it must stay."""
    with safe_open("starter/bank.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["lorweb_config"])["query_mode"] == "caa'"
