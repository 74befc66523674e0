"""Analogy References: a, a' and b as reference pictures of a model that answers with b' alone."""

import logging

import comfy.model_management
import node_helpers
import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..lorweb_core import BasisBank, Frame
from ..lorweb_core.config import SEPARATE
from ..lorweb_core.references import references
from .canvas import picture_warnings
from .sockets import CATEGORY, Basis, Geometry, fit_input, schema, triplet_inputs
from .values import check_values, triplet

logger = logging.getLogger(__name__)

KEY = "reference_latents"


class AnalogyReferences(io.ComfyNode):
    """Put a, a' and b into the conditioning, in this order."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LoRWeBAnalogyReferences",
            search_aliases=["reference latents", "edit by example", "separate layout"],
            display_name="Analogy References (LoRWeB)",
            category=CATEGORY,
            description="Gives the model a, a' and b as three reference pictures, in this order, for banks of the"
            " separate layout: the answer is b' alone, at its full size. Sample the latent from noise (denoise 1), and"
            " bring the decoded picture to b's own size with Crop Result. One pair is shown: the first of a batch; a"
            " batch of b gives a batch of answers.",
            inputs=[
                io.Conditioning.Input("conditioning", tooltip="The prompt, encoded. It must have no references yet."),
                io.Vae.Input("vae", tooltip="The autoencoder of the model that will be sampled."),
                *triplet_inputs(),
                io.Float.Input(
                    "megapixels",
                    default=1.0,
                    min=0.0,
                    max=8.0,
                    step=0.05,
                    tooltip="Size of b' in units of 1024 x 1024 pixels; a and a' are never larger, nor enlarged. 0"
                    " keeps b at its own size.",
                ),
                io.Int.Input(
                    "long_side",
                    default=0,
                    min=0,
                    max=8192,
                    step=16,
                    tooltip="Longer side of b' in pixels, instead of megapixels. 0 leaves it to megapixels.",
                ),
                io.Combo.Input(
                    "fit",
                    options=fit_input().options,
                    default="crop",
                    tooltip="How an a' of another shape than a is brought to a's: crop its middle, pad with its edge"
                    " colours, or stretch.",
                ),
                Basis.Input(
                    "basis",
                    optional=True,
                    tooltip="The bank, if you want to be warned when it was not trained with separate references, or"
                    " far from this size.",
                ),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip="The negative prompt, encoded, for models that are sampled with a CFG above 1. It gets the"
                    " same references.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    display_name="conditioning", tooltip="The prompt with a, a' and b, for the sampler's positive."
                ),
                io.Latent.Output(display_name="latent", tooltip="An empty latent of the shape of b', for the sampler."),
                Geometry.Output(display_name="geometry", tooltip="How b' lies in its picture, for Crop Result."),
                io.Conditioning.Output(
                    display_name="negative",
                    tooltip="The negative prompt with a, a' and b. Without one it is the prompt itself, which a sampler"
                    " at CFG 1 does not look at.",
                ),
                io.Int.Output(display_name="width", tooltip="Width of b', for nodes such as Flux2Scheduler."),
                io.Int.Output(display_name="height", tooltip="Height of b'."),
            ],
        )

    @classmethod
    def execute(
        cls,
        conditioning,
        vae,
        image_a,
        image_a_prime,
        image_b,
        megapixels: float,
        long_side: int,
        fit: str,
        basis: BasisBank | None = None,
        negative=None,
    ) -> io.NodeOutput:
        check_values(cls, megapixels=megapixels, long_side=long_side, fit=fit)
        negative = conditioning if negative is None else negative
        for name, told in {"conditioning": conditioning, "negative": negative}.items():
            _require_no_references(name, told)
        a, a_prime, b = triplet(image_a, image_a_prime, image_b)
        geometry = Frame.plan(*b.shape[1:3], megapixels, long_side)
        latents = [encode(vae, picture) for picture in references(geometry, a[:1], a_prime[:1], b, fit)]
        shown = {KEY: latents}
        told, untold = (
            node_helpers.conditioning_set_values(words, shown, append=True) for words in (conditioning, negative)
        )
        empty = {"samples": torch.zeros_like(latents[-1])}
        warning = picture_warnings(geometry, basis, SEPARATE)
        if warning:
            logger.warning(warning)
        note = ui.PreviewText(warning) if warning else None
        return io.NodeOutput(told, empty, geometry, untold, geometry.width, geometry.height, ui=note)


def encode(vae, pictures: Tensor) -> Tensor:
    """Latents of pictures [B, H, W, 3], one by one: autoencoders of videos take a batch for the frames of one."""
    latents = []
    for picture in pictures:
        comfy.model_management.throw_exception_if_processing_interrupted()
        latents.append(vae.encode(picture[None]))
    return torch.cat(latents)


def _require_no_references(name: str, conditioning) -> None:
    """Refuse a conditioning that shows the model other pictures already.

    Raises:
        ValueError: naming the input and what to do.
    """
    if any(options.get(KEY) for _, options in conditioning):
        raise ValueError(
            f"{name} has reference latents already, and the bank knows a, a' and b alone: take ReferenceLatent out, and"
            " connect no vae to TextEncodeQwenImageEditPlus"
        )


NODES = [AnalogyReferences]
