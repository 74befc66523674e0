"""The rooms of the training house: who may import whom."""

import ast
from importlib.util import resolve_name
from pathlib import Path

import pytest

HOUSE = Path("training")
# From the roof down; a room imports only itself and what lies below it.
FLOORS = (
    ("train", "evaluate", "refine", "prepare"),
    ("starter",),
    ("judge",),
    ("run",),
    ("encoders",),
    ("bases",),
    ("config", "limits"),
    ("data",),
    ("pictures",),
    ("tuner",),
    ("hashing", "hub", "lpips_weights", "device", "packages", "noise", "compat"),
)
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
FILES = [path for path in sorted(HOUSE.rglob("*.py")) if path != HOUSE / "__init__.py"]


def room_of(parts: tuple[str, ...]) -> str:
    """The room of a module's path below ``training``."""
    return parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Rooms that a file imports, wherever in it."""
    package, rooms = ".".join(path.parts[:-1]), set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            module = resolve_name("." * node.level + (node.module or ""), package) if node.level else node.module
            names = [module] if module != "training" else [f"training.{name.name}" for name in node.names]
        else:
            names = [name.name for name in node.names] if isinstance(node, ast.Import) else []
        rooms |= {name.split(".")[1] for name in names if name.startswith("training.")}
    return rooms


@pytest.mark.parametrize("path", FILES, ids=str)
def test_no_import_runs_upwards(path):
    floor = FLOOR_OF[room_of(path.relative_to(HOUSE).parts)]
    assert {room for room in imports(path) if FLOOR_OF[room] < floor} == set()


def test_every_room_has_its_floor():
    assert {room_of(path.relative_to(HOUSE).parts) for path in FILES} == FLOOR_OF.keys()
