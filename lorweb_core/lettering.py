"""Text in pictures. Pillow's own font has English letters only, so names in other scripts need a font of the machine.

Where no font has a letter, an accented one loses its accent, any other becomes a question mark, and a note says so:
the picture shows no boxes without a word. Files carry the whole text either way.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from functools import lru_cache

# Fonts of Linux, Windows and macOS by their files' names, those with the most scripts last; Pillow knows the folders.
_FONTS = (
    "DejaVuSans.ttf", "arial.ttf", "Arial.ttf", "Helvetica.ttc",
    "NotoSansCJK-Regular.ttc", "NotoSansCJKsc-Regular.otf", "wqy-microhei.ttc", "wqy-zenhei.ttc",
    "DroidSansFallbackFull.ttf",
    "msyh.ttc", "YuGothM.ttc", "malgun.ttf", "simsun.ttc", "msgothic.ttc", "PingFang.ttc", "Hiragino Sans GB.ttc",
    "AppleSDGothicNeo.ttc", "Arial Unicode.ttf", "seguisym.ttf",
)  # fmt: skip
_UNKNOWN, _NOTE, _CUT = "?", " (no font for ?)", "..."
# No letter at all, which every font draws as its box.
_NO_LETTER = "\U0010fffe"


def draw_text(
    draw, position: tuple[int, int], text: str, fill: tuple[int, int, int], size: int = 13, width: int | None = None
) -> None:
    """Write a line with its upper left corner at a position, cut off at a width in pixels."""
    shown, note, name = written(" ".join(text.encode("utf-8", "replace").decode().split()))
    letters = font(size, name)
    while width is not None and len(shown) > len(_CUT) and letters.getlength(shown + note) > width:
        shown = shown.removesuffix(_CUT)[:-1] + _CUT
    draw.text(position, shown + note, fill=fill, font=letters)


@lru_cache(1024)
def written(text: str) -> tuple[str, str, str]:
    """How a line can be written on this machine: (text, note, file name of the font or "" for Pillow's own)."""
    for name in ("", *_fonts()):
        if not missing(text, name):
            return text, "", name
    plain = "".join(_plain(letter) for letter in text)
    return plain, _NOTE if plain.count(_UNKNOWN) > text.count(_UNKNOWN) else "", ""


def missing(text: str, name: str) -> set[str]:
    """The letters of a line that a font lacks."""
    return {letter for letter in text if not letter.isspace() and _picture(letter, name) == _picture(_NO_LETTER, name)}


def _plain(letter: str) -> str:
    """A letter as Pillow's own font has it: without its accent, or a question mark."""
    kept = "".join(part for part in unicodedata.normalize("NFKD", letter) if not unicodedata.combining(part))
    return kept if kept and not missing(kept, "") else _UNKNOWN


@lru_cache(4096)
def _picture(letter: str, name: str) -> bytes:
    return bytes(font(24, name).getmask(letter))


@lru_cache
def _fonts() -> tuple[str, ...]:
    """Which of the fonts are there."""
    return tuple(_that_open())


def _that_open() -> Iterator[str]:
    for name in _FONTS:
        try:
            font(24, name)
        except OSError:
            continue
        yield name


@lru_cache
def font(size: int, name: str = ""):
    """Pillow's own font, or one of the machine's.

    Raises:
        OSError: when there is no font of that name.
    """
    from PIL import ImageFont

    return ImageFont.truetype(name, size) if name else ImageFont.load_default(size)
