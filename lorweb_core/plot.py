"""Coefficients as a picture: a heatmap of layers by basis elements, drawn with Pillow, which ComfyUI ships.

``heatmap`` is the large one with every label, ``thumbnail`` the small one that fits on a node.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .coefficients import MixingCoefficients
from .lettering import draw_text, font

if TYPE_CHECKING:
    import numpy as np

# Anchors of the colour scales, evenly spaced: dark to bright for shares, blue - dark - red for signed coefficients.
SEQUENTIAL = ((13, 8, 35), (80, 18, 123), (182, 54, 121), (251, 136, 97), (252, 253, 191))
DIVERGING = ((120, 190, 255), (40, 90, 200), (20, 20, 28), (210, 60, 40), (255, 190, 110))
BACKGROUND, INK, FAINT = (24, 24, 28), (232, 232, 236), (140, 140, 150)

LABEL_WIDTH, BAR_WIDTH, MARGIN, LINE = 116, 110, 14, 18
MAP_WIDTH, MAP_HEIGHT, LARGEST_MAP = 640, 1000, 32_000_000
# Of about the shape of the room that ComfyUI gives a picture on a node; twice its size, for sharp text.
THUMBNAIL = (480, 400)
_THUMBNAIL_TEXT, _THUMBNAIL_LABELS = 24, 72


def heatmap(coefficients: MixingCoefficients) -> np.ndarray:
    """Draw coefficients: a row per layer, a column per basis element, and beside each row its effective number.

    Args:
        coefficients: one set; not a batch.

    Returns:
        [height, width, 3] uint8.

    Raises:
        ValueError: for a batch, or more coefficients than a picture has room for.
    """
    import numpy as np
    from PIL import Image, ImageDraw

    coefficients.require_single("A heatmap")
    values = coefficients.values
    rows, columns = values.shape
    cell_h, cell_w = min(16, max(1, MAP_HEIGHT // rows)), min(40, max(2, MAP_WIDTH // columns))
    height, width = rows * cell_h, columns * cell_w
    if height * width > LARGEST_MAP:
        raise ValueError(f"a heatmap has no room for {rows:,} layers by {columns:,} basis elements")
    notes = _notes(coefficients)
    top = MARGIN + LINE * (len(notes) + 1)
    size = (max(LABEL_WIDTH + width + BAR_WIDTH + 2 * MARGIN, 760), top + height + 2 * LINE + MARGIN)
    picture = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(picture)
    for index, note in enumerate(notes):
        draw_text(draw, (MARGIN, MARGIN + LINE * index), note, INK if index == 0 else FAINT)
    cells = _colours(values, signed=not coefficients.softmax)
    cells = cells.repeat_interleave(cell_h, 0).repeat_interleave(cell_w, 1)
    picture.paste(Image.fromarray(cells.numpy()), (LABEL_WIDTH, top))
    _draw_blocks(draw, coefficients.layers, top, cell_h, LABEL_WIDTH + width)
    _draw_columns(draw, columns, top + height, cell_w)
    _draw_bars(draw, coefficients.effective_number() / columns, top, cell_h, LABEL_WIDTH + width + MARGIN)
    return np.asarray(picture)


def thumbnail(coefficients: MixingCoefficients) -> np.ndarray:
    """Draw coefficients small: the heatmap, the effective number of elements, and the elements used most by name.

    Args:
        coefficients: one set; not a batch.

    Returns:
        [400, 480, 3] uint8, whatever the bank's size.

    Raises:
        ValueError: for a batch.
    """
    import numpy as np
    from PIL import Image, ImageDraw

    coefficients.require_single("A heatmap")
    values = coefficients.values
    columns, strongest = values.shape[1], _most_used(values, 3)
    picture = Image.new("RGB", THUMBNAIL, BACKGROUND)
    draw = ImageDraw.Draw(picture)
    title = f"{coefficients.effective_number().mean():.1f} of {columns} elements in effect"
    draw_text(draw, (MARGIN, 8), title, INK, _THUMBNAIL_TEXT)
    caption = "most used: " + ", ".join(f"#{i} {usage:.2f}" for i, usage in strongest)
    draw_text(draw, (MARGIN, 40), caption, FAINT, _THUMBNAIL_TEXT - 2)
    left, top, right, bottom = _THUMBNAIL_LABELS, 78, THUMBNAIL[0] - MARGIN, THUMBNAIL[1] - 34
    cells = Image.fromarray(_colours(values, signed=not coefficients.softmax).numpy())
    # Many layers share a row of pixels, which then shows their average.
    picture.paste(cells.resize((right - left, bottom - top), Image.Resampling.BOX), (left, top))
    _draw_kinds(draw, coefficients.layers, top, bottom, left)
    _draw_names(draw, [i for i, _ in strongest], left, (right - left) / columns, bottom + 4)
    return np.asarray(picture)


def _notes(coefficients: MixingCoefficients) -> list[str]:
    """What the picture says, in words: size, effective number, elements most used, strongest single coefficients."""
    values, number = coefficients.values, coefficients.effective_number()
    rows, columns = values.shape
    used = ", ".join(f"#{i} {usage:.3f}" for i, usage in _most_used(values, 5))
    strongest = values.abs().flatten().topk(min(3, values.numel())).indices.tolist()
    single = ", ".join(
        f"{_short(coefficients.layers[i // columns])} #{i % columns} {values[i // columns, i % columns]:.2f}"
        for i in strongest
    )
    return [
        f"Mixing coefficients: {rows} layers x {columns} basis LoRAs",
        f"effective number of elements: {number.mean():.1f} on average, {number.min():.1f} to {number.max():.1f}",
        f"most used: {used}",
        f"strongest: {single}",
        f"colour from {min(0.0, float(values.min())):.2f} to {float(values.max()):.2f}",
    ]


def _most_used(values: Tensor, count: int) -> list[tuple[int, float]]:
    """(basis element, mean magnitude over the layers) of the elements used most, the strongest first."""
    usage, order = values.abs().mean(dim=0).topk(min(count, values.shape[1]))
    return list(zip(order.tolist(), usage.tolist(), strict=True))


def _colours(values: Tensor, signed: bool) -> Tensor:
    """Values [L, N] -> colours [L, N, 3] uint8; the scale is symmetric about 0 when any value is negative."""
    signed = signed or bool((values < 0).any())
    anchors = torch.tensor(DIVERGING if signed else SEQUENTIAL, dtype=torch.float32)
    top = values.abs().max().clamp_min(1e-12)
    position = ((values / top + 1) / 2 if signed else values / top) * (len(anchors) - 1)
    low = position.floor().long().clamp(0, len(anchors) - 2)
    colours = torch.lerp(anchors[low], anchors[low + 1], (position - low)[..., None])
    return colours.round().clamp(0, 255).to(torch.uint8)


def _draw_blocks(draw, layers: tuple[str, ...], top: int, cell_h: int, right: int) -> None:
    """A line where a block begins, and its name where there is room."""
    blocks = [".".join(name.split(".")[:2]) for name in layers]
    last_label = -LINE
    for row, block in enumerate(blocks):
        if row and block == blocks[row - 1]:
            continue
        y = top + row * cell_h
        draw.line((LABEL_WIDTH - 6, y, LABEL_WIDTH - 1, y), fill=FAINT)
        if y - last_label >= 12:
            draw_text(draw, (MARGIN, y - 2), _short(block), FAINT, 11)
            last_label = y
    draw.line((LABEL_WIDTH - 1, top, LABEL_WIDTH - 1, top + len(layers) * cell_h), fill=FAINT)
    draw.line((right, top, right, top + len(layers) * cell_h), fill=FAINT)


def _draw_columns(draw, columns: int, bottom: int, cell_w: int) -> None:
    step = max(1, -(-24 // cell_w))
    for column in range(0, columns, step):
        draw_text(draw, (LABEL_WIDTH + column * cell_w + 2, bottom + 2), str(column), FAINT, 11)
    draw_text(draw, (LABEL_WIDTH, bottom + LINE), "basis element", FAINT, 11)


def _draw_bars(draw, share: Tensor, top: int, cell_h: int, left: int) -> None:
    """The effective number of each layer as a bar; a full bar means that all elements are used alike."""
    span = BAR_WIDTH - MARGIN
    draw_text(draw, (left, top - LINE + 3), "effective number", FAINT, 11)
    for row, value in enumerate(share.tolist()):
        y = top + row * cell_h
        draw.rectangle((left, y, left + max(1, round(span * value)), y + max(1, cell_h - 1) - 1), fill=(96, 165, 250))


def _draw_kinds(draw, layers: tuple[str, ...], top: int, bottom: int, left: int) -> None:
    """Beside the map, what kind of block its rows belong to: a name and a line where a kind begins."""
    kinds = [_short(name).split(" ")[0].split(".")[0][:6] for name in layers]
    last_label = -LINE
    for row, kind in enumerate(kinds):
        y = top + row * (bottom - top) // len(kinds)
        if (row and kind == kinds[row - 1]) or y - last_label < LINE:
            continue
        draw.line((MARGIN, y, left, y), fill=FAINT)
        draw_text(draw, (MARGIN, y + 2), kind, FAINT, LINE)
        last_label = y


def _draw_names(draw, elements: list[int], left: int, cell_w: float, y: int) -> None:
    """The named columns, strongest first; one that would be written over another is left out."""
    written: list[float] = []
    for element in elements:
        x = left + (element + 0.5) * cell_w
        if all(abs(x - other) >= 44 for other in written):
            draw.text((x, y), f"#{element}", fill=INK, font=font(_THUMBNAIL_TEXT - 4), anchor="ma")
            written.append(x)


def _short(name: str) -> str:
    """Block names as people say them: "double 3", "single 12 proj_out"."""
    for long, short in (("single_transformer_blocks.", "single "), ("transformer_blocks.", "double ")):
        if name.startswith(long):
            number, _, rest = name[len(long) :].partition(".")
            return f"{short}{number} {rest}".strip()
    return name
