"""Evaluation: the composed LoRA equals the tuner, metrics equal their definitions, weights come in safely."""

import contextlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import FluxTransformer2DModel
from PIL import Image
from safetensors.torch import load_file, save_file

from lorweb_core import BankConfig, BasisBank
from training.config import load_config
from training.data.errors import DataError
from training.data.listed import read_evalset
from training.evaluate import Contestant, check_fits, main, name_banks, sees_single_images
from training.tuner import LoRWeBConfig, LoRWeBModel


def test_a_composed_bank_answers_like_the_tuner(parts, tmp_path):
    from training.bases import KONTEXT, Conditioning
    from training.bases.loading import load_transformer
    from training.data.layouts import CANVAS

    config = load_config("training/configs/tiny.yaml", [*parts, f"run={tmp_path}"])
    tuner = LoRWeBModel(
        load_transformer(config.base, torch.device("cpu")),
        LoRWeBConfig(bank=config.bank.resolve(768, "base", "encoder"), target_modules=KONTEXT.targets),
    )
    for layer in tuner.tuner_layers.values():
        torch.nn.init.normal_(layer.lora_B["default"].weight, std=1.0)
    from lorweb_core.checkpoint import write_bank

    write_bank(tmp_path / "bank.safetensors", tuner.bank_tensors(tuner.adapter_state_dict()), tuner.bank_config)
    text = {"tokens": torch.randn(1, 4, 768), "pooled": torch.randn(1, 768)}
    told = Conditioning(KONTEXT, CANVAS, (torch.randn(1, 16, 4, 4),), text, torch.randn(1, 2304), torch.ones(1))
    x_t, t = torch.randn(1, 16, 4, 4), torch.tensor([0.4])
    with torch.no_grad():
        expected = KONTEXT.velocity(tuner, x_t, t, told)
        plain = load_transformer(config.base, torch.device("cpu"))
        contestant = Contestant("bank", BasisBank.load(tmp_path / "bank.safetensors"), plain)
        contestant.wear(contestant.bank.mix(told.query[0]))
        forward = plain.forward
        plain.forward = lambda query, **kwargs: forward(**kwargs)
        found = KONTEXT.velocity(plain, x_t, t, told)
        tuner.disable_adapter_layers()
        untouched = KONTEXT.velocity(tuner, x_t, t, told)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (untouched - expected).abs().max() > 0.1


def test_the_bias_of_a_bank_is_worn_whatever_its_name(tmp_path):
    from lorweb_core.checkpoint import write_bank

    base = FluxTransformer2DModel(num_layers=1, num_single_layers=1, num_attention_heads=1, joint_attention_dim=8)
    widths = {"transformer_blocks.0.ff.net.2": (512, 128), "transformer_blocks.0.attn.to_q": (128, 128)}
    layers = {
        name: {
            "lora_A": torch.randn(2, width, 3), "lora_B": torch.randn(2, 3, out), "lora_keys": torch.randn(2, 4),
            "att_lora_to_q.weight": torch.randn(4, 6), "lora_up_bias": torch.randn(2, out),
        }
        for name, (width, out) in widths.items()
    }  # fmt: skip
    config = BankConfig(num_loras=2, rank=3, key_dim=4, query_dim=6, query_mode="caa'b")
    write_bank(tmp_path / "bank.safetensors", layers, config)
    contestant = Contestant("half", BasisBank.load(tmp_path / "bank.safetensors"), base)
    coefficients = contestant.bank.mix(torch.randn(6))
    contestant.wear(coefficients)
    for name, c in zip(coefficients.layers, coefficients.values, strict=True):
        module, x = base.get_submodule(name), torch.randn(5, widths[name][0])
        tensors = layers[name]
        delta = torch.einsum("n,nir,nro->io", c, tensors["lora_A"], tensors["lora_B"])
        expected = module.base_layer(x) + x @ delta + c @ tensors["lora_up_bias"]
        torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-4)


def test_banks_are_named_by_what_tells_them_apart():
    one, two, three = (Path(f"/x/{name}/run.1/bank.safetensors") for name in ("one", "two", "three"))
    assert list(name_banks([one])) == ["run.1/bank"]
    assert name_banks([one, two, three]) == {"one/run.1/bank": one, "two/run.1/bank": two, "three/run.1/bank": three}
    with pytest.raises(ValueError, match="a bank stands twice among /x/one"):
        name_banks([one, two, one])


def read(out, name):
    return json.loads((out / name).read_text())


def test_the_report_covers_every_set_and_contestant(shared_run, lpips_weights, tmp_path):
    run, other = shared_run("train.steps=1"), shared_run("train.steps=1", "bank.num_loras=1")
    arguments = ["--run", str(run), "--against", str(other / "bank.safetensors"), "--analogies", "2"]
    arguments += ["--lpips", str(lpips_weights[1]), "--out", str(tmp_path), "validation.steps=1", "data.canvas=64"]
    assert main(arguments) == 0
    summary, rows = read(tmp_path, "metrics.json"), read(tmp_path, "analogies.json")
    ours, theirs = name_banks([run / "bank.safetensors", other / "bank.safetensors"])
    assert set(summary) == {"held-out-images", "held-out-tasks"}
    for contestants in summary.values():
        assert set(contestants) == {"copy b", ours, theirs}
        assert contestants["copy b"]["overall"]["direction"] == 0 and "nearer" not in contestants["copy b"]["overall"]
        for scopes in contestants.values():
            assert scopes["overall"]["analogies"] == 2 and len(scopes) >= 2
            assert all(np.isfinite(value) for value in scopes["overall"].values())
    assert set(summary["held-out-tasks"][ours]) == {"overall", "sepia"}
    assert [row["set"] for row in rows] == [name for name in summary for _ in range(2)]
    assert len({(row["a"], row["b"]) for row in rows}) == 4
    for name, contestants in summary.items():
        for who in (ours, theirs):
            answers = [row["answers"] for row in rows if row["set"] == name]
            nearer = [answer[who]["psnr"] > answer["copy b"]["psnr"] for answer in answers]
            assert [answer[who]["nearer"] for answer in answers] == nearer
            assert contestants[who]["overall"]["nearer"] == np.mean(nearer)
            assert contestants[who]["overall"]["psnr"] == pytest.approx(np.mean([a[who]["psnr"] for a in answers]))
    assert all(Path(row[name]).is_file() for row in rows for name in ("a", "a_prime", "b", "b_prime"))
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 2 * 2 * 6 and "http" not in page and "sepia" in page
    assert "nearer than b" in page and " %" in page


@pytest.mark.parametrize(
    ("encoder", "mode", "told"),
    [
        ("encoder", "cat-aa'b", True),
        ("encoder", "caa'", False),
        ("encoder", "aa'bb'", False),
        ("openai/clip-vit-large-patch14", "caa'", True),
    ],
)
def test_an_encoder_of_pairs_tells_no_direction(encoder, mode, told):
    bank = BankConfig(num_loras=2, rank=2, key_dim=4, query_dim=6, encoder=encoder, query_mode=mode)
    assert sees_single_images(bank) == told


def test_a_run_that_was_moved_is_evaluated_where_it_is(shared_run, tmp_path, caplog):
    run = shutil.copytree(shared_run("train.steps=1"), tmp_path / "new")
    arguments = ["--run", str(run), "--analogies", "1", "validation.steps=1", "data.canvas=64"]
    assert main(arguments) == 0
    assert "not trained on this split" not in caplog.text
    assert "Evaluation of " + str(run) in (run / "evaluation" / "report.html").read_text()
    arguments[3] = "0"
    assert main(arguments) == 1 and "0 analogies are no evaluation" in caplog.text


def test_a_bank_of_another_split_is_named(shared_run, run_training, tmp_path, caplog):
    run = shared_run("train.steps=1")
    other = run_training(tmp_path / "other", "train.steps=1", "train.seed=7", "data.hold_images=0.5")
    against = ["--against", str(other / "bank.safetensors"), "--out", str(tmp_path), "validation.steps=1"]
    assert main(["--run", str(run), "--analogies", "1", *against]) == 0
    assert [text for text in caplog.messages if "not trained on this split" in text] == [
        "other/bank: not trained on this split; it may have seen what is held out here"
    ]


def without_header(bank, folder):
    """A released bank: the tensors alone, and what its header said in the YAML beside it."""
    path = folder / "released.safetensors"
    save_file(load_file(bank), path)
    kwargs = {"loras_num": 4, "lora_keys_dim": 16, "query_mode": "cat-aa'b", "lora_softmax": True}
    network = {"linear": 4, "network_kwargs": kwargs}
    path.with_suffix(".yaml").write_text(json.dumps({"config": {"process": [{"network": network}]}}))
    return path


def evalset(folder):
    """Two originals of three have an answer to one instruction, one alone to another; an image belongs to nobody."""
    answers = folder / "decoded_random_inference_set" / "db_not_in_trainset" / "animals"
    files = [folder / "original" / "unsplash_animals" / f"{name}.jpg" for name in ("ape", "bee_1", "cow")]
    files += [answers / "Give_it_a_hat" / f"{name}.png" for name in ("ape_1", "ape_2", "bee_1_1", "stray")]
    files += [answers / "Make_it_snow" / "cow_3.png"]
    for seed, path in enumerate(files):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (48, 64, 3), "u1")).save(path)
    return folder


def test_the_authors_evaluation_set_is_read(tmp_path, caplog):
    found = {listed.a_prime.stem: listed for listed in read_evalset(evalset(tmp_path))}
    assert found.keys() == {"ape_1", "ape_2", "bee_1_1", "cow_3"} and "1 images have no original" in caplog.text
    assert [(x.a.stem, x.b.stem, x.b_prime and x.b_prime.stem) for x in found.values()] == [
        ("ape", "bee_1", "bee_1_1"), ("ape", "bee_1", "bee_1_1"), ("bee_1", "ape", "ape_1"), ("cow", "ape", None),
    ]  # fmt: skip
    assert found["ape_1"].prompt == "Give it a hat" and found["cow_3"].task.endswith("animals/Make_it_snow")
    with pytest.raises(DataError, match="there is no folder 'original' in it"):
        read_evalset(tmp_path / "original")


def test_any_bank_is_evaluated_without_a_run(shared_run, parts, tmp_path, caplog):
    bank = without_header(shared_run("train.steps=1") / "bank.safetensors", tmp_path)
    base, encoder = (setting.partition("=")[2] for setting in parts[:2])
    arguments = ["--bank", str(bank), "--base", base, "--encoder", encoder, "base.dtype=float32", "data.canvas=64"]
    arguments += ["validation.steps=1", "data.prompt_tokens=4"]
    assert main([*arguments, "--evalset", str(evalset(tmp_path / "set")), "--out", str(tmp_path / "one")]) == 0
    ((name, contestants),) = read(tmp_path / "one", "metrics.json").items()
    (who,) = contestants.keys() - {"copy b"}
    assert name == "set" and who.endswith("/released") and contestants[who]["overall"]["analogies"] == 4
    rows = {Path(row["a_prime"]).stem: row for row in read(tmp_path / "one", "analogies.json")}
    assert rows["ape_1"]["prompt"] == "Give it a hat" and rows["ape_1"]["answers"][who]["nearer"] in (True, False)
    unknown = rows["cow_3"]["answers"][who]
    assert "nearer" not in unknown and unknown["psnr"] is None and -1 <= unknown["direction"] <= 1
    manifest = parts[2].partition("=")[2]
    assert main([*arguments, "--manifest", manifest, "--analogies", "1", "--out", str(tmp_path / "two")]) == 0
    assert read(tmp_path / "two", "metrics.json")["manifest"][who]["overall"]["analogies"] == 1
    assert main(arguments) == 1 and "one of --manifest and --evalset" in caplog.text


def test_the_starter_s_settings_are_those_of_its_bank():
    config, bank = load_config("starter/config.yaml"), BasisBank.load("starter/bank.safetensors")
    assert config.data.canvas == bank.canvas and config.bank.query_mode == bank.config.query_mode
    with Image.open("starter/examples/invert/b.png") as example:
        assert example.width == bank.canvas // 2
    trained = load_config("training/configs/starter.yaml").validation
    assert (config.validation.steps, config.validation.guidance) == (trained.steps, trained.guidance)


def test_the_starter_is_evaluated_on_its_examples(tmp_path):
    assert main(["--run", "starter", "--analogies", "3", "--out", str(tmp_path)]) == 0
    ((name, contestants),) = read(tmp_path, "metrics.json").items()
    starter, copy = contestants["starter/bank"]["overall"], contestants["copy b"]["overall"]
    assert (name, starter["analogies"], starter["nearer"], starter["direction"]) == ("examples", 3, 1.0, None)
    assert starter["psnr"] > copy["psnr"] + 3 and "<th>direction" not in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(("found", "fits"), [("owner/encoder", True), ("encoder", True), ("owner/other", False)])
def test_an_encoder_is_the_same_under_its_folder_and_its_hub_id(found, fits):
    wanted = BankConfig(num_loras=2, rank=2, key_dim=4, query_dim=6, encoder="encoder")
    bank = SimpleNamespace(config=replace(wanted, encoder=found))
    with contextlib.nullcontext() if fits else pytest.raises(ValueError, match="its encoder is 'owner/other'"):
        check_fits("bank", bank, wanted)


def test_a_bank_of_another_encoder_is_refused(shared_run, run_training, tmp_path, caplog):
    run = shared_run("train.steps=1")
    other = run_training(tmp_path / "other", "train.steps=1", "bank.query_mode=ca'-ca", "data.cache_latents=0")
    assert main(["--run", str(run), "--bank", str(other / "bank.safetensors")]) == 1
    assert "its query_mode is \"ca'-ca\", but this run's data is encoded for" in caplog.text
