"""Where the starter's photographs come from, and crops of them."""

import re
import struct
import subprocess
import zlib
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from PIL import Image

from training.pictures import photograph_packages, photographs
from training.pictures.photograph_packages import extract, is_credited, unpack
from training.pictures.photographs import Source
from training.pictures.qt_resources import QtResources
from training.starter.__main__ import main

FREE = re.compile(r"CC0-1\.0|public-domain|CC-BY(-SA)?-[234]\.0|GPL-2\+|LGPLv3")
UNCONDITIONAL = ("CC0-1.0", "public-domain")


def test_the_list_is_of_free_photographs_each_named_once():
    sources = photographs.read_sources()
    entries = re.findall(r"^    (\w+): \{", photographs._LIST.read_text(encoding="utf-8"), re.MULTILINE)
    assert list(sources) == entries and not set(entries) & set(photographs.IN_WHEELS)
    assert len(sources) >= 200 and len({(s.package, s.picture) for s in sources.values()}) == len(sources)
    assert all(FREE.fullmatch(source.licence) and source.author for source in sources.values())


def test_an_eighth_is_held_out_and_may_be_shown():
    sources = photographs.read_sources().values()
    held_out = [source for source in sources if source.held_out]
    assert 0.09 < len(held_out) / len(sources) < 0.14
    assert all(source.licence in UNCONDITIONAL for source in held_out)


def resources(files: dict[str, bytes], compressed: tuple[str, ...] = ()) -> bytes:
    """A file of Qt resources with a folder ``pictures`` in its root, as version 2 of the format has it."""
    names, data, entries = b"", b"", []

    def name(text: str) -> int:
        nonlocal names
        start = len(names)
        names += struct.pack(">HI", len(text), 0) + text.encode("utf-16-be")
        return start

    entries.append(struct.pack(">IHIIQ", 0, 2, 1, 1, 0))
    entries.append(struct.pack(">IHIIQ", name("pictures"), 2, len(files), 2, 0))
    for path, content in files.items():
        packed = path in compressed
        stored = struct.pack(">I", len(content)) + zlib.compress(content) if packed else content
        entries.append(struct.pack(">IHIIQ", name(path), packed, 0, len(data), 0))
        data += struct.pack(">I", len(stored)) + stored
    tree = b"".join(entries)
    header = struct.pack(">4sIIII", b"qres", 2, 20, 20 + len(tree), 20 + len(tree) + len(data))
    return header + tree + data + names


def test_files_are_read_out_of_qt_resources(tmp_path):
    (tmp_path / "some.rcc").write_bytes(resources({"a.txt": b"plain", "b.txt": b"deflated" * 9}, ("b.txt",)))
    found = QtResources(tmp_path / "some.rcc")
    assert found.read(PurePosixPath("pictures/a.txt")) == b"plain"
    assert found.read(PurePosixPath("pictures/b.txt")) == b"deflated" * 9
    for missing in ("pictures/c.txt", "a.txt", "pictures/a.txt/b"):
        with pytest.raises(ValueError, match=f"some.rcc: there is no {missing} inside"):
            found.read(PurePosixPath(missing))
    (tmp_path / "no.rcc").write_bytes(b"PNG")
    with pytest.raises(ValueError, match=r"no.rcc: expected a file of Qt resources"):
        QtResources(tmp_path / "no.rcc")


CREDITS = """\
Copyright: Ann
License: Public Domain
Files:
other.png

Copyright: Bo
License: CC-BY-SA 4.0
Files:
owl.png
"""


def source(author: str = "Bo", licence: str = "CC-BY-SA-4.0", inner: str = "p.rcc/pictures") -> Source:
    return Source("birds", PurePosixPath(inner, "owl.png"), PurePosixPath(inner, "README"), licence, author)


@pytest.fixture
def package(tmp_path) -> Path:
    """An unpacked package with a picture in a file of Qt resources."""
    pixels = np.zeros((600, 900, 4), np.uint8)
    pixels[...] = (200, 100, 50, 255)
    Image.fromarray(pixels).save(tmp_path / "owl.png")
    files = {"owl.png": (tmp_path / "owl.png").read_bytes(), "README": CREDITS.encode()}
    (tmp_path / "birds").mkdir()
    (tmp_path / "birds" / "p.rcc").write_bytes(resources(files))
    return tmp_path / "birds"


def test_a_photograph_is_taken_out_and_scaled_down(package, tmp_path):
    extract(package, {"night_owl": source()}, tmp_path)
    with Image.open(tmp_path / "night_owl.jpg") as picture:
        assert picture.mode == "RGB" and picture.size == (672, photograph_packages.SHORTER_SIDE)
        assert np.abs(np.asarray(picture).astype(int) - (200, 100, 50)).max() < 4


@pytest.mark.parametrize("wrong", [{"author": "Ann"}, {"licence": "public-domain"}, {"author": "Cy"}])
def test_a_photograph_that_is_credited_otherwise_is_refused(package, tmp_path, wrong):
    with pytest.raises(ValueError, match=r"README: does not say that owl.png is by .* read it and correct the list"):
        extract(package, {"owl": source(**wrong)}, tmp_path)


def test_credits_of_one_photograph_need_not_name_its_file():
    alone = Source("birds", PurePosixPath("Owl/1.jpg"), PurePosixPath("Owl/metadata.json"), "LGPLv3", "Bo")
    assert is_credited('{"Name": "Bo",\n\n"License": "LGPLv3"}', alone)


def test_a_file_that_a_package_lacks_is_named(package, tmp_path):
    with pytest.raises(ValueError, match=r"README: missing; another version of the package\?"):
        extract(package, {"owl": source(inner="elsewhere")}, tmp_path)


def test_packages_are_unpacked_once_and_an_unknown_one_is_named(tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    assert unpack("there", tmp_path) == tmp_path / "there"
    failed = subprocess.CompletedProcess([], 100, "", "E: Unable to locate package")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(ValueError, match=r"apt-get download absent: E: Unable .*; does `apt-get update` help\?"):
        unpack("absent", tmp_path)


def test_the_command_fetches(monkeypatch):
    called = []
    monkeypatch.setattr("training.starter.__main__.fetch_photographs", lambda: called.append(True))
    assert main(["photographs"]) == 0 and called


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty folder of photographs."""
    monkeypatch.setattr(photographs, "FOLDER", tmp_path)
    photographs._picture.cache_clear()
    yield tmp_path
    photographs._picture.cache_clear()


def test_the_folder_comes_before_the_wheels(folder):
    assert photographs.load("coffee").shape == (400, 600, 3)
    photographs._picture.cache_clear()
    Image.new("RGB", (40, 30), "red").save(folder / "coffee.jpg")
    assert photographs.load("coffee").shape == (30, 40, 3)


def test_a_missing_photograph_names_the_command(folder):
    with pytest.raises(ValueError, match=r"kingfisher.jpg: .* fetch .* with: python -m training.starter photographs"):
        photographs.random_crop(np.random.default_rng(0), "kingfisher", 64)


def test_crops_of_a_small_photograph_are_hardly_enlarged(folder):
    """Of 128 stripes, at least 96 pixels' are in a crop."""
    stripes = np.tile(np.repeat([0, 255], 2), 32)
    Image.fromarray(np.broadcast_to(stripes.astype(np.uint8), (128, 128))).save(folder / "stripes.jpg", quality=95)
    for seed in range(8):
        crop = np.asarray(photographs._crop(np.random.default_rng(seed), "stripes", 128).convert("L")).astype(int)
        edges = (np.diff((crop > 127).astype(int), axis=1) != 0).sum(1)
        assert edges.min() >= 96 / 2 - 2 and edges.max() <= 0.8 * 128 / 2 + 1
