"""The starter as people meet it first: chosen in the template browser, run by the Run button."""

import pytest

from harness.browser import read_workflow
from harness.comfyui import ROOT
from lorweb_core.plot import THUMBNAIL

from .small import both_pages, find, open_template

pytestmark = pytest.mark.browser

_WORKFLOW = ROOT / "workflows" / "starter_cpu.json"
_SIDE = 128  # of the starter's pictures


@both_pages
def test_run_shows_its_answer(page):
    workflow = read_workflow(_WORKFLOW)
    open_template(page, _WORKFLOW)
    page.press_run()
    assert page.pictures(find(workflow, "SaveImage")["id"]) == [(_SIDE, _SIDE)]
    assert page.pictures(find(workflow, "PreviewImage", "What b' should be")["id"]) == [(_SIDE, _SIDE)]
    assert page.pictures(find(workflow, "LoRWeBEncodeAnalogy")["id"]) == [THUMBNAIL]
    assert page.errors == []
