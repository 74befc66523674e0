"""How the starter's base and image encoder begin, seen before any training."""

import pytest
import torch
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_flux import FluxPosEmbed

from training.bases import KONTEXT
from training.bases.kontext import _canvas_ids
from training.starter.base import Base, BaseSettings
from training.starter.encoder import EncoderSettings, make_encoder
from training.starter.telling import NOTHING, Vocabulary, plainly

SIDE = 128  # pixels of a quadrant


@pytest.fixture(scope="module")
def base():
    return Base(BaseSettings(), Vocabulary(["invert"]), SIDE)


def looks_at(base, block, head, side):
    """Attention [tokens, tokens] of a head by its constant queries and keys alone, on a canvas with its reference."""
    ids = _canvas_ids(side, side, torch.device("cpu"))
    axes = base.transformer.config.axes_dims_rope
    turns = FluxPosEmbed(theta=10000, axes_dim=axes)(ids)
    query, key = (
        apply_rotary_emb(
            norm(linear.bias.unflatten(0, (-1, sum(axes)))[head]).expand(1, len(ids), 1, -1), turns, sequence_dim=1
        )
        for norm, linear in ((block.attn.norm_q, block.attn.to_q), (block.attn.norm_k, block.attn.to_k))
    )
    return (query[0, :, 0] @ key[0, :, 0].T / sum(axes) ** 0.5).softmax(-1)


def blocks(base):
    return [*base.transformer.transformer_blocks, *base.transformer.single_transformer_blocks]


@pytest.mark.parametrize("side", [8, 16])
def test_the_first_head_looks_at_the_reference_in_the_same_place(base, side):
    for block in blocks(base):
        attention = looks_at(base, block, 0, side)
        tokens = len(attention) // 2
        assert torch.equal(attention[:tokens].argmax(-1), torch.arange(tokens) + tokens)
        assert attention[:tokens].max(-1).values.min() > 0.5


def test_the_second_head_looks_at_the_example_in_the_same_place(base):
    side = SIDE // 8  # tokens of a canvas
    tokens = torch.arange(2 * side * side).view(2, side, side)  # of a canvas and its reference
    half = side // 2
    a, a_prime, b_prime = tokens[1, :half, :half], tokens[1, :half, half:], tokens[0, half:, half:]
    singles = 3 * [(b_prime, a_prime), (b_prime, a)]
    for block, (source, target) in zip(blocks(base), [(a_prime, a), *singles]):
        attention = looks_at(base, block, 1, 2 * side)[source.flatten()]
        assert torch.equal(attention.argmax(-1), target.flatten())
        assert attention.max(-1).values.min() > 0.5


def test_nothing_that_is_told_matters_yet_and_everything_can_learn(base):
    generator = torch.Generator().manual_seed(0)
    reference, noise = torch.randn(2, 1, 16, 8, 8, generator=generator)
    velocities = [
        KONTEXT.velocity(
            base.transformer, noise, torch.tensor([0.5]), base.tell(base.vocabulary.spell([plainly(*told)]), reference)
        )
        for told in ((NOTHING,), (NOTHING, "invert"))
    ]
    assert torch.equal(*velocities)
    velocities[0].square().mean().backward()
    still = {name for name, p in base.transformer.named_parameters() if p.grad is None or not p.grad.any()}
    # Only what passes through closed modulations waits for them, and the last text stream, which nothing reads.
    assert all("embed" in name or "context" in name or "add_" in name for name in still), still


def test_the_image_encoder_looks_at_the_same_place_of_the_other_image():
    pictures = torch.randn(2, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    output = make_encoder(EncoderSettings(), SIDE)(pixel_values=pictures, output_attentions=True)
    there = torch.arange(16 * 16).view(16, 16).roll(8, 1).flatten()
    for attention in output.attentions[:2]:
        places = attention[:, 0, 1:, 1:]  # of the first head; token 0 is no place
        assert torch.equal(places.argmax(-1), there.expand(2, -1))
        assert places.max(-1).values.median() > 0.5
