"""A headless Chromium for the tier. Without one the tests are skipped; with ``CI`` set, they fail."""

from __future__ import annotations

import os

import pytest

from harness.browser import BrowserMissing, ComfyPage, open_browser
from harness.comfyui import ComfyServer
from harness.edit_graph import SMALL_FLUX_PACK, sepia
from harness.fetch import comfyui_folder, newest_frontend
from harness.workflow_pictures import sketch


@pytest.fixture(scope="session")
def browser():
    """A running headless Chromium."""
    try:
        with open_browser() as browser:
            yield browser
    except BrowserMissing as error:
        if os.environ.get("CI"):
            pytest.fail(f"CI needs a browser: {error}")
        pytest.skip(str(error))


def pytest_generate_tests(metafunc):
    """Which pages a test sees: the pinned one, or those that its mark ``pages`` names."""
    if "comfy" in metafunc.fixturenames:
        marker = metafunc.definition.get_closest_marker("pages")
        metafunc.parametrize("comfy", marker.args if marker else ["pinned"], indirect=True, scope="session")


@pytest.fixture(scope="session")
def comfy(request, archive, small_models, tmp_path_factory):
    """The tests' server with the page that ComfyUI brings, and one with the newest page on PyPI: what breaks in that
    breaks for people."""
    if getattr(request, "param", "pinned") == "pinned":  # of tests that ask for the page through other fixtures, too
        yield request.getfixturevalue("comfy")
        return
    arguments = ["--front-end-root", str(newest_frontend())]
    base = tmp_path_factory.mktemp("newest")
    with ComfyServer(base, small_models, pack=archive, extra_packs=[SMALL_FLUX_PACK], arguments=arguments) as server:
        yield server


@pytest.fixture(scope="session")
def images(comfy, photographs):
    """Title of a LoadImage node up to its colon -> name of an uploaded photograph, small so that runs are quick."""
    a, c, b = (photographs[name][::4, ::4].copy() for name in ("astronaut", "coffee", "chelsea"))
    pictures = {"a": a, "a'": sepia(a), "c": c, "c'": sketch(c), "b": b}
    return {title: comfy.upload(image, f"{title.replace(chr(39), '_prime')}.png") for title, image in pictures.items()}


@pytest.fixture(scope="session")
def opened(browser, comfy, images):
    """ComfyUI's page; its input folder holds the picture that every ComfyUI comes with, besides ``images``."""
    comfy.upload(comfyui_folder() / "input" / "example.png")
    page = ComfyPage(browser, comfy.url)
    yield page
    page.close()


@pytest.fixture
def page(opened, request):
    """The tier's one page, with an empty graph and nothing lying over it; a new one after a test that failed."""
    failed = request.session.testsfailed
    opened.reset()
    yield opened
    if request.session.testsfailed > failed:
        opened.reopen()
