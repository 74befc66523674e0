"""Edits of content: objects come, go, change colour or place, and backgrounds change."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from ..scenes import COLOURS, PALETTE, SHAPES, Background, Scene, Thing, random_scene, stamp
from .edit import Edit, Image, Parameters, Span, image_edit, scene_edit
from .pixels import of_hue

INSERTION, REMOVAL, RECOLOURING = "insertion", "removal", "recolouring"
ARRANGEMENT, BACKGROUND = "arrangement", "background"

Which = Callable[[Thing], bool]
_BIG = (0.2, 0.3)


def _insert(shape: str, colour: str):
    def apply(image: Image, p: Parameters) -> Image:
        return stamp(image, Thing(shape, colour, (p["x"], p["y"]), p["size"]))

    return apply


def _insert_row(shape: str, colour: str):
    def apply(image: Image, p: Parameters) -> Image:
        """Three in a row."""
        for x in (0.2, 0.5, 0.8):
            image = stamp(image, Thing(shape, colour, (x, p["y"]), p["size"]))
        return image

    return apply


def _crowd(rng: np.random.Generator) -> Scene:
    """A scene of two to four large objects."""
    while True:
        scene = random_scene(rng, (2, 4), sizes=_BIG)
        if len(scene.things) > 1:
            return scene


def _scene_with(rng: np.random.Generator, which: Which, make: Callable[[Thing], Thing]) -> Scene:
    """A scene of large objects where one or two answer to ``which`` and the others do not.

    Args:
        make: turns an object into one that answers.
    """
    scene = _crowd(rng)
    wanted = 1 + int(rng.random() < 0.4 and len(scene.things) > 2)
    rest = [thing for thing in scene.things[wanted:] if not which(thing)]
    return scene.with_things([*(make(thing) for thing in scene.things[:wanted]), *rest])


def _of_shape(shape: str) -> tuple[Which, Callable[[Thing], Thing]]:
    return lambda thing: thing.shape == shape, lambda thing: replace(thing, shape=shape)


def _of_colour(colour: str) -> tuple[Which, Callable[[Thing], Thing]]:
    return lambda thing: thing.colour == colour, lambda thing: replace(thing, colour=colour)


def _remove(which: Which, make: Callable[[Thing], Thing]):
    def stage(rng: np.random.Generator, p: Parameters) -> tuple[Scene, Scene]:
        scene = _scene_with(rng, which, make)
        return scene, scene.with_things([thing for thing in scene.things if not which(thing)])

    return stage


def _every(change: Callable[[Thing, Parameters], Thing | None], counts: tuple[int, int] = (2, 4)):
    """The same change to every object; None removes it."""

    def stage(rng: np.random.Generator, p: Parameters) -> tuple[Scene, Scene]:
        scene = random_scene(rng, counts, sizes=_BIG)
        changed = (change(thing, p) for thing in scene.things)
        return scene, scene.with_things([thing for thing in changed if thing])

    return stage


def _keep_one(choose: Callable[[Sequence[Thing]], Thing]):
    def stage(rng: np.random.Generator, p: Parameters) -> tuple[Scene, Scene]:
        scene = _crowd(rng)
        return scene, scene.with_things([choose(scene.things)])

    return stage


def _recolour(colour: str, other: str):
    which, make = _of_colour(colour)

    def stage(rng: np.random.Generator, p: Parameters) -> tuple[Scene, Scene]:
        scene = _scene_with(rng, which, make)
        things = [replace(thing, colour=other) if which(thing) else thing for thing in scene.things]
        return scene, scene.with_things(things)

    return stage


def _recolour_all(colour: str):
    def stage(rng: np.random.Generator, p: Parameters) -> tuple[Scene, Scene]:
        others = [name for name in COLOURS if name != colour]
        scene = random_scene(rng, (2, 4), colours=others, sizes=_BIG)
        return scene, scene.with_things([replace(t, colour=colour, shade=p["shade"]) for t in scene.things])

    return stage


def _reshape_all(shape: str):
    def stage(rng: np.random.Generator, p: Parameters) -> tuple[Scene, Scene]:
        scene = random_scene(rng, (2, 4), shapes=[name for name in SHAPES if name != shape], sizes=_BIG)
        return scene, scene.with_things([replace(thing, shape=shape, angle=0.0) for thing in scene.things])

    return stage


def _move(right: float, down: float):
    def stage(rng: np.random.Generator, p: Parameters) -> tuple[Scene, Scene]:
        """One object leaves its place for another; both lie inside."""
        distance, size = p["distance"], rng.uniform(0.16, 0.22)
        x, y = (_start(rng, size, distance * step) for step in (right, down))
        scene = random_scene(rng, (1, 1))
        thing = replace(scene.things[0], centre=(x, y), size=size)
        moved = replace(thing, centre=(x + distance * right, y + distance * down))
        return scene.with_things([thing]), scene.with_things([moved])

    return stage


def _start(rng: np.random.Generator, size: float, distance: float) -> float:
    """A coordinate that is inside before and after a move."""
    return rng.uniform(size - min(distance, 0), 1 - size - max(distance, 0))


def _resize(thing: Thing, p: Parameters) -> Thing:
    return replace(thing, size=thing.size * p["factor"])


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
    scene = random_scene(rng, (2, 4), sizes=_BIG)
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
    *(scene_edit(f"remove_{s}s", REMOVAL, _remove(*_of_shape(s))) for s in _REMOVED_SHAPES),
    *(scene_edit(f"remove_{c}", REMOVAL, _remove(*_of_colour(c))) for c in _REMOVED_COLOURS),
    scene_edit("remove_all", REMOVAL, _every(lambda thing, p: None)),
    scene_edit("keep_left", REMOVAL, _keep_one(lambda things: min(things, key=lambda t: t.centre[0]))),
    scene_edit("keep_right", REMOVAL, _keep_one(lambda things: max(things, key=lambda t: t.centre[0]))),
    scene_edit("red_to_blue", RECOLOURING, _recolour("red", "blue")),
    scene_edit("blue_to_yellow", RECOLOURING, _recolour("blue", "yellow")),
    scene_edit("green_to_red", RECOLOURING, _recolour("green", "red")),
    scene_edit("red_to_yellow", RECOLOURING, _recolour("red", "yellow")),
    *(
        scene_edit(f"all_{c}", RECOLOURING, _recolour_all(c), shade=_SHADE)
        for c in ("red", "blue", "yellow", "white", "black", "green")
    ),
    scene_edit("swap_with_ground", RECOLOURING, _swap_colours),
    scene_edit("move_right", ARRANGEMENT, _move(1, 0), distance=_STEP),
    scene_edit("move_left", ARRANGEMENT, _move(-1, 0), distance=_STEP),
    scene_edit("move_up", ARRANGEMENT, _move(0, -1), distance=_STEP),
    scene_edit("move_down", ARRANGEMENT, _move(0, 1), distance=_STEP),
    scene_edit("enlarge", ARRANGEMENT, _every(_resize, (1, 2)), factor=Span(1.5, 2.0)),
    scene_edit("shrink", ARRANGEMENT, _every(_resize, (1, 3)), factor=Span(0.3, 0.55)),
    *(
        scene_edit(f"all_{plural}", ARRANGEMENT, _reshape_all(s))
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
