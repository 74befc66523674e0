"""Choosing layers by name, and the small text tables in which people write block scales and overrides.

A pattern is a module path with the wildcards ``*``, ``?`` and ``[...]`` and number ranges ``{3-7}``; it also matches
everything below the module that it names: ``transformer_blocks.{0-4}`` covers all of the first five double blocks.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Sequence

_RANGE = re.compile(r"\\{(\d+)\\-(\d+)\\}")


def match_layers(pattern: str, layers: Sequence[str]) -> list[int]:
    """Indices of the layers that a pattern covers.

    Raises:
        ValueError: when it covers none, with the nearest names there are.
    """
    expression = re.compile(_to_regex(pattern))
    found = [index for index, name in enumerate(layers) if expression.fullmatch(name)]
    if not found:
        near = difflib.get_close_matches(pattern, layers, n=3, cutoff=0.3) or list(layers[:3])
        raise ValueError(
            f"{pattern!r} matches none of the {len(layers)} layers; layers are named like {', '.join(near)}"
        )
    return found


def _to_regex(pattern: str) -> str:
    # Ranges leave fnmatch as escaped braces; a name that the pattern is a whole prefix of counts as well.
    glob = fnmatch.translate(pattern.strip()).removesuffix(r"\z").removesuffix(r"\Z")
    return _RANGE.sub(_alternatives, glob) + r"(\..*)?"


def _alternatives(match: re.Match) -> str:
    low, high = int(match[1]), int(match[2])
    return "(?:" + "|".join(str(number) for number in range(low, high + 1)) + ")"


def parse_block_scales(text: str) -> list[tuple[str, float]]:
    """Read lines ``pattern = factor``; ``#`` starts a comment.

    Returns:
        (pattern, factor) in the order written.

    Raises:
        ValueError: naming the line.
    """
    return [
        (pattern, _number(value, number, line))
        for number, line, pattern, value in _assignments(text, "transformer_blocks.{0-4} = 0.5")
    ]


def parse_overrides(text: str) -> list[tuple[str, int, float]]:
    """Read lines ``pattern [basis index] = coefficient``; ``#`` starts a comment.

    Returns:
        (pattern, basis index counted from 0, coefficient) in the order written.

    Raises:
        ValueError: naming the line.
    """
    example = "single_transformer_blocks.* 7 = 0.3"
    overrides = []
    for number, line, target, value in _assignments(text, example):
        pattern, _, index = target.rpartition(" ")
        if not pattern or not index.isdecimal():
            raise ValueError(f"line {number}: {line!r} names no basis element; write it like {example!r}")
        overrides.append((pattern.strip(), int(index), _number(value, number, line)))
    return overrides


def _assignments(text: str, example: str):
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.split("#", 1)[0].strip()
        if not line:
            continue
        target, equals, value = line.partition("=")
        if not equals or not target.strip():
            raise ValueError(f"line {number}: {line!r} is not an assignment; write it like {example!r}")
        yield number, line, target.strip(), value.strip()


def _number(value: str, number: int, line: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise ValueError(f"line {number}: {value!r} in {line!r} is not a number") from None
