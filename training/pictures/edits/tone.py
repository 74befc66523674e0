"""Edits of tone and colour: the same for every pixel."""

import numpy as np

from .edit import Edit, Image, Parameters, Span, image_edit
from .pixels import as_rgb, blend, luma, of_hue, ramp

FAMILY = "tone_and_colour"


def _brighten(image: Image, p: Parameters) -> Image:
    return image + np.float32(p["amount"])


def _wash(image: Image, p: Parameters) -> Image:
    return 1 - (1 - image) * np.float32(p["keep"])


def _darken(image: Image, p: Parameters) -> Image:
    return image * np.float32(p["keep"])


def _gamma(image: Image, p: Parameters) -> Image:
    return image ** np.float32(p["exponent"])


def contrast(image: Image, p: Parameters) -> Image:
    """Further from middle grey, or nearer to it."""
    return (image - 0.5) * np.float32(p["gain"]) + 0.5


def saturate(image: Image, p: Parameters) -> Image:
    """Further from grey of the same lightness, or nearer to it."""
    grey = luma(image)[..., None]
    return grey + (image - grey) * np.float32(p["gain"])


def _grey(image: Image, p: Parameters) -> Image:
    return as_rgb((luma(image) - 0.5) * np.float32(p["gain"]) + 0.5)


def _sepia(image: Image, p: Parameters) -> Image:
    return ramp(luma(image), of_hue(0.08, 0.8, 0.1), of_hue(0.09, 0.5, p["light"]))


def _invert(image: Image, p: Parameters) -> Image:
    return 1 - image * np.float32(p["gain"])


def _invert_lightness(image: Image, p: Parameters) -> Image:
    """Lightness upside down, hues as they were."""
    return image + np.float32(p["gain"]) * (0.5 - luma(image))[..., None] * 2


def turn_hue(image: Image, p: Parameters) -> Image:
    """Colours turned about the grey axis by a share of the circle (Rodrigues' rotation)."""
    angle = 2 * np.pi * p["turn"]
    cos, sin = np.cos(angle), np.sin(angle) / np.sqrt(3)
    third = (1 - cos) / 3
    matrix = np.full((3, 3), third) + np.eye(3) * cos
    matrix += sin * np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]])
    return image @ matrix.T.astype(np.float32)


def _tint(hue: float):
    def apply(image: Image, p: Parameters) -> Image:
        coloured = luma(image)[..., None] * 0.55 + 0.45 * of_hue(hue)
        return blend(image, coloured, p["strength"])

    return apply


def _duotone(dark: tuple[float, ...], light: tuple[float, ...]):
    def apply(image: Image, p: Parameters) -> Image:
        grey = (luma(image) - 0.5) * np.float32(p["gain"]) + 0.5
        return ramp(grey, of_hue(*dark), of_hue(*light))

    return apply


def _swap(*order: int):
    def apply(image: Image, p: Parameters) -> Image:
        """Channels in another order, further from grey so that pale images change as well."""
        return saturate(image[..., order], p)

    return apply


def _balance(red: float, blue: float):
    def apply(image: Image, p: Parameters) -> Image:
        return image + np.float32(p["amount"]) * np.array([red, 0.0, blue], dtype=np.float32)

    return apply


_STRENGTH, _GAIN, _SWAP = Span(0.6, 0.95), Span(0.9, 1.7), Span(1.3, 2.5)
_TINTS = {
    "red": 0.0,
    "orange": 0.08,
    "yellow": 0.16,
    "green": 0.36,
    "cyan": 0.5,
    "blue": 0.64,
    "violet": 0.76,
    "pink": 0.89,
}
_DUOTONES = {
    "navy_cream": ((0.65, 0.9, 0.35), (0.13, 0.25, 1.0)),
    "purple_yellow": ((0.78, 0.9, 0.4), (0.16, 0.8, 1.0)),
    "forest_pink": ((0.4, 0.9, 0.25), (0.92, 0.45, 1.0)),
    "maroon_sky": ((0.98, 0.9, 0.4), (0.54, 0.5, 1.0)),
    "teal_orange": ((0.5, 0.9, 0.35), (0.08, 0.75, 1.0)),
}

EDITS: list[Edit] = [
    image_edit("brighten", FAMILY, _brighten, amount=Span(0.25, 0.5)),
    image_edit("wash_out", FAMILY, _wash, keep=Span(0.2, 0.55)),
    image_edit("darken", FAMILY, _darken, keep=Span(0.1, 0.45)),
    image_edit("gamma_dark", FAMILY, _gamma, exponent=Span(2.2, 4.0)),
    image_edit("gamma_light", FAMILY, _gamma, exponent=Span(0.25, 0.5)),
    image_edit("more_contrast", FAMILY, contrast, gain=Span(2.5, 6.0)),
    image_edit("less_contrast", FAMILY, contrast, gain=Span(0.1, 0.35)),
    image_edit("saturate", FAMILY, saturate, gain=Span(3.0, 6.0)),
    image_edit("grey", FAMILY, _grey, gain=Span(1.2, 2.5)),
    image_edit("sepia", FAMILY, _sepia, light=Span(0.7, 1.0)),
    image_edit("invert", FAMILY, _invert, gain=Span(0.7, 1.0)),
    image_edit("invert_lightness", FAMILY, _invert_lightness, gain=Span(0.7, 1.1)),
    image_edit("hue_forward", FAMILY, turn_hue, turn=Span(0.2, 0.42)),
    image_edit("hue_backward", FAMILY, turn_hue, turn=Span(0.58, 0.8)),
    image_edit("hue_opposite", FAMILY, turn_hue, turn=Span(0.45, 0.55)),
    *(image_edit(f"tint_{name}", FAMILY, _tint(hue), strength=_STRENGTH) for name, hue in _TINTS.items()),
    *(image_edit(f"duotone_{name}", FAMILY, _duotone(*pair), gain=_GAIN) for name, pair in _DUOTONES.items()),
    image_edit("swap_red_green", FAMILY, _swap(1, 0, 2), gain=_SWAP),
    image_edit("swap_red_blue", FAMILY, _swap(2, 1, 0), gain=_SWAP),
    image_edit("swap_green_blue", FAMILY, _swap(0, 2, 1), gain=_SWAP),
    image_edit("warmer", FAMILY, _balance(1, -1), amount=Span(0.2, 0.4)),
    image_edit("cooler", FAMILY, _balance(-1, 1), amount=Span(0.2, 0.4)),
]  # fmt: skip
HELD_OUT = ("hue_opposite", "tint_cyan", "tint_violet", "duotone_teal_orange", "swap_green_blue")
