"""Choosing layers by name, and the small text tables in which people write block scales and overrides.

A pattern is a module path with the wildcards ``*``, ``?`` and ``[...]`` and number ranges ``{3-7}``; it also matches
everything below the module that it names: ``transformer_blocks.{0-4}`` covers all of the first five double blocks.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Iterator, Sequence

from .wording import clipped, nearest, shown

# Numbers of blocks have few digits; Python reads none of more than 4,300.
_RANGE = re.compile(r"\\{(\d{1,18})\\-(\d{1,18})\\}")
_NUMBER = re.compile(r"(?<![0-9])[0-9]{1,18}(?![0-9])")
# What is no part of a name, and numbers, which no other number is meant by.
_GLOB = re.compile(r"[*?{}\[\]]|^\d+$")
_LONGEST_PATTERN = 300
_LONGEST_TEXT, _MOST_LINES = 2**20, 10_000


def match_layers(pattern: str, layers: Sequence[str]) -> list[int]:
    """Indices of the layers that a pattern covers.

    Raises:
        ValueError: when it covers none, with the nearest names there are.
    """
    if len(pattern) > _LONGEST_PATTERN:
        raise ValueError(f"{shown(pattern)} is {len(pattern):,} letters long; a pattern has at most {_LONGEST_PATTERN}")
    expression = re.compile(_to_regex(pattern, layers))
    found = [index for index, name in enumerate(layers) if expression.fullmatch(name)]
    if not found:
        near = difflib.get_close_matches(pattern, layers, n=3, cutoff=0.3) or list(layers[:3])
        raise ValueError(
            f"{shown(pattern)} matches none of the {len(layers)} layers{_meant(pattern, layers)}; layers are named like"
            f" {', '.join(clipped(name, 80) for name in near)}"
        )
    return found


def _meant(pattern: str, layers: Sequence[str]) -> str:
    """What to say of a pattern that covers layers once its misspelt parts are those that are most like them."""
    known = {part for name in layers for part in name.split(".")}
    parts = [
        part if part in known or _GLOB.search(part) else nearest(part, known, cutoff=0.5) or part
        for part in pattern.strip().split(".")
    ]
    meant = ".".join(parts)
    covers = re.compile(_to_regex(meant, layers)).fullmatch
    return f"; did you mean {shown(meant)}?" if any(map(covers, layers)) else ""


def _to_regex(pattern: str, layers: Sequence[str]) -> str:
    # Ranges leave fnmatch as escaped braces; a name that the pattern is a whole prefix of counts as well.
    glob = fnmatch.translate(pattern.strip()).removesuffix(r"\z").removesuffix(r"\Z")
    return _RANGE.sub(lambda match: _alternatives(int(match[1]), int(match[2]), layers), glob) + r"(\..*)?"


def _alternatives(low: int, high: int, layers: Sequence[str]) -> str:
    """The numbers from low to high that occur in the names, however far the range goes; the longest first, for good."""
    numbers = {number for name in layers for number in _NUMBER.findall(name)}
    chosen = sorted((n for n in numbers if low <= int(n) <= high), key=len, reverse=True)
    return f"(?>{'|'.join(chosen)})" if chosen else "(?!)"


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
        if not pattern or not index.isdecimal() or len(index) > 9:
            raise ValueError(f"line {number}: {shown(line)} names no basis element; write it like {example!r}")
        overrides.append((pattern.strip(), int(index), _number(value, number, line)))
    return overrides


def _assignments(text: str, example: str) -> Iterator[tuple[int, str, str, str]]:
    lines = text[: _LONGEST_TEXT + 1].splitlines()
    if len(text) > _LONGEST_TEXT or len(lines) > _MOST_LINES:
        raise ValueError(f"the text is too long; at most {_MOST_LINES:,} lines and {_LONGEST_TEXT:,} letters are read")
    for number, raw in enumerate(lines, 1):
        line = raw.split("#", 1)[0].strip()
        if not line:
            continue
        target, equals, value = line.partition("=")
        if not equals or not target.strip():
            raise ValueError(f"line {number}: {shown(line)} is not an assignment; write it like {example!r}")
        yield number, line, target.strip(), value.strip()


def _number(value: str, number: int, line: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise ValueError(f"line {number}: {shown(value)} in {shown(line)} is not a number") from None
