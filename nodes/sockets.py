"""Socket types of the pack, and widgets and pictures that several nodes share."""

import torch
from comfy_api.latest import io, ui

from ..lorweb_core import MixingCoefficients
from ..lorweb_core.canvas import FITS
from ..lorweb_core.plot import thumbnail

CATEGORY = "LoRWeB"

Basis = io.Custom("LORWEB_BASIS")
Coefficients = io.Custom("LORWEB_COEFFICIENTS")
Geometry = io.Custom("LORWEB_GEOMETRY")


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


def rgb(images):
    """Images [B, H, W, 3], without an alpha channel."""
    return images[..., :3]


def coefficients_output(coefficients: MixingCoefficients) -> io.NodeOutput:
    """Coefficients as a node's output, and their small heatmap on the node.

    Such a node is declared an output node: the page then gets its picture again when the result comes from the cache.
    """
    return io.NodeOutput(coefficients, ui=ui.PreviewImage(image_of(thumbnail(coefficients))))


def image_of(picture):
    """A picture [H, W, 3] uint8 as ComfyUI's image [1, H, W, 3]."""
    return torch.tensor(picture).float().div(255)[None]
