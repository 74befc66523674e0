"""How refining went, as a picture: the loss of what was fitted and of what was held out, drawn with Pillow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .plot import BACKGROUND, FAINT, INK, MARGIN, draw_text
from .refine import Record

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image
    from torch import Tensor

CURVE = (640, 400)
FITTED, HELD_OUT = (96, 165, 250), (251, 136, 97)
_LEFT, _TOP, _BOTTOM = 64, 56, 40
_TEXT = 16

Point = tuple[float, float]


def loss_curve(history: Sequence[Record], kept: int | None = None, steps: int | None = None) -> np.ndarray:
    """Draw judgements: the mean loss of the steps since the one before, and the loss held out.

    Args:
        history: at least one; that of the guess first, with no loss of steps.
        kept: the step whose coefficients came out, which is marked; 0 is the guess's. None while it goes on.
        steps: how many there are to be, so that a curve that goes on keeps its scale; by default those that were made.

    Returns:
        [400, 640, 3] uint8.
    """
    import numpy as np
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", CURVE, BACKGROUND)
    draw = ImageDraw.Draw(picture)
    place = _Axes(history, max(steps or 0, history[-1].step, 1))
    _draw_axes(draw, place)
    curves = {
        "loss of the steps": (FITTED, [(record.step, record.fitted) for record in history]),
        "loss held out": (HELD_OUT, [(record.step, record.held_out) for record in history]),
    }
    left = _LEFT
    for name, (colour, points) in curves.items():
        _draw_curve(draw, [place(*point) for point in points if math.isfinite(point[1])], colour)
        draw_text(draw, (left, MARGIN), name, colour, _TEXT)
        left += 190
    if kept is not None:
        _draw_kept(draw, place, next(record for record in history if record.step == kept))
    return np.asarray(picture)


def beside(curve: np.ndarray, answer: Tensor | None) -> Image.Image:
    """A curve with a picture [H, W, 3] beside it, as high as the curve; none leaves it alone."""
    import numpy as np
    from PIL import Image

    if answer is None:
        return Image.fromarray(curve)
    height = curve.shape[0]
    picture = Image.fromarray(answer.mul(255).round().byte().numpy())
    picture = picture.resize((max(1, round(picture.width * height / picture.height)), height), Image.Resampling.LANCZOS)
    return Image.fromarray(np.concatenate((curve, np.asarray(picture)), axis=1))


class _Axes:
    """(step, loss) -> pixels; losses from below the least to above the largest, because their changes are small."""

    def __init__(self, history: Sequence[Record], steps: int):
        losses = [loss for record in history for loss in record[1:] if math.isfinite(loss)]
        self.low, self.high, self.steps = min(losses), max(losses), steps
        room = 0.08 * (self.high - self.low) or 0.1 * abs(self.high) or 1.0
        self.low, self.high = self.low - room, self.high + room

    def __call__(self, step: float, loss: float) -> Point:
        width, height = CURVE[0] - _LEFT - 2 * MARGIN, CURVE[1] - _TOP - _BOTTOM
        return _LEFT + width * step / self.steps, _TOP + height * (self.high - loss) / (self.high - self.low)


def _draw_axes(draw, place: _Axes) -> None:
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        loss = place.low + share * (place.high - place.low)
        (left, y), (right, _) = place(0, loss), place(place.steps, loss)
        draw.line((left, y, right, y), fill=(52, 52, 58))
        draw_text(draw, (MARGIN // 2, round(y) - 8), f"{loss:.3g}", FAINT, 13)
    every = max(1, -(-place.steps // 6))
    for step in range(0, place.steps + 1, every):
        x, y = place(step, place.low)
        draw_text(draw, (round(x) - 4, round(y) + 6), str(step), FAINT, 13)
    draw_text(draw, (CURVE[0] - 60, CURVE[1] - 20), "steps", FAINT, 13)


def _draw_curve(draw, points: list[Point], colour: tuple[int, int, int]) -> None:
    if len(points) > 1:
        draw.line(points, fill=colour, width=3, joint="curve")
    for x, y in points:
        draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=colour)


def _draw_kept(draw, place: _Axes, record: Record) -> None:
    x, y = place(record.step, record.held_out)
    draw.ellipse((x - 9, y - 9, x + 9, y + 9), outline=INK, width=2)
    said = "the guess is kept" if record.step == 0 else f"step {record.step} is kept"
    draw_text(draw, (CURVE[0] - 160, MARGIN), said, INK, _TEXT)
