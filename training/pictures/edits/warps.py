"""Geometry that bends, tilts, wraps or repeats the image."""

import numpy as np

from .edit import Edit, Image, Parameters, Span, image_edit
from .geometry import FAMILY
from .pixels import places, resized, warp


def _turned(sign: float):
    def apply(image: Image, p: Parameters) -> Image:
        x, y = places(image)
        cos, sin = np.cos(sign * p["angle"]), np.sin(sign * p["angle"])
        return warp(image, cos * x + sin * y, cos * y - sin * x, repeat_edge=False)

    return apply


def _slanted(image: Image, p: Parameters) -> Image:
    x, y = places(image)
    return warp(image, x + np.float32(p["slope"]) * y, y)


def _receding(right: float, down: float):
    """Perspective: one edge lies further away than the one across."""

    def apply(image: Image, p: Parameters) -> Image:
        x, y = places(image)
        far = 1 + np.float32(p["depth"]) * (0.5 + right * x + down * y)
        return warp(image, x * far, y * far, repeat_edge=False)

    return apply


def _lens(sign: float):
    """Straight lines bulge or cave in."""

    def apply(image: Image, p: Parameters) -> Image:
        x, y = places(image)
        scale = 1 + np.float32(sign * p["bend"]) * (x * x + y * y - 0.25)
        return warp(image, x * scale, y * scale)

    return apply


def _magnified(image: Image, p: Parameters) -> Image:
    """A magnifying glass lies on the middle."""
    x, y = places(image)
    near = np.clip(1 - np.sqrt(x * x + y * y) / np.float32(p["radius"]), 0, 1)
    scale = 1 - 0.7 * np.sqrt(near)
    return warp(image, x * scale, y * scale)


def _swirl(sign: float):
    def apply(image: Image, p: Parameters) -> Image:
        x, y = places(image)
        angle = sign * np.float32(p["angle"]) * np.clip(1 - 2 * np.sqrt(x * x + y * y), 0, 1)
        cos, sin = np.cos(angle), np.sin(angle)
        return warp(image, cos * x + sin * y, cos * y - sin * x)

    return apply


def _wave(sideways: bool):
    def apply(image: Image, p: Parameters) -> Image:
        x, y = places(image)
        along = y if sideways else x
        shift = np.float32(0.05) * np.sin(np.float32(2 * np.pi * p["count"]) * along)
        return warp(image, x + shift, y) if sideways else warp(image, x, y + shift)

    return apply


def _ripple(image: Image, p: Parameters) -> Image:
    """Rings run outwards."""
    x, y = places(image)
    distance = np.sqrt(x * x + y * y) + np.float32(1e-3)
    scale = 1 + np.float32(0.035) * np.sin(np.float32(2 * np.pi * p["count"]) * distance) / distance
    return warp(image, x * scale, y * scale)


def _mirrored_top(image: Image, p: Parameters) -> Image:
    return np.where((places(image)[1] > 0)[..., None], image[::-1], image)


def _mirrored_right(image: Image, p: Parameters) -> Image:
    return np.where((places(image)[0] < 0)[..., None], image[:, ::-1], image)


def _four_mirrors(image: Image, p: Parameters) -> Image:
    """The top left quarter and its reflections."""
    x, y = places(image)
    zoom = np.float32(p["zoom"])
    return warp(image, -abs(x) * zoom, -abs(y) * zoom)


def _kaleidoscope(image: Image, p: Parameters) -> Image:
    """Six times the same sector, mirrored in turn."""
    x, y = places(image)
    sector, radius = np.float32(np.pi / 3), np.sqrt(x * x + y * y)
    angle = abs((np.arctan2(y, x) + np.float32(p["angle"])) % sector - sector / 2)
    return warp(image, radius * np.cos(angle), radius * np.sin(angle))


def _tiles(mirrored: bool):
    """Four small copies, those on the right mirrored or not."""

    def apply(image: Image, p: Parameters) -> Image:
        side, length = len(image), -(-len(image) // 2)
        tile = resized(image, length, length)
        row = np.concatenate([tile, tile[:, ::-1] if mirrored else tile], axis=1)
        return np.concatenate([row, row])[:side, :side]

    return apply


def _rolled(right: float, down: float):
    """What leaves at one side comes back at the other."""

    def apply(image: Image, p: Parameters) -> Image:
        shifts = [round(share * p["distance"] * len(image)) for share in (down, right)]
        return np.roll(image, shifts, axis=(0, 1))

    return apply


def _strips(image: Image, p: Parameters) -> Image:
    """Every other strip slides."""
    side = len(image)
    odd = (np.arange(side) * p["count"] // side % 2).astype(bool)
    result = image.copy()
    result[odd] = np.roll(image[odd], side // 6, axis=1)
    return result


def _part(x0: float, y0: float, width: float, height: float):
    """A part of the image, stretched over all of it: centre and size as shares at the strength's full value."""

    def apply(image: Image, p: Parameters) -> Image:
        x, y = places(image)
        share = np.float32(p["strength"])
        return warp(image, share * x0 + x * (1 - share * (1 - width)), share * y0 + y * (1 - share * (1 - height)))

    return apply


def _narrow(image: Image, p: Parameters) -> Image:
    """The image is narrower, with black beside it."""
    x, y = places(image)
    return warp(image, x * p["factor"], y, repeat_edge=False)


_TILT, _SLOPE, _DEPTH, _STRENGTH = Span(0.1, 0.35), Span(0.15, 0.4), Span(0.5, 1.2), Span(0.7, 1.0)
_SWIRL, _COUNT, _DISTANCE = Span(2.0, 4.0), Span(1.5, 3.5), Span(0.2, 0.45)

EDITS: list[Edit] = [
    image_edit("tilt_right", FAMILY, _turned(1), angle=_TILT),
    image_edit("tilt_left", FAMILY, _turned(-1), angle=_TILT),
    image_edit("lean_right", FAMILY, _slanted, slope=_SLOPE),
    image_edit("recede_left", FAMILY, _receding(-1, 0), depth=_DEPTH),
    image_edit("recede_right", FAMILY, _receding(1, 0), depth=_DEPTH),
    image_edit("recede_top", FAMILY, _receding(0, -1), depth=_DEPTH),
    image_edit("barrel", FAMILY, _lens(1), bend=Span(0.8, 1.8)),
    image_edit("pincushion", FAMILY, _lens(-1), bend=Span(0.7, 1.3)),
    image_edit("magnify_middle", FAMILY, _magnified, radius=Span(0.3, 0.48)),
    image_edit("swirl", FAMILY, _swirl(1), angle=_SWIRL),
    image_edit("swirl_back", FAMILY, _swirl(-1), angle=_SWIRL),
    image_edit("wave_sideways", FAMILY, _wave(True), count=_COUNT),
    image_edit("wave_down", FAMILY, _wave(False), count=_COUNT),
    image_edit("ripple", FAMILY, _ripple, count=Span(3.0, 6.0)),
    image_edit("mirror_top_half", FAMILY, _mirrored_top),
    image_edit("mirror_right_half", FAMILY, _mirrored_right),
    image_edit("four_mirrors", FAMILY, _four_mirrors, zoom=Span(0.6, 1.0)),
    image_edit("kaleidoscope", FAMILY, _kaleidoscope, angle=Span(0.0, 0.9)),
    image_edit("two_by_two", FAMILY, _tiles(False)),
    image_edit("two_by_two_mirrored", FAMILY, _tiles(True)),
    image_edit("roll_right", FAMILY, _rolled(1, 0), distance=_DISTANCE),
    image_edit("roll_down", FAMILY, _rolled(0, 1), distance=_DISTANCE),
    image_edit("strips", FAMILY, _strips, count=Span(4.0, 9.0)),
    image_edit("crop_left", FAMILY, _part(-0.2, 0.0, 0.6, 1.0), strength=_STRENGTH),
    image_edit("crop_corner", FAMILY, _part(-0.2, -0.2, 0.6, 0.6), strength=_STRENGTH),
    image_edit("zoom_slightly", FAMILY, _part(0.0, 0.0, 0.7, 0.7), strength=_STRENGTH),
    image_edit("narrow", FAMILY, _narrow, factor=Span(1.3, 1.9)),
]
HELD_OUT = ("recede_right", "wave_down", "two_by_two_mirrored")
