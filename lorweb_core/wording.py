"""Values from strangers: checked for being numbers, and shown in messages, short whatever they hold."""

from __future__ import annotations

import math
import reprlib

_LONGEST = 160
_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxlist, _REPR.maxtuple, _REPR.maxdict = 2, 4, 4, 4
_REPR.maxstring, _REPR.maxlong, _REPR.maxother = 80, 40, 80


def shown(value: object) -> str:
    """``repr`` of a value in at most 160 letters: nested aliases of a small YAML unfold to gigabytes otherwise."""
    try:
        return clipped(_REPR.repr(value), _LONGEST)
    except ValueError:  # Python writes out no number of more than 4,300 digits
        return f"<{type(value).__name__} too long to show>"


def clipped(text: object, length: int = 300) -> str:
    """Text cut off at a length, with a sign that it was."""
    text = str(text)
    return text if len(text) <= length else f"{text[: length - 3]}..."


def is_finite(value: object) -> bool:
    """Whether a value is a number that float64 holds; true and false are none."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # of a whole number of hundreds of digits
        return False
