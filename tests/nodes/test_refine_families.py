"""Refine Edit on other families than FLUX.1: loss and gradient on ComfyUI's own models of them, in both layouts."""

import re

import pytest
import torch
from lorweb_pack.lorweb_core.tasks import Pair, Task
from lorweb_pack.nodes.fitting import FittedModel
from lorweb_pack.nodes.layouts import LAYOUTS, Analogy

from .dense import raw_weights, relative
from .test_families import TEXT, bank_of, flux_2_layers, qwen_layers, random_flux_2, random_qwen
from .test_refine import assert_untouched, loss_and_gradient, slope

LATENTS = {"flux2": (128, 4, 4), "qwen": (16, 1, 8, 8)}  # as ComfyUI's nodes hand them on

# What the last block, here the only one, makes of the text goes nowhere.
IDLE = re.compile(r"add_q_proj|to_add_out|txt_mlp")


def told():
    generator = torch.Generator().manual_seed(0)
    return [[torch.randn(1, 5, TEXT, generator=generator), {"pooled_output": None}]]


def random_analogy(shape, layout):
    """Latents in place of the pictures': none of these families has an autoencoder that is small."""
    generator = torch.Generator().manual_seed(1)
    latent, *references = torch.randn(4, 1, *shape, generator=generator)
    mask = torch.zeros(shape[-2:])
    LAYOUTS[layout].answer(mask).fill_(1)
    return Analogy(latent, tuple(references[: 1 if layout == "canvas" else 3]), mask)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", LATENTS)
def test_the_gradient_is_the_slope_of_the_loss(tmp_path, family, layout):
    with torch.inference_mode():  # as ComfyUI's loaders do
        model = random_flux_2() if family == "flux2" else random_qwen()
        bank = bank_of(tmp_path, flux_2_layers() if family == "flux2" else qwen_layers(model))
        values = bank.mix(torch.randn(12, generator=torch.Generator().manual_seed(1))).values.clone()
        before, analogy = raw_weights(model), random_analogy(LATENTS[family], layout)
        fitted = FittedModel(model, bank, told(), None, LAYOUTS[layout])
        fitted.analogy = lambda *_: analogy
        task = Task(Pair(*torch.zeros(2, 1)), Pair(*torch.zeros(2, 1)))
        loss, gradient = loss_and_gradient(fitted, values, task)
        assert torch.equal(loss, fitted.losses(values, [task], 3)) and loss > 0
        idle = [family == "qwen" and bool(IDLE.search(name)) for name in bank.layers]
        assert (gradient.abs().amax(-1) == 0).tolist() == idle, "every other layer of the bank has a part in the loss"
        direction = gradient / gradient.norm()
        assert relative(slope(fitted, values, task, direction, h=4e-3), gradient.norm()[None]) < 5e-3
        assert_untouched(model, before)
