"""The main job: ``python -m harness.demo`` edits pictures by example in a real ComfyUI, and draws a contact sheet.

The shipped workflow ``starter_cpu`` answers the examples of the starter, the small model that comes with the pack.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .api_graph import api_graph
from .comfyui import ROOT, ComfyServer, Graph

if TYPE_CHECKING:
    import numpy as np

log = logging.getLogger(__name__)

WORKFLOW = ROOT / "workflows" / "starter_cpu.json"
EXAMPLES = ROOT / "starter" / "examples"
# Column of the sheet -> node whose picture it shows, by its type or title.
_SHOWN = {
    "b'": "b': the result",
    "true b'": "What b' should be",
    "mixing coefficients": "LoRWeBEncodeAnalogy",
}
_CELL, _GAP, _HEAD, _NAME = 192, 6, 40, 150
_INK, _PAPER = (30, 30, 34), (255, 255, 255)


def run_demo(output: Path, names: list[str]) -> list[Path]:
    """Answer examples of the starter with its shipped workflow; b' of each, and one contact sheet of all."""
    from tqdm import tqdm

    workflow = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    output.mkdir(parents=True, exist_ok=True)
    rows = {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as base:
        log.info("Starting ComfyUI ...")
        with ComfyServer(base) as server:
            log.info("ComfyUI runs at %s; answering %d analogies ...", server.url, len(names))
            graph = api_graph(workflow, server.object_info())
            for name in tqdm(names, unit="analogy"):
                rows[name] = answer(server, workflow, graph, name)
    return [*_save_answers(output, rows), _save(output / "contact_sheet.png", contact_sheet(rows))]


def answer(server: ComfyServer, workflow: dict[str, Any], graph: Graph, name: str) -> dict[str, np.ndarray]:
    """Label -> picture of an example that the workflow has answered, uint8 [H, W, 3] each."""
    import numpy as np
    from PIL import Image

    nodes = {node.get("title", node["type"]): str(node["id"]) for node in workflow["nodes"]}
    graph[nodes["LoRWeBStarterExample"]]["inputs"]["example"] = name
    outputs = server.run(graph)
    asked = {label: EXAMPLES / name / f"{file}.png" for label, file in (("a", "a"), ("a'", "a_prime"), ("b", "b"))}
    pictures = {label: np.asarray(Image.open(path).convert("RGB")) for label, path in asked.items()}
    return pictures | {label: server.images(outputs, nodes[node])[0] for label, node in _SHOWN.items()}


def contact_sheet(rows: dict[str, dict[str, np.ndarray]]) -> np.ndarray:
    """One analogy a row, its name before it, a label over every column: uint8 [H, W, 3].

    Args:
        rows: name -> label -> picture; pictures are scaled to one height.
    """
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    cells = {name: {label: _scaled(picture) for label, picture in row.items()} for name, row in rows.items()}
    widths = {label: cell.width for label, cell in next(iter(cells.values())).items()}
    size = (_NAME + sum(width + _GAP for width in widths.values()), _HEAD + (_CELL + _GAP) * len(cells))
    sheet = Image.new("RGB", size, _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(20)
    left = _NAME
    for label, width in widths.items():
        draw.text((left + width / 2, _HEAD / 2), label, _INK, font, anchor="mm")
        left += width + _GAP
    for number, (name, row) in enumerate(cells.items()):
        top, left = _HEAD + number * (_CELL + _GAP), _NAME
        draw.text((_NAME / 2, top + _CELL / 2), name.replace("_", "\n"), _INK, font, anchor="mm", align="center")
        for cell in row.values():
            sheet.paste(cell, (left, top))
            left += cell.width + _GAP
    return np.asarray(sheet)


def _scaled(picture: np.ndarray):
    from PIL import Image

    image = Image.fromarray(picture)
    return image.resize((round(_CELL * image.width / image.height), _CELL), Image.Resampling.LANCZOS)


def _save_answers(output: Path, rows: dict[str, dict[str, np.ndarray]]) -> list[Path]:
    return [_save(output / f"{name}.png", row["b'"]) for name, row in rows.items()]


def _save(path: Path, picture: np.ndarray) -> Path:
    from PIL import Image

    Image.fromarray(picture).save(path, optimize=True)
    return path


def main() -> None:
    there = sorted(folder.name for folder in EXAMPLES.iterdir())
    parser = argparse.ArgumentParser(description="Edit pictures by example with the starter in a real ComfyUI.")
    parser.add_argument(
        "examples", nargs="*", metavar="example", help=f"which ones: {', '.join(there)}; all by default"
    )
    parser.add_argument("--output", type=Path, default=ROOT / "demo_output", help="folder for the images")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.examples if name not in there]:
        parser.error(f"there is no example {unknown[0]!r}; there are: {', '.join(there)}")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    paths = run_demo(arguments.output, arguments.examples or there)
    log.info("Written:\n%s", "\n".join(f"  {path}" for path in paths))
    log.info("Look at %s: b' beside the true b'.", paths[-1])


if __name__ == "__main__":
    main()
