"""The main job on real photographs: ``python -m harness.demo`` edits one by the example of another pair.

Starts a real ComfyUI, runs ``tests/graphs/edit_by_example.json`` and writes b' and the coefficient heatmap.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .comfyui import ROOT, ComfyServer, Graph
from .small_models import RANDOM_CLIP_L, RANDOM_VIT_L, SMALL_BANK, SMALL_FLUX, SMALL_VAE, photographs, small_models

if TYPE_CHECKING:
    import numpy as np

log = logging.getLogger(__name__)

EDIT_GRAPH = ROOT / "tests" / "graphs" / "edit_by_example.json"
SMALL_FLUX_PACK = ROOT / "harness" / "small_flux_pack"
_SAVED = {"b_prime": "b_prime.png", "canvas_result": "canvas.png", "heatmap": "coefficients.png"}
_SEPIA = ((0.393, 0.769, 0.189), (0.349, 0.686, 0.168), (0.272, 0.534, 0.131))


@dataclass(frozen=True)
class ModelFiles:
    """File names of the models that the graph loads, relative to their model folders."""

    flux: str = SMALL_FLUX
    vae: str = SMALL_VAE
    clip: str = RANDOM_CLIP_L
    clip_vision: str = RANDOM_VIT_L
    basis: str = SMALL_BANK


def edit_graph(
    image_a: str,
    image_a_prime: str,
    image_b: str,
    models: ModelFiles = ModelFiles(),
    long_side: int = 512,
    steps: int = 4,
    seed: int = 0,
) -> Graph:
    """The edit-by-example graph in API format, for uploaded images.

    Args:
        long_side: longer side of the canvas in pixels.
    """
    graph = json.loads(EDIT_GRAPH.read_text(encoding="utf-8"))
    changes = {
        "model": {"unet_name": models.flux},
        "vae": {"vae_name": models.vae},
        "clip": {"clip_name": models.clip},
        "clip_vision": {"clip_name": models.clip_vision},
        "basis": {"basis_name": models.basis},
        "a": {"image": image_a},
        "a_prime": {"image": image_a_prime},
        "b": {"image": image_b},
        "canvas": {"long_side": long_side},
        "sampler": {"steps": steps, "seed": seed},
    }
    for node, inputs in changes.items():
        graph[node]["inputs"].update(inputs)
    return graph


def sepia(photograph: np.ndarray) -> np.ndarray:
    """The edit of the example pair: a sepia tone, uint8 [H, W, 3] in and out."""
    import numpy as np

    return np.clip(photograph @ np.array(_SEPIA).T, 0, 255).round().astype(np.uint8)


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
