"""Which bank coefficients are of: a hash of its tensors, cheap enough to take whenever a bank is loaded."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .wording import clipped, shown

_DIGEST_BYTES = 16
_DIGEST = re.compile(rf"[0-9a-f]{{{2 * _DIGEST_BYTES}}}")
_LONGEST_NAME = 255
# Tensors up to this size are taken whole, such as the keys of a bank of the released size (32 of width 128); of larger
# ones some values, evenly spread: each costs a miss of the cache.
_WHOLE, _SAMPLES = 4096, 64


@dataclass(frozen=True)
class Fingerprint:
    """What tells one bank from another. Two are equal when their digests are, whatever the files are called.

    Attributes:
        digest: 32 hexadecimal digits.
        bank: the name of the file that it was taken of, for messages.

    Raises:
        ValueError: when they are not that.
    """

    digest: str
    bank: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if not (isinstance(self.digest, str) and _DIGEST.fullmatch(self.digest)):
            raise ValueError(f"the bank's fingerprint is {shown(self.digest)}; expected {2 * _DIGEST_BYTES} hex digits")
        if not isinstance(self.bank, str) or len(self.bank) > _LONGEST_NAME:
            raise ValueError(f"the bank's name is {shown(self.bank)}; expected text of at most {_LONGEST_NAME} letters")

    def as_document(self) -> dict[str, str]:
        """Its entries in a JSON document."""
        return {"bank": self.bank, "fingerprint": self.digest}

    @classmethod
    def of_document(cls, document: Mapping[str, Any]) -> Fingerprint | None:
        """The fingerprint in a JSON document; None when there is none.

        Raises:
            ValueError: when there is one that is not one.
        """
        digest = document.get("fingerprint")
        return None if digest is None else cls(digest, document.get("bank", ""))

    def __str__(self) -> str:
        return f"{clipped(self.bank, 80) or 'a bank'} (fingerprint {self.digest})"


class FingerprintTaker:
    """Takes the fingerprint of tensors that come one by one, in any order: a hash of each one's name, dtype, shape and
    values: all of a small tensor, some of a large one."""

    def __init__(self):
        self._parts: dict[str, bytes] = {}

    def add(self, name: str, tensor: Tensor) -> None:
        """Take in one tensor."""
        values = tensor.detach().flatten()
        # An odd step: one that divides a row's length would see a single column.
        step = (values.numel() // _SAMPLES) | 1 if values.numel() > _WHOLE else 1
        sample = values[::step].contiguous().view(torch.uint8).numpy()
        part = hashlib.blake2b(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode(), digest_size=_DIGEST_BYTES)
        part.update(sample)
        self._parts[name] = part.digest()

    def fingerprint(self, bank: str) -> Fingerprint:
        """The fingerprint of what was taken in.

        Args:
            bank: the file's name, for messages.
        """
        parts = (self._parts[name] for name in sorted(self._parts))
        return Fingerprint(hashlib.blake2b(b"".join(parts), digest_size=_DIGEST_BYTES).hexdigest(), bank)
