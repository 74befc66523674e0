"""Values from strangers: checked for being numbers, and shown in messages, short whatever they hold."""

from __future__ import annotations

import difflib
import math
import reprlib
from collections.abc import Iterable

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


def meant(word: object, known: Iterable[object], cutoff: float = 0.6) -> str:
    """``; did you mean 'it'?`` with the known word that is most like another; empty where none is.

    Args:
        cutoff: difflib's ratio, from 0 to 1, that it takes.
    """
    near = nearest(word, known, cutoff)
    return f"; did you mean {shown(near)}?" if near else ""


def nearest(word: object, known: Iterable[object], cutoff: float = 0.6) -> str:
    """The known word that is most like another; empty where none is, and for what is no word."""
    words = [other for other in known if isinstance(other, str) and other != word]
    near = difflib.get_close_matches(word, words, 1, cutoff) if isinstance(word, str) and len(word) < _LONGEST else []
    return near[0] if near else ""


def misspelt(wanted: str, found: Iterable[object], cutoff: float = 0.6) -> str:
    """``; it has 'x': did you mean 'wanted'?`` with the key that stands for a missing one; empty where none does."""
    keys = list(found)
    near = "" if wanted in keys else nearest(wanted, keys, cutoff)
    return f"; it has {shown(near)}: did you mean {wanted!r}?" if near else ""
