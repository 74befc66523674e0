"""Small data sets on disk: patterns made on the fly, and scikit-image's photographs."""

import json
from multiprocessing import get_context

import numpy as np
import pytest
from PIL import Image
from skimage import data


def _pattern(size, seed):
    width, height = size
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture
def picture():
    """picture(path, size, seed): write random pixels and return the path."""

    def write(path, size=(12, 8), seed=0):
        path.parent.mkdir(parents=True, exist_ok=True)
        _pattern(size, seed).save(path)
        return path

    return write


@pytest.fixture
def truncate():
    """truncate(path): keep the first half of a file."""

    def cut(path):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        return path

    return cut


@pytest.fixture
def forked():
    """forked(function): call it in a copy of this process, which has everything imported; returns the exit status."""

    def call(function):
        process = get_context("fork").Process(target=function)
        process.start()
        process.join()
        return process.exitcode

    return call


@pytest.fixture
def relation(picture):
    """relation(folder, {task: pairs}): Relation252K with side-by-side images of 24 x 8 pixels."""

    def build(folder, tasks, group="Group1"):
        for number, (task, pairs) in enumerate(tasks.items()):
            labels = []
            for i in range(pairs):
                seed = 1000 * number + 100 * (group == "Group2") + i
                picture(folder / task / group / f"{i}.png", (24, 8), seed=seed)
                labels.append({"img_name": f"{i}.png", "edit_instruction": f"{task} number {i}"})
            (folder / task / group / "labels.json").write_text(json.dumps(labels))
        return folder

    return build


@pytest.fixture
def manifest(relation, tmp_path):
    """manifest({task: pairs}): a prepared manifest of random pictures."""
    from training.data import Manifest
    from training.data.sources import reader_of
    from training.data.writer import write_manifest

    def build(tasks, name="m"):
        source = relation(tmp_path / name, tasks)
        write_manifest(reader_of(source)[1](source), tmp_path / f"{name}.jsonl", workers=1)
        return Manifest.load(tmp_path / f"{name}.jsonl")

    return build


@pytest.fixture(scope="session")
def photographs(tmp_path_factory):
    """Plain folders of photographs: tasks "grey" and "mirror", before and after, as JPEG."""
    folder = tmp_path_factory.mktemp("photographs")
    for name in ("astronaut", "chelsea", "coffee", "rocket"):
        before = Image.fromarray(getattr(data, name)())
        edits = {
            "grey": before.convert("L").convert("RGB"),
            "mirror": before.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        }
        for task, after in edits.items():
            for side, image in (("before", before), ("after", after)):
                (folder / task / side).mkdir(parents=True, exist_ok=True)
                image.save(folder / task / side / f"{name}.jpg", quality=95)
    return folder


@pytest.fixture
def read_lines():
    """read_lines(path): the JSON lines of a file."""
    return lambda path: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def prepare(tmp_path, read_lines):
    """prepare(source, *options) -> (exit status, manifest lines, {bad file: reason})."""
    from training.prepare import main

    out = tmp_path / "out" / "manifest.jsonl"

    def run(source, *options):
        status = main([str(source), "--out", str(out), "--workers", "2", *options])
        listing = out.with_suffix(".bad.jsonl")
        bad = {item["file"]: item["reason"] for item in read_lines(listing)} if listing.exists() else {}
        return status, read_lines(out) if out.exists() else None, bad

    return run
