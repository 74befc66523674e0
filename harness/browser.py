"""ComfyUI's web page in a headless Chromium, driven through Playwright.

The page's own JavaScript API (``app``, ``LiteGraph``) loads workflows, runs them and says where nodes lie.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Browser, ConsoleMessage, Page, Playwright, Route, sync_playwright

from .comfyui import Graph

Workflow = dict[str, Any]

BROWSER_VARIABLE = "LORWEB_BROWSER"
_ON_PATH = ("chromium", "chromium-browser", "google-chrome")
_ARGUMENTS = (
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-gpu",
    "--disable-sync",
    "--no-first-run",
)
# The server keeps what pages set.
_SETTINGS = {
    "Comfy.TutorialCompleted": True,  # else the page opens with the template browser in front of the graph
    "Comfy.Locale": "en",
    "Comfy.VueNodes.Enabled": False,
    "Comfy.Pointer.DoubleClickTime": 1000,  # on a busy machine two clicks lie further apart than the usual 300 ms
}
_EMPTY = {"last_node_id": 0, "last_link_id": 0, "nodes": [], "links": [], "groups": [], "version": 0.4}
_PAGE_READY = """types => window.app?.extensionManager && window.app.graph
    && types.every(type => type in window.LiteGraph.registered_node_types)"""
_LOAD = "async workflow => { await app.loadGraphData(workflow); }"
_MISSING_TYPES = """() => app.graph.nodes
    .filter(node => !(node.type in LiteGraph.registered_node_types)).map(node => node.type)"""
_QUEUE = "async nodes => { await app.queuePrompt(0, 1, nodes.map(String)); }"
_QUEUE_EMPTY = """async () => {
    const queue = await (await fetch("/queue")).json();
    return queue.queue_running.length + queue.queue_pending.length === 0;
}"""
# LiteGraph draws pictures on its canvas; Nodes 2.0 (Vue) puts them into the document.
_PICTURES = """id => {
    const drawn = app.graph.getNodeById(id).imgs ?? [];
    const shown = document.querySelectorAll(`[data-node-id="${id}"] img`);
    return [...(shown.length ? shown : drawn)].map(image => [image.naturalWidth, image.naturalHeight]);
}"""
_CENTRE = "id => app.canvas.centerOnNode(app.graph.getNodeById(id))"
_LOADED = f"""id => {{
    const sizes = ({_PICTURES})(id);
    return sizes.length && sizes.every(([width]) => width > 0) && sizes;
}}"""
_SHOWN = f"""nodes => nodes.every(id => {{
    const output = app.nodeOutputs[id];
    return output && (!output.images?.length || ({_PICTURES})(id)[0]?.[0] > 0);
}})"""
_LISTEN = """() => {
    window.executed = [];
    app.api.addEventListener("execution_start", () => { window.executed = []; });
    app.api.addEventListener("executing", event => { if (event.detail) window.executed.push(event.detail); });
}"""
_WIDGET_AREA = """([id, name]) => {
    const node = app.graph.getNodeById(id), widget = node.widgets.find(widget => widget.name === name);
    const [left, top] = app.canvasPosToClientPos([node.pos[0], node.pos[1] + widget.y]);
    const [right, bottom] = app.canvasPosToClientPos([node.pos[0] + node.size[0], node.pos[1] + widget.y + 20]);
    return [left, top, right, bottom];
}"""
_SET = "([name, value]) => app.extensionManager.setting.set(name, value)"
_OVERLAY, _CLOSE = ".p-overlay-mask", ".p-dialog-close-button"
# Newer pages: a notice over the graph, and the panel at the right that it opens.
_NOTICE, _PANEL = "error-overlay", "properties-panel"
# What newer pages ask for and an older server does not have, and pictures that a workflow names and nobody uploaded.
_NOT_THERE = re.compile(r"/api/jobs\b|\bJobsApiError\b|/templates/index_logo\.json|/view\?type=input&")
_SETTLE_MS = 1000
_PATIENCE_MS = 120_000  # the page is slow on a machine with other work


class BrowserMissing(RuntimeError):
    """There is no Chromium to drive; the message says where it was looked for."""


def find_browser(playwright: Playwright) -> Path:
    """The Chromium to use: ``$LORWEB_BROWSER``, one on the PATH, or Playwright's own.

    Raises:
        BrowserMissing: when there is none.
    """
    chosen = os.environ.get(BROWSER_VARIABLE)
    if chosen:
        if not Path(chosen).is_file():
            raise BrowserMissing(f"${BROWSER_VARIABLE} is {chosen}, which is no file")
        return Path(chosen)
    found = next(filter(None, map(shutil.which, _ON_PATH)), None) or playwright.chromium.executable_path
    if not Path(found).is_file():
        raise BrowserMissing(
            f"no Chromium: ${BROWSER_VARIABLE} is not set, none of {', '.join(_ON_PATH)} is on the PATH, and"
            " Playwright's own is not installed (python -m playwright install chromium)"
        )
    return Path(found)


@contextmanager
def open_browser() -> Iterator[Browser]:
    """A headless Chromium.

    Raises:
        BrowserMissing: when there is none.
    """
    with sync_playwright() as playwright:
        # Chromium's own sandbox does not start for root, nor in most containers; it only ever sees the local server.
        browser = playwright.chromium.launch(
            executable_path=find_browser(playwright), args=_ARGUMENTS, chromium_sandbox=False
        )
        try:
            yield browser
        finally:
            browser.close()


def read_workflow(path: Path) -> Workflow:
    """A workflow file in UI format."""
    return json.loads(path.read_text(encoding="utf-8"))


class ComfyPage:
    """ComfyUI's page, open and ready.

    Args:
        browser: from ``open_browser``.
        url: the server's address.
        size: (width, height) of the window in pixels.
        settings: the frontend's settings to set before the page opens; the server keeps them.

    Attributes:
        page: Playwright's page, for clicks and keys.
        errors: errors on the page since it opened or since the last ``load``, requests to other hosts left out, and
            for what need not be there.
    """

    def __init__(
        self, browser: Browser, url: str, size: tuple[int, int] = (1600, 1000), settings: Mapping[str, Any] = {}
    ):
        self.url = url
        self.errors: list[str] = []
        self._browser, self._size, self._settings = browser, size, {**_SETTINGS, **settings}
        self._open()

    def _open(self) -> None:
        # The page asks other hosts for news and file sizes, which its CSP would report as errors of the page.
        context = self._browser.new_context(viewport={"width": self._size[0], "height": self._size[1]}, bypass_csp=True)
        context.set_default_timeout(_PATIENCE_MS)
        context.route("**/*", self._keep_local)
        self.page: Page = context.new_page()
        self.page.on("console", self._on_console)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.request.post(f"{self.url}/settings", data=self._settings)
        types = list(self.page.request.get(f"{self.url}/object_info").json())
        self.page.goto(self.url)
        self.page.wait_for_function(_PAGE_READY, arg=types)
        self.page.evaluate(_LISTEN)
        self.settle()

    def reopen(self) -> None:
        """A new page in place of this one, which knows nothing of what happened in it."""
        self.close()
        self._open()

    def close(self) -> None:
        """Close the page and forget its cookies and storage."""
        self.page.context.close()

    def load(self, workflow: Workflow) -> None:
        """Open a workflow (UI format) as a file dropped on the page would."""
        self.errors.clear()
        self.page.evaluate(_LOAD, workflow)
        self.settle()

    def reset(self) -> None:
        """Empty the graph, with nothing lying over it."""
        self.dismiss()
        self.page.keyboard.press("Escape")  # closes the node search, which has no button for it
        # Where nothing of the page's own lies that would unfold under the mouse.
        self.page.mouse.move(*(side / 2 for side in self.page.viewport_size.values()))
        self.settle()
        if self.page.locator(_OVERLAY).count():
            self.reopen()
        self.load(_EMPTY)

    def dismiss(self) -> None:
        """Close dialogs, and the panel that newer pages have in their place."""
        for close in reversed(self.page.locator(_CLOSE).all()):
            close.click()
        if self.page.get_by_test_id(_PANEL).count():
            self.page.get_by_role("button", name="Toggle properties panel").first.click()

    def complaints(self) -> str:
        """What the page says is wrong with the graph or its run: in a dialog, or behind a notice's "View details"."""
        dialog, notice = self.page.get_by_role("dialog"), self.page.get_by_test_id(_NOTICE)
        dialog.or_(notice).first.wait_for()
        if dialog.count():
            return dialog.first.inner_text()
        notice.get_by_role("button", name="View details").click()
        panel = self.page.get_by_test_id(_PANEL)
        panel.wait_for()
        self.settle()
        return panel.inner_text()

    def settle(self) -> None:
        """Give the page time to draw; it announces no end of that."""
        self.page.wait_for_timeout(_SETTLE_MS)

    def set(self, setting: str, value: Any) -> None:
        """Change one of the frontend's settings while the page is open; the server keeps it."""
        self.page.evaluate(_SET, [setting, value])
        self.settle()

    def missing_types(self) -> list[str]:
        """Types of the nodes that the page shows in red because it does not know them."""
        return self.page.evaluate(_MISSING_TYPES)

    def serialize(self) -> Workflow:
        """The graph as the page's Export saves it."""
        return json.loads(self.page.evaluate("async () => JSON.stringify((await app.graphToPrompt()).workflow)"))

    def prompt(self) -> Graph:
        """The graph as the page queues it, in API format."""
        return json.loads(self.page.evaluate("async () => JSON.stringify((await app.graphToPrompt()).output)"))

    def run(self, nodes: Sequence[int], timeout: float = 600.0) -> None:
        """Run what the named output nodes need, and wait until the nodes show it.

        Args:
            nodes: ids of output nodes inside the window; the page loads no picture that is out of sight.
            timeout: seconds for the run.

        Raises:
            TimeoutError: when the run takes longer.
            playwright.sync_api.TimeoutError: when a node shows nothing, because it failed.
        """
        self.page.evaluate(_QUEUE, list(nodes))
        self._wait_for_queue(timeout)
        self.page.wait_for_function(_SHOWN, arg=list(nodes))
        self.settle()

    def press_run(self, timeout: float = 600.0) -> None:
        """Click the page's own Run button and wait until the server is done.

        Raises:
            TimeoutError: when the run takes longer.
        """
        with self.page.expect_response(lambda response: urlsplit(response.url).path.endswith("/prompt")):
            self.page.get_by_role("button", name="Run", exact=True).first.click()
        self._wait_for_queue(timeout)
        self.settle()

    def executed(self) -> list[str]:
        """Ids of the nodes that ran in the latest run; those whose results were cached are not among them."""
        return self.page.evaluate("() => window.executed")

    def pictures(self, node: int) -> list[tuple[int, int]]:
        """(width, height) in pixels of the pictures that a node shows, once they are there: it loads them after a run.

        Raises:
            playwright.sync_api.TimeoutError: when it shows none.
        """
        self.page.evaluate(_CENTRE, node)  # it loads none that is out of sight
        return [tuple(size) for size in self.page.wait_for_function(_LOADED, arg=node).json_value()]

    def widget_area(self, node: int, name: str) -> tuple[float, float, float, float]:
        """Where LiteGraph draws a widget: (left, top, right, bottom) in the window."""
        return tuple(self.page.evaluate(_WIDGET_AREA, [node, name]))

    def drop(self, file: Path, x: float, y: float) -> None:
        """Drag a file from the desktop into the window and drop it there; the browser takes it for a real one."""
        session = self.page.context.new_cdp_session(self.page)
        data = {"items": [], "files": [str(file)], "dragOperationsMask": 1}
        for step in ("dragEnter", "dragOver", "drop"):
            session.send("Input.dispatchDragEvent", {"type": step, "x": x, "y": y, "data": data})
        session.detach()
        self.settle()

    def _wait_for_queue(self, timeout: float) -> None:
        """Until the server has nothing more to do; the page hears of its own queue late.

        Polled from here: ``wait_for_function`` takes the promise of an asynchronous function for a yes.
        """
        deadline = time.monotonic() + timeout
        while not self.page.evaluate(_QUEUE_EMPTY):
            if time.monotonic() > deadline:
                raise TimeoutError(f"the server was not done after {timeout:g} s")
            self.settle()

    def _keep_local(self, route: Route) -> None:
        """No request leaves the machine: other hosts seem to have nothing to say."""
        if self._is_local(route.request.url):
            route.continue_()
        else:
            headers = {"Access-Control-Allow-Origin": "*", "Access-Control-Expose-Headers": "*"}
            route.fulfill(json={}, headers=headers)

    def _is_local(self, url: str) -> bool:
        return urlsplit(url).netloc in ("", urlsplit(self.url).netloc)

    def _on_console(self, message: ConsoleMessage) -> None:
        source = message.location.get("url", "")
        expected = _NOT_THERE.search(f"{message.text} {source}")
        if message.type == "error" and self._is_local(source) and not expected:
            self.errors.append(f"{message.text} ({source})")
