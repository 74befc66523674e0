"""Socket types of the pack, and widgets that several nodes share."""

from comfy_api.latest import io

from ..lorweb_core.canvas import FITS

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
