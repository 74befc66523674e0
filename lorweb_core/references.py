"""The separate layout: a, a' and b are three reference pictures in this order, and the model answers with b' alone.

The answer and the reference of b have one frame (see ``canvas.Frame``), so that b' lies on b token for token.
"""

from __future__ import annotations

from torch import Tensor

from .canvas import MULTIPLE, Frame


def reference_frame(answer: Frame, height: int, width: int) -> Frame:
    """The frame of a reference picture of height x width pixels: no larger in area than the answer's, nor enlarged.

    A picture of the answer's shape gets the answer's frame, as long as it is not smaller.
    """
    own, most = Frame.whole(height, width), answer.height * answer.width
    if own.height * own.width <= most:
        return own
    ideal = (most * height / width) ** 0.5, (most * width / height) ** 0.5
    # Rounded down; what is a whole number of tokens but for the last digit stays one.
    sides = (max(MULTIPLE, int(side + 1e-6) // MULTIPLE * MULTIPLE) for side in ideal)
    return Frame.scaled(height, width, *sides)


def references(
    answer: Frame, a: Tensor, a_prime: Tensor, b: Tensor, fit: str = "crop"
) -> tuple[Tensor, Tensor, Tensor]:
    """The three reference pictures of an analogy, each [B, height, width, C] in whole tokens.

    Args:
        answer: the frame of b'.
        a, a_prime: the example pair [B, H, W, C]; a keeps its shape, a' is fitted to it by ``fit``.
        b: [B, H, W, C]; scaled, never cropped.

    Raises:
        ValueError: when ``fit`` is none of ``canvas.FITS``.
    """
    example = reference_frame(answer, *a.shape[1:3])
    return example.fill(a, "stretch"), example.fill(a_prime, fit), answer.fill(b, "stretch")
