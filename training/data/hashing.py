"""Content hashes, and random numbers that are pure functions of what they are drawn for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

_HEX_DIGITS = 32  # 128 bits: no two different files collide by accident


def content_hash(data: bytes) -> str:
    """SHA-256 of the bytes, shortened to 32 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()[:_HEX_DIGITS]


def text_key(prompt: str) -> str:
    """Cache key of a prompt."""
    return content_hash(prompt.encode())


def settings_hash(settings: Mapping[str, Any]) -> str:
    """Hash of JSON-like settings; the order of the keys does not matter."""
    return content_hash(json.dumps(settings, sort_keys=True).encode())


def random_words(*key: str | int) -> tuple[int, int, int, int]:
    """Four independent uniform integers in [0, 2**64), determined by the key alone.

    A counter-based generator: draw i needs no draws before it, so a position is the whole state of a sampler. Taking
    them modulo n biases the result by less than n / 2**64.
    """
    digest = hashlib.sha256(json.dumps(key).encode()).digest()
    a, b, c, d = (int.from_bytes(digest[start : start + 8], "little") for start in (0, 8, 16, 24))
    return a, b, c, d


def uniform(*key: str | int) -> float:
    """A uniform number in [0, 1), determined by the key alone."""
    return as_fraction(random_words(*key)[0])


def as_fraction(word: int) -> float:
    """A word of ``random_words`` as a number in [0, 1)."""
    return (word >> 11) / (1 << 53)
