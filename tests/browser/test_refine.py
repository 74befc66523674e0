"""Refine Edit in the real page, in both renderers: switched on in the starter's workflow, it shows how it goes."""

import pytest

from harness.browser import read_workflow
from harness.comfyui import ROOT
from lorweb_core.losscurve import CURVE

from .small import QUICK, find
from .test_renderers import nodes_2, rendered  # noqa: F401  (fixtures)

pytestmark = pytest.mark.browser

_COUNT_PREVIEWS = """() => {
    window.previews = 0;
    app.api.addEventListener("b_preview", () => { window.previews += 1; });
}"""
_SWITCH_ON = "id => { app.graph.getNodeById(id).mode = 0; }"


def test_it_shows_progress_and_its_curve(rendered):  # noqa: F811
    workflow = read_workflow(ROOT / "workflows" / "starter_cpu.json")
    refine = find(workflow, "LoRWeBRefineEdit")
    refine["widgets_values"] = QUICK
    rendered.load(workflow)
    assert str(refine["id"]) not in rendered.prompt(), "it is switched off"
    rendered.page.evaluate(_SWITCH_ON, refine["id"])
    sent = rendered.prompt()[str(refine["id"])]["inputs"]
    assert (sent["steps"], sent["seed"], sent["long_side"], sent["sampling_steps"]) == (1, 0, 128, 1)
    rendered.page.evaluate(_COUNT_PREVIEWS)
    rendered.press_run()
    assert rendered.page.evaluate("() => window.previews") > 0
    assert rendered.pictures(refine["id"]) == [CURVE]
    assert rendered.errors == []
