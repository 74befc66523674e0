"""Every bad file gives one error that names the file, the layer, what was expected and what to do."""

import json

import pytest
import torch
from safetensors.torch import save_file

from lorweb_core import BankError, BasisBank
from lorweb_core.__main__ import main

from .conftest import Spec

LAYER = "transformer_blocks.0.attn.to_k"


def refuse(path, *fragments):
    with pytest.raises(BankError) as caught:
        BasisBank.load(path)
    message = str(caught.value)
    assert message.startswith(str(path)), message
    for fragment in fragments:
        assert fragment in message, message


def key(tensor):
    return f"transformer.{LAYER}.{tensor}"


def test_no_file(tmp_path):
    refuse(tmp_path / "nothing.safetensors", "there is no such file")


def test_not_safetensors(tmp_path):
    path = tmp_path / "bank.safetensors"
    path.write_bytes(b"this is a picture of a cat" * 10)
    refuse(path, "not a readable safetensors file", "download or copy it again")


def test_empty_file(tmp_path):
    path = tmp_path / "bank.safetensors"
    path.touch()
    refuse(path, "not a readable safetensors file", "0 bytes")


def test_truncated(make_bank):
    path, _ = make_bank()
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    refuse(path, "not a readable safetensors file", f"{len(content) // 2:,} bytes")


def test_no_tensors(tmp_path):
    path = tmp_path / "bank.safetensors"
    save_file({}, path)
    refuse(path, "holds no tensors")


@pytest.mark.parametrize("tensor", ["lora_A", "lora_B", "lora_keys", "att_lora_to_q.weight"])
def test_missing_tensor(make_bank, tensor):
    path, _ = make_bank(change=lambda tensors: tensors.pop(key(tensor)))
    refuse(path, f"{tensor} missing in layer {LAYER}")


def test_projection_in_one_layer_only(make_bank):
    path, _ = make_bank(
        Spec(projection=False),
        change=lambda tensors: tensors.update({key("att_lora_to_q.weight"): torch.zeros(16, 36)}),
    )
    refuse(path, f"layer {LAYER}", "all layers must agree")


def test_bias_in_one_layer_only(make_bank):
    path, tensors = make_bank()
    width = tensors[key("lora_B")].shape[2]
    path, _ = make_bank(change=lambda tensors: tensors.update({key("lora_up_bias"): torch.zeros(6, width)}))
    refuse(path, f"lora_B_bias is in layer {LAYER}", "all layers must agree")


@pytest.mark.parametrize(
    ("tensor", "shape", "expected"),
    [
        ("lora_A", (6, 24, 2), "[6, 24, 3]"),
        ("lora_A", (5, 24, 3), "[6, 24, 3]"),
        ("lora_B", (6, 2, 24), "[6, 3, 24]"),
        ("lora_keys", (5, 16), "[6, 16]"),
        ("lora_keys", (6, 17), "[6, 16]"),
        ("att_lora_to_q.weight", (16, 35), "[16, 36]"),
    ],
)
def test_wrong_shape(make_bank, tensor, shape, expected):
    path, _ = make_bank(change=lambda tensors: tensors.update({key(tensor): torch.zeros(shape)}))
    refuse(path, f"{tensor} of layer {LAYER} has shape {list(shape)}; expected {expected}", "N = 6, rank 3")


def test_wrong_dimensions(make_bank):
    path, _ = make_bank(change=lambda tensors: tensors.update({key("lora_A"): torch.zeros(24, 3)}))
    refuse(path, f"lora_A of layer {LAYER} has shape [24, 3]; expected 3 dimensions")


def test_wrong_bias(make_bank):
    path, _ = make_bank(
        Spec(bias=True), change=lambda tensors: tensors.update({key("lora_up_bias"): torch.zeros(6, 23)})
    )
    refuse(path, f"lora_B_bias of layer {LAYER} has shape [6, 23]; expected [6, 24]")


def test_mixed_n(make_bank):
    """A whole layer of another N: every tensor of it is consistent in itself."""
    other = Spec(num_loras=4, layers={LAYER: (24, 24)}).tensors()
    path, _ = make_bank(change=lambda tensors: tensors.update(other))
    refuse(path, f"layer {LAYER}", "expected [6, ", "N = 6")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("tensor", ["lora_A", "lora_B", "lora_keys", "att_lora_to_q.weight", "lora_up_bias"])
def test_not_finite(make_bank, tensor, value, dtype):
    def spoil(tensors):
        tensors[key(tensor)].view(-1)[7] = value

    path, _ = make_bank(Spec(bias=True, dtype=dtype), change=spoil)
    name = tensor.replace("lora_up_bias", "lora_B_bias")
    refuse(path, f"{name} of layer {LAYER} holds 1 values that are NaN or infinite")


def test_integer_tensor(make_bank):
    path, _ = make_bank(change=lambda tensors: tensors.update({key("lora_A"): torch.zeros(6, 24, 3, dtype=torch.int8)}))
    refuse(path, f"lora_A of layer {LAYER} is stored as I8; expected one of F32, F16, BF16")


def test_stranger_in_a_bank(make_bank):
    path, _ = make_bank(change=lambda tensors: tensors.update({"transformer.extra.weight": torch.zeros(2)}))
    refuse(path, "1 tensors are not part of a bank, such as transformer.extra.weight")


def test_some_other_model(tmp_path):
    path = tmp_path / "vae.safetensors"
    save_file({"decoder.conv_in.weight": torch.zeros(2, 2)}, path)
    refuse(path, "not a LoRWeB bank", "decoder.conv_in.weight")


@pytest.mark.parametrize(
    "name",
    [
        "transformer.transformer_blocks.0.attn.to_q.lora_A.weight",
        "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight",
        "transformer.transformer_blocks.0.attn.to_q.lora.up.weight",
    ],
)
def test_an_ordinary_lora(tmp_path, name):
    path = tmp_path / "lora.safetensors"
    save_file({name: torch.zeros(4, 8)}, path)
    refuse(path, "an ordinary LoRA, not a bank", "models/loras", "stock LoRA loader")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"loras_num": 7}, "num_loras = 7, but the tensors say 6"),
        ({"linear": 4}, "rank = 4, but the tensors say 3"),
        ({"lora_keys_dim": 32}, "key_dim = 32, but the tensors say 16"),
        ({"query_projection_type": "none"}, "projection = 'none', but the tensors say 'linear'"),
    ],
)
def test_yaml_that_contradicts_the_tensors(make_bank, settings, expected):
    rank = settings.pop("linear", None)
    path, _ = make_bank(yaml_kwargs=settings)
    if rank:
        yaml_path = path.with_suffix(".yaml")
        yaml_path.write_text(yaml_path.read_text().replace("linear: 3", f"linear: {rank}"))
    refuse(path, "bank.yaml says", expected, "belongs to another bank")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"external_query": False}, "external_query is false"),
        ({"query_mode": "x-attn"}, "query_mode is 'x-attn'; expected one of cat-aa'b"),
        ({"mixing_coeffs_type": "max"}, "mixing is 'max'; expected one of mean, sum"),
        ({"lora_heads": 3}, "heads is 3, which does not divide the key width 16"),
        ({"lora_softmax": "yes please"}, "softmax is 'yes please'"),
        ({"external_query": "no"}, "external_query is 'no'; expected true or false"),
        ({"external_query_model": ["clip"]}, "encoder is ['clip']; expected a name"),
    ],
)
def test_yaml_with_bad_settings(make_bank, settings, expected):
    path, _ = make_bank(yaml_kwargs=settings)
    refuse(path, "bank.yaml", expected)


@pytest.mark.parametrize(
    "text",
    [
        "{", "a: b: c", "config: {}", "- 1", "", "config: {process: [{network: null}]}",
        "config: {process: [{network: lora}]}", "config: {process: [{network: {linear: 4}}]}",
        "config: {process: [{network: {network_kwargs: [1]}}]}",
        "config: {process: [{network: {network_kwargs: {}}, model: some/base}]}",
    ],
)  # fmt: skip
def test_yaml_that_is_no_configuration(make_bank, text):
    path, _ = make_bank()
    path.with_suffix(".yaml").write_text(text)
    refuse(path, "bank.yaml")


def test_yaml_cannot_run_code(make_bank, tmp_path):
    path, _ = make_bank()
    marker = tmp_path / "ran"
    path.with_suffix(".yaml").write_text(f"!!python/object/apply:pathlib.Path.touch ['{marker}']")
    refuse(path, "bank.yaml", "not valid YAML")
    assert not marker.exists()


@pytest.mark.parametrize("header", ["not json", json.dumps({"colour": "red"}), json.dumps([1])])
def test_bad_header(make_bank, header):
    path, _ = make_bank(metadata={"lorweb_config": header})
    refuse(path, "lorweb_config")


@pytest.mark.parametrize(
    "settings", [{"alpha": "4"}, {"alpha": float("nan")}, {"alpha": True}, {"alpha": 0}, {"encoder": None}]
)
def test_header_with_bad_settings(make_bank, settings):
    path, _ = make_bank(metadata={"lorweb_config": json.dumps(settings)})
    refuse(path, "the header", f"{next(iter(settings))} is {next(iter(settings.values()))!r}; expected")


def test_header_that_contradicts(make_bank):
    path, _ = make_bank(metadata={"lorweb_config": json.dumps({"num_loras": 9})})
    refuse(path, "the header says num_loras = 9, but the tensors say 6")


def test_query_mode_that_does_not_fit_the_width(make_bank):
    path, _ = make_bank(Spec(query_dim=35), yaml_kwargs={"query_mode": "cat-aa'b"})
    refuse(path, "cat-aa'b needs 3 equal parts, but the query width is 35")


def test_info_of_a_bad_file(make_bank, capsys):
    path, _ = make_bank(change=lambda tensors: tensors.pop(key("lora_B")))
    assert main(["info", str(path)]) != 0
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and f"lora_B missing in layer {LAYER}" in err


def test_info(make_bank, capsys):
    path, _ = make_bank(yaml_kwargs={"lora_heads": 2})
    assert main(["info", str(path)]) == 0
    assert "N = 6 LoRAs of rank 3" in capsys.readouterr().out
    assert main(["info", str(path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["layers"] == 11 and facts["config"]["heads"] == 2 and facts["composed_rank"] == 18
