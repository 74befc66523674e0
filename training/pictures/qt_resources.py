"""Files inside a binary file of Qt resources (.rcc), as Qt's own ``rcc`` writes it.

Layout: https://github.com/qt/qtbase/blob/dev/src/corelib/io/qresource.cpp. All numbers are big-endian.
"""

import struct
import zlib
from pathlib import Path, PurePosixPath

_MAGIC = b"qres"
_COMPRESSED, _DIRECTORY, _ZSTD = 1, 2, 4  # flags of an entry


class QtResources:
    """Reads single files.

    Raises:
        ValueError: when it is no such file.
    """

    def __init__(self, path: Path):
        self.path, self.content = path, path.read_bytes()
        if self.content[:4] != _MAGIC:
            raise ValueError(f"{path}: expected a file of Qt resources, which begins with {_MAGIC!r}")
        version, self.tree, self.data, self.names = struct.unpack_from(">IIII", self.content, 4)
        self.entry_size = 14 if version < 2 else 22  # later ones end with the time of the last change

    def read(self, inner: PurePosixPath) -> bytes:
        """The content of a file by its path inside.

        Raises:
            ValueError: when there is no such file, or it is compressed in a way that cannot be read here.
        """
        entry = 0
        for part in inner.parts:
            entry = self._children(entry).get(part)
            if entry is None:
                raise ValueError(f"{self.path}: there is no {inner} inside")
        flags, _, offset = struct.unpack_from(">HII", self.content, self._at(entry) + 4)
        if flags & (_DIRECTORY | _ZSTD):
            raise ValueError(f"{self.path}: {inner} is a folder, or compressed by zstd")
        start = self.data + offset + 4
        stored = self.content[start : start + struct.unpack_from(">I", self.content, start - 4)[0]]
        # Four bytes with the length come first.
        return zlib.decompress(stored[4:]) if flags & _COMPRESSED else stored

    def _at(self, entry: int) -> int:
        return self.tree + entry * self.entry_size

    def _children(self, entry: int) -> dict[str, int]:
        """Name -> entry of what a folder holds."""
        flags, count, first = struct.unpack_from(">HII", self.content, self._at(entry) + 4)
        numbers = range(first, first + count) if flags & _DIRECTORY else ()
        return {self._name(number): number for number in numbers}

    def _name(self, entry: int) -> str:
        start = self.names + struct.unpack_from(">I", self.content, self._at(entry))[0]
        length = struct.unpack_from(">H", self.content, start)[0]
        return self.content[start + 6 : start + 6 + 2 * length].decode("utf-16-be")  # after a hash of four bytes
