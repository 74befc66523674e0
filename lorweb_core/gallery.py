"""Finding edits: cards in folders, ranked by how near their coefficients are."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from .card import CardError, EditCard, load_card
from .coefficients import MixingCoefficients

EXTENSIONS = (".png", ".json")


@dataclass(frozen=True)
class Gallery:
    """The edits of some files.

    Attributes:
        cards: path -> card.
        refused: path -> why there is no edit in it.
    """

    cards: dict[Path, EditCard]
    refused: dict[Path, str]

    @classmethod
    def of(cls, paths: Iterable[str | os.PathLike]) -> Gallery:
        """Read files; what has no edit in it is told of, and stops nothing."""
        cards: dict[Path, EditCard] = {}
        refused: dict[Path, str] = {}
        for path in map(Path, paths):
            try:
                cards[path] = load_card(path)
            except CardError as error:
                refused[path] = str(error)
        return cls(cards, refused)

    @classmethod
    def of_folder(cls, folder: str | os.PathLike) -> Gallery:
        """The PNG and JSON files of a folder and the folders in it.

        Raises:
            CardError: when there is no such folder.
        """
        if not Path(folder).is_dir():
            raise CardError(f"{folder}: there is no such folder")
        return cls.of(sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in EXTENSIONS))

    def like(self, edit: MixingCoefficients) -> Gallery:
        """The edits that can be compared with one: of its bank, and not the very same; the others among the refused."""
        cards, refused = {}, dict(self.refused)
        for path, card in self.cards.items():
            reason = _incomparable(edit, card.coefficients)
            if reason:
                refused[path] = f"{path}: {reason}"
            else:
                cards[path] = card
        return Gallery(cards, refused)


@dataclass(frozen=True)
class Match:
    """A card that was found, and its cosine with what it was sought by."""

    path: Path
    card: EditCard
    cosine: float


def nearest(edit: MixingCoefficients, cards: Mapping[Path, EditCard], k: int) -> list[Match]:
    """The k cards whose coefficients have the largest cosine with an edit's, the folder's mean taken off both.

    Args:
        cards: as ``Gallery.like`` gives them for the edit.

    Raises:
        ValueError: for a batch, or k below 1.
    """
    edit.require_single("A search")
    if k < 1:
        raise ValueError(f"k is {k}; it must be at least 1")
    if not cards:
        return []
    folder = torch.stack([_vector(card.coefficients, edit.layers) for card in cards.values()])
    cosines = centred_cosines(_vector(edit, edit.layers)[None], folder)[0]
    order = cosines.argsort(descending=True, stable=True)[:k].tolist()
    found = list(cards.items())
    return [Match(*found[index], float(cosines[index])) for index in order]


def centred_cosines(vectors: Tensor, among: Tensor) -> Tensor:
    """Cosines of vectors [m, e] with others [n, e], after the mean of the others is taken off both: [m, n].

    Coefficients have a large part in common, whatever the edit; without their mean every cosine is near 1. A vector
    that is the mean itself has the cosine 0 with all.
    """
    mean = among.mean(0)
    return F.normalize(vectors - mean, dim=1) @ F.normalize(among - mean, dim=1).T


def _vector(coefficients: MixingCoefficients, layers: tuple[str, ...]) -> Tensor:
    """All coefficients [L * N], layers in a given order."""
    place = {name: row for row, name in enumerate(coefficients.layers)}
    return coefficients.values[[place[name] for name in layers]].float().flatten()


def _incomparable(edit: MixingCoefficients, other: MixingCoefficients) -> str:
    """Why two edits have no cosine; empty when they have one."""
    if None not in (edit.fingerprint, other.fingerprint) and edit.fingerprint != other.fingerprint:
        return f"an edit of {other.fingerprint}, which another bank's edits are not like"
    if (set(edit.layers), edit.num_loras, edit.softmax) != (set(other.layers), other.num_loras, other.softmax):
        return f"an edit of another bank, for {other.describe()}"
    same = torch.equal(_vector(edit, edit.layers), _vector(other, edit.layers))
    return "the very edit that others are sought for" if same else ""
