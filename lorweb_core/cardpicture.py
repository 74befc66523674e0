"""What edit cards look like, drawn and written with Pillow, and sheets of many."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .atomic import replacing
from .card import KEYWORD, EditCard, read_bounded, reading
from .checkpoint import Progress, iterate_with_progress
from .gallery import Match
from .lettering import draw_text
from .plot import BACKGROUND, FAINT, INK, MARGIN, THUMBNAIL, thumbnail
from .pngtext import SIGNATURE

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

# A card is as wide as the small heatmap; a and a' stand above it.
WIDTH, PHOTO = THUMBNAIL[0], (THUMBNAIL[0] - 3 * MARGIN) // 2
_TITLE, _CAPTION = 40, 30
_NAME_SIZE, _TEXT_SIZE = 24, 18
SHEET_CARD, LARGEST_SHEET = 300, 64


def card_picture(card: EditCard, before: np.ndarray | None = None, after: np.ndarray | None = None) -> np.ndarray:
    """Draw a card: its name, a | a' and the small heatmap.

    Args:
        before, after: a and a', [height, width, 3] uint8 of any size; without them the heatmap is all.

    Returns:
        [height, 480, 3] uint8.
    """
    import numpy as np
    from PIL import Image, ImageDraw

    photos = [] if before is None or after is None else [_fitted(photo) for photo in (before, after)]
    top = _TITLE + (max(photo.height for photo in photos) + MARGIN if photos else 0)
    picture = Image.new("RGB", (WIDTH, top + THUMBNAIL[1]), BACKGROUND)
    for index, photo in enumerate(photos):
        picture.paste(photo, (MARGIN + index * (PHOTO + MARGIN) + (PHOTO - photo.width) // 2, _TITLE))
    picture.paste(Image.fromarray(thumbnail(card.coefficients)), (0, top))
    draw_text(ImageDraw.Draw(picture), (MARGIN, 8), card.name or "edit", INK, _NAME_SIZE, WIDTH - 2 * MARGIN)
    return np.asarray(picture)


def save_card(card: EditCard, path: str | os.PathLike, picture: np.ndarray) -> None:
    """Write a card under a name that is not taken yet; it is there whole or not at all.

    Args:
        picture: as ``card_picture`` draws it; stored in 256 colours, which keeps a card of FLUX's size below 300 KB.

    Raises:
        FileExistsError: when there is a file of that name.
        OSError: when it cannot be written.
    """
    from PIL import Image, PngImagePlugin

    info = PngImagePlugin.PngInfo()
    info.add_text(KEYWORD, card.to_json())
    with replacing(path, replace=False) as temporary:
        Image.fromarray(picture).quantize(256).save(temporary, "PNG", pnginfo=info, optimize=True)


def save_picture(picture: np.ndarray, path: str | os.PathLike) -> None:
    """Write a picture as PNG under a name that is not taken yet.

    Raises:
        FileExistsError: when there is a file of that name.
        OSError: when it cannot be written.
    """
    from PIL import Image

    with replacing(path, replace=False) as temporary:
        Image.fromarray(picture).save(temporary, "PNG")


def load_picture(path: str | os.PathLike, card: EditCard) -> np.ndarray:
    """The picture of a card's file, [height, width, 3] uint8; one drawn anew where the file is JSON.

    Raises:
        CardError: naming the file, when its picture is damaged.
    """
    import io

    import numpy as np
    from PIL import Image

    with reading(path):
        content = read_bounded(path)
        if not content.startswith(SIGNATURE):
            return card_picture(card)
        try:
            with Image.open(io.BytesIO(content), formats=("PNG",)) as picture:
                return np.asarray(picture.convert("RGB"))
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(f"the picture is damaged: {error}") from error


def contact_sheet(matches: Sequence[Match], progress: Progress | None = None) -> np.ndarray:
    """Cards in rows of up to four, the nearest first, each above its file's name and its cosine.

    Args:
        progress: called with (cards drawn, cards in all).

    Returns:
        [height, width, 3] uint8.

    Raises:
        ValueError: for none, or more than 64.
        CardError: naming a file whose picture is damaged.
    """
    import numpy as np
    from PIL import Image, ImageDraw

    if not 1 <= len(matches) <= LARGEST_SHEET:
        raise ValueError(f"a contact sheet shows 1 to {LARGEST_SHEET} cards; found {len(matches)}")
    columns = min(4, len(matches))
    cell = (SHEET_CARD + MARGIN, SHEET_CARD * 4 // 3 + _CAPTION + MARGIN)
    size = (columns * cell[0] + MARGIN, -(-len(matches) // columns) * cell[1] + MARGIN)
    sheet = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for index, match in enumerate(iterate_with_progress(matches, progress, len(matches))):
        left, top = MARGIN + index % columns * cell[0], MARGIN + index // columns * cell[1]
        photo = Image.fromarray(load_picture(match.path, match.card))
        photo.thumbnail((SHEET_CARD, SHEET_CARD * 4 // 3))
        sheet.paste(photo, (left, top))
        words = f"{match.cosine:.2f}  {Path(match.path).stem}"
        draw_text(draw, (left, top + SHEET_CARD * 4 // 3 + 4), words, FAINT, _TEXT_SIZE, SHEET_CARD)
    return np.asarray(sheet)


def _fitted(photo: np.ndarray) -> Image.Image:
    """A photograph in a square of a card's half, its shape kept."""
    from PIL import Image

    picture = Image.fromarray(photo)
    scale = PHOTO / max(picture.size)
    return picture.resize([max(1, round(side * scale)) for side in picture.size], Image.Resampling.LANCZOS)
