"""Frames and overlays: something lies over the image, at the same place whatever the image shows."""

from collections.abc import Callable

import numpy as np

from .edit import Choice, Edit, Image, Parameters, Span, image_edit
from .pixels import blend, of_hue, places, step

FAMILY = "frames_and_overlays"

WHITE, BLACK = np.ones(3, dtype=np.float32), np.zeros(3, dtype=np.float32)
Mask = Callable[[Image, Parameters], np.ndarray]


def _over(mask: Mask, colour: np.ndarray | None = None):
    """An edit that paints where the mask says; without a colour in the parameter "hue"."""

    def apply(image: Image, p: Parameters) -> Image:
        paint = of_hue(p["hue"], 0.85, 0.95) if colour is None else colour
        return blend(image, paint, mask(image, p))

    return apply


def _border(image: Image, p: Parameters) -> np.ndarray:
    x, y = places(image)
    return step(np.maximum(abs(x), abs(y)) - (0.5 - p["width"]), len(image))


def _circle(image: Image, p: Parameters) -> np.ndarray:
    x, y = places(image)
    return step(np.sqrt(x * x + y * y) - p["radius"], len(image))


def _vignette(image: Image, p: Parameters) -> np.ndarray:
    x, y = places(image)
    return np.clip((x * x + y * y) * np.float32(p["strength"]), 0, 1)


def _stripes(right: float, down: float) -> Mask:
    def mask(image: Image, p: Parameters) -> np.ndarray:
        x, y = places(image)
        wave = np.cos(np.float32(2 * np.pi * p["count"]) * (right * x + down * y)) + np.zeros_like(y + x)
        return p.get("opacity", 1.0) * step(wave, len(image) / (2 * np.pi * p["count"]))

    return mask


def _grid(image: Image, p: Parameters) -> np.ndarray:
    # Distance to the nearest line, in cells.
    x, y = (abs((c * p["count"] + 0.5) % 1 - 0.5) for c in places(image))
    return step(0.13 - np.minimum(x, y), len(image) / p["count"])


def _dots(image: Image, p: Parameters) -> np.ndarray:
    x, y = ((c * p["count"] + 0.5) % 1 - 0.5 for c in places(image))
    return step(0.34 - np.sqrt(x * x + y * y), len(image) / p["count"])


def _band(rising: bool) -> Mask:
    def mask(image: Image, p: Parameters) -> np.ndarray:
        x, y = places(image)
        return step(p["width"] - abs(x + y if rising else x - y) / np.sqrt(2), len(image))

    return mask


def _half(right: float, down: float) -> Mask:
    def mask(image: Image, p: Parameters) -> np.ndarray:
        x, y = places(image)
        return p["opacity"] * step(right * x + down * y - np.zeros_like(x + y), len(image))

    return mask


def _bars(right: float, down: float) -> Mask:
    """Bars along two opposite edges, as of a wide film."""

    def mask(image: Image, p: Parameters) -> np.ndarray:
        x, y = places(image)
        return step(abs(right * x + down * y) + np.zeros_like(x + y) - (0.5 - p["width"]), len(image))

    return mask


def _badge(right: float, down: float) -> Mask:
    def mask(image: Image, p: Parameters) -> np.ndarray:
        x, y = places(image)
        place = 0.5 - p["size"] * 0.9
        return step(p["size"] - np.sqrt((x - right * place) ** 2 + (y - down * place) ** 2), len(image))

    return mask


def _negative_half(image: Image, p: Parameters) -> Image:
    return blend(image, 1 - image, _half(1, 0)(image, p))


_HUE, _WIDTH, _OPACITY, _COUNT = Span(0.0, 0.9), Span(0.09, 0.2), Span(0.5, 0.95), Choice((3, 4, 6, 7), held=(5,))
_DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1)}
_CORNERS = {"top_left": (-1, -1), "top_right": (1, -1), "bottom_left": (-1, 1), "bottom_right": (1, 1)}

EDITS: list[Edit] = [
    image_edit("border_colour", FAMILY, _over(_border), width=_WIDTH, hue=_HUE),
    image_edit("border_white", FAMILY, _over(_border, WHITE), width=_WIDTH),
    image_edit("border_black", FAMILY, _over(_border, BLACK), width=_WIDTH),
    image_edit("circle_colour", FAMILY, _over(_circle), radius=Span(0.28, 0.45), hue=_HUE),
    image_edit("circle_white", FAMILY, _over(_circle, WHITE), radius=Span(0.28, 0.45)),
    image_edit("circle_black", FAMILY, _over(_circle, BLACK), radius=Span(0.28, 0.45)),
    image_edit("vignette", FAMILY, _over(_vignette, BLACK), strength=Span(3.0, 6.0)),
    image_edit("stripes_horizontal", FAMILY, _over(_stripes(0, 1)), count=_COUNT, hue=_HUE),
    image_edit("stripes_vertical", FAMILY, _over(_stripes(1, 0)), count=_COUNT, hue=_HUE),
    image_edit("stripes_diagonal", FAMILY, _over(_stripes(0.7, 0.7)), count=_COUNT, hue=_HUE),
    image_edit("grid", FAMILY, _over(_grid), count=_COUNT, hue=_HUE),
    image_edit("dots", FAMILY, _over(_dots), count=_COUNT, hue=_HUE),
    image_edit("band_falling", FAMILY, _over(_band(False)), width=Span(0.08, 0.2), hue=_HUE),
    image_edit("band_rising", FAMILY, _over(_band(True)), width=Span(0.08, 0.2), hue=_HUE),
    image_edit(
        "scanlines", FAMILY, _over(_stripes(0, 1), BLACK), count=Choice((9, 10, 12, 13), held=(11,)), opacity=_OPACITY
    ),
    image_edit("letterbox", FAMILY, _over(_bars(0, 1), BLACK), width=Span(0.15, 0.32)),
    image_edit("pillarbox", FAMILY, _over(_bars(1, 0), BLACK), width=Span(0.15, 0.32)),
    image_edit("negative_half", FAMILY, _negative_half, opacity=Span(0.8, 1.0)),
    *(
        image_edit(f"shade_{name}", FAMILY, _over(_half(*direction), BLACK), opacity=_OPACITY)
        for name, direction in _DIRECTIONS.items()
    ),
    *(
        image_edit(f"badge_{name}", FAMILY, _over(_badge(*corner)), size=Span(0.18, 0.3), hue=_HUE)
        for name, corner in _CORNERS.items()
    ),
]
HELD_OUT = ("circle_white", "stripes_diagonal", "shade_bottom", "badge_bottom_right")
