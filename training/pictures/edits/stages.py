"""What becomes of the objects of a scene: stages draw a scene before and after an edit, whatever it stands on."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from ..scenes import COLOURS, SHAPES, Scene, Thing, random_scene
from .edit import Parameters, Stage

Which = Callable[[Thing], bool]
Change = Callable[[Thing, Parameters], Thing | None]
Choose = Callable[[Sequence[Thing]], Thing]
BIG, VARIED = (0.2, 0.3), (0.12, 0.28)  # half the width of objects


def crowd(rng: np.random.Generator, sizes: tuple[float, float] = BIG) -> Scene:
    """A scene of two to four objects, large ones unless told otherwise."""
    while True:
        scene = random_scene(rng, (2, 4), sizes=sizes)
        if len(scene.things) > 1:
            return scene


def _scene_with(rng: np.random.Generator, which: Which, make: Callable[[Thing], Thing]) -> Scene:
    """A scene of large objects where one or two answer to ``which`` and the others do not.

    Args:
        make: turns an object into one that answers.
    """
    scene = crowd(rng)
    wanted = 1 + int(rng.random() < 0.4 and len(scene.things) > 2)
    rest = [thing for thing in scene.things[wanted:] if not which(thing)]
    return scene.with_things([*(make(thing) for thing in scene.things[:wanted]), *rest])


def of_shape(shape: str) -> tuple[Which, Callable[[Thing], Thing]]:
    """Whether an object has a shape, and how to give it that shape."""
    return lambda thing: thing.shape == shape, lambda thing: replace(thing, shape=shape)


def of_colour(colour: str) -> tuple[Which, Callable[[Thing], Thing]]:
    """Whether an object has a colour, and how to give it that colour."""
    return lambda thing: thing.colour == colour, lambda thing: replace(thing, colour=colour)


def remove(which: Which, make: Callable[[Thing], Thing]) -> Stage:
    """Those that answer to ``which`` go; ``make`` turns an object into one that does."""

    def stage(rng: np.random.Generator, p: Parameters) -> tuple[Scene, Scene]:
        scene = _scene_with(rng, which, make)
        return scene, scene.with_things([thing for thing in scene.things if not which(thing)])

    return stage


def remove_one(choose: Choose) -> Stage:
    """One goes."""

    def stage(rng: np.random.Generator, p: Parameters) -> tuple[Scene, Scene]:
        scene = crowd(rng, VARIED)
        gone = choose(scene.things)
        return scene, scene.with_things([thing for thing in scene.things if thing is not gone])

    return stage


def every(change: Change, counts: tuple[int, int] = (2, 4), shapes: Sequence[str] = tuple(SHAPES)) -> Stage:
    """The same change to every object; None removes it."""

    def stage(rng: np.random.Generator, p: Parameters) -> tuple[Scene, Scene]:
        scene = random_scene(rng, counts, shapes, sizes=BIG)
        changed = (change(thing, p) for thing in scene.things)
        return scene, scene.with_things([thing for thing in changed if thing])

    return stage


def keep_one(choose: Choose, sizes: tuple[float, float] = BIG) -> Stage:
    """All but one go."""

    def stage(rng: np.random.Generator, p: Parameters) -> tuple[Scene, Scene]:
        scene = crowd(rng)
        return scene, scene.with_things([choose(scene.things)])

    return stage


def recolour_shape(shape: str, colour: str) -> Stage:
    """Objects of one shape take a colour."""
    which, make = of_shape(shape)

    def stage(rng: np.random.Generator, p: Parameters) -> tuple[Scene, Scene]:
        scene = _scene_with(rng, which, make)
        others = [name for name in COLOURS if name != colour]
        things = [replace(t, colour=others[rng.integers(len(others))]) if which(t) else t for t in scene.things]
        return scene.with_things(things), scene.with_things(
            [replace(thing, colour=colour) if which(thing) else thing for thing in things]
        )

    return stage


def recolour(colour: str, other: str) -> Stage:
    """Objects of one colour take another."""

    which, make = of_colour(colour)

    def stage(rng: np.random.Generator, p: Parameters) -> tuple[Scene, Scene]:
        scene = _scene_with(rng, which, make)
        things = [replace(thing, colour=other) if which(thing) else thing for thing in scene.things]
        return scene, scene.with_things(things)

    return stage


def recolour_all(colour: str) -> Stage:
    """All objects take a colour."""

    def stage(rng: np.random.Generator, p: Parameters) -> tuple[Scene, Scene]:
        others = [name for name in COLOURS if name != colour]
        scene = random_scene(rng, (2, 4), colours=others, sizes=BIG)
        return scene, scene.with_things([replace(t, colour=colour, shade=p["shade"]) for t in scene.things])

    return stage


def reshape(shape: str, other: str) -> Stage:
    """Objects of one shape take another, upright."""
    which, make = of_shape(shape)

    def stage(rng: np.random.Generator, p: Parameters) -> tuple[Scene, Scene]:
        scene = _scene_with(rng, which, make)
        things = [replace(thing, shape=other, angle=0.0) if which(thing) else thing for thing in scene.things]
        return scene, scene.with_things(things)

    return stage


def reshape_all(shape: str) -> Stage:
    """All objects take a shape, upright."""

    def stage(rng: np.random.Generator, p: Parameters) -> tuple[Scene, Scene]:
        scene = random_scene(rng, (2, 4), shapes=[name for name in SHAPES if name != shape], sizes=BIG)
        return scene, scene.with_things([replace(thing, shape=shape, angle=0.0) for thing in scene.things])

    return stage


def move(right: float, down: float) -> Stage:
    """One object leaves its place for another; both lie inside."""

    def stage(rng: np.random.Generator, p: Parameters) -> tuple[Scene, Scene]:
        distance, size = p["distance"], rng.uniform(0.16, 0.22)
        x, y = (_start(rng, size, distance * step) for step in (right, down))
        scene = random_scene(rng, (1, 1))
        thing = replace(scene.things[0], centre=(x, y), size=size)
        moved = replace(thing, centre=(x + distance * right, y + distance * down))
        return scene.with_things([thing]), scene.with_things([moved])

    return stage


def copy(right: float, down: float) -> Stage:
    """One object appears a second time, beside itself."""
    moved = move(right, down)

    def stage(rng: np.random.Generator, p: Parameters) -> tuple[Scene, Scene]:
        before, after = moved(rng, p)
        return before, before.with_things([*before.things, *after.things])

    return stage


def leftmost(things: Sequence[Thing]) -> Thing:
    """The object furthest to the left."""
    return min(things, key=lambda thing: thing.centre[0])


def rightmost(things: Sequence[Thing]) -> Thing:
    """The object furthest to the right."""
    return max(things, key=lambda thing: thing.centre[0])


def topmost(things: Sequence[Thing]) -> Thing:
    """The highest object."""
    return min(things, key=lambda thing: thing.centre[1])


def lowest(things: Sequence[Thing]) -> Thing:
    """The lowest object."""
    return max(things, key=lambda thing: thing.centre[1])


def largest(things: Sequence[Thing]) -> Thing:
    """The object of the largest size."""
    return max(things, key=lambda thing: thing.size)


def smallest(things: Sequence[Thing]) -> Thing:
    """The object of the smallest size."""
    return min(things, key=lambda thing: thing.size)


def _start(rng: np.random.Generator, size: float, distance: float) -> float:
    """A coordinate that is inside before and after a move."""
    return rng.uniform(size - min(distance, 0), 1 - size - max(distance, 0))


def resize(thing: Thing, p: Parameters) -> Thing:
    """The object, larger or smaller where it is."""
    return replace(thing, size=thing.size * p["factor"])
