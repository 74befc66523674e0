"""``training.refine`` on the real classes: a tiny base, a bank on it, pairs in a folder."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from harness.small_models import flux_layers, random_bank
from lorweb_core import BasisBank, MixingCoefficients
from lorweb_core.card import load_card
from lorweb_core.refine import Settings
from lorweb_core.tasks import Pair, Task
from training.refine import TunedModel, main, read_pairs, refine_edit, settings_of

SIDE = 16


@pytest.fixture
def bank(tmp_path):
    path = random_bank(tmp_path / "bank.safetensors", flux_layers(256, 2, 2), num_loras=4, rank=2, key_dim=16)
    return BasisBank.load(path)


@pytest.fixture
def folder(tmp_path):
    """Three pairs of one edit."""
    for number in range(3):
        picture = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        for side, image in (("before", picture), ("after", 255 - picture)):
            (tmp_path / "inverted" / side).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(tmp_path / "inverted" / side / f"{number}.png")
    return tmp_path / "inverted"


@pytest.fixture
def config(bank, parts):
    values = dict(part.split("=", 1) for part in parts)
    overrides = [f"data.canvas={2 * SIDE}", "data.prompt_tokens=4", "validation.steps=1"]
    return settings_of(bank, values["base.path"], values["bank.encoder"], "training/configs/tiny.yaml", overrides)


@pytest.fixture
def model(config, bank):
    return TunedModel(config, bank, torch.device("cpu"))


def pair(seed):
    before = torch.rand(SIDE, SIDE, 3, generator=torch.Generator().manual_seed(seed))
    return Pair(before, 1 - before)


def test_losses_are_those_of_the_noise_and_move_with_the_coefficients(model):
    tasks = [Task(pair(0), pair(1)), Task(pair(1), pair(0))]
    values = model.guess(pair(0), pair(1).before).values.requires_grad_()
    losses = model.losses(values, tasks, 3)
    assert losses.shape == (2,) and torch.equal(losses, model.losses(values, tasks, 3))
    assert not torch.equal(losses, model.losses(values, tasks, -3))
    (gradient,) = torch.autograd.grad(losses.sum(), values)
    assert (gradient.abs().sum(-1) > 0).all(), "every layer's coefficients matter"
    step = 1e-2 * torch.randn(values.shape, generator=torch.Generator().manual_seed(0))
    ends = [model.losses((values + side * step).detach(), tasks, 3).sum() for side in (1, -1)]
    assert (ends[0] - ends[1]).item() == pytest.approx(2 * (gradient * step).sum().item(), rel=0.02)


def test_the_model_is_left_as_it_was(model):
    before = {name: tensor.clone() for name, tensor in model.tuner.state_dict().items()}
    refined = refine_edit(model, [pair(0), pair(1)], Settings(steps=2, every=1, judged=1))
    assert [record.step for record in refined.history] == [0, 1, 2]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.tuner.state_dict().items())
    assert all(p.grad is None for p in model.tuner.parameters())


def test_answers_are_those_of_the_composed_lora(model, bank, config):
    """The coefficients that come out mean to every other part what they meant here."""
    from training.evaluate import Evaluation

    values = model.guess(pair(0), pair(2).before).values
    found = model.answer(values, pair(0), pair(2).before, seed=1)
    bank = BasisBank(replace(bank.config, encoder="encoder"), bank.layers, bank._logits, bank.file)
    evaluation = Evaluation(config, {"bank": bank}, None, torch.device("cpu"), [""])
    (contestant,) = evaluation.contestants
    contestant.wear(MixingCoefficients(values, tuple(bank.layers), bank.config.softmax))
    reference = torch.cat((torch.cat(pair(0), dim=1), torch.cat((pair(2).before,) * 2, dim=1)))
    expected = evaluation.sample(evaluation.tell({"reference": reference}, ""), 1)
    assert torch.allclose(found, expected.clamp(0, 1), atol=1e-4)


@pytest.mark.parametrize("pairs, suffix", [(3, "png"), (1, "json")])
def test_the_command_writes_an_edit(folder, bank, config, tmp_path, caplog, pairs, suffix):
    for number in range(pairs, 3):
        for side in ("before", "after"):
            (folder / side / f"{number}.png").unlink()
    arguments = ["--bank", str(bank.path), "--base", config.base.path, "--encoder", config.bank.encoder]
    arguments += ["--pairs", str(folder), "--out", str(tmp_path / f"edit.{suffix}"), "--steps", "1", "--draws", "1"]
    arguments += ["--config", "training/configs/tiny.yaml", f"data.canvas={2 * SIDE}", "data.prompt_tokens=4"]
    with caplog.at_level(logging.INFO):
        assert main([*arguments, "validation.steps=1"]) == 0, caplog.text
    card = load_card(tmp_path / f"edit.{suffix}")
    bank.compose(card.coefficients)
    assert card.coefficients.fingerprint == bank.fingerprint
    assert card.name == "inverted" and card.base == bank.config.base_model
    assert "held out" in caplog.text
    assert ("the edit allows" in caplog.text) == (pairs == 1)


def test_a_folder_of_two_edits_is_refused(folder, tmp_path, config):
    from training.data import square_canvas

    (tmp_path / "all").mkdir()
    folder.rename(tmp_path / "all" / "one")
    for side in ("before", "after"):
        (tmp_path / "all" / "two" / side).mkdir(parents=True)
        for number in (0, 1):
            image = (tmp_path / "all" / "one" / side / f"{number}.png").read_bytes()
            (tmp_path / "all" / "two" / side / f"{number}.png").write_bytes(image)
    with pytest.raises(ValueError, match="of 2 tasks, such as one, two"):
        read_pairs(tmp_path / "all", square_canvas(2 * SIDE), "crop")
