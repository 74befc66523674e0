"""The graph of the main job on small random models, for tests and benchmarks."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .comfyui import ROOT, Graph
from .small_models import RANDOM_CLIP_L, SMALL_BANK, SMALL_FLUX, SMALL_VAE

if TYPE_CHECKING:
    import numpy as np

EDIT_GRAPH = ROOT / "tests" / "graphs" / "edit_by_example.json"
SMALL_FLUX_PACK = ROOT / "harness" / "small_flux_pack"
_SEPIA = ((0.393, 0.769, 0.189), (0.349, 0.686, 0.168), (0.272, 0.534, 0.131))


@dataclass(frozen=True)
class ModelFiles:
    """File names of the models that the graph loads, relative to their model folders.

    Without ``clip_vision`` the small image encoder is made that comes with the pack of the small FLUX.
    """

    flux: str = SMALL_FLUX
    vae: str = SMALL_VAE
    clip: str = RANDOM_CLIP_L
    clip_vision: str | None = None
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
    if models.clip_vision is None:
        graph["clip_vision"] = {"class_type": "LoadSmallVision", "inputs": {}}
    return graph


def sepia(photograph: np.ndarray) -> np.ndarray:
    """The edit of the example pair: a sepia tone, uint8 [H, W, 3] in and out."""
    import numpy as np

    return np.clip(photograph @ np.array(_SEPIA).T, 0, 255).round().astype(np.uint8)
