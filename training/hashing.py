"""Content hashes, and random numbers that are pure functions of what they are drawn for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

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


def permuted(place: int, count: int, *key: str | int) -> int:
    """Where a random permutation of ``range(count)``, determined by the key alone, puts a place.

    A Feistel cipher of four rounds over the next power of four, walked until it meets a number below ``count``.
    """
    half = max(1, (count - 1).bit_length() + 1 >> 1)
    mask = (1 << half) - 1
    while True:
        left, right = place >> half, place & mask
        for number in range(4):
            left, right = right, left ^ random_words("permuted", *key, number, right)[0] & mask
        place = left << half | right
        if place < count:
            return place


class Seen:
    """Texts that were met before, at about ten bytes each: 64-bit hashes, a few in a set and most in a sorted array."""

    _FEW = 64

    def __init__(self) -> None:
        self._sorted, self._recent = np.empty(0, np.uint64), set[int]()

    def __contains__(self, text: str) -> bool:
        return self._knows(_word(text))

    def add(self, text: str) -> bool:
        """Remember a text; whether it is new."""
        word = _word(text)
        if self._knows(word):
            return False
        self._recent.add(word)
        if len(self._recent) > max(self._FEW, len(self._sorted) // 8):
            recent = np.fromiter(self._recent, np.uint64, len(self._recent))
            self._sorted = np.sort(np.concatenate((self._sorted, recent)))
            self._recent.clear()
        return True

    def _knows(self, word: int) -> bool:
        place = np.searchsorted(self._sorted, np.uint64(word))
        return word in self._recent or (place < len(self._sorted) and int(self._sorted[place]) == word)


def _word(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode(errors="surrogatepass")).digest()[:8], "little")


def as_fraction(word: int) -> float:
    """A word of ``random_words`` as a number in [0, 1)."""
    return (word >> 11) / (1 << 53)
