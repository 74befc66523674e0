"""Fetch the listed photographs out of Debian's packages, with their credits checked, and scale them down."""

import io
import logging
import re
import shutil
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path, PurePosixPath

from PIL import Image, ImageOps

from .photographs import FOLDER, IN_WHEELS, Source, load_from_wheel, read_sources
from .qt_resources import QtResources

logger = logging.getLogger(__name__)

SHORTER_SIDE = 448
QUALITY = 82
_RESOURCES = ".rcc"
_OF_MANY = ("README", "copyright")  # names of credits of many photographs, in paragraphs


def fetch_photographs(folder: Path = FOLDER) -> None:
    """Write ``<folder>/<name>.jpg`` of every listed photograph and of those in the wheels; all of them or none.

    The packages stay beside the folder.

    Raises:
        ValueError: when a package cannot be fetched, or does not credit a photograph as the list does.
    """
    unfinished, packages = folder.with_suffix(".part"), folder.parent / "packages"
    unfinished.mkdir(parents=True, exist_ok=True)
    sources = read_sources()
    for package in dict.fromkeys(source.package for source in sources.values()):
        root = unpack(package, packages)
        extract(root, {name: source for name, source in sources.items() if source.package == package}, unfinished)
    for name in IN_WHEELS:
        save(Image.fromarray(load_from_wheel(name)), unfinished / f"{name}.jpg")
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)
    logger.info("%s: %d photographs", folder, len(sources) + len(IN_WHEELS))


def unpack(package: str, folder: Path) -> Path:
    """The unpacked content of a package of Debian, downloaded when it is not there yet.

    Raises:
        ValueError: when apt-get or dpkg-deb fail.
    """
    root = folder / package
    if not root.is_dir():
        logger.info("downloading %s", package)
        folder.mkdir(parents=True, exist_ok=True)
        _call(["apt-get", "download", package], folder)
        (archive,) = folder.glob(f"{package}_*.deb")
        _call(["dpkg-deb", "-x", archive.name, package], folder)
        archive.unlink()
    return root


def _call(command: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise ValueError(f"{command[0]} is missing; the photographs come out of packages of Debian") from error
    if done.returncode:
        raise ValueError(f"{' '.join(command)}: {done.stderr.strip()}; does `apt-get update` help?")


def extract(root: Path, sources: Mapping[str, Source], folder: Path) -> None:
    """Write the photographs of an unpacked package.

    Raises:
        ValueError: when one is missing, or its credits do not name author and licence as the list does.
    """
    for name, source in sources.items():
        credits = read(root, source.credits).decode("utf-8")
        if not is_credited(credits, source):
            raise ValueError(
                f"{root}/{source.credits}: does not say that {source.picture.name} is by {source.author} under "
                f"{source.licence}, as photographs.yaml does; read it and correct the list"
            )
        with Image.open(io.BytesIO(read(root, source.picture))) as picture:
            save(picture, folder / f"{name}.jpg")


def read(root: Path, path: PurePosixPath) -> bytes:
    """A file of a package, or one inside a file of Qt resources.

    Raises:
        ValueError: when it is missing.
    """
    for parent in path.parents:
        if parent.suffix == _RESOURCES:
            return _resources(root / parent).read(path.relative_to(parent))
    file = root / path
    if not file.is_file():
        raise ValueError(f"{file}: missing; another version of the package? correct photographs.yaml")
    return file.read_bytes()


@cache
def _resources(path: Path) -> QtResources:
    return QtResources(path)


def is_credited(credits: str, source: Source) -> bool:
    """Whether a text names author and licence of a photograph: in a paragraph with its file, where it is of many."""
    texts = [credits]
    if source.credits.name in _OF_MANY:
        texts = [text for text in re.split(r"\n\s*\n", credits) if f"{source.picture.stem}." in text]
    return any(source.author in text and _plain(source.licence) in _plain(text) for text in texts)


def _plain(text: str) -> str:
    """Public Domain and CC-BY 2.0 are public-domain and CC-BY-2.0."""
    return text.lower().replace(" ", "-")


def save(picture: Image.Image, path: Path) -> None:
    """Write a picture as JPEG, with its shorter side at most ``SHORTER_SIDE``."""
    picture = ImageOps.exif_transpose(picture).convert("RGB")
    scale = min(1, SHORTER_SIDE / min(picture.size))
    size = tuple(round(scale * length) for length in picture.size)
    picture.resize(size, Image.Resampling.LANCZOS).save(path, quality=QUALITY, optimize=True)
