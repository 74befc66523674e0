"""Edit cards: one edit as a PNG that shows what it does and carries its coefficients in a text chunk.

A folder of cards is a gallery in any file manager. Cards come from strangers: only JSON is parsed, and every size is
bounded before anything is made of it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .atomic import replacing
from .checkpoint import KEYS, LORA_A, LORA_B, PREFIX, TO_Q
from .coefficients import MixingCoefficients
from .plot import thumbnail
from .wording import clipped, is_finite, shown

if TYPE_CHECKING:
    from PIL import Image

    from .bank import BasisBank

CARD_FORMAT, CARD_VERSION = "lorweb-edit", 1
CHUNK = "lorweb_edit"
# A card of the released bank has 0.1 MB of text.
_LARGEST_FILE, _LARGEST_TEXT = 64 * 2**20, 8 * 2**20
_MOST_LAYERS, _MOST_ELEMENTS = 20_000, 4096
_LONGEST = 4000  # letters of a name or a prompt
_SAMPLED = 8  # values of every tensor in a fingerprint
_PICTURE = 192  # side of a and a' on a card


def fingerprint(bank: BasisBank) -> str:
    """32 hexadecimal digits that tell a bank from others: a hash of the shapes and some values of all its tensors.

    The same for the same tensors, whatever the file is called. Reads a page or two of every tensor.
    """
    digest = hashlib.sha256()
    for layer in sorted(bank.layers):
        for name in (LORA_A, LORA_B, KEYS, TO_Q):
            if name == TO_Q and bank.config.projection == "none":
                continue
            tensor = bank.file.tensor(f"{PREFIX}{layer}.{name}")
            flat = tensor.reshape(-1)
            middle = max(0, flat.numel() // 2 - _SAMPLED // 2)
            values = flat[middle : middle + _SAMPLED].float().numpy().tobytes()
            digest.update(f"{layer}.{name} {tuple(tensor.shape)} ".encode() + values)
    return digest.hexdigest()[:32]


@dataclass(frozen=True)
class Card:
    """An edit and what has to be known to use it.

    Attributes:
        coefficients: one set.
        name: of the edit. prompt, strength: that it is meant to be used with.
        bank: file name of its bank. fingerprint: of that bank, "" where it is not known.
        query_mode, encoder, base_model, layout: of the bank.
    """

    coefficients: MixingCoefficients
    name: str = ""
    prompt: str = ""
    strength: float = 1.0
    bank: str = ""
    fingerprint: str = ""
    query_mode: str = ""
    encoder: str = ""
    base_model: str = ""
    layout: str = "canvas"

    @classmethod
    def of(cls, bank: BasisBank, coefficients: MixingCoefficients, name: str = "", prompt: str = "") -> Card:
        """The card of an edit of a bank.

        Raises:
            ValueError: for a batch, or coefficients that the bank cannot have made.
        """
        config, coefficients = bank.config, bank.compose(coefficients).coefficients
        about = config.query_mode, config.encoder, config.base_model
        return cls(coefficients, name, prompt, 1.0, bank.path.name, fingerprint(bank), *about)

    def require_bank(self, bank: BasisBank) -> None:
        """Refuse another bank than the one that the edit was made with.

        Raises:
            ValueError: naming both.
        """
        found = fingerprint(bank)
        if self.fingerprint and found != self.fingerprint:
            raise ValueError(
                f"the edit {clipped(self.name, 80)!r} was made with the bank {clipped(self.bank, 80)}"
                f" ({self.fingerprint[:8]}), and {bank.path.name} is another ({found[:8]}); use that bank, or make the"
                " edit anew with this one"
            )

    def to_json(self) -> str:
        """The text of the chunk."""
        document = {field.name: getattr(self, field.name) for field in fields(self)[1:]}
        values = self.coefficients.values.float().contiguous()
        return json.dumps(
            {
                "format": CARD_FORMAT,
                "version": CARD_VERSION,
                **document,
                "softmax": self.coefficients.softmax,
                "layers": list(self.coefficients.layers),
                "elements": values.shape[1],
                "values": base64.b64encode(values.numpy().astype("<f4").tobytes()).decode("ascii"),
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Card:
        """Read what ``to_json`` wrote, or coefficients alone.

        Raises:
            ValueError: saying what is wrong with it.
        """
        if len(text) > _LARGEST_TEXT:
            raise ValueError(f"the edit is a text of {len(text):,} letters; expected at most {_LARGEST_TEXT:,}")
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:  # no JSON, too many digits, too deep
            raise ValueError(f"the edit is not JSON: {clipped(error)}") from error
        if not isinstance(document, dict) or document.get("format") != CARD_FORMAT:
            return cls(MixingCoefficients.from_json(text))
        if document.get("version") != CARD_VERSION:
            raise ValueError(
                f"the edit is of version {shown(document.get('version'))}, and this pack reads {CARD_VERSION}; update"
                " the node pack"
            )
        return cls(_coefficients(document), **_facts(document))


def _facts(document: dict[str, Any]) -> dict[str, Any]:
    facts = {field.name: document[field.name] for field in fields(Card)[1:] if field.name in document}
    for name, value in facts.items():
        if name == "strength":
            if not is_finite(value):
                raise ValueError(f"the edit's strength is {shown(value)}; expected a number")
        elif not isinstance(value, str) or len(value) > _LONGEST:
            raise ValueError(f"the edit's {name} is {shown(value)}; expected a text of at most {_LONGEST} letters")
    return facts


def _coefficients(document: dict[str, Any]) -> MixingCoefficients:
    layers, elements, softmax = (document.get(name) for name in ("layers", "elements", "softmax"))
    named = isinstance(layers, list) and all(isinstance(name, str) and len(name) <= _LONGEST for name in layers)
    if not named or not 1 <= len(layers) <= _MOST_LAYERS or len(set(layers)) < len(layers):
        raise ValueError(
            f"the edit's layers are {shown(layers)}; expected up to {_MOST_LAYERS} names, none of them twice"
        )
    if type(elements) is not int or not 1 <= elements <= _MOST_ELEMENTS or not isinstance(softmax, bool):
        raise ValueError(
            f"the edit has elements {shown(elements)} and softmax {shown(softmax)}; expected 1 to {_MOST_ELEMENTS}, and"
            " true or false"
        )
    try:
        data = base64.b64decode(document.get("values"), validate=True)
    except (TypeError, ValueError, binascii.Error) as error:
        raise ValueError(f"the edit's values are no base64 ({clipped(error)})") from error
    expected = 4 * len(layers) * elements
    if len(data) != expected:
        raise ValueError(
            f"the edit's values are {len(data):,} bytes; expected {expected:,}, float32 of {len(layers)} layers of"
            f" {elements}"
        )
    values = torch.frombuffer(bytearray(data), dtype=torch.float32).view(len(layers), elements)
    if not torch.isfinite(values).all():
        raise ValueError("the edit's values hold NaN or infinite ones; the card is damaged")
    return MixingCoefficients(values, tuple(layers), softmax)


def write_card(path: str | os.PathLike, card: Card, a: Tensor, a_prime: Tensor) -> None:
    """Write a card that shows a and a' [H, W, 3] in 0..1, the edit's name and its small heatmap."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text(CHUNK, card.to_json())
    with replacing(path) as temporary:
        draw_card(card, a, a_prime).save(temporary, format="PNG", pnginfo=info, optimize=True)


def draw_card(card: Card, a: Tensor, a_prime: Tensor) -> Image.Image:
    """The picture: a | a' over the heatmap, the name below a."""
    from PIL import Image, ImageDraw, ImageOps

    gap, heatmap = 12, Image.fromarray(thumbnail(card.coefficients))
    heatmap = ImageOps.contain(heatmap, (_PICTURE, _PICTURE))
    width, height = 2 * _PICTURE + 3 * gap, _PICTURE + heatmap.height + 3 * gap
    picture = Image.new("RGB", (width, height), "white")
    for place, image in enumerate((a, a_prime)):
        pixels = Image.fromarray(image.clamp(0, 1).mul(255).round().byte().cpu().numpy())
        picture.paste(ImageOps.pad(pixels, (_PICTURE, _PICTURE), color="white"), (gap + place * (_PICTURE + gap), gap))
    picture.paste(heatmap, (2 * gap + _PICTURE, _PICTURE + 2 * gap))
    lines = [clipped(line, 28) for line in (card.name, card.prompt, card.bank, card.base_model) if line]
    ImageDraw.Draw(picture).multiline_text((gap, _PICTURE + 2 * gap), "\n".join(lines), fill="black", font_size=13)
    return picture


def read_card(path: str | os.PathLike) -> Card:
    """Read a card, or a JSON file of an edit.

    Raises:
        ValueError: naming the file and what is wrong with it.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > _LARGEST_FILE:
            raise ValueError(f"it is {size:,} bytes long; an edit has at most {_LARGEST_FILE:,}")
        return Card.from_json(_text(path))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {clipped(error)}") from error


def _text(path: Path) -> str:
    """The text of a card's chunk, or of a JSON file.

    Raises:
        ValueError: when it is no whole PNG, or has no such chunk.
    """
    from PIL import Image

    with open(path, "rb") as file:
        if not file.read(8).startswith(b"\x89PNG"):
            file.seek(0)
            return file.read().decode("utf-8-sig")
        file.seek(0)
        try:
            with Image.open(file, formats=["PNG"]) as image:
                image.verify()  # reads all chunks and their checksums, and decodes no pixel
                text = image.info.get(CHUNK)
        except Exception as error:  # Pillow raises whatever a damaged file makes it stumble over
            raise ValueError(f"not a whole PNG ({clipped(error)}); copy or download it again") from error
    if not isinstance(text, str):
        raise ValueError(
            f"a picture without an edit: it has no text {CHUNK}. Programs that save a card anew may drop it"
        )
    return text
