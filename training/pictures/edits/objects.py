"""Edits of objects on a photograph: they go, change colour, shape, size or place, or all around them changes."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from ..scenes import Thing, draw_on, random_scene
from .content import ARRANGEMENT, BACKGROUND, RECOLOURING, REMOVAL
from .edit import Edit, Image, Parameters, Span, ground, object_edit, scene_edit
from .pixels import as_rgb, blend, blurred, luma, of_hue
from .stages import (
    BIG,
    VARIED,
    copy,
    every,
    keep_one,
    largest,
    leftmost,
    lowest,
    move,
    of_colour,
    of_shape,
    recolour,
    recolour_all,
    recolour_shape,
    remove,
    remove_one,
    reshape,
    reshape_all,
    resize,
    rightmost,
    smallest,
    topmost,
)


def _turn(thing: Thing, p: Parameters) -> Thing:
    return replace(thing, angle=thing.angle + p["angle"])


def _around(name: str, change: Callable[[Image, Parameters], Image], **spans: Span) -> Edit:
    """An edit of all that lies behind a few objects."""

    def pairs(rng: np.random.Generator, p: Parameters, side: int, names: Sequence[str]) -> tuple[Image, Image]:
        things = random_scene(rng, (1, 3), sizes=BIG).things
        before = ground(rng, side, names)
        return draw_on(before, things), draw_on(np.clip(change(before, p), 0, 1), things)

    return Edit(name, BACKGROUND, spans, pairs)


def _plain(image: Image, p: Parameters) -> Image:
    return np.full_like(image, p["shade"])


def _tinted(hue: float):
    return lambda image, p: blend(image, luma(image)[..., None] * 0.5 + 0.5 * of_hue(hue), p["strength"])


_RECOLOURED = (
    ("red", "blue"), ("blue", "red"), ("green", "orange"), ("yellow", "violet"), ("orange", "cyan"), ("pink", "green"),
    ("violet", "yellow"), ("cyan", "pink"), ("blue", "white"),
)  # fmt: skip
_RESHAPED = (("disc", "star"), ("square", "heart"), ("heart", "cross"))
_CORNERED = ("square", "triangle", "star", "cross", "heart", "frame")
_SHADE, _STEP, _STRENGTH = Span(0.75, 1.0), Span(0.35, 0.55), Span(0.6, 0.95)

EDITS: list[Edit] = [
    *(object_edit(f"erase_{s}s", REMOVAL, remove(*of_shape(s))) for s in ("disc", "square", "star", "heart", "ring")),
    object_edit("erase_crosses", REMOVAL, remove(*of_shape("cross"))),
    object_edit("erase_frames", REMOVAL, remove(*of_shape("frame"))),
    *(
        object_edit(f"erase_{c}", REMOVAL, remove(*of_colour(c)))
        for c in ("red", "orange", "yellow", "cyan", "blue", "violet", "pink", "black")
    ),
    object_edit("erase_all", REMOVAL, every(lambda thing, p: None, (1, 3))),
    object_edit("erase_left", REMOVAL, remove_one(leftmost)),
    object_edit("erase_right", REMOVAL, remove_one(rightmost)),
    object_edit("erase_highest", REMOVAL, remove_one(topmost)),
    object_edit("erase_lowest", REMOVAL, remove_one(lowest)),
    object_edit("erase_largest", REMOVAL, remove_one(largest)),
    object_edit("erase_smallest", REMOVAL, remove_one(smallest)),
    object_edit("spare_largest", REMOVAL, keep_one(largest, VARIED)),
    scene_edit("remove_rings", REMOVAL, remove(*of_shape("ring"))),
    *(scene_edit(f"remove_{c}", REMOVAL, remove(*of_colour(c))) for c in ("orange", "violet", "pink")),
    *(object_edit(f"paint_{c}_{other}", RECOLOURING, recolour(c, other)) for c, other in _RECOLOURED),
    *(
        object_edit(f"paint_all_{c}", RECOLOURING, recolour_all(c), shade=_SHADE)
        for c in ("red", "blue", "violet", "pink", "white")
    ),
    object_edit("paint_discs_red", RECOLOURING, recolour_shape("disc", "red")),
    object_edit("paint_squares_blue", RECOLOURING, recolour_shape("square", "blue")),
    object_edit("paint_stars_yellow", RECOLOURING, recolour_shape("star", "yellow")),
    object_edit("paint_hearts_white", RECOLOURING, recolour_shape("heart", "white")),
    scene_edit("orange_to_violet", RECOLOURING, recolour("orange", "violet")),
    scene_edit("pink_to_cyan", RECOLOURING, recolour("pink", "cyan")),
    *(object_edit(f"swap_{s}_{other}", ARRANGEMENT, reshape(s, other)) for s, other in _RESHAPED),
    object_edit("turn_into_hearts", ARRANGEMENT, reshape_all("heart")),
    object_edit("turn_into_rings", ARRANGEMENT, reshape_all("ring")),
    object_edit("slide_right", ARRANGEMENT, move(1, 0), distance=_STEP),
    object_edit("slide_left", ARRANGEMENT, move(-1, 0), distance=_STEP),
    object_edit("slide_up", ARRANGEMENT, move(0, -1), distance=_STEP),
    object_edit("copy_right", ARRANGEMENT, copy(1, 0), distance=_STEP),
    object_edit("grow", ARRANGEMENT, every(resize, (1, 2)), factor=Span(1.4, 1.9)),
    object_edit("dwindle", ARRANGEMENT, every(resize, (1, 3)), factor=Span(0.35, 0.6)),
    object_edit("spin", ARRANGEMENT, every(_turn, (1, 3), _CORNERED), angle=Span(0.5, 1.0)),
    _around("ground_grey", lambda image, p: as_rgb(luma(image) * np.float32(p["light"])), light=Span(0.6, 1.0)),
    _around("ground_soft", lambda image, p: blurred(image, p["sigma"]), sigma=Span(0.03, 0.08)),
    _around("ground_dark", lambda image, p: image * np.float32(p["keep"]), keep=Span(0.1, 0.45)),
    _around("ground_pale", lambda image, p: 1 - (1 - image) * np.float32(p["keep"]), keep=Span(0.1, 0.45)),
    _around("ground_negative", lambda image, p: 1 - image * np.float32(p["gain"]), gain=Span(0.8, 1.0)),
    _around("ground_blue", _tinted(0.62), strength=_STRENGTH),
    _around("cut_out_white", _plain, shade=Span(0.85, 1.0)),
    _around("cut_out_black", _plain, shade=Span(0.0, 0.15)),
]  # fmt: skip
HELD_OUT = (
    "erase_frames", "erase_cyan", "erase_lowest", "paint_pink_green", "paint_all_violet", "paint_hearts_white",
    "swap_heart_cross", "ground_pale",
)  # fmt: skip
