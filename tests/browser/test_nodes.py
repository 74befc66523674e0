"""Nodes as people find them: by search, with their help, in their language."""

import re

import pytest

from harness import locales
from harness.browser import ComfyPage
from harness.help_pictures import SHOWN_IN

from .small import both_pages, search_nodes

pytestmark = pytest.mark.browser

_ADD = """type => {
    const node = LiteGraph.createNode(type);
    app.graph.add(node);
    app.canvas.deselectAll();
    app.canvas.selectNode(node);
    app.canvas.centerOnNode(node);
    return node.id;
}"""
_NAMES = """type => {
    const node = LiteGraph.createNode(type), names = slots => slots.map(slot => slot.localized_name ?? slot.name);
    return [node.title, names(node.inputs), names(node.outputs)];
}"""
_WIDTHS = """images => Promise.all(images.map(async image => {
    await image.decode().catch(() => {});
    return image.naturalWidth;
}))"""
_TOOLTIPS = """types => {
    const translate = document.querySelector("#vue-app").__vue_app__.config.globalProperties.$t;
    return types.map(type => [translate(`nodeDefs.${type}.description`),
                              translate(`nodeDefs.${type}.inputs.block_scales.tooltip`)]);
}"""


def faults(page: ComfyPage) -> list[str]:
    """What the page reports, but for what it asks for and need not get: a help page in its own language before ours,
    and the picture of a card where there is none yet."""
    return [error for error in page.errors if not re.search(r"/docs/\w+/en\.md|filename=undefined", error)]


@pytest.fixture(scope="module")
def nodes(comfy):
    """Node id -> its description by the server."""
    return {name: info for name, info in comfy.object_info().items() if name.startswith("LoRWeB")}


@both_pages
def test_search_finds_every_node_and_places_one(page, nodes):
    options = search_nodes(page, "lorweb")
    for info in nodes.values():
        options.filter(has_text=info["display_name"]).wait_for()
    options.filter(has_text="Canvas (LoRWeB)").click()
    page.settle()
    assert [node["type"] for node in page.serialize()["nodes"]] == ["LoRWeBCanvas"]


def test_every_node_opens_its_help_page(page, nodes):
    """Its tables name every input and output, and its pictures load."""
    panel = page.page.locator(".node-help-content")
    for name, info in nodes.items():
        page.page.evaluate(_ADD, name)
        page.page.get_by_test_id("info-button").click()
        page.page.get_by_role("heading", name="Mistakes and cures").wait_for()
        page.settle()
        text = panel.inner_text()
        assert page.page.locator(".node-help-content h1").inner_text() in info["display_name"]
        slots = [*info["input"].get("required", {}), *info["input"].get("optional", {}), *info["output_name"]]
        assert [slot for slot in slots if slot not in text] == [], name
        widths = panel.locator("img").evaluate_all(_WIDTHS)
        assert len(widths) == (name in SHOWN_IN) and all(widths), name
        page.page.get_by_test_id("info-button").click()
    assert faults(page) == []


def test_translations_reach_the_nodes(browser, comfy):
    """Frontend 1.32 loses the translations of every pack when it loads a language (its issue 6748), English excepted.

    So the Chinese texts are given to it as English ones, which shows that its vue-i18n can read them.
    """
    page = ComfyPage(browser, comfy.url)
    chinese = locales.read("zh")
    page.page.route("**/i18n", lambda route: route.fulfill(json={"en": {"nodeDefs": chinese}}))
    page.page.reload()
    page.page.wait_for_function("() => window.app?.graph && window.LiteGraph?.registered_node_types.LoRWeBCanvas")
    page.settle()
    page.errors.clear()  # the page asks for files that a new user does not have yet
    info = comfy.object_info()
    for name, texts in chinese.items():
        title, inputs, outputs = page.page.evaluate(_NAMES, name)
        assert title == texts["display_name"]
        own = set(inputs) - {"upload"}  # ComfyUI's own button
        known = {**info[name]["input"].get("required", {}), **info[name]["input"].get("optional", {})}
        shown = {"more_coefficients_3" if slot == "more" else slot for slot in known}  # the first to grow
        assert own == {texts["inputs"][slot]["name"] for slot in shown}, name  # older ComfyUI has not every input
        assert outputs == [slot["name"] for slot in texts["outputs"].values()]
    shown = page.page.evaluate(_TOOLTIPS, ["LoRWeBCanvas", "LoRWeBAdjustCoefficients"])
    assert "a | a'，下排 b | b" in shown[0][0] and "{0-4}" in shown[1][1]
    assert faults(page) == []
    page.close()
