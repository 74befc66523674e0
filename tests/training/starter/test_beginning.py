"""How the starter's base begins, seen before any training."""

import pytest
import torch
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_flux import FluxPosEmbed

from training.objective import _canvas_ids, predict_velocity
from training.starter.base import NOTHING, Base, BaseSettings, plainly


@pytest.fixture(scope="module")
def base():
    return Base(BaseSettings(), [NOTHING, "invert"])


@pytest.mark.parametrize("side", [8, 16])
def test_the_first_head_looks_at_the_reference_in_the_same_place(base, side):
    ids = _canvas_ids(side, side, torch.device("cpu"))
    axes = base.transformer.config.axes_dims_rope
    turns = FluxPosEmbed(theta=10000, axes_dim=axes)(ids)
    tokens = len(ids) // 2
    for block in (*base.transformer.transformer_blocks, *base.transformer.single_transformer_blocks):
        query, key = (
            apply_rotary_emb(norm(linear.bias[: sum(axes)]).expand(1, len(ids), 1, -1), turns, sequence_dim=1)
            for norm, linear in ((block.attn.norm_q, block.attn.to_q), (block.attn.norm_k, block.attn.to_k))
        )
        attention = (query[0, :tokens, 0] @ key[0, :, 0].T / sum(axes) ** 0.5).softmax(-1)
        assert torch.equal(attention.argmax(-1), torch.arange(tokens) + tokens)
        assert attention.max(-1).values.min() > 0.5


def test_nothing_that_is_told_matters_yet_and_everything_can_learn(base):
    generator = torch.Generator().manual_seed(0)
    reference, noise = torch.randn(2, 1, 16, 8, 8, generator=generator)
    velocities = [
        predict_velocity(base.transformer, noise, torch.tensor([0.5]), base.tell([plainly(*told)], reference))
        for told in ((NOTHING,), (NOTHING, "invert"))
    ]
    assert torch.equal(*velocities)
    velocities[0].square().mean().backward()
    still = {name for name, p in base.transformer.named_parameters() if p.grad is None or not p.grad.any()}
    # Only what passes through closed modulations waits for them, and the last text stream, which nothing reads.
    assert all("embed" in name or "context" in name or "add_" in name for name in still), still
