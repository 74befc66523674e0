"""The main job on real photographs: ``python -m harness.demo`` edits one by the example of another pair.

Starts a real ComfyUI, runs ``tests/graphs/edit_by_example.json`` and writes b' and the coefficient heatmap.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from .comfyui import ROOT, ComfyServer, Graph
from .edit_graph import SMALL_FLUX_PACK, edit_graph, sepia
from .small_models import photographs, small_models

if TYPE_CHECKING:
    import numpy as np

log = logging.getLogger(__name__)

_SAVED = {"b_prime": "b_prime.png", "canvas_result": "canvas.png", "heatmap": "coefficients.png"}


def run_demo(output: Path, long_side: int = 512, steps: int = 4) -> list[Path]:
    """Edit a photograph by example and write the inputs, b' and the heatmap into ``output``."""
    log.info("Preparing small models (about 850 MB in the user's cache folder; made once) ...")
    models = small_models()
    pictures = photographs()
    triplet = {"a": pictures["astronaut"], "a_prime": sepia(pictures["astronaut"]), "b": pictures["chelsea"]}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as base:
        log.info("Starting ComfyUI ...")
        with ComfyServer(base, models, extra_packs=[SMALL_FLUX_PACK]) as server:
            names = [server.upload(image, f"{name}.png") for name, image in triplet.items()]
            log.info("ComfyUI runs at %s; editing b by the example of a and a' ...", server.url)
            graph = edit_graph(*names, long_side=long_side, steps=steps)
            results = _run_with_bar(server, graph)
    return _write_images(output, triplet | results)


def _run_with_bar(server: ComfyServer, graph: Graph) -> dict[str, np.ndarray]:
    from tqdm import tqdm

    steps = graph["sampler"]["inputs"]["steps"]
    with tqdm(total=len(graph) + steps, unit="step", bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} {elapsed}") as bar:

        def advance(node: str, value: int, maximum: int) -> None:
            if maximum == 0:
                bar.set_description(graph[node]["class_type"])
            if maximum == 0 or node == "sampler":
                bar.update()

        outputs = server.run(graph, advance, timeout=1800)
        bar.update(bar.total - bar.n)
    return {node: server.images(outputs, node)[0] for node in _SAVED}


def _write_images(folder: Path, images: dict[str, np.ndarray]) -> list[Path]:
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, image in images.items():
        paths.append(folder / _SAVED.get(name, f"{name}.png"))
        Image.fromarray(image).save(paths[-1])
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description="Edit a photograph by example in a real ComfyUI.")
    parser.add_argument("--output", type=Path, default=ROOT / "demo_output", help="folder for the images")
    parser.add_argument("--long-side", type=int, default=512, help="longer side of the canvas in pixels")
    parser.add_argument("--steps", type=int, default=4, help="sampling steps")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    paths = run_demo(arguments.output, arguments.long_side, arguments.steps)
    log.info("Written:\n%s", "\n".join(f"  {path}" for path in paths))
    log.info(
        "The models and the bank hold random weights, so b' is no meaningful edit yet: the run shows that every part\n"
        "works, from loading the bank to cutting out b'."
    )


if __name__ == "__main__":
    main()
