"""Encode Analogy: three images -> query -> mixing coefficients."""

from comfy_api.latest import io

from ..lorweb_core import BasisBank
from ..lorweb_core.query import build_query, encoder_images
from .image_encoder import ENCODER_CROPS, ClipVisionEncoder
from .sockets import ADVANCED, CATEGORY, Basis, Coefficients, coefficients_output, fit_input, schema, triplet_inputs
from .values import check_values, triplet


class EncodeAnalogy(io.ComfyNode):
    """Encode a, a', b into the mixing coefficients of every layer."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LoRWeBEncodeAnalogy",
            search_aliases=["edit by example", "visual analogy", "before after"],
            display_name="Encode Analogy (LoRWeB)",
            category=CATEGORY,
            description="Encodes the example pair a, a' and the image b into mixing coefficients: how much of each"
            " basis LoRA the edit takes, drawn on the node. Several example pairs, or several b, are averaged into one"
            " edit.",
            inputs=[
                Basis.Input("basis", tooltip="The bank whose keys the query is compared with."),
                io.ClipVision.Input(
                    "clip_vision", tooltip="The image encoder that the bank was trained with: CLIP ViT-L/14 as a rule."
                ),
                *triplet_inputs(),
                fit_input(),
                io.Combo.Input(
                    "encoder_crop",
                    options=list(ENCODER_CROPS),
                    default="center",
                    tooltip="What the encoder sees of images that are not square: what it saw in training (CLIP:"
                    " their centre), all of them padded to a square, or all of them stretched. Try pad when the edit"
                    " is near an edge.",
                    **ADVANCED,
                ),
            ],
            outputs=[
                Coefficients.Output(
                    display_name="coefficients", tooltip="Mixing coefficients of every layer, for Apply and the rest."
                )
            ],
            draws=True,
        )

    @classmethod
    def execute(
        cls, basis: BasisBank, clip_vision, image_a, image_a_prime, image_b, fit: str, encoder_crop: str
    ) -> io.NodeOutput:
        check_values(cls, fit=fit, encoder_crop=encoder_crop)
        images = encoder_images(*triplet(image_a, image_a_prime, image_b), fit)
        encoder = ClipVisionEncoder(clip_vision, basis.config, encoder_crop)
        query = build_query(basis.config.query_mode, *images, encoder)
        return coefficients_output(basis.mix(query).mean())


NODES = [EncodeAnalogy]
