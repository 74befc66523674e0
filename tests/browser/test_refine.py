"""Refine Edit in the real page, in both renderers: switched on in the starter's workflow, it shows how it goes."""

from itertools import count

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
# A node that is out of sight loads no picture.
_SWITCH_ON = """id => {
    const node = app.graph.getNodeById(id);
    node.mode = 0;
    app.canvas.centerOnNode(node);
}"""
_seeds = count()  # a run like the last one would come from the cache


def shown_in_the_end(page, node):
    """Sizes of a node's pictures once none has an answer beside the curve, as previews before the last one have.

    Nodes 2.0 shows the last preview and the result, LiteGraph one of them.
    """
    for _ in range(60):
        if set(page.pictures(node["id"])) == {CURVE}:
            break
        page.settle()
    return set(page.pictures(node["id"]))


def test_it_shows_progress_and_its_curve(rendered):  # noqa: F811
    workflow = read_workflow(ROOT / "workflows" / "starter_cpu.json")
    refine = find(workflow, "LoRWeBRefineEdit")
    steps, _, *others = QUICK
    refine["widgets_values"] = [steps, seed := next(_seeds), *others]
    rendered.load(workflow)
    assert str(refine["id"]) not in rendered.prompt(), "it is switched off"
    rendered.page.evaluate(_SWITCH_ON, refine["id"])
    sent = rendered.prompt()[str(refine["id"])]["inputs"]
    assert (sent["steps"], sent["seed"], sent["long_side"], sent["sampling_steps"]) == (1, seed, 128, 1)
    rendered.page.evaluate(_COUNT_PREVIEWS)
    rendered.press_run()
    assert rendered.page.evaluate("() => window.previews") > 0
    assert shown_in_the_end(rendered, refine) == {CURVE}
    assert rendered.errors == []
