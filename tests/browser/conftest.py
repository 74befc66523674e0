"""A headless Chromium for the tier. Without one the tests are skipped; with ``CI`` set, they fail."""

from __future__ import annotations

import os

import pytest

from harness.browser import BrowserMissing, ComfyPage, open_browser
from harness.fetch import comfyui_folder


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


@pytest.fixture
def page(browser, comfy):
    """ComfyUI's page, freshly opened; its input folder holds the picture that every ComfyUI comes with."""
    comfy.upload(comfyui_folder() / "input" / "example.png")
    page = ComfyPage(browser, comfy.url)
    yield page
    page.close()
