"""How the starter's base begins: a small FLUX that already copies its reference roughly, and is told nothing yet.

From diffusers' own beginning the base needs most of a short training to find that a token of b' looks like the token of
the reference at the same place, and to bring its gates near one.
"""

import math

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn

_FREQUENCIES = 2  # of each spatial axis, the highest ones: they tell neighbours apart
_IMAGE, _PLACE = 30.0, 49.0  # squared length of a query in the image axis and in each spatial one; 128 is all of it
_SHARPNESS = 3.0  # how many times FLUX's usual logits
_CONTENT = 0.5  # what is left of the random part of queries and keys


@torch.no_grad()
def begin(transformer: FluxTransformer2DModel) -> None:
    """Set the modulations and the first head of every block; everything else keeps diffusers' beginning."""
    for block in transformer.transformer_blocks:
        for norm in (block.norm1, block.norm1_context):
            _open_gates(norm.linear, gates=(2, 5), parts=6)
        _look_at_reference(block.attn, transformer.config.axes_dims_rope)
    for block in transformer.single_transformer_blocks:
        _open_gates(block.norm.linear, gates=(2,), parts=3)
        _look_at_reference(block.attn, transformer.config.axes_dims_rope)
    nn.init.zeros_(transformer.norm_out.linear.weight)
    nn.init.zeros_(transformer.norm_out.linear.bias)


def _open_gates(modulation: nn.Linear, gates: tuple[int, ...], parts: int) -> None:
    """No shift, no scale and a gate of one, whatever is told (adaLN-zero of Peebles & Xie 2022, with open gates)."""
    nn.init.zeros_(modulation.weight)
    nn.init.zeros_(modulation.bias)
    for gate in gates:
        modulation.bias.view(parts, -1)[gate] = 1.0


def _look_at_reference(attention: nn.Module, axes: tuple[int, ...]) -> None:
    """Let the first head attend from a token of the canvas to the reference's token at its place.

    Constant queries and keys, turned by the positional embedding, agree best where positions do; the keys are turned
    back by one image, because the reference has the next image id.
    """
    query, key = _positions(axes, 0.0), _positions(axes, 1.0)
    for linear, beginning in ((attention.to_q, query), (attention.to_k, key)):
        linear.weight.mul_(_CONTENT)
        nn.init.zeros_(linear.bias)
        linear.bias[: len(beginning)] = beginning
    for norm in (attention.norm_q, attention.norm_k):
        nn.init.constant_(norm.weight, math.sqrt(_SHARPNESS))


def _positions(axes: tuple[int, ...], image: float) -> Tensor:
    """A head's constant query or key [sum(axes)]: pairs of entries, each turning at one frequency of one axis."""
    head = torch.zeros(sum(axes))
    # The highest frequency of an axis is one radian per position.
    head[0], head[1] = math.sqrt(_IMAGE) * math.cos(image), -math.sqrt(_IMAGE) * math.sin(image)
    for start in (axes[0], axes[0] + axes[1]):
        head[start : start + 2 * _FREQUENCIES : 2] = math.sqrt(_PLACE / _FREQUENCIES)
    return head
