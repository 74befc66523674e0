"""Edits of some pixels by their colour: those of one hue, or of one tonal range, change and all others stay."""

from collections.abc import Callable, Sequence

import numpy as np

from ..scenes import draw_on, random_scene
from .edit import Edit, Image, Parameters, Span, finished, image_edit, subject
from .pixels import as_rgb, blend, luma, near_hue, of_hue
from .tone import FAMILY, turn_hue

# Hue, and how far from it a colour still has its name.
_HUES = {
    "red": (0.98, 0.06), "orange": (0.075, 0.05), "yellow": (0.155, 0.05), "green": (0.34, 0.12), "cyan": (0.5, 0.07),
    "blue": (0.62, 0.1), "violet": (0.77, 0.07), "pink": (0.89, 0.07),
}  # fmt: skip
_SHOWN, _LEAST = 0.3, 0.06  # share of the subjects that get objects of the hue, beside those with less of it than this

Change = Callable[[Image, Parameters], Image]


def _of_hue(name: str, hue: str, change: Change, others: bool = False, **spans: Span) -> Edit:
    """An edit of what has a hue, or of all others."""

    def apply(image: Image, p: Parameters) -> Image:
        weights = near_hue(image, *_HUES[hue])
        return blend(image, change(image, p), 1 - weights if others else weights)

    edit = image_edit(name, FAMILY, apply, **spans)

    def pairs(rng: np.random.Generator, p: Parameters, side: int, names: Sequence[str]) -> tuple[Image, Image]:
        before = subject(rng, side, names)
        if rng.random() < _SHOWN or near_hue(before, *_HUES[hue]).mean() < _LEAST:
            before = finished(draw_on(before, random_scene(rng, (1, 3), colours=[hue]).things))
        return before, edit.apply(before, p)

    return Edit(name, FAMILY, spans, pairs, edit.apply)


def _as_grey(image: Image, p: Parameters) -> Image:
    return as_rgb(luma(image) * np.float32(p["light"]))


def _as_pale(image: Image, p: Parameters) -> Image:
    grey = luma(image)[..., None]
    return grey + (image - grey) * np.float32(p["keep"])


def _as_light(image: Image, p: Parameters) -> Image:
    return 1 - (1 - image) * np.float32(p["keep"])


def _as_dark(image: Image, p: Parameters) -> Image:
    return image * np.float32(p["keep"])


def shadows(image: Image) -> np.ndarray:
    """How dark each pixel is: 1 for black, 0 from the middle on."""
    return np.clip(1.1 - 2.2 * luma(image), 0, 1)


def highlights(image: Image) -> np.ndarray:
    """How light each pixel is: 1 for white, 0 up to the middle."""
    return np.clip(2.2 * luma(image) - 1.1, 0, 1)


def _lift(image: Image, p: Parameters) -> Image:
    return image + (np.float32(p["amount"]) * shadows(image))[..., None]


def _crush(image: Image, p: Parameters) -> Image:
    return image * (1 - np.float32(p["amount"]) * np.clip(1.6 - 2.2 * luma(image), 0, 1))[..., None]


def _blow(image: Image, p: Parameters) -> Image:
    return image + (np.float32(p["amount"]) * np.clip(2.2 * luma(image) - 0.7, 0, 1))[..., None]


def _dim(image: Image, p: Parameters) -> Image:
    return image * (1 - np.float32(p["amount"]) * highlights(image))[..., None]


def _toned(dark: float | None, light: float | None):
    """Shadows, highlights or both take a hue."""

    def apply(image: Image, p: Parameters) -> Image:
        grey = luma(image)[..., None]
        for hue, weights in ((dark, shadows(image)), (light, highlights(image))):
            if hue is not None:
                colour = of_hue(hue)
                tone = grey + 0.8 * (colour - colour.mean())
                image = blend(image, tone, np.sqrt(weights) * np.float32(p["strength"]))
        return image

    return apply


_LIGHT, _PALE, _WHITER, _DARKER = Span(0.7, 1.1), Span(0.0, 0.25), Span(0.3, 0.6), Span(0.15, 0.5)
_ON, _BACK, _STRENGTH = Span(0.25, 0.45), Span(0.55, 0.75), Span(0.6, 1.0)

EDITS: list[Edit] = [
    *(
        _of_hue(f"only_{hue}", hue, _as_grey, others=True, light=_LIGHT)
        for hue in ("red", "orange", "yellow", "green", "blue")
    ),
    *(_of_hue(f"no_{hue}", hue, _as_pale, keep=_PALE) for hue in ("orange", "green", "blue")),
    *(_of_hue(f"turn_{hue}_on", hue, turn_hue, turn=_ON) for hue in ("red", "green", "blue")),
    _of_hue("turn_orange_back", "orange", turn_hue, turn=_BACK),
    *(_of_hue(f"light_{hue}", hue, _as_light, keep=_WHITER) for hue in ("red", "blue")),
    *(_of_hue(f"dark_{hue}", hue, _as_dark, keep=_DARKER) for hue in ("orange", "blue")),
    image_edit("lift_shadows", FAMILY, _lift, amount=Span(0.25, 0.45)),
    image_edit("crush_shadows", FAMILY, _crush, amount=Span(0.6, 1.0)),
    image_edit("blow_highlights", FAMILY, _blow, amount=Span(0.25, 0.5)),
    image_edit("dim_highlights", FAMILY, _dim, amount=Span(0.35, 0.7)),
    image_edit("blue_shadows", FAMILY, _toned(0.62, None), strength=_STRENGTH),
    image_edit("red_shadows", FAMILY, _toned(0.98, None), strength=_STRENGTH),
    image_edit("golden_highlights", FAMILY, _toned(None, 0.12), strength=_STRENGTH),
    image_edit("pink_highlights", FAMILY, _toned(None, 0.92), strength=_STRENGTH),
    image_edit("split_blue_gold", FAMILY, _toned(0.62, 0.12), strength=_STRENGTH),
    image_edit("split_violet_lime", FAMILY, _toned(0.76, 0.22), strength=_STRENGTH),
]
HELD_OUT = ("only_yellow", "no_green", "pink_highlights")
