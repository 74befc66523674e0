"""Image files to tensors: whole files, halves and quarters of files, every failure with the file's name."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from ..hashing import content_hash
from .errors import ImageError

SUFFIXES = frozenset((".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff"))
# Pictures too, but not every Pillow reads them.
UNREAD = frozenset((".avif", ".gif", ".heic", ".heif", ".jp2", ".jxl"))
# The part of a file that is one image: (column, row) of how many (columns, rows).
PARTS: dict[str, tuple[int, int, int, int]] = {
    "": (0, 0, 1, 1),
    "left": (0, 0, 2, 1),
    "right": (1, 0, 2, 1),
    "top-left": (0, 0, 2, 2),
    "top-right": (1, 0, 2, 2),
    "bottom-left": (0, 1, 2, 2),
    "bottom-right": (1, 1, 2, 2),
}


@dataclass(frozen=True)
class ImageRef:
    """An image on disk.

    Attributes:
        hash: ``content_hash`` of the whole file.
        part: a key of ``PARTS``: the part of the file that is meant.
    """

    path: Path
    hash: str
    part: str = ""

    @property
    def key(self) -> str:
        """Identity of the pixels, wherever the file lies."""
        return f"{self.hash}.{self.part}" if self.part else self.hash


@dataclass(frozen=True)
class FileFacts:
    """What a look at a file tells: (width, height) in pixels as displayed, and the content hash."""

    size: tuple[int, int]
    hash: str


def inspect_file(path: Path, quick: bool = False) -> FileFacts:
    """Decode the whole image, or only its header when ``quick``.

    Raises:
        ImageError: when the file is missing, not an image, or broken.
    """
    data = _read(path)
    with _opened(path, data) as image:
        # Pillow turns a TIFF while it decodes, and its versions differ in what they say before.
        size = _upright_size(image) if quick and image.format != "TIFF" else _decode(image).size
    return FileFacts(size, content_hash(data))


def read_image(path: Path) -> Tensor:
    """Any image file as [H, W, 3] in 0..1.

    Raises:
        ImageError: when the file is missing or broken.
    """
    data = _read(path)
    with _opened(path, data) as image:
        return _to_tensor(_decode(image))


def load_image(ref: ImageRef) -> Tensor:
    """The image as [H, W, 3] in 0..1.

    Raises:
        ImageError: when the file is missing or broken, or is another one than the manifest was made from.
    """
    return load_images([ref])[0]


def load_images(refs: Sequence[ImageRef]) -> list[Tensor]:
    """``load_image`` of several; a file that holds more than one of them is decoded once."""
    files = {ref.path: ref for ref in refs}
    decoded = {path: _load_file(ref) for path, ref in files.items()}
    return [_to_tensor(_cut(decoded[ref.path], ref.part)) for ref in refs]


def _load_file(ref: ImageRef) -> Image.Image:
    data = _read(ref.path)
    found = content_hash(data)
    if found != ref.hash:
        raise ImageError(
            ref.path,
            f"the file has changed since the manifest was made (content hash {found}, the manifest says {ref.hash});"
            " run `python -m training.prepare` again",
        )
    with _opened(ref.path, data) as image:
        return _decode(image)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        raise ImageError(path, f"cannot be read: {getattr(error, 'strerror', None) or error}") from error


@contextmanager
def _opened(path: Path, data: bytes) -> Iterator[Image.Image]:
    """The image in ``data``, not yet decoded; failures inside become an ImageError."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            yield image
    except Exception as error:  # Pillow's decoders raise whatever a damaged file makes them stumble over.
        raise ImageError(path, f"not a readable image, {_describe(error, data)}; restore or delete it") from error


def _describe(error: Exception, data: bytes) -> str:
    if not data:
        return "the file is empty"
    reason = "the format is not recognised" if isinstance(error, Image.UnidentifiedImageError) else str(error)
    return f"{reason} ({len(data):,} bytes)"


def _upright_size(image: Image.Image) -> tuple[int, int]:
    # The base class's method: PNG's own decodes the whole image when its header holds no EXIF.
    sideways = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1) >= 5
    return image.size[::-1] if sideways else image.size


def _decode(image: Image.Image) -> Image.Image:
    """8-bit RGB, upright; transparency is dropped as ComfyUI does, 16-bit greys are scaled rather than clipped."""
    upright = ImageOps.exif_transpose(image)
    if upright.mode == "F":
        raise ValueError("32-bit floating point pixels have no known range, save it with 8 or 16 bits")
    if upright.mode.startswith("I"):
        greys = np.asarray(upright).astype(np.int64).clip(0, 65535) // 257
        upright = Image.fromarray(greys.astype(np.uint8))
    return upright.convert("RGB")


def _cut(image: Image.Image, part: str) -> Image.Image:
    column, row, columns, rows = PARTS[part]
    width, height = image.width // columns, image.height // rows
    return image.crop((column * width, row * height, (column + 1) * width, (row + 1) * height)) if part else image


def _to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).float().div_(255)
