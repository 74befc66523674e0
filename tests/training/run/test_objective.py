"""The objective against closed forms, the Kontext pipeline's own token layout and hand-computed weights."""

import math
from dataclasses import replace

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxKontextPipeline

from lorweb_core import MixingCoefficients
from training.bases import KLEIN, KONTEXT, Conditioning
from training.config import ObjectiveConfig
from training.data.layouts import CANVAS, SEPARATE
from training.run.objective import (
    Noise,
    bell_weight,
    draw_noise,
    flow_loss,
    imbalance,
    region_weight,
    shifted,
)


class Recorder(torch.nn.Module):
    """Stands where the transformer stands: keeps what it is told and answers with the canvas tokens."""

    def forward(self, **kwargs):
        self.told = kwargs
        return (kwargs["hidden_states"] * 2,)


class Zero(Recorder):
    """A model whose velocity is 0."""

    def forward(self, **kwargs):
        return (super().forward(**kwargs)[0] * 0,)


def condition(batch=2, side=4, guidance=None):
    text = {"tokens": torch.randn(batch, 3, 8), "pooled": torch.randn(batch, 8)}
    references = (torch.randn(batch, 16, side, side),)
    return Conditioning(KONTEXT, CANVAS, references, text, torch.randn(batch, 6), guidance)


def test_bell_weight_is_zero_at_the_ends_and_one_on_average():
    t = torch.linspace(0, 1, 100_001, dtype=torch.float64)
    weight = bell_weight(t)
    assert abs(weight[0]) < 1e-12 and abs(weight[-1]) < 1e-12 and weight.argmax() == 50_000
    assert abs(torch.trapezoid(weight, t) - 1) < 1e-9
    shape = torch.exp(-2 * (t - 0.5) ** 2)
    expected = (shape - shape.min()) / torch.trapezoid(shape - shape.min(), t)
    torch.testing.assert_close(weight, expected)


def test_tokens_and_ids_are_the_kontext_pipelines():
    model, told = Recorder(), condition()
    x_t, t = torch.randn(2, 16, 4, 4), torch.tensor([0.25, 0.5])
    velocity = KONTEXT.velocity(model, x_t, t, told)
    torch.testing.assert_close(velocity, 2 * x_t)  # packing and unpacking undo each other, the reference is cut off
    pack = FluxKontextPipeline._pack_latents
    torch.testing.assert_close(model.told["hidden_states"][:, 4:], pack(told.references[0], 2, 16, 4, 4))
    ids = model.told["img_ids"]
    assert ids.tolist() == [[i, y, x] for i in (0, 1) for y in (0, 1) for x in (0, 1)]
    assert model.told["txt_ids"].abs().max() == 0 and model.told["guidance"] is None
    assert torch.equal(model.told["timestep"], t) and torch.equal(model.told["query"], told.query)


def test_loss_is_the_weighted_velocity_error():
    x_0, draw = torch.randn(2, 16, 4, 4), Noise(torch.randn(2, 16, 4, 4), torch.tensor([0.3, 0.9]))
    error, t = ((draw.noise - x_0) ** 2).mean(dim=(1, 2, 3)), draw.t.view(-1, 1, 1, 1)
    loss, estimate = flow_loss(Zero(), x_0, draw, condition(), ObjectiveConfig(weighting="none"))
    torch.testing.assert_close(loss, error)
    torch.testing.assert_close(estimate, (1 - t) * x_0 + t * draw.noise)  # where no velocity leads on from
    loss, _ = flow_loss(Zero(), x_0, draw, condition(), ObjectiveConfig(weighting="bell"))
    torch.testing.assert_close(loss, error * bell_weight(draw.t))
    loss, _ = flow_loss(Zero(), x_0, draw, condition(), ObjectiveConfig(weighting="none", canvas_weight=0.0))
    torch.testing.assert_close(loss, ((draw.noise - x_0) ** 2)[:, :, 2:, 2:].mean(dim=(1, 2, 3)))


@pytest.mark.parametrize("layout", [CANVAS, SEPARATE])
def test_what_the_edit_changes_of_b_weighs_more(layout):
    x_0, draw = torch.randn(2, 16, 4, 4), Noise(torch.randn(2, 16, 4, 4), torch.tensor([0.3, 0.9]))
    reference, weight = x_0.clone(), torch.ones(4, 4)
    reference[:, :, 2, 3] -= 0.5
    reference[:, :, 3, 3] += 3.0  # another picture altogether: counts as 1
    weight[2, 3], weight[3, 3] = 1 + 2 * 0.5, 1 + 2 * 1.0
    others = torch.randn(2 if layout is SEPARATE else 0, 2, 16, 4, 4)
    family = KLEIN if layout is SEPARATE else KONTEXT
    told = replace(condition(), family=family, layout=layout, references=(*others, reference))
    loss, _ = flow_loss(Zero(), x_0, draw, told, ObjectiveConfig(weighting="none", changed=2.0))
    torch.testing.assert_close(loss, ((draw.noise - x_0) ** 2 * weight).mean(dim=(1, 2, 3)))


def test_the_velocity_leads_from_the_data_to_the_noise():
    """With a model whose velocity is known and not zero, so that every sign counts."""
    x_0, draw = torch.randn(2, 16, 4, 4), Noise(torch.randn(2, 16, 4, 4), torch.tensor([0.3, 0.9]))
    t = draw.t.view(-1, 1, 1, 1)
    x_t = (1 - t) * x_0 + t * draw.noise
    loss, estimate = flow_loss(Recorder(), x_0, draw, condition(), ObjectiveConfig(weighting="none"))
    torch.testing.assert_close(loss, ((2 * x_t - (draw.noise - x_0)) ** 2).mean(dim=(1, 2, 3)))
    torch.testing.assert_close(estimate, x_t - t * 2 * x_t)


@pytest.mark.parametrize(
    ("timesteps", "expected"),
    [
        ("uniform", lambda g: torch.rand(1, generator=g)),
        ("logit_normal", lambda g: torch.sigmoid(torch.randn(1, generator=g))),
        ("mode", lambda g: heavy_tails(torch.rand(1, generator=g), 1.29)),
    ],
)
def test_timesteps_are_of_their_distribution(timesteps, expected):
    def generators():
        return [torch.Generator().manual_seed(i) for i in range(4)]

    found, wanted = draw_noise((2, 2, 2), generators(), ObjectiveConfig(timesteps=timesteps)), generators()
    torch.testing.assert_close(found.noise, torch.stack([torch.randn(2, 2, 2, generator=g) for g in wanted]))
    torch.testing.assert_close(found.t, torch.cat([expected(g) for g in wanted]))


def heavy_tails(u, scale):
    """Esser et al. 2024, section 3.1: mode sampling."""
    return 1 - u - scale * (torch.cos(math.pi * u / 2) ** 2 - 1 + u)


def test_the_noisy_canvas_interpolates_data_and_noise():
    model = Recorder()
    x_0, draw = torch.randn(1, 16, 4, 4), Noise(torch.randn(1, 16, 4, 4), torch.tensor([0.25]))
    flow_loss(model, x_0, draw, condition(1), ObjectiveConfig())
    expected = FluxKontextPipeline._pack_latents(0.75 * x_0 + 0.25 * draw.noise, 1, 16, 4, 4)
    torch.testing.assert_close(model.told["hidden_states"][:, :4], expected)


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_region_weight_has_mean_one(weight):
    region = region_weight(CANVAS, (1, 16, 8, 8), weight, torch.device("cpu"))
    assert abs(region.mean() - 1) < 1e-6
    torch.testing.assert_close(region[0, 0] / region[-1, -1], torch.tensor(weight))
    assert torch.equal(region_weight(SEPARATE, (1, 16, 4, 4), weight, torch.device("cpu")), torch.ones(4, 4))


@pytest.mark.parametrize(("timesteps", "mean"), [("uniform", 0.5), ("logit_normal", 0.5), ("mode", 0.5)])
def test_noise_of_a_sample_does_not_depend_on_its_batch(timesteps, mean):
    def draw(indices):
        generators = [torch.Generator().manual_seed(i) for i in indices]
        return draw_noise((16, 2, 2), generators, ObjectiveConfig(timesteps=timesteps))

    together, alone = draw([3, 4]), draw([4])
    assert torch.equal(together.noise[1], alone.noise[0]) and together.t[1] == alone.t[0]
    many = draw(range(2000)).t
    assert many.min() >= 0 and many.max() <= 1 and abs(many.mean() - mean) < 0.03


def test_shifted_timesteps_are_those_of_the_scheduler():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    expected = shifted(torch.tensor([1.0, 0.75, 0.5, 0.25]), 3.0)
    torch.testing.assert_close(scheduler.sigmas[:-1], expected)

    def times(shift):
        generators = [torch.Generator().manual_seed(i) for i in range(50)]
        return draw_noise((16, 2, 2), generators, ObjectiveConfig(timesteps="logit_normal", shift=shift)).t

    torch.testing.assert_close(times(3.0), shifted(times(1.0), 3.0))


def test_imbalance_is_zero_for_even_use_and_log_n_for_a_single_lora():
    even = MixingCoefficients(torch.eye(4)[:, None, :].expand(4, 2, 4), ("a", "b"))
    single = MixingCoefficients(torch.eye(4)[:1, None, :].expand(3, 2, 4), ("a", "b"))
    assert abs(imbalance(even)) < 1e-6 and abs(imbalance(single) - math.log(4)) < 1e-6
