"""The locale files: complete, in step with the nodes, readable by the page's vue-i18n, and served."""

import json
import re

import pytest
import requests

from harness import locales

LANGUAGES = sorted(path.parent.name for path in locales.LOCALES.glob("*/nodeDefs.json"))
TRANSLATIONS = [language for language in LANGUAGES if language != "en"]
# A sign of vue-i18n's syntax that stands for itself: {'|'}.
LITERAL = re.compile(r"\{'[{}@|$]'\}")
# Names that are the same in every language.
SAME_EVERYWHERE = re.compile(r"[A-Za-z0-9 _-]*(JSON|CLIP|LoRA|top-k|SigLIP)[A-Za-z0-9 _-]*")

each_language = pytest.mark.parametrize("language", LANGUAGES)
each_translation = pytest.mark.parametrize("language", TRANSLATIONS)


def texts(tree, path=()):
    """(path, text) of every text in a file."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from texts(value, (*path, key))
        else:
            yield (*path, key), value


def test_the_languages_are_there():
    assert LANGUAGES == ["en", "ja", "zh"]


def test_english_is_what_the_nodes_say():
    assert locales.read("en") == locales.english(), "run: python -m harness.locales"


@each_translation
def test_every_text_is_translated(language):
    english, translated = dict(texts(locales.read("en"))), dict(texts(locales.read(language)))
    assert sorted(translated) == sorted(english)
    for path, text in translated.items():
        assert text.strip() and (text != english[path] or SAME_EVERYWHERE.fullmatch(text)), path


@each_translation
def test_values_that_a_widget_offers_keep_their_names(language):
    """A translation may not lose what has to be typed or chosen as it is: {0-4}, crop, float16, folder names."""
    kept = re.compile(r"models/\w+|output/\w+|loras/|\.safetensors|config\.yaml|float16|1024|SVD|\{0-4\}|\btop-k\b")
    english, translated = dict(texts(locales.read("en"))), dict(texts(locales.read(language)))
    for path, text in english.items():
        wanted = kept.findall(plain(text))
        assert [word for word in wanted if word not in plain(translated[path])] == [], path


def plain(text):
    """A text as vue-i18n shows it."""
    return LITERAL.sub(lambda match: match[0][2:-2], text)


@each_language
def test_no_text_is_taken_for_syntax(language):
    """vue-i18n reads | as a choice of plurals, {} as a parameter and @ as a link."""
    for path, text in texts(locales.read(language)):
        assert not re.search(r"[{}@|$]", LITERAL.sub("", text)), path


def test_comfyui_serves_them(comfy):
    served = requests.get(f"{comfy.url}/i18n", timeout=30).json()
    for language in LANGUAGES:
        ours = json.loads(locales.path_of(language).read_text(encoding="utf-8"))
        assert {node: served[language]["nodeDefs"][node] for node in ours} == ours
