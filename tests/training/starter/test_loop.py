"""The loop of the starter's parts, and the settings that it takes."""

import pytest
import torch
from torch import nn

from training.config import OptimizerConfig
from training.run.tracking import read_metrics
from training.starter.__main__ import load_settings
from training.starter.loop import LoopSettings, fit


def run_fit(run, steps, **optimizer):
    """Fit a line through the origin; returns what was learnt."""
    torch.manual_seed(0)
    line = nn.Linear(1, 1, bias=False)

    def losses(step, share):
        x = torch.randn(8, 1, generator=torch.Generator().manual_seed(step))
        return {"loss": (line(x) - 3 * x).square().mean()}

    config = OptimizerConfig(**{"lr": 0.1, "schedule": "constant", "warmup": 0, **optimizer})
    fit(run, line, losses, LoopSettings(steps=steps, batch=8, checkpoint=1, log=1), config)
    return line.weight.item()


def test_no_clipping_is_not_no_learning(tmp_path):
    assert abs(run_fit(tmp_path / "long", 60, clip=0.0) - 3) < abs(run_fit(tmp_path / "short", 1, clip=0.0) - 3) / 2


def test_a_resumed_run_takes_the_rate_that_it_is_given(tmp_path):
    before = run_fit(tmp_path, 2)
    assert run_fit(tmp_path, 4, lr=0.0) == before
    assert [float(row["lr"]) for row in read_metrics(tmp_path / "metrics.csv")] == [0.1, 0.1, 0.0, 0.0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"ema": 0.9}, "optimizer.ema averages"), ({"schedule": "steep"}, "expected one of linear")],
)
def test_what_the_loop_cannot_do_is_refused(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        run_fit(tmp_path, 1, **settings)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("base.objective.timesteps=logitnormal", "base.objective.timesteps is 'logitnormal'; expected one of"),
        ("encoder.optimizer.name=sgd", "encoder.optimizer.name is 'sgd'; expected one of adamw"),
        ("encoder.optimizer.clip=-1", "encoder.optimizer.clip is -1.0; expected at least 0"),
        ("base.optimizer.betas=[0.9,", "not valid YAML"),
        ("encoder.colour=red", "encoder.colour"),
    ],
)
def test_mistakes_in_settings_are_named(override, message):
    with pytest.raises(ValueError) as error:
        load_settings([override])
    assert message in str(error.value)
