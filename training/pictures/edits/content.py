"""Edits of content: objects come, go, change colour or place, and backgrounds change."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ..scenes import PALETTE, Background, Scene, Thing, draw_on, random_scene
from .edit import Edit, Image, Parameters, Span, image_edit, scene_edit
from .pixels import of_hue
from .stages import (
    BIG,
    every,
    keep_one,
    leftmost,
    move,
    of_colour,
    of_shape,
    recolour,
    recolour_all,
    remove,
    reshape_all,
    resize,
    rightmost,
)

INSERTION, REMOVAL, RECOLOURING = "insertion", "removal", "recolouring"
ARRANGEMENT, BACKGROUND = "arrangement", "background"


def _insert(shape: str, colour: str):
    def apply(image: Image, p: Parameters) -> Image:
        return draw_on(image, [Thing(shape, colour, (p["x"], p["y"]), p["size"])])

    return apply


def _insert_row(shape: str, colour: str):
    def apply(image: Image, p: Parameters) -> Image:
        """Three in a row."""
        return draw_on(image, [Thing(shape, colour, (x, p["y"]), p["size"]) for x in (0.2, 0.5, 0.8)])

    return apply


def _new_background(make: Callable[[Parameters], Background]):
    def stage(rng: np.random.Generator, p: Parameters) -> tuple[Scene, Scene]:
        scene = random_scene(rng, (1, 3))
        return scene, replace(scene, background=make(p))

    return stage


def _plain(hue: float, saturation: float = 0.9):
    return lambda p: Background("flat", tuple(of_hue(hue, saturation, p["value"])))


def _fade(first: str, second: str):
    return lambda p: Background("gradient", PALETTE[first], PALETTE[second], p["angle"])


def _striped(angle: float):
    def make(p: Parameters) -> Background:
        return Background("stripes", tuple(of_hue(p["hue"], 0.8, 0.9)), PALETTE["white"], angle, p["count"])

    return make


def _swap_colours(rng: np.random.Generator, p: Parameters) -> tuple[Scene, Scene]:
    """Figure and ground change colours: everything drawn on a flat ground."""
    scene = random_scene(rng, (2, 4), sizes=BIG)
    colour = scene.things[0].colour
    scene = replace(scene, background=replace(scene.background, kind="flat", first=PALETTE["white"]))
    scene = scene.with_things([replace(thing, colour=colour, shade=1.0) for thing in scene.things])
    ground = replace(scene.background, first=PALETTE[colour])
    return scene, replace(scene, background=ground).with_things([replace(t, colour="white") for t in scene.things])


_PLACE = {"x": Span(0.28, 0.72), "y": Span(0.28, 0.72), "size": Span(0.2, 0.28)}
_ROW = {"y": Span(0.2, 0.8), "size": Span(0.12, 0.15)}
_SHADE, _STEP = Span(0.75, 1.0), Span(0.35, 0.55)

_INSERTED = (
    ("disc", "red"), ("square", "blue"), ("star", "yellow"), ("triangle", "green"), ("ring", "white"),
    ("heart", "pink"), ("cross", "cyan"), ("frame", "orange"), ("disc", "black"), ("square", "red"),
    ("star", "white"), ("disc", "blue"), ("triangle", "yellow"),
)  # fmt: skip
_REMOVED_SHAPES, _REMOVED_COLOURS = ("disc", "square", "star", "triangle", "heart"), ("red", "blue", "yellow", "green")
_STRIPES = {"hue": Span(0.0, 0.9), "count": Span(2.5, 5.0)}

EDITS: list[Edit] = [
    *(image_edit(f"insert_{c}_{s}", INSERTION, _insert(s, c), **_PLACE) for s, c in _INSERTED),
    image_edit("insert_red_discs", INSERTION, _insert_row("disc", "red"), **_ROW),
    image_edit("insert_blue_stars", INSERTION, _insert_row("star", "blue"), **_ROW),
    *(scene_edit(f"remove_{s}s", REMOVAL, remove(*of_shape(s))) for s in _REMOVED_SHAPES),
    *(scene_edit(f"remove_{c}", REMOVAL, remove(*of_colour(c))) for c in _REMOVED_COLOURS),
    scene_edit("remove_all", REMOVAL, every(lambda thing, p: None)),
    scene_edit("keep_left", REMOVAL, keep_one(leftmost)),
    scene_edit("keep_right", REMOVAL, keep_one(rightmost)),
    scene_edit("red_to_blue", RECOLOURING, recolour("red", "blue")),
    scene_edit("blue_to_yellow", RECOLOURING, recolour("blue", "yellow")),
    scene_edit("green_to_red", RECOLOURING, recolour("green", "red")),
    scene_edit("red_to_yellow", RECOLOURING, recolour("red", "yellow")),
    *(
        scene_edit(f"all_{c}", RECOLOURING, recolour_all(c), shade=_SHADE)
        for c in ("red", "blue", "yellow", "white", "black", "green")
    ),
    scene_edit("swap_with_ground", RECOLOURING, _swap_colours),
    scene_edit("move_right", ARRANGEMENT, move(1, 0), distance=_STEP),
    scene_edit("move_left", ARRANGEMENT, move(-1, 0), distance=_STEP),
    scene_edit("move_up", ARRANGEMENT, move(0, -1), distance=_STEP),
    scene_edit("move_down", ARRANGEMENT, move(0, 1), distance=_STEP),
    scene_edit("enlarge", ARRANGEMENT, every(resize, (1, 2)), factor=Span(1.5, 2.0)),
    scene_edit("shrink", ARRANGEMENT, every(resize, (1, 3)), factor=Span(0.3, 0.55)),
    *(
        scene_edit(f"all_{plural}", ARRANGEMENT, reshape_all(s))
        for s, plural in (("disc", "discs"), ("frame", "frames"), ("cross", "crosses"))
    ),
    scene_edit("background_red", BACKGROUND, _new_background(_plain(0.0)), value=Span(0.55, 1.0)),
    scene_edit("background_yellow", BACKGROUND, _new_background(_plain(0.15)), value=Span(0.7, 1.0)),
    scene_edit("background_green", BACKGROUND, _new_background(_plain(0.36)), value=Span(0.4, 0.9)),
    scene_edit("background_blue", BACKGROUND, _new_background(_plain(0.64)), value=Span(0.4, 1.0)),
    scene_edit("background_violet", BACKGROUND, _new_background(_plain(0.78)), value=Span(0.4, 1.0)),
    scene_edit("background_white", BACKGROUND, _new_background(_plain(0.0, 0.0)), value=Span(0.85, 1.0)),
    scene_edit("background_black", BACKGROUND, _new_background(_plain(0.0, 0.0)), value=Span(0.0, 0.2)),
    scene_edit("background_dusk", BACKGROUND, _new_background(_fade("blue", "orange")), angle=Span(0.5, 2.5)),
    scene_edit("background_candy", BACKGROUND, _new_background(_fade("cyan", "pink")), angle=Span(0.5, 2.5)),
    scene_edit("background_columns", BACKGROUND, _new_background(_striped(0.0)), **_STRIPES),
    scene_edit("background_rows", BACKGROUND, _new_background(_striped(np.pi / 2)), **_STRIPES),
    scene_edit("background_slanted", BACKGROUND, _new_background(_striped(np.pi / 4)), **_STRIPES),
]  # fmt: skip
HELD_OUT = (
    "insert_blue_disc", "insert_yellow_triangle", "remove_triangles", "remove_green", "red_to_yellow", "all_green",
    "move_down", "all_frames", "background_green", "background_slanted",
)  # fmt: skip
