"""Drawn things over the image, and the way back: stickers, captions and frames that come or go."""

from collections.abc import Callable
from functools import cache

import numpy as np
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

from .content import INSERTION, REMOVAL
from .edit import Edit, Image, Parameters, Span, image_edit, undo
from .overlays import FAMILY as OVERLAYS
from .pixels import blend, of_hue, places, step

_OVERSAMPLING = 4
_INK, _WHITE, _GOLD, _RED = "#181818", "#ffffff", "#ffc820", "#e0202c"


class Pen:
    """Draws in a square from -1 to 1, y down."""

    def __init__(self, pixels: int):
        self.page = Pillow.new("RGBA", (pixels, pixels))
        self.canvas, self.half = ImageDraw.Draw(self.page), pixels / 2

    def _at(self, *coordinates: float) -> list[float]:
        return [(c + 1) * self.half for c in coordinates]

    def _width(self, width: float) -> int:
        return max(1, round(width * self.half))

    def oval(self, x: float, y: float, right: float, down: float, fill: str | None = None, line: str | None = None):
        """An ellipse about x, y, filled or as a line."""
        box = self._at(x - right, y - down, x + right, y + down)
        self.canvas.ellipse(box, fill=fill, outline=line, width=self._width(0.09))

    def box(self, left: float, top: float, right: float, bottom: float, fill: str, radius: float = 0.0):
        """A rectangle with round corners."""
        self.canvas.rounded_rectangle(self._at(left, top, right, bottom), self._width(radius), fill=fill)

    def shape(self, fill: str, *coordinates: float):
        """A polygon of x, y, x, y and so on."""
        self.canvas.polygon(self._at(*coordinates), fill=fill)

    def line(self, fill: str, width: float, *coordinates: float):
        """A line through x, y, x, y and so on."""
        self.canvas.line(self._at(*coordinates), fill=fill, width=self._width(width), joint="curve")

    def arc(self, x: float, y: float, right: float, down: float, start: float, end: float, line: str):
        """Part of an ellipse, in degrees clockwise from the right."""
        box = self._at(x - right, y - down, x + right, y + down)
        self.canvas.arc(box, start, end, fill=line, width=self._width(0.1))


Drawing = Callable[[Pen], None]


def _glasses(pen: Pen) -> None:
    for x in (-0.5, 0.5):
        pen.oval(x, 0, 0.4, 0.36, fill="#20304cb0", line=_INK)
    pen.arc(0, 0, 0.16, 0.14, 180, 360, _INK)
    for sign in (-1, 1):
        pen.line(_INK, 0.09, sign * 0.88, -0.05, sign * 1.0, -0.2)


def _hat(pen: Pen) -> None:
    pen.box(-0.5, -0.8, 0.5, 0.5, _INK, 0.08)
    pen.box(-0.5, 0.15, 0.5, 0.42, _RED)
    pen.box(-0.95, 0.4, 0.95, 0.62, _INK, 0.1)


def _crown(pen: Pen) -> None:
    pen.shape(_GOLD, -0.9, 0.6, -0.9, -0.4, -0.45, 0.1, 0, -0.7, 0.45, 0.1, 0.9, -0.4, 0.9, 0.6)
    for x, colour in ((-0.5, _RED), (0, "#2050e0"), (0.5, _RED)):
        pen.oval(x, 0.33, 0.13, 0.13, fill=colour)


def _moustache(pen: Pen) -> None:
    for sign in (-1, 1):
        pen.shape(
            "#3a2414",
            0,
            -0.15,
            sign * 0.4,
            -0.25,
            sign * 0.95,
            0.2,
            sign * 1.0,
            0.0,
            sign * 0.8,
            0.35,
            sign * 0.35,
            0.2,
            0,
            0.05,
        )


def _smiley(pen: Pen) -> None:
    pen.oval(0, 0, 0.95, 0.95, fill=_GOLD, line=_INK)
    for x in (-0.35, 0.35):
        pen.oval(x, -0.25, 0.12, 0.18, fill=_INK)
    pen.arc(0, 0.05, 0.55, 0.5, 20, 160, _INK)


def _sun(pen: Pen) -> None:
    for angle in np.arange(8) * np.pi / 4:
        pen.line(_GOLD, 0.12, 0.6 * np.cos(angle), 0.6 * np.sin(angle), 0.97 * np.cos(angle), 0.97 * np.sin(angle))
    pen.oval(0, 0, 0.52, 0.52, fill="#ffd84a")


def _cloud(pen: Pen) -> None:
    for x, y, radius in ((-0.5, 0.15, 0.38), (0, -0.1, 0.5), (0.5, 0.15, 0.4)):
        pen.oval(x, y, radius, radius, fill=_WHITE)
    pen.box(-0.6, 0.1, 0.6, 0.54, _WHITE, 0.2)


def _flower(pen: Pen) -> None:
    pen.line("#208030", 0.12, 0, 0.1, 0.05, 1.0)
    for angle in np.arange(6) * np.pi / 3:
        pen.oval(0.4 * np.cos(angle), 0.4 * np.sin(angle) - 0.25, 0.27, 0.27, fill="#f060b0")
    pen.oval(0, -0.25, 0.24, 0.24, fill=_GOLD)


def _bubble(pen: Pen) -> None:
    pen.oval(0, -0.2, 0.97, 0.68, fill=_WHITE, line=_INK)
    pen.shape(_WHITE, -0.5, 0.3, -0.65, 0.95, -0.05, 0.4)
    for row, end in ((-0.42, 0.5), (-0.18, 0.6), (0.06, 0.3)):
        pen.line(_INK, 0.09, -0.55, row, end, row)


def _arrow(pen: Pen) -> None:
    pen.shape(_RED, -0.95, 0.2, -0.95, -0.2, 0.15, -0.2, 0.15, -0.6, 0.95, 0, 0.15, 0.6, 0.15, 0.2)


def _bow(pen: Pen) -> None:
    for sign in (-1, 1):
        pen.shape("#3050d8", 0, 0, sign * 0.95, -0.5, sign * 0.95, 0.5)
    pen.oval(0, 0, 0.2, 0.2, fill="#183090")


def _stuck(drawing: Drawing):
    """The drawing on the image, about x, y, of half the width ``size``."""

    def apply(image: Image, p: Parameters) -> Image:
        side = len(image)
        pixels = max(2, round(2 * p["size"] * side))
        left, top = (round(p[axis] * side - pixels / 2) for axis in "xy")
        paint = _paint(drawing, pixels)
        inside = slice(max(0, -top), min(pixels, side - top)), slice(max(0, -left), min(pixels, side - left))
        result, paint = image.copy(), paint[inside]
        rows, columns = (slice(max(0, start), max(0, start) + n) for start, n in zip((top, left), paint.shape))
        result[rows, columns] = result[rows, columns] * (1 - paint[..., 3:]) + paint[..., :3]
        return result

    return apply


@cache
def _paint(drawing: Drawing, pixels: int) -> np.ndarray:
    """Colours times alpha, and alpha: [pixels, pixels, 4]."""
    pen = Pen(pixels * _OVERSAMPLING)
    drawing(pen)
    return np.asarray(pen.page.convert("RGBa").reduce(_OVERSAMPLING), dtype=np.float32) / 255


@cache
def _letters(words: str, width: int) -> np.ndarray:
    """A line of text as wide as asked: how much of each pixel it covers, [height, width]."""
    font = ImageFont.load_default(64)
    left, top, right, bottom = (round(c) for c in font.getbbox(words))
    page = Pillow.new("L", (right - left, bottom - top))
    ImageDraw.Draw(page).text((-left, -top), words, fill=255, font=font)
    height = max(1, round(width * page.height / page.width))
    return np.asarray(page.resize((width, height), Pillow.Resampling.BOX), dtype=np.float32) / 255


def _text(image: Image, words: str, width: float, middle: float) -> np.ndarray:
    """Where words stand that are ``width`` wide, in a line at the height ``middle``: [side, side]."""
    side, letters = len(image), _letters(words, max(1, round(width * len(image))))
    mask = np.zeros((side, side), dtype=np.float32)
    top, left = round(middle * side - letters.shape[0] / 2), (side - letters.shape[1]) // 2
    mask[top : top + letters.shape[0], left : left + letters.shape[1]] = letters[: side - top]
    return mask


def _caption(down: float, words: str):
    """Words on a bar along the top or the bottom."""

    def apply(image: Image, p: Parameters) -> Image:
        bar = step(down * places(image)[1] - np.float32(0.3), len(image)) + np.zeros_like(image[..., 0])
        image = blend(image, of_hue(p["hue"], 0.7, 0.45), bar)
        return blend(image, np.float32(1), _text(image, words, 0.8, 0.5 + 0.4 * down))

    return apply


def _watermark(image: Image, p: Parameters) -> Image:
    """A word three times, shining through."""
    for row in (0.2, 0.5, 0.8):
        image = blend(image, np.float32(1), np.float32(p["opacity"]) * _text(image, "SAMPLE", 0.75, row))
    return image


def _price(pen: Pen) -> None:
    pen.box(-0.98, -0.6, 0.98, 0.6, _GOLD, 0.2)
    pen.oval(-0.7, 0, 0.12, 0.12, fill=_INK)
    pen.line(_RED, 0.16, -0.35, 0.3, -0.1, -0.3, 0.1, 0.3, 0.35, -0.3, 0.35, 0.3, 0.75, 0.3)


def _polaroid(image: Image, p: Parameters) -> Image:
    x, y = places(image)
    width = np.float32(p["width"])
    inside = np.minimum(0.5 - width - abs(x), np.minimum(0.5 - width + y, 0.5 - 2.6 * width - y))
    return blend(np.full_like(image, 0.96), image, step(inside, len(image)))


def _round_corners(image: Image, p: Parameters) -> Image:
    x, y = (np.maximum(abs(c) - np.float32(0.46 - p["radius"]), 0) for c in places(image))
    return blend(np.ones_like(image), image, step(p["radius"] - np.sqrt(x * x + y * y), len(image)))


def _film_strip(image: Image, p: Parameters) -> Image:
    """Black bars with holes above and below."""
    x, y = places(image)
    bar = step(abs(y) - np.float32(0.36), len(image)) + np.zeros_like(x)
    along = abs((x * np.float32(p["count"])) % 1 - 0.5) / np.float32(p["count"])
    hole = step(np.minimum(0.03 - along, 0.025 - abs(abs(y) - 0.43)), len(image))
    return blend(blend(image, np.float32(0.04), bar), np.float32(0.9), hole)


def _double_border(image: Image, p: Parameters) -> Image:
    x, y = places(image)
    inset = 0.5 - np.maximum(abs(x), abs(y))
    line = np.float32(0.018) - abs(inset - np.float32(p["inset"]))
    thin = np.float32(0.008) - abs(inset - np.float32(p["inset"] + 0.05))
    return blend(image, of_hue(p["hue"], 0.7, 0.95), step(np.maximum(line, thin), len(image)))


def _scallops(image: Image, p: Parameters) -> Image:
    """A white border whose inner edge is a row of arcs."""
    x, y = places(image)
    count = round(p["count"])
    wave = (
        np.float32(0.03) * np.maximum(abs(np.sin(np.pi * count * x)), 0),
        np.float32(0.03) * abs(np.sin(np.pi * count * y)),
    )
    inside = np.minimum(0.41 + wave[1] - abs(x), 0.41 + wave[0] - abs(y))
    return blend(np.ones_like(image), image, step(inside, len(image)))


def _oval_mount(image: Image, p: Parameters) -> Image:
    """An oval opening in coloured card."""
    x, y = places(image)
    inside = np.float32(0.44) - np.sqrt((x * np.float32(p["narrow"])) ** 2 + y * y)
    return blend(np.zeros_like(image) + of_hue(p["hue"], 0.45, 0.75), image, step(inside, len(image)))


_PLACE = {"x": Span(0.3, 0.7), "y": Span(0.3, 0.7), "size": Span(0.24, 0.34)}
_HUE = Span(0.0, 0.9)
_DRAWINGS: dict[str, Drawing] = {
    "glasses": _glasses, "hat": _hat, "crown": _crown, "moustache": _moustache, "smiley": _smiley, "sun": _sun,
    "cloud": _cloud, "flower": _flower, "speech_bubble": _bubble, "arrow": _arrow, "bow": _bow, "price_tag": _price,
}  # fmt: skip
_STICKERS = {
    name: image_edit(f"add_{name}", INSERTION, _stuck(drawing), **_PLACE) for name, drawing in _DRAWINGS.items()
}
_PRINTS = [
    image_edit("caption_top", OVERLAYS, _caption(-1, "GOOD MORNING"), hue=_HUE),
    image_edit("caption_bottom", OVERLAYS, _caption(1, "THE VERY END"), hue=_HUE),
    image_edit("watermark", OVERLAYS, _watermark, opacity=Span(0.45, 0.85)),
    image_edit("polaroid", OVERLAYS, _polaroid, width=Span(0.05, 0.09)),
    image_edit("round_corners", OVERLAYS, _round_corners, radius=Span(0.1, 0.3)),
    image_edit("film_strip", OVERLAYS, _film_strip, count=Span(6.0, 10.0)),
    image_edit("double_border", OVERLAYS, _double_border, inset=Span(0.05, 0.12), hue=_HUE),
    image_edit("scalloped_border", OVERLAYS, _scallops, count=Span(6.0, 12.0)),
    image_edit("oval_mount", OVERLAYS, _oval_mount, narrow=Span(1.1, 1.6), hue=_HUE),
]
_TAKEN_OFF = ("glasses", "hat", "moustache", "smiley", "sun", "speech_bubble", "price_tag")

EDITS: list[Edit] = [
    *_STICKERS.values(),
    *_PRINTS,
    *(undo(f"take_off_{name}", REMOVAL, _STICKERS[name]) for name in _TAKEN_OFF),
    undo("clear_watermark", REMOVAL, _PRINTS[2]),
]
HELD_OUT = ("add_cloud", "caption_bottom", "take_off_sun")
