"""Overlays of light, weather and wear: the same in every image, softer or stronger by a parameter."""

from collections.abc import Callable
from functools import cache

import numpy as np
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFilter

from .content import REMOVAL
from .edit import Edit, Image, Parameters, Span, image_edit, undo
from .overlays import BLACK, FAMILY, WHITE
from .pixels import blend, blurred, from_picture, grain, of_hue, places, step

_OVERSAMPLING = 4
Sketch = Callable[[np.random.Generator, ImageDraw.ImageDraw, int], None]


@cache
def _drawn(sketch: Sketch, side: int, blur: float = 0.0) -> np.ndarray:
    """A random drawing that is always the same: how much of each pixel it covers, [side, side]."""
    large = side * _OVERSAMPLING
    mask = Pillow.new("L", (large, large))
    sketch(np.random.default_rng(7), ImageDraw.Draw(mask), large)
    return from_picture(mask.reduce(_OVERSAMPLING).filter(ImageFilter.GaussianBlur(blur * side)))


def _round(canvas: ImageDraw.ImageDraw, x: float, y: float, radius: float, fill: int = 255) -> None:
    canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)


def _rain(rng: np.random.Generator, canvas: ImageDraw.ImageDraw, side: int) -> None:
    for x, y, length in rng.random((70, 3)) * side:
        drop = 0.05 * side + 0.12 * length
        canvas.line((x, y, x - 0.3 * drop, y + drop), fill=230, width=side // 70)


def _snow(rng: np.random.Generator, canvas: ImageDraw.ImageDraw, side: int) -> None:
    for x, y, size in rng.random((90, 3)):
        _round(canvas, x * side, y * side, side * (0.007 + 0.016 * size**2))


def _spatter(rng: np.random.Generator, canvas: ImageDraw.ImageDraw, side: int) -> None:
    for x, y, size in rng.random((45, 3)):
        _round(canvas, x * side, y * side, side * (0.006 + 0.055 * size**4))


def _scratches(rng: np.random.Generator, canvas: ImageDraw.ImageDraw, side: int) -> None:
    for x, lean, top, bottom in rng.random((14, 4)) * side:
        canvas.line((x, 0.6 * top, x + 0.08 * (lean - side / 2), 0.5 * side + bottom), fill=230, width=side // 110)
    for x, y, size in rng.random((30, 3)):
        _round(canvas, x * side, y * side, side * (0.003 + 0.008 * size))


def _foliage(rng: np.random.Generator, canvas: ImageDraw.ImageDraw, side: int) -> None:
    for x, y, size in rng.random((70, 3)):
        _round(canvas, x * side, (y - 0.1) * 0.8 * side, side * (0.03 + 0.05 * size))


def _lights(rng: np.random.Generator, canvas: ImageDraw.ImageDraw, side: int) -> None:
    for x, y, size, light in rng.random((16, 4)):
        _round(canvas, x * side, y * side, side * (0.04 + 0.06 * size), fill=int(110 + 120 * light))


def _strewn(sketch: Sketch, colour: np.ndarray, blur: float = 0.0):
    """The drawing over the image."""
    return lambda image, p: blend(image, colour, np.float32(p["opacity"]) * _drawn(sketch, len(image), blur))


def _bokeh(image: Image, p: Parameters) -> Image:
    return image + (np.float32(p["opacity"]) * _drawn(_lights, len(image), 0.006))[..., None] * of_hue(0.11, 0.45)


def _fog(image: Image, p: Parameters) -> Image:
    drifts = 1 + np.float32(0.25) * grain(len(image), 3, 5)
    return blend(image, np.float32(0.82), np.clip(np.float32(p["density"]) * drifts, 0, 1))


def _ground_fog(image: Image, p: Parameters) -> Image:
    height = places(image)[1] + np.float32(0.5) + np.float32(0.08) * grain(len(image), 4, 5)
    return blend(image, np.float32(0.9), np.clip(np.float32(2 * p["density"]) * (height - 0.3), 0, 1))


def _leak(right: float, down: float, hue: float):
    """Stray light from one side of the film."""

    def apply(image: Image, p: Parameters) -> Image:
        x, y = places(image)
        near = np.clip(2.2 * (right * x + down * y) + np.float32(0.25) * np.sin(5 * (x - y)), 0, 1)
        light = (np.float32(p["strength"]) * near)[..., None] * of_hue(hue, 0.75)
        return 1 - (1 - image) * (1 - light)

    return apply


def _flare(image: Image, p: Parameters) -> Image:
    """A light in the upper left, its rays, and its reflections in the lens."""
    x, y = places(image)
    right, down = x + np.float32(0.28), y + np.float32(0.3)
    distance = np.sqrt(right * right + down * down) + np.float32(1e-3)
    glow = np.exp(-distance / 0.13) + 0.25 * np.exp(-distance / 0.3) * abs(np.cos(4 * np.arctan2(down, right))) ** 6
    light = glow[..., None] * of_hue(0.12, 0.3)
    for place, radius, hue in ((0.05, 0.05, 0.45), (0.17, 0.08, 0.08), (0.3, 0.04, 0.75)):
        ghost = step(radius - np.sqrt((x - place) ** 2 + (y - place) ** 2), len(image) / 2)
        light = light + 0.35 * ghost[..., None] * of_hue(hue, 0.7)
    return 1 - (1 - image) * (1 - np.clip(np.float32(p["strength"]) * light, 0, 1))


def _blinds(image: Image, p: Parameters) -> Image:
    """Shadows of slats, lit from the side."""
    x, y = places(image)
    wave = np.sin(np.float32(2 * np.pi * p["count"]) * (y + 0.35 * x))
    return blend(image, image * np.float32(0.35), step(wave, 3))


def _slight_vignette(image: Image, p: Parameters) -> Image:
    x, y = places(image)
    return image * (1 - np.float32(p["strength"]) * np.clip(2.2 * (x * x + y * y) - 0.15, 0, 1))[..., None]


def _sun(image: Image, p: Parameters) -> Image:
    """Light falls in from the top."""
    x, y = places(image)
    beams = 0.75 + 0.25 * np.cos(14 * np.arctan2(x, y + np.float32(0.9)))
    light = np.float32(p["strength"]) * np.clip(0.55 - y, 0, 1) * beams
    return image + light[..., None] * of_hue(0.13, 0.35)


def _bloom(image: Image, p: Parameters) -> Image:
    """What is light glows."""
    glow = blurred(np.clip(2 * image - 0.8, 0, 1), 0.06)
    return 1 - (1 - image) * (1 - np.float32(p["strength"]) * glow)


_OPACITY, _STRENGTH = Span(0.6, 1.0), Span(0.55, 1.0)

_ADDED: list[Edit] = [
    image_edit("fog", FAMILY, _fog, density=Span(0.45, 0.75)),
    image_edit("ground_fog", FAMILY, _ground_fog, density=Span(0.5, 0.9)),
    image_edit("light_leak_left", FAMILY, _leak(-1, 0, 0.04), strength=_STRENGTH),
    image_edit("light_leak_right", FAMILY, _leak(1, 0, 0.04), strength=_STRENGTH),
    image_edit("light_leak_top", FAMILY, _leak(0, -1, 0.12), strength=_STRENGTH),
    image_edit("lens_flare", FAMILY, _flare, strength=Span(0.7, 1.1)),
    image_edit("rain", FAMILY, _strewn(_rain, WHITE), opacity=_OPACITY),
    image_edit("snow", FAMILY, _strewn(_snow, WHITE), opacity=_OPACITY),
    image_edit("ink_spatter", FAMILY, _strewn(_spatter, BLACK), opacity=Span(0.75, 1.0)),
    image_edit("scratches", FAMILY, _strewn(_scratches, WHITE), opacity=_OPACITY),
    image_edit("leaf_shadows", FAMILY, _strewn(_foliage, BLACK, 0.012), opacity=Span(0.4, 0.7)),
    image_edit("blinds_shadow", FAMILY, _blinds, count=Span(3.0, 6.0)),
    image_edit("bokeh", FAMILY, _bokeh, opacity=_OPACITY),
    image_edit("sunbeams", FAMILY, _sun, strength=_STRENGTH),
    image_edit("bloom", FAMILY, _bloom, strength=_STRENGTH),
    image_edit("slight_vignette", FAMILY, _slight_vignette, strength=Span(0.45, 0.8)),
]
_WIPED_OFF = ("rain", "ink_spatter", "scratches")

EDITS = _ADDED + [undo(f"clear_{edit.name}", REMOVAL, edit) for edit in _ADDED if edit.name in _WIPED_OFF]
HELD_OUT = ("light_leak_right", "snow", "clear_scratches")
