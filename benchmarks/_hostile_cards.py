"""Damaged and hostile edit cards, each from a seed."""

from __future__ import annotations

import base64
import json
import random
import struct
import zlib
from functools import lru_cache

import torch

from lorweb_core import MixingCoefficients
from lorweb_core.card import KEYWORD, EditCard
from lorweb_core.fingerprint import Fingerprint
from lorweb_core.pngtext import SIGNATURE

from ._hostile_cases import DEEP, DIGITS, EXTREMES, LAYERS, NAMES, VALUES, damage_bytes

_SIDES = (0, 1, 2, 8192, 8193, 2**31 - 1, 2**32 - 1)
_LETTERS = ("", "A", "=", "====", "*", "\u0663", "A" * 999, "////f38=", " ", "\n")
_BOMB = zlib.compress(bytes(2**25), 1)
_ODD = {
    b"zTXt": b"x\0\0" + _BOMB, b"iTXt": KEYWORD.encode() + b"\0\1\0\0\0" + _BOMB, b"iCCP": b"x\0\0" + _BOMB,
    b"PLTE": b"abcde", b"tRNS": b"x" * 999, b"gAMA": b"", b"pHYs": b"1", b"eXIf": b"Exif\0\0" + b"*" * 99,
    b"acTL": struct.pack(">II", 2**31, 0), b"fdAT": b"", b"IDAT": b"", b"IEND": b"x", b"abcd": b"y" * 9999,
}  # fmt: skip


def damaged_card(rng: random.Random) -> bytes:
    """The bytes of an edit card, a picture or JSON alone, that something happened to."""
    text = _damaged_text(rng) if rng.random() < 0.6 else json.dumps(_sound())
    raw = text.encode(rng.choice(("utf-8", "utf-8", "utf-8", "utf-16")), errors="surrogatepass")
    data = _picture(raw, rng) if rng.random() < 0.7 else raw
    return damage_bytes(data, rng) if rng.random() < 0.2 else data


@lru_cache
def _sound_text() -> str:
    coefficients = MixingCoefficients(torch.full((len(LAYERS), 4), 0.25), LAYERS, fingerprint=Fingerprint("0" * 32))
    return EditCard(coefficients, "a name", prompt="words").to_json()


def _sound() -> dict:
    return json.loads(_sound_text())


def _damaged_text(rng: random.Random) -> str:
    document = _sound()
    kind = rng.randrange(5)
    if kind == 0:
        document[rng.choice(list(document))] = rng.choice(VALUES)
    elif kind == 1:
        layers = [*LAYERS[:2], rng.choice((*NAMES, *VALUES))]
        document["layers"] = rng.choice((layers, layers * 2, layers[:1], list(map(str, range(9999)))))
    elif kind == 2:
        numbers = torch.full((12,), 0.25)
        numbers[rng.randrange(12)] = rng.choice(EXTREMES)
        document["values"] = base64.b64encode(numbers.numpy().tobytes()).decode()
    elif kind == 3:
        at, values = rng.randrange(60), document["values"]
        document["values"] = values[:at] + rng.choice(_LETTERS) + values[at + rng.randrange(2) :]
    text = json.dumps(document)
    if kind == 4:
        at = rng.randrange(len(text))
        text = (
            text[:at] + rng.choice(("", DEEP, DIGITS, "{", '"', "NaN", "\ud800", "\x00", "," * 9999)) + text[at + 1 :]
        )
    return text


def _picture(text: bytes, rng: random.Random) -> bytes:
    """A picture of 4 x 4 pixels that holds a text, with something odd in it as often as not."""
    width, height = (rng.choice(_SIDES), rng.choice(_SIDES)) if rng.random() < 0.1 else (4, 4)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"tEXt", KEYWORD.encode() + b"\0" + text), (b"IDAT", zlib.compress(bytes(4 * 13)))]
    kind = rng.randrange(8)
    if kind == 0:
        chunks.insert(rng.randrange(4), rng.choice(list(_ODD.items())))
    elif kind == 1:
        chunks[2] = (b"IDAT", rng.choice((_BOMB, b"", zlib.compress(b""), rng.randbytes(99))))
    elif kind == 2:
        del chunks[rng.randrange(3)]
    elif kind == 3:
        chunks *= rng.choice((2, 100))
    elif kind == 4:
        rng.shuffle(chunks)
    elif kind == 5:
        chunks[0] = (b"IHDR", header[:8] + rng.randbytes(rng.choice((0, 4, 5, 9))))
    return SIGNATURE + b"".join(_chunk(*chunk) for chunk in [*chunks, (b"IEND", b"")])


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
