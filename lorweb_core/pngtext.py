"""Text in PNG files, read chunk by chunk: nothing is unpacked, no picture decoded, and every size is checked first."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import NamedTuple

SIGNATURE = b"\x89PNG\r\n\x1a\n"
LARGEST_SIDE = 8192
_HEADER, _TEXT, _END = b"IHDR", b"tEXt", b"IEND"


class Chunk(NamedTuple):
    """A chunk of a PNG file."""

    kind: bytes
    body: bytes


def text_of(png: bytes, keyword: str) -> bytes:
    """The text under a keyword in a whole and undamaged PNG file.

    Raises:
        ValueError: when it is no PNG file, is cut off or damaged, is of more than 8192 pixels a side, or has no such
            text, or two of them.
    """
    chunks = list(_chunks(png))
    _check_size(chunks[0])
    start = keyword.encode("latin-1") + b"\0"
    texts = [body[len(start) :] for kind, body in chunks if kind == _TEXT and body.startswith(start)]
    if len(texts) != 1:
        raise ValueError(f"the picture holds {len(texts)} texts named {keyword}; expected one")
    return texts[0]


def _chunks(png: bytes) -> Iterator[Chunk]:
    if not png.startswith(SIGNATURE):
        raise ValueError("this is not a PNG file")
    position, kind = len(SIGNATURE), b""
    while kind != _END:
        length = int.from_bytes(png[position : position + 4], "big")
        end = position + 8 + length
        if end + 4 > len(png):
            raise ValueError(f"the PNG file is cut off: {len(png):,} bytes are there, and at least {end + 16:,} belong")
        kind, body = png[position + 4 : position + 8], png[position + 8 : end]
        if zlib.crc32(png[position + 4 : end]) != int.from_bytes(png[end : end + 4], "big"):
            raise ValueError(f"the PNG file is damaged: the checksum of a chunk at byte {position:,} is wrong")
        yield Chunk(kind, body)
        position = end + 4


def _check_size(first: Chunk) -> None:
    sides = [int.from_bytes(first.body[at : at + 4], "big") for at in (0, 4)]
    if first.kind != _HEADER or len(first.body) != 13 or not all(1 <= side <= LARGEST_SIDE for side in sides):
        raise ValueError(f"the PNG file is {sides[0]:,} x {sides[1]:,} pixels; expected 1 to {LARGEST_SIDE:,} a side")
