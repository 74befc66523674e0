"""The analogy query: which images a query mode encodes, and how their embeddings combine into z.

Mode names: "c..." pools an embedding of the 2x2 canvas or of single images, "cat-" concatenates, "p..." keeps the
encoder's tokens un-pooled. In a header, "caa'" squeezes the top half of the canvas to the encoder's square, as our
banks of that mode were trained. In a released bank's YAML it means "caa'-middle": the encoder crops that half to its
middle square, half of a and half of a'.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .canvas import PIXELS_PER_MEGAPIXEL, CanvasGeometry, stack_quadrants

# Hidden states whose tokens the un-pooled modes take; the "...3" modes concatenate three along the tokens.
LAST_HIDDEN = (-1,)
THREE_HIDDEN = (-16, -8, -1)


class ImageEncoder(Protocol):
    """A frozen vision encoder. Images are [B, H, W, 3] in 0..1; the encoder does its own preprocessing."""

    def pooled(self, images: Tensor, stretch: bool = False) -> Tensor:
        """Projected embedding [B, e]; ``stretch`` squeezes the image to the encoder's square instead of cropping."""
        ...

    def tokens(self, images: Tensor, hidden: tuple[int, ...]) -> Tensor:
        """Un-pooled tokens of the named hidden states, concatenated along the tokens: [B, T * len(hidden), width]."""
        ...


@dataclass(frozen=True)
class QueryMode:
    """How a mode makes z.

    Attributes:
        images: which of "a", "a'", "b" the mode looks at.
        combine: joins their embeddings [B, e] into z.
        composite: makes one image of them in place of that; its embedding is z.
        hidden: hidden states to take as un-pooled tokens, or None for the pooled embedding.
        stretch: the image is squeezed to the encoder's square instead of centre-cropped.
    """

    images: tuple[str, ...]
    combine: Callable[..., Tensor] | None = None
    composite: Callable[..., Tensor] | None = None
    hidden: tuple[int, ...] | None = None
    stretch: bool = False

    @property
    def parts(self) -> int:
        """How many embeddings the query is long."""
        return len(self.images) if self.combine is _concatenate else 1

    @property
    def cacheable(self) -> bool:
        """Whether it encodes single images or example pairs, few enough of a data set to encode each once."""
        return self.composite is None or "b" not in self.images


def _concatenate(*embeddings: Tensor) -> Tensor:
    return torch.cat(embeddings, dim=-1)


def _edit(a: Tensor, a_prime: Tensor) -> Tensor:
    return a_prime - a


def _edit_plus_b(a: Tensor, a_prime: Tensor, b: Tensor) -> Tensor:
    return a_prime - a + b


def _canvas(a: Tensor, a_prime: Tensor, b: Tensor) -> Tensor:
    return stack_quadrants(a, a_prime, b, b)


def _canvas_without_answer(a: Tensor, a_prime: Tensor, b: Tensor) -> Tensor:
    return stack_quadrants(a, a_prime, b, torch.zeros_like(b))


def _top_half(a: Tensor, a_prime: Tensor) -> Tensor:
    return torch.cat((a, a_prime), dim=2)


TRIPLET = ("a", "a'", "b")

QUERY_MODES: dict[str, QueryMode] = {
    "cat-aa'b": QueryMode(TRIPLET, _concatenate),
    "ca'-ca": QueryMode(("a", "a'"), _edit),
    "ca'-ca+cb": QueryMode(TRIPLET, _edit_plus_b),
    "aa'bb'": QueryMode(TRIPLET, composite=_canvas),
    "caa'bb'": QueryMode(TRIPLET, composite=_canvas),
    "caa'b": QueryMode(TRIPLET, composite=_canvas_without_answer),
    "caa'": QueryMode(("a", "a'"), composite=_top_half, stretch=True),
    "caa'-middle": QueryMode(("a", "a'"), composite=_top_half),
    "paa'b": QueryMode(TRIPLET, composite=_canvas_without_answer, hidden=LAST_HIDDEN),
    "paa'b3": QueryMode(TRIPLET, composite=_canvas_without_answer, hidden=THREE_HIDDEN),
    "cat-paa'b": QueryMode(TRIPLET, _concatenate, hidden=LAST_HIDDEN),
    "cat-paa'b3": QueryMode(TRIPLET, _concatenate, hidden=THREE_HIDDEN),
}


def encoder_images(a: Tensor, a_prime: Tensor, b: Tensor, fit: str = "crop") -> tuple[Tensor, Tensor, Tensor]:
    """What the image encoder is to see of a, a' [P, H, W, C] and b [B, H, W, C]: quadrants of one canvas.

    Pictures of one size, small enough for a canvas of a megapixel, are seen as they are: to resample or enlarge them
    first would only blur what the encoder's own resizing reads. Others become the quadrants of such a canvas.

    Args:
        fit: how a and a' are brought to b's shape, one of ``canvas.FITS``.

    Raises:
        ValueError: as ``CanvasGeometry.plan``.
    """
    height, width = b.shape[1:3]
    megapixels = 4 * height * width / PIXELS_PER_MEGAPIXEL
    if 0 < megapixels <= 1 and a.shape[1:3] == a_prime.shape[1:3] == b.shape[1:3]:
        return a, a_prime, b
    geometry = CanvasGeometry.plan(height, width, min(1.0, megapixels))
    return geometry.quadrant(a, fit), geometry.quadrant(a_prime, fit), geometry.quadrant(b, "stretch")


def build_query(mode: str, a: Tensor, a_prime: Tensor, b: Tensor, encoder: ImageEncoder) -> Tensor:
    """Encode every combination of P example pairs with B images into its analogy query.

    Each single image, and each example pair that is encoded without b, is encoded once, whatever it is combined with;
    a mode that encodes a composite of all three needs P * B of them.

    Args:
        mode: a key of ``QUERY_MODES``.
        a, a_prime: [P, H, W, 3] in 0..1. b: [B, H, W, 3]. All are quadrants of one canvas: one height, one width.

    Returns:
        z [P * B, q], the pairs varying slowest.

    Raises:
        ValueError: for an unknown mode, or images whose shapes do not go together.
    """
    if mode not in QUERY_MODES:
        raise ValueError(f"query mode {mode!r} is unknown; known: {', '.join(QUERY_MODES)}")
    if a.shape != a_prime.shape or a.shape[1:] != b.shape[1:]:
        raise ValueError(
            "a and a' must be equally many, and a, a' and b of one size; found"
            f" {[tuple(x.shape) for x in (a, a_prime, b)]}"
        )
    if not (a.shape[0] and b.shape[0]):
        raise ValueError(
            f"there are {a.shape[0]} example pairs and {b.shape[0]} images b; an analogy needs one of each"
        )
    spec, pairs, targets = QUERY_MODES[mode], a.shape[0], b.shape[0]
    images = dict(zip(TRIPLET, (a, a_prime, b), strict=True))
    if not spec.cacheable:
        triplets = (_spread(image, name, pairs, targets) for name, image in images.items())
        return embed_images(spec.composite(*triplets), spec, encoder)
    if spec.composite is not None:
        return _spread(embed_images(spec.composite(a, a_prime), spec, encoder), "a", pairs, targets)
    embeddings = (_spread(embed_images(images[name], spec, encoder), name, pairs, targets) for name in spec.images)
    return spec.combine(*embeddings)


def embed_images(images: Tensor, spec: QueryMode, encoder: ImageEncoder) -> Tensor:
    """What the encoder makes of images [B, H, W, 3] for a mode: [B, e] in float32, tokens flattened."""
    if spec.hidden is None:
        return encoder.pooled(images, stretch=spec.stretch).float()
    return encoder.tokens(images, spec.hidden).float().flatten(1)


def _spread(x: Tensor, name: str, pairs: int, targets: int) -> Tensor:
    """Repeat x over all P * B combinations: b varies fastest."""
    if name == "b":
        return x.repeat(pairs, *[1] * (x.dim() - 1))
    return x.repeat_interleave(targets, dim=0)
