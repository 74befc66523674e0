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
# Bytes: tensors up to this size are taken whole; of larger ones a run at the beginning, in the middle and at the end.
# Values that lie apart would cost a miss of the cache each, which adds up over a bank's two thousand tensors.
_WHOLE, _RUN = 512, 128


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
        content = tensor.detach().reshape(-1).view(torch.uint8).numpy()
        part = hashlib.blake2b(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode(), digest_size=_DIGEST_BYTES)
        middle = len(content) // 2
        runs = content[:_RUN], content[middle : middle + _RUN], content[-_RUN:]
        for run in runs if len(content) > _WHOLE else (content,):
            part.update(run)
        self._parts[name] = part.digest()

    def fingerprint(self, bank: str) -> Fingerprint:
        """The fingerprint of what was taken in.

        Args:
            bank: the file's name, for messages.
        """
        parts = (self._parts[name] for name in sorted(self._parts))
        return Fingerprint(hashlib.blake2b(b"".join(parts), digest_size=_DIGEST_BYTES).hexdigest(), bank)
