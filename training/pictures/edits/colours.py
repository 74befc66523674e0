"""Edits of colour that mix the channels, and small changes of tone."""

import numpy as np

from .edit import Edit, Image, Parameters, Span, image_edit
from .pixels import as_rgb, blend, blurred, luma, of_hue, places
from .tone import FAMILY, contrast, saturate

IDENTITY = "identity"


def _identity(image: Image, p: Parameters) -> Image:
    return image


def _drop(channel: int):
    def apply(image: Image, p: Parameters) -> Image:
        kept = np.ones(3, dtype=np.float32)
        kept[channel] = p["keep"]
        return image * kept

    return apply


def _single(channel: int):
    return lambda image, p: as_rgb((image[..., channel] - 0.5) * np.float32(p["gain"]) + 0.5)


def _negative(channel: int):
    def apply(image: Image, p: Parameters) -> Image:
        sign, base = np.ones(3, dtype=np.float32), np.zeros(3, dtype=np.float32)
        sign[channel], base[channel] = -p["gain"], 1
        return base + sign * image

    return apply


def _mixed(*rows: tuple[float, float, float]):
    """Each channel of the result is a mixture of the channels there were."""
    matrix = np.array(rows, dtype=np.float32).T
    return lambda image, p: blend(image, image @ matrix, p["strength"])


def _curve(values: Image, gain: float) -> Image:
    """An S-shaped curve about the middle."""
    return 0.5 + 0.5 * np.tanh((values - 0.5) * np.float32(2 * gain))


def _cross_process(image: Image, p: Parameters) -> Image:
    """Slide film in the wrong bath: steep reds and greens, flat blues."""
    red, green, blue = np.moveaxis(image, -1, 0)
    wrong = np.stack([_curve(red, 2.0), _curve(green, 1.5), 0.3 + 0.4 * blue], -1)
    return blend(image, wrong, p["strength"])


def _bleach(image: Image, p: Parameters) -> Image:
    """Silver left in the film: hard and almost grey."""
    grey = as_rgb(_curve(luma(image), 2.2))
    return blend(image, 0.75 * grey + 0.25 * image, p["strength"])


def _sunset(image: Image, p: Parameters) -> Image:
    """The light of a low sun, reddest at the bottom."""
    height = places(image)[1] + np.float32(0.5)
    light = blend(np.zeros((len(image), 1, 3), np.float32) + of_hue(0.12, 0.5), of_hue(0.03, 0.75), height)
    glow = luma(image)[..., None] * 0.35 + 0.8 * image * light + 0.1 * light
    return blend(image, glow, p["strength"])


def _moonlight(image: Image, p: Parameters) -> Image:
    night = (0.12 + 0.75 * luma(image))[..., None] ** 1.6 * of_hue(0.61, 0.55)
    return blend(image, night, p["strength"])


def _infrared(image: Image, p: Parameters) -> Image:
    """Leaves glow white, skies go dark."""
    seen = np.clip(1.5 * image[..., 1] + 0.3 * image[..., 0] - 0.8 * image[..., 2], 0, 1)
    return blend(image, as_rgb(seen), p["strength"])


def _equalise(image: Image, p: Parameters) -> Image:
    """Every lightness as often as any other."""
    grey = np.clip(luma(image) * 255, 0, 255).astype(np.uint8)
    rank = np.cumsum(np.bincount(grey.ravel(), minlength=256)).astype(np.float32) / grey.size
    return image + (np.float32(p["strength"]) * (rank[grey] - luma(image)))[..., None]


def _balanced(red: float, green: float, blue: float):
    gains = np.array([red, green, blue], dtype=np.float32)
    return lambda image, p: image * gains ** np.float32(p["amount"])


def _sharper(image: Image, p: Parameters) -> Image:
    return image + np.float32(p["gain"]) * (image - blurred(image, 0.012))


_STRENGTH = Span(0.7, 1.0)

EDITS: list[Edit] = [
    image_edit(IDENTITY, FAMILY, _identity),
    *(image_edit(f"drop_{c}", FAMILY, _drop(i), keep=Span(0.0, 0.3)) for i, c in enumerate(("red", "green", "blue"))),
    image_edit("single_red", FAMILY, _single(0), gain=Span(1.0, 1.8)),
    *(
        image_edit(f"negative_{c}", FAMILY, _negative(i), gain=Span(0.8, 1.0))
        for i, c in enumerate(("red", "green", "blue"))
    ),
    image_edit("cycle_channels", FAMILY, _mixed((0, 1, 0), (0, 0, 1), (1, 0, 0)), strength=_STRENGTH),
    image_edit("cycle_channels_back", FAMILY, _mixed((0, 0, 1), (1, 0, 0), (0, 1, 0)), strength=_STRENGTH),
    image_edit("cross_process", FAMILY, _cross_process, strength=_STRENGTH),
    image_edit("bleach", FAMILY, _bleach, strength=_STRENGTH),
    image_edit("sunset", FAMILY, _sunset, strength=_STRENGTH),
    image_edit("moonlight", FAMILY, _moonlight, strength=_STRENGTH),
    image_edit("infrared", FAMILY, _infrared, strength=_STRENGTH),
    image_edit("equalise", FAMILY, _equalise, strength=_STRENGTH),
    image_edit("slightly_lighter", FAMILY, lambda image, p: image + np.float32(p["amount"]), amount=Span(0.06, 0.14)),
    image_edit("slightly_darker", FAMILY, lambda image, p: image * np.float32(p["keep"]), keep=Span(0.65, 0.85)),
    image_edit("slightly_harder", FAMILY, contrast, gain=Span(1.3, 1.7)),
    image_edit("slightly_richer", FAMILY, saturate, gain=Span(1.5, 2.2)),
    image_edit("slightly_greyer", FAMILY, saturate, gain=Span(0.3, 0.6)),
    image_edit("slightly_warmer", FAMILY, _balanced(1.25, 1.05, 0.75), amount=Span(0.5, 1.0)),
    image_edit("slightly_cooler", FAMILY, _balanced(0.78, 1.0, 1.25), amount=Span(0.5, 1.0)),
    image_edit("slightly_sharper", FAMILY, _sharper, gain=Span(1.2, 2.4)),
    image_edit("slightly_softer", FAMILY, lambda image, p: blurred(image, p["sigma"]), sigma=Span(0.015, 0.035)),
]
HELD_OUT = ("drop_green", "negative_green", "slightly_greyer")
