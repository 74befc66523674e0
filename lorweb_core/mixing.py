"""The mixing formula: analogy query -> mixing coefficients -> weight delta (arXiv 2602.15727, section 3).

Every formula of the method that the nodes, the trainer and the exporter share stands here, once.
Shape suffixes: L layers, B batch, N basis LoRAs, h heads, d key width, q query width, r rank.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

MIXINGS = ("mean", "sum")


def attention_logits(keys: Tensor, u: Tensor, heads: int = 1) -> Tensor:
    """Scaled dot product of a projected query with the keys of a basis: ``keys_head @ u_head / sqrt(d / h)``.

    Args:
        keys: [..., N, d]. u: [..., d], the query after ``to_q``; leading dimensions broadcast against those of keys.
        heads: h, a divisor of d.

    Returns:
        Logits [..., h, N].
    """
    k = keys.unflatten(-1, (heads, -1))
    u = u.unflatten(-1, (heads, -1))
    return torch.einsum("...nhw,...hw->...hn", k, u) / math.sqrt(k.shape[-1])


def fold_projection(keys: Tensor, to_q: Tensor, heads: int = 1) -> Tensor:
    """Fold keys and query projection into one matrix: ``logit = (keys @ to_q / sqrt(d / h)) @ z``.

    Args:
        keys: [N, d]. to_q: [d, q].

    Returns:
        [h, N, q], computed and returned in float64 so that storing it in float32 costs one rounding.
    """
    k = keys.double().unflatten(-1, (heads, -1))
    w = to_q.double().unflatten(0, (heads, -1))
    return torch.einsum("nhw,hwq->hnq", k, w) / math.sqrt(k.shape[-1])


def mixing_coefficients(logits: Tensor, softmax: bool = True, mixing: str = "mean") -> Tensor:
    """Turn logits into mixing coefficients: softmax (or tanh) per head, then mean or clamped sum over the heads.

    Args:
        logits: [..., h, N].
        mixing: "mean", or "sum" (clamped to [0, 1] with softmax, to [-1, 1] with tanh).

    Returns:
        Coefficients [..., N].

    Raises:
        ValueError: for another ``mixing``.
    """
    c = logits.softmax(dim=-1) if softmax else logits.tanh()
    if mixing == "mean":
        return c.mean(dim=-2)
    if mixing == "sum":
        return c.sum(dim=-2).clamp(0.0 if softmax else -1.0, 1.0)
    raise ValueError(f"mixing is {mixing!r}; expected one of {', '.join(MIXINGS)}")


def composed_factors(a: Tensor, b: Tensor, c: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """The ordinary LoRA of rank N*r that one set of coefficients makes of a basis.

    ``down = concat_n A[n].T`` and ``up = concat_n scale * c[n] * B[n]``, so that ``up @ down`` is
    ``scale * sum_n c[n] * (A[n] @ B[n]).T``.

    Args:
        a: [N, in, r]. b: [N, r, out]. c: [N], of the dtype and device of a and b.

    Returns:
        (down [N*r, in], up [out, N*r]).
    """
    down = a.transpose(1, 2).flatten(0, 1)
    up = (b * (scale * c)[:, None, None]).flatten(0, 1).T
    return down, up


def composed_output(x: Tensor, a: Tensor, b: Tensor, c: Tensor, scale: float = 1.0) -> Tensor:
    """What that LoRA adds to a layer's output: ``(x A * scale c) B`` with the basis side by side, two thin products.

    Differentiable in x and c. No weight delta is formed.

    Args:
        x: [..., in]. a: [N, in, r]. b: [N, r, out]. c: [N]; all of one dtype and device.

    Returns:
        [..., out].
    """
    projected = F.linear(x, a.transpose(1, 2).flatten(0, 1))
    return (projected * (scale * c).repeat_interleave(b.shape[1])) @ b.flatten(0, 1)
