"""LPIPS in the objective: of which pixels, of which weight, and into which parameters."""

import lpips
import pytest
import torch
from safetensors.torch import load_file

from training.config import load_config
from training.run.perception import Perception
from training.run.tracking import read_metrics

TINY = "training/configs/tiny.yaml"


def test_only_b_prime_is_looked_at_and_beside_its_neighbours():
    seen = []

    def decode(latents):
        seen.append(latents)
        return latents[:, :3].sigmoid().repeat_interleave(8, 2).repeat_interleave(8, 3)

    network = lpips.LPIPS(net="alex", pretrained=False, pnet_rand=True, verbose=False)
    perception = Perception(network, decode)
    estimate, target = torch.randn(2, 2, 16, 12, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    images = perception.answer(target)
    assert torch.equal(images, decode(target[..., 6:, 8:])) and seen[0].shape == (2, 16, 7, 9)
    distance = perception(estimate, target)
    expected = network(decode(estimate[..., 6:, 8:]), images, normalize=True)
    torch.testing.assert_close(distance, expected.flatten())
    (gradient,) = torch.autograd.grad(distance.sum(), estimate)
    assert gradient[..., 6:, 8:].any() and not gradient[..., :6, :].any() and not gradient[..., :8].any()
    assert not perception(target, target).any()


def test_the_bank_learns_how_its_answers_look(run_training, lpips_weights, tmp_path):
    settings = ["train.steps=2", "data.canvas=64", "optimizer.lr=1e-2"]
    looking = ["objective.perceptual=5", f"objective.lpips={lpips_weights[1]}"]
    plain, seen = run_training(tmp_path / "plain", *settings), run_training(tmp_path / "seen", *settings, *looking)
    (first, _), rows = read_metrics(plain / "metrics.csv"), read_metrics(seen / "metrics.csv")
    assert "lpips" not in first and all(float(row["lpips"]) > 0 for row in rows)
    assert rows[0]["loss"] == first["loss"]  # the flow alone, of the same bank on the same analogies
    banks = [load_file(run / "bank.safetensors") for run in (plain, seen)]
    assert any(not torch.equal(banks[0][name], banks[1][name]) for name in banks[0])


def test_looking_wants_weights(run_training, tmp_path):
    with pytest.raises(ValueError, match=r"objective\.perceptual needs the weights of LPIPS; set objective\.lpips"):
        run_training(tmp_path / "run", "train.steps=1", "objective.perceptual=1")
    with pytest.raises(ValueError, match=r"objective\.perceptual is -1\.0; expected at least 0"):
        load_config(TINY, ["objective.perceptual=-1"])
