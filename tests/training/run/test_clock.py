"""How far a run is."""

import time

import pytest
import torch
from torch import nn

from training.config import OptimizerConfig
from training.run.clock import Clock
from training.run.optim import make_optimizer, make_schedule


@pytest.fixture
def passing(monkeypatch):
    """Let seconds pass."""
    now = [1000.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return lambda seconds: now.__setitem__(0, now[0] + seconds)


def test_without_a_limit_steps_count(passing):
    clock = Clock(10)
    passing(1e6)
    assert [clock.share(step) for step in (0, 5, 10, 11)] == [0, 0.5, 1, 1]
    assert not clock.is_over(9) and clock.is_over(10)


def test_with_a_limit_time_counts_and_steps_bound_it(passing):
    clock = Clock(10, minutes=1)
    passing(30)
    assert clock.share(1) == 0.5 and clock.share(8) == 0.8 and not clock.is_over(1)
    passing(30)
    assert clock.is_over(1)


def test_a_run_goes_on_with_the_share_that_is_left(passing):
    clock = Clock(100, minutes=1, done=0.6)
    assert clock.share(0) == pytest.approx(0.6)
    passing(30)
    assert clock.share(0) == pytest.approx(0.8)


def test_the_rate_warms_up_by_steps_and_falls_with_the_clock(passing):
    config = OptimizerConfig(lr=1.0, schedule="linear", warmup=2)
    optimizer = make_optimizer(config, {"a": nn.Parameter(torch.ones(1))})
    schedule, found = make_schedule(config, optimizer, Clock(1002, minutes=1)), []
    for _ in range(5):
        found.append(optimizer.param_groups[0]["lr"])
        passing(12)
        optimizer.step()
        schedule.step()
    assert found == pytest.approx([0, 0.5, 0.6, 0.4, 0.2], abs=2e-3)
