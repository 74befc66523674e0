"""Socket types of the pack, and widgets and pictures that several nodes share."""

from dataclasses import fields
from inspect import signature
from typing import Any

import torch
from comfy_api.latest import io, ui

from ..lorweb_core import MixingCoefficients
from ..lorweb_core.canvas import FITS
from ..lorweb_core.plot import thumbnail

CATEGORY = "LoRWeB"
_KNOWN = {field.name for field in fields(io.Schema)}
# For widgets that few people turn: the page of newer ComfyUI folds them away until it is asked for them.
ADVANCED = {"advanced": True} if "advanced" in signature(io.Combo.Input).parameters else {}

Basis = io.Custom("LORWEB_BASIS")
Coefficients = io.Custom("LORWEB_COEFFICIENTS")
Geometry = io.Custom("LORWEB_GEOMETRY")


def schema(search_aliases: list[str], draws: bool = False, **settings: Any) -> io.Schema:
    """A node's schema; what only newer ComfyUI knows of it is told to that alone.

    Args:
        search_aliases: other words that people look for.
        draws: the node shows a picture of what it passes on. The page is to get it again when the result comes from the
            cache; older ComfyUI does so for output nodes only.
        settings: as ``io.Schema`` has them.
    """
    if "search_aliases" in _KNOWN:
        settings["search_aliases"] = search_aliases
    if draws:
        settings["has_intermediate_output" if "has_intermediate_output" in _KNOWN else "is_output_node"] = True
    return io.Schema(**settings)


def fit_input() -> io.Combo.Input:
    """How a and a' are brought to b's shape; Canvas and Encode Analogy must agree on it."""
    return io.Combo.Input(
        "fit",
        options=list(FITS),
        default="crop",
        tooltip="How a and a' are brought to b's shape: crop their middle, pad with their edge colours, or stretch."
        " Use the same choice on Canvas and Encode Analogy.",
    )


def triplet_inputs() -> list[io.Image.Input]:
    """The three images of an analogy, in the order that every node keeps."""
    return [
        io.Image.Input("image_a", tooltip="a: the example before the edit. A batch holds several example pairs."),
        io.Image.Input("image_a_prime", tooltip="a': the same example after the edit, as many images as a."),
        io.Image.Input(
            "image_b",
            tooltip="b: the image to edit. A batch of images shares one edit; a ComfyUI list runs once per item.",
        ),
    ]


def coefficients_output(coefficients: MixingCoefficients) -> io.NodeOutput:
    """Coefficients as a node's output, and their small heatmap on the node."""
    return io.NodeOutput(coefficients, ui=ui.PreviewImage(image_of(thumbnail(coefficients))))


def image_of(picture):
    """A picture [H, W, 3] uint8 as ComfyUI's image [1, H, W, 3]."""
    return torch.tensor(picture).float().div(255)[None]
