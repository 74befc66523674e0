"""How the starter's base and image encoder begin: already looking where an analogy has to be looked for.

From diffusers' own beginning the base needs most of a short training to find that a token of b' looks like the token of
the reference at the same place, that the edit lies between the tokens of a and a' there, and to bring its gates near
one. The image encoder likewise has to find that what an edit did shows between the same places of a and a'.
"""

import math

import torch
from diffusers import ModelMixin
from torch import Tensor, nn
from transformers import CLIPVisionModelWithProjection

_FREQUENCIES = 2  # of each spatial axis, the highest ones: they tell neighbours apart
_IMAGE, _PLACE = 30.0, 49.0  # squared length of a query in the image axis and in each spatial one; 128 is all of it
_SHARPNESS = 3.0  # how many times FLUX's usual logits
_CONTENT = 0.5  # what is left of the random part of queries and keys

# Of the image encoder:
_CODE = 1.1  # size of a place's code in its position embedding, over that of a patch's embedding
_LOOKING = 2  # layers that look
_AGREEMENT = 1.2  # makes the logit of the right place about 8, those of the others 0 +- 1.4

Offset = tuple[int, int, int]  # from a token to the one it looks at: images (the reference is 1), rows, columns


@torch.no_grad()
def begin(transformer: ModelMixin, quadrant: int) -> None:
    """Set the modulations and up to two heads of every block; everything else keeps diffusers' beginning.

    The first head of every block looks at the reference in the same place, so that b' begins as b. Of a canvas
    ``a | a'`` over ``b | b'``, the second head of the double block looks from a' to a, that of the single blocks from
    b' to a', to a, to a' and so on.

    Args:
        quadrant: tokens along its side.
    """
    turns, reference = transformer.pos_embed, (1, 0, 0)
    a_prime, a = (1, -quadrant, 0), (1, -quadrant, -quadrant)
    for block in transformer.transformer_blocks:
        for norm in (block.norm1, block.norm1_context):
            _open_gates(norm.linear, gates=(2, 5), parts=6)
        _look(block.attn, turns, reference, (0, 0, -quadrant))
    for number, block in enumerate(transformer.single_transformer_blocks):
        _open_gates(block.norm.linear, gates=(2,), parts=3)
        _look(block.attn, turns, reference, a if number % 2 else a_prime)
    nn.init.zeros_(transformer.norm_out.linear.weight)
    nn.init.zeros_(transformer.norm_out.linear.bias)


def _open_gates(modulation: nn.Linear, gates: tuple[int, ...], parts: int) -> None:
    """No shift, no scale and a gate of one, whatever is told (adaLN-zero of Peebles & Xie 2022, with open gates)."""
    nn.init.zeros_(modulation.weight)
    nn.init.zeros_(modulation.bias)
    for gate in gates:
        modulation.bias.view(parts, -1)[gate] = 1.0


def _look(attention: nn.Module, turns: nn.Module, *offsets: Offset) -> None:
    """Let the first heads attend from every token to the one at their offset, as far as there are heads.

    Constant queries and keys, turned by the positional embedding, agree best where positions do; the keys are turned
    back by the offset.
    """
    size = sum(turns.axes_dim)
    for linear in (attention.to_q, attention.to_k):
        linear.weight.mul_(_CONTENT)
        nn.init.zeros_(linear.bias)
    for head, offset in zip(range(attention.heads), offsets):
        here = slice(head * size, (head + 1) * size)
        attention.to_q.bias[here], attention.to_k.bias[here] = _position(turns, (0, 0, 0)), _position(turns, offset)
    for norm in (attention.norm_q, attention.norm_k):
        nn.init.constant_(norm.weight, math.sqrt(_SHARPNESS))


def _position(turns: nn.Module, offset: Offset) -> Tensor:
    """A head's constant query or key [128]: pairs of entries, each turning at one frequency of one axis."""
    head, start = torch.zeros(sum(turns.axes_dim)), 0
    powers, counts = (_IMAGE, _PLACE, _PLACE), (1, _FREQUENCIES, _FREQUENCIES)
    for size, step, power, count in zip(turns.axes_dim, offset, powers, counts):
        for number in range(count):
            angle = step * turns.theta ** (-2 * number / size)
            pair = torch.tensor([math.cos(angle), -math.sin(angle)]) * math.sqrt(power / count)
            head[start + 2 * number : start + 2 * number + 2] = pair
        start += size
    return head


@torch.no_grad()
def begin_pairs(encoder: CLIPVisionModelWithProjection) -> None:
    """Let the first head of the first layers look from every token of a picture a | a' to the same place of the other.

    A head's width of the position embeddings is a random code of the place, another that of the place it looks at;
    queries are the one and keys the other. Nothing else is in those entries yet.
    """
    model, width = encoder.vision_model, encoder.config.hidden_size // encoder.config.num_attention_heads
    embeddings = model.embeddings
    side = encoder.config.image_size // encoder.config.patch_size
    codes = math.sqrt(width) * nn.functional.normalize(torch.randn(side, side, width), dim=2)
    places = torch.cat((codes, codes.roll(side // 2, 1)), 2).flatten(0, 1)
    positions = embeddings.position_embedding.weight
    patches = embeddings.patch_embedding.weight
    size = _CODE * patches.std() * math.sqrt(patches[0].numel())
    positions[0, : 2 * width], positions[1:, : 2 * width] = 0, size * places
    patches[: 2 * width] = 0
    for layer in model.encoder.layers[:_LOOKING]:
        for linear, start in ((layer.self_attn.q_proj, 0), (layer.self_attn.k_proj, width)):
            linear.weight[:width] = 0
            linear.weight[:width, start : start + width] = _AGREEMENT * torch.eye(width)
