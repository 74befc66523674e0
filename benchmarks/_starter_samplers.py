"""The shipped examples through diffusers and through ComfyUI's sampler."""

import json
import tempfile

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from harness.api_graph import api_graph
from harness.comfyui import ROOT, ComfyServer
from harness.demo import EXAMPLES, WORKFLOW, answer

from ._starter_coefficients import example_item
from ._starter_setting import SHIPPED, Setting

_SAMPLER = "KSampler"


def samplers(setting: Setting) -> None:
    """How far b' of both is apart, with the same noise, schedule and steps.

    Raises:
        ValueError: for parts other than the shipped ones, which are those that the node loads.
    """
    if setting.starter.resolve() != (ROOT / "starter").resolve():
        raise ValueError(f"the node loads {ROOT / 'starter'}; compare the samplers without --starter")
    steps = setting.config().validation.steps
    names = sorted(folder.name for folder in EXAMPLES.iterdir())
    with torch.no_grad():
        ours = by_diffusers(setting, names)
    apart = {name: difference(ours[name], theirs) for name, theirs in by_comfyui(names, steps).items()}
    rows = [(name, largest, f"{average:.4f}") for name, (largest, average) in apart.items()]
    largest, average = zip(*apart.values())
    rows.append(("all", max(largest), f"{np.mean(average):.4f}"))
    header = ("example", "largest difference", "mean difference")
    setting.report("samplers", f"b' by diffusers and by ComfyUI, {steps} steps, in 8-bit steps", header, rows, apart)


def by_diffusers(setting: Setting, names: list[str]) -> dict[str, np.ndarray]:
    """Example -> b', uint8 [h, w, 3]; the seed of an example is its number."""
    evaluation, answers = setting.evaluation(), {}
    for seed, name in enumerate(tqdm(names, desc="diffusers", unit="analogy")):
        images = (np.asarray(Image.open(EXAMPLES / name / f"{file}.png")) / 255 for file in ("a", "a_prime", "b"))
        item = example_item(*images) | {"prompt": ""}
        # ComfyUI saves pictures rounded down.
        answers[name] = (evaluation.answers(item, seed)[SHIPPED].numpy() * 255).astype(np.uint8)
    return answers


def by_comfyui(names: list[str], steps: int) -> dict[str, np.ndarray]:
    """The same by the shipped workflow in a real server."""
    workflow, answers = json.loads(WORKFLOW.read_text(encoding="utf-8")), {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as base, ComfyServer(base) as server:
        graph = api_graph(workflow, server.object_info())
        (settings,) = (node["inputs"] for node in graph.values() if node["class_type"] == _SAMPLER)
        for seed, name in enumerate(tqdm(names, desc="ComfyUI", unit="analogy")):
            settings |= {"seed": seed, "steps": steps}
            answers[name] = answer(server, workflow, graph, name)["b'"]
    return answers


def difference(one: np.ndarray, other: np.ndarray) -> tuple[int, float]:
    """Largest and mean absolute difference of two images uint8 [h, w, 3], in steps of 8 bits."""
    apart = np.abs(one.astype(int) - other.astype(int))
    return int(apart.max()), float(apart.mean())
