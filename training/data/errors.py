"""Errors of the data side; every message names the file, what was found and what to do."""

from __future__ import annotations

import os


class DataError(ValueError):
    """The data, a manifest or a cache cannot be used as it is."""


class ImageError(DataError):
    """An image cannot be used.

    The reason is optional because a DataLoader worker hands its error over as one finished message.

    Attributes:
        reason: what is wrong with the file, without its name.
    """

    def __init__(self, path: str | os.PathLike, reason: str | None = None):
        super().__init__(f"{path}: {reason}" if reason else str(path))
        self.reason = reason or str(path)
