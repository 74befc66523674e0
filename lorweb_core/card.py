"""Edit cards: a PNG that shows what an edit does and carries its mixing coefficients in one text chunk.

The text is a JSON object with ``format``, ``version`` and the entries that ``EditCard.to_json`` writes. Nothing but
JSON is parsed, and sizes are checked before anything is built from them.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .coefficients import JSON_FORMAT, MixingCoefficients
from .config import CANVAS
from .fingerprint import Fingerprint
from .pngtext import SIGNATURE, text_of
from .wording import clipped, is_finite, misspelt, shown

FORMAT, VERSION, KEYWORD = "lorweb-edit", 1, "lorweb_edit"
SOFTMAX, TANH = "softmax", "tanh"
LARGEST_FILE, LARGEST_TEXT = 32_000_000, 24_000_000
LARGEST_LAYERS, LARGEST_NUM_LORAS, LARGEST_VALUES = 4096, 4096, 1_000_000
_DEPTH = 4
_LONGEST_PATH, _LONGEST_WORD, _LONGEST_PROMPT = 200, 300, 10_000
# How far into a file ``is_card`` looks: past the header and a palette.
_HEAD = 2048


class CardError(ValueError):
    """An edit cannot be read from a file; the message names it and what is wrong."""


@dataclass(frozen=True)
class EditCard:
    """An edit, and what there is to know about it.

    Attributes:
        coefficients: one set; with the bank's fingerprint where that is known.
        name: what people call the edit.
        query_mode, encoder, base: of the bank, see ``BankConfig``; "" where nobody knows.
        layout: how a, a', b and b' lie in the model's picture.
        prompt: that goes with the edit.
        strength: at which it looks as it should.

    Raises:
        ValueError: for a batch, more coefficients than a card holds, or texts that are too long.
    """

    coefficients: MixingCoefficients
    name: str = ""
    query_mode: str = ""
    encoder: str = ""
    base: str = ""
    layout: str = CANVAS
    prompt: str = ""
    strength: float = 1.0

    def __post_init__(self) -> None:
        self.coefficients.require_single("An edit card")
        _check_sizes(self.coefficients.layers, self.coefficients.num_loras)
        for name in _WORDS:
            _check_word(name, getattr(self, name), _LONGEST_PROMPT if name == "prompt" else _LONGEST_WORD)
        if not is_finite(self.strength):
            raise ValueError(f"strength is {shown(self.strength)}; expected a finite number")

    def to_json(self) -> str:
        """ASCII text that ``from_json`` reads back to the same card."""
        c = self.coefficients
        words = {name: getattr(self, name) for name in _WORDS if getattr(self, name) != _WORDS[name]}
        numbers = c.values.detach().to("cpu", torch.float32).contiguous().numpy().astype("<f4").tobytes()
        document = {
            "format": FORMAT, "version": VERSION, **words, "strength": self.strength,
            "activation": SOFTMAX if c.softmax else TANH,
            **({} if c.fingerprint is None else c.fingerprint.as_document()),
            "num_loras": c.num_loras, "layers": list(c.layers), "values": base64.b64encode(numbers).decode("ascii"),
        }  # fmt: skip
        return json.dumps(document)

    @classmethod
    def from_json(cls, text: str | bytes) -> EditCard:
        """Read what ``to_json`` wrote, or plain coefficients as ``MixingCoefficients.to_json`` writes them.

        Raises:
            ValueError: saying what is wrong with the text.
        """
        document = _parse(text)
        if document.get("format") == JSON_FORMAT:
            return cls(MixingCoefficients.from_document(document))
        if document.get("format") != FORMAT:
            raise ValueError(f'expected "format": "{FORMAT}" or "{JSON_FORMAT}"; found {shown(document.get("format"))}')
        if document.get("version") != VERSION:
            raise ValueError(
                f"the card is of version {shown(document.get('version'))}, and this pack reads {VERSION}; update the"
                " node pack"
            )
        words = {name: document.get(name, default) for name, default in _WORDS.items()}
        return cls(_read_coefficients(document), **words, strength=document.get("strength", 1.0))

    def describe(self) -> str:
        """One line for lists and nodes: the name, the size and whose it is."""
        c = self.coefficients
        bank = "of an unknown bank" if c.fingerprint is None else f"of {c.fingerprint}"
        layout = "" if self.layout == CANVAS else f", layout {clipped(self.layout, 40)}"
        return f"{self.name or 'an edit without a name'}: {len(c.layers)} layers x {c.num_loras}, {bank}{layout}"


# The texts of a card and what they are when its file is silent.
_WORDS: dict[str, str] = {f.name: f.default for f in fields(EditCard) if f.name not in ("coefficients", "strength")}


def load_card(path: str | os.PathLike) -> EditCard:
    """Read an edit card, or JSON of one or of plain coefficients; which it is, its content says.

    Raises:
        CardError: naming the file and what is wrong with it.
    """
    with reading(path):
        return EditCard.from_json(_text_in(read_bounded(path)))


def is_card(path: str | os.PathLike) -> bool:
    """Whether a PNG file looks like an edit card, by its first bytes: for lists of files."""
    try:
        with open(path, "rb") as file:
            return f"tEXt{KEYWORD}\0".encode() in file.read(_HEAD)
    except OSError:
        return False


@contextmanager
def reading(path: str | os.PathLike) -> Iterator[None]:
    """Make what goes wrong inside one CardError that names the file."""
    try:
        yield
    except (ValueError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise CardError(f"{clipped(path, 500)}: no edit can be read: {clipped(reason, 1000)}") from error


def read_bounded(path: str | os.PathLike) -> bytes:
    """The bytes of a file of at most 32 MB.

    Raises:
        ValueError: when it is larger, or no file.
        OSError: when it cannot be read.
    """
    if Path(path).exists() and not Path(path).is_file():
        raise ValueError("this is not a file")
    with open(path, "rb") as file:
        content = file.read(LARGEST_FILE + 1)
    if len(content) > LARGEST_FILE:
        raise ValueError(f"the file is larger than {LARGEST_FILE:,} bytes; cards have a few hundred thousand")
    return content


def _text_in(content: bytes) -> bytes:
    """The JSON text in the bytes of a file."""
    if content.startswith(SIGNATURE):
        return text_of(content, KEYWORD)
    if not content.lstrip().startswith(b"{"):
        raise ValueError("the file is neither a PNG picture nor a JSON object")
    return content


def _parse(text: str | bytes) -> dict[str, Any]:
    """The JSON object in a text whose size and nesting are bounded."""
    if len(text) > LARGEST_TEXT:
        raise ValueError(f"the text has a size of {len(text):,}; an edit has at most {LARGEST_TEXT:,}")
    try:
        text = text if isinstance(text, str) else text.decode("utf-8")
        _check_structure(text)
        document = json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"the text is not JSON: {clipped(error)}") from error
    if not isinstance(document, dict):
        raise ValueError("the text is JSON, but not an object with a format")
    return document


def _check_structure(text: str) -> None:
    """Refuse deep nesting and millions of elements from the signs between strings, before a parser builds them."""
    signs = re.sub(r'"[^"]*"?', "", re.sub(r"\\.", "", text, flags=re.DOTALL))
    brackets = re.sub(r"[^][{}]+", "", signs)
    if signs.count(",") > LARGEST_VALUES + 2 * LARGEST_LAYERS or len(brackets) > 2 * LARGEST_LAYERS + 16:
        raise ValueError(f"the JSON has more parts than {LARGEST_VALUES:,} coefficients of {LARGEST_LAYERS:,} layers")
    depth = 0
    for sign in brackets:
        depth += 1 if sign in "[{" else -1
        if depth > _DEPTH:
            raise ValueError(f"the JSON is nested deeper than {_DEPTH}; an edit is not")


def _read_coefficients(document: Mapping[str, Any]) -> MixingCoefficients:
    layers, num_loras, activation = (document.get(name) for name in ("layers", "num_loras", "activation"))
    if activation not in (SOFTMAX, TANH):
        raise ValueError(
            f"activation is {shown(activation)}; expected {SOFTMAX} or {TANH}{misspelt('activation', document)}"
        )
    if not isinstance(layers, list) or not all(isinstance(layer, str) for layer in layers):
        raise ValueError(f"layers is {shown(layers)}; expected a list of module paths{misspelt('layers', document)}")
    _check_sizes(layers, num_loras)
    values = _read_values(document.get("values"), len(layers), num_loras)
    return MixingCoefficients(values, tuple(layers), activation == SOFTMAX, Fingerprint.of_document(document))


def _read_values(text: Any, layers: int, num_loras: int) -> Tensor:
    """The coefficients [L, N] from base64 of little-endian float32."""
    size = 4 * layers * num_loras
    length = 4 * -(-size // 3)
    if not isinstance(text, str) or len(text) != length:
        raise ValueError(
            f"values of {layers} layers x {num_loras} are {length:,} letters of base64; found"
            f" {f'{len(text):,}' if isinstance(text, str) else shown(text)}"
        )
    try:
        numbers = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"values are not base64: {clipped(error)}") from error
    if len(numbers) != size:
        raise ValueError(f"values hold {len(numbers):,} bytes; expected {size:,}")
    import numpy as np

    return torch.from_numpy(np.frombuffer(numbers, "<f4").astype("f4")).view(layers, num_loras)


def _check_sizes(layers: list[str] | tuple[str, ...], num_loras: Any) -> None:
    if not isinstance(num_loras, int) or isinstance(num_loras, bool) or not 1 <= num_loras <= LARGEST_NUM_LORAS:
        raise ValueError(f"num_loras is {shown(num_loras)}; expected a whole number from 1 to {LARGEST_NUM_LORAS:,}")
    if not 1 <= len(layers) <= LARGEST_LAYERS or len(layers) * num_loras > LARGEST_VALUES:
        raise ValueError(
            f"{len(layers):,} layers x {num_loras:,} is no edit: cards hold 1 to {LARGEST_LAYERS:,} layers and up to"
            f" {LARGEST_VALUES:,} coefficients"
        )
    if len(set(layers)) < len(layers) or max(map(len, layers)) > _LONGEST_PATH:
        raise ValueError(f"layers come twice, or have names of more than {_LONGEST_PATH} letters")


def _check_word(name: str, value: Any, longest: int) -> None:
    if not isinstance(value, str) or len(value) > longest:
        raise ValueError(f"{name} is {shown(value)}; expected text of at most {longest:,} letters")
