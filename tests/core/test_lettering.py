"""Names in other scripts on pictures: by a font that has them, or without boxes and with a word about it."""

import numpy as np
import pytest
import torch
from PIL import Image

from lorweb_core import MixingCoefficients, lettering
from lorweb_core.card import EditCard, load_card
from lorweb_core.cardpicture import card_picture, contact_sheet, save_card
from lorweb_core.gallery import Match
from lorweb_core.plot import INK

BROWN = "\u8910\u8272"
CAFE = "Caf\u00e9"


@pytest.fixture
def no_fonts(monkeypatch):
    """A machine with Pillow's own font only."""
    monkeypatch.setattr(lettering, "_fonts", lambda: ())
    lettering.written.cache_clear()
    yield
    lettering.written.cache_clear()


@pytest.mark.parametrize(
    ("text", "shown", "note"),
    [
        ("sepia 3/4?", "sepia 3/4?", ""),
        (CAFE, "Cafe", ""),
        ("\uff21\uff22", "AB", ""),
        (BROWN, "??", " (no font for ?)"),
        (f"why? {BROWN}", "why? ??", " (no font for ?)"),
    ],
)
def test_without_a_font_it_says_so(no_fonts, text, shown, note):
    assert lettering.written(text) == (shown, note, "")
    assert not lettering.missing(shown + note, "")


def test_a_font_that_has_the_letters_is_taken():
    assert lettering.written("sepia") == ("sepia", "", "")
    for name in lettering._fonts():
        shown, note, chosen = lettering.written(CAFE)
        assert (shown, note) == (CAFE, "") and not lettering.missing(CAFE, chosen)
        assert lettering.missing(lettering._NO_LETTER, name) == {lettering._NO_LETTER}


@pytest.mark.parametrize("name", [CAFE, BROWN, "sepia " * 40, f"{BROWN} 3/4 " * 40, "one\ntwo \ud800", " "])
def test_a_card_keeps_the_whole_name(no_fonts, tmp_path, name):
    edit = MixingCoefficients(torch.eye(4), tuple("abcd"))
    card, path = EditCard(edit, name), tmp_path / f"{BROWN} {CAFE}.png"
    picture = card_picture(card)
    save_card(card, path, picture)
    assert load_card(path).name == name
    title = np.abs(picture[:40].astype(int) - INK).max(-1) < 30
    assert title[:, :466].any() == bool(name.strip()) and not title[:, 466:].any()
    sheet = contact_sheet([Match(path, card, 0.5)])
    assert Image.fromarray(sheet).width == 328
