"""Optimisers and schedules: two rates, schedules as functions of the step, settings that win over a checkpoint."""

import math

import pytest
import torch
from torch import nn

from training.config import OptimizerConfig
from training.run.clock import Clock
from training.run.optim import SCHEDULES, check_optimizer, make_optimizer, make_schedule, with_settings_of


def parameters():
    return {"mixer.keys": nn.Parameter(torch.ones(2)), "model.a.lora_A": nn.Parameter(torch.ones(3))}


def rates(config, steps, done=0, until=None):
    """Rate of the basis LoRAs at every step from ``done`` on."""
    optimizer = make_optimizer(config, parameters())
    schedule, found = make_schedule(config, optimizer, Clock(steps), done), []
    for _ in range(done, until or steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_keys_and_projections_have_a_rate_of_their_own():
    named = parameters()
    factors, mixer = make_optimizer(OptimizerConfig(lr=1e-3, mixer_lr=1e-4), named).param_groups
    assert (factors["lr"], mixer["lr"]) == (1e-3, 1e-4)
    assert factors["params"][0] is named["model.a.lora_A"] and mixer["params"][0] is named["mixer.keys"]
    assert (mixer["betas"], mixer["weight_decay"], mixer["eps"]) == ((0.9, 0.99), 0.05, 1e-8)
    other = OptimizerConfig(lr=1.0, betas=(0.5, 0.6), weight_decay=0.2, eps=1e-6)
    for group in make_optimizer(other, named).param_groups:
        assert (group["betas"], group["weight_decay"], group["eps"]) == ((0.5, 0.6), 0.2, 1e-6)
    assert [group["lr"] for group in make_optimizer(OptimizerConfig(lr=1e-3), named).param_groups] == [1e-3, 1e-3]


def test_schedules_equal_their_definitions():
    assert rates(OptimizerConfig(lr=1.0), 4) == [1, 1, 1, 1]
    assert rates(OptimizerConfig(lr=1.0, warmup=4), 6) == [0, 0.25, 0.5, 0.75, 1, 1]
    assert rates(OptimizerConfig(lr=1.0, schedule="linear"), 4) == [1, 0.75, 0.5, 0.25]
    cosine = [0.5 * (1 + math.cos(math.pi * step / 8)) for step in range(8)]
    assert rates(OptimizerConfig(lr=1.0, schedule="cosine"), 8) == pytest.approx(cosine)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("warmup", [0, 3])
def test_a_schedule_goes_on_where_it_was(schedule, warmup):
    config = OptimizerConfig(lr=1e-3, schedule=schedule, warmup=warmup)
    assert rates(config, 10, done=6) == rates(config, 10)[6:]


def test_settings_of_now_win_over_saved_ones():
    old, new = {"weight_decay": 0.5, "eps": 1.0}, {"weight_decay": 0.1, "eps": 1e-8}
    saved = [{"lr": 1.0, "initial_lr": 1.0, "betas": [0.9, 0.9], "d": 0.5, "params": [0], **old}]
    now = [{"lr": 0.1, "initial_lr": 0.2, "betas": (0.8, 0.9), "d": 1e-6, "params": [torch.ones(1)], **new}]
    (group,) = with_settings_of(now, saved)
    assert group == {"lr": 0.1, "initial_lr": 0.2, "betas": (0.8, 0.9), "d": 0.5, "params": [0], **new}


def test_an_unknown_schedule_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"optimizer\.schedule is 'steep'; expected one of linear, cosine"):
        check_optimizer(OptimizerConfig(schedule="steep"), sharded=False)
    assert "piecewise_constant" not in SCHEDULES and "constant" in SCHEDULES
