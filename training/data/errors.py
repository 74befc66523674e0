"""Errors of the data side; every message names the file, what was found and what to do."""

from __future__ import annotations

import os

_LONGEST = 1500


def short(text: str, longest: int = _LONGEST) -> str:
    """A text without its middle where it is too long for people, as names and values from files can be."""
    half = longest // 2
    return text if len(text) <= longest else f"{text[:half]} ... {text[-half:]}"


class DataError(ValueError):
    """The data, a manifest or a cache cannot be used as it is."""

    def __init__(self, message: str):
        super().__init__(short(message))


class ImageError(DataError):
    """An image cannot be used.

    The reason is optional because a DataLoader worker hands its error over as one finished message.

    Attributes:
        reason: what is wrong with the file, without its name.
    """

    def __init__(self, path: str | os.PathLike, reason: str | None = None):
        super().__init__(f"{path}: {reason}" if reason else str(path))
        self.reason = reason or str(path)
