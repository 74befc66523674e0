"""Canvas and Crop Result: the 2x2 composite that the model edits, and b' cut out of it."""

import logging

from comfy_api.latest import io, ui

from ..lorweb_core import BasisBank, CanvasGeometry, Frame
from ..lorweb_core.config import CANVAS, SEPARATE
from .scaled import require_unscaled
from .sockets import CATEGORY, Basis, Geometry, fit_input, schema, triplet_inputs
from .values import check_values, rgb, triplet

logger = logging.getLogger(__name__)

# A picture may have this many times more or fewer pixels than those of the training. The released bank, trained on 512
# pixels a side, is used at a megapixel; a quadrant is rounded to multiples of 16.
FARTHEST = 4.5


class Canvas(io.ComfyNode):
    """Compose a | a' over b | b."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LoRWeBCanvas",
            search_aliases=["2x2 grid", "analogy grid", "before after"],
            display_name="Canvas (LoRWeB)",
            category=CATEGORY,
            description="Composes the 2x2 canvas a | a' over b | b. Encode it with VAE Encode, use the latent both"
            " as reference and as the KSampler's latent, and cut b' out of the result with Crop Result. Do not scale"
            " the canvas in between. A canvas shows one pair: the first of a batch; a batch of b gives a batch of"
            " canvases.",
            inputs=[
                *triplet_inputs(),
                io.Float.Input(
                    "megapixels",
                    default=1.0,
                    min=0.0,
                    max=8.0,
                    step=0.05,
                    tooltip="Size of the whole canvas in units of 1024 x 1024 pixels; b' is a quarter of it. The"
                    " released bank was trained at 512 x 512 pixels and is used at 1. 0 keeps b at its own size.",
                ),
                io.Int.Input(
                    "long_side",
                    default=0,
                    min=0,
                    max=8192,
                    step=32,
                    tooltip="Longer side of the whole canvas in pixels, instead of megapixels. 0 leaves it to"
                    " megapixels.",
                ),
                fit_input(),
                Basis.Input(
                    "basis",
                    optional=True,
                    tooltip="The bank, if you want to be warned of a canvas far from the size that it was trained on,"
                    " or of a bank that was not trained on canvases.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="canvas", tooltip="a | a' over b | b, for VAE Encode."),
                Geometry.Output(
                    display_name="geometry", tooltip="Where everything lies on the canvas, for Crop Result."
                ),
                io.Int.Output(
                    display_name="width", tooltip="Width of the canvas, for nodes such as ModelSamplingFlux."
                ),
                io.Int.Output(display_name="height", tooltip="Height of the canvas."),
            ],
        )

    @classmethod
    def execute(
        cls,
        image_a,
        image_a_prime,
        image_b,
        megapixels: float,
        long_side: int,
        fit: str,
        basis: BasisBank | None = None,
    ) -> io.NodeOutput:
        check_values(cls, megapixels=megapixels, long_side=long_side, fit=fit)
        a, a_prime, b = triplet(image_a, image_a_prime, image_b)
        geometry = CanvasGeometry.plan(*b.shape[1:3], megapixels, long_side)
        canvas = geometry.compose(a[:1], a_prime[:1], b, fit)
        warning = picture_warnings(geometry, basis, CANVAS)
        if warning:
            logger.warning(warning)
        shown = ui.PreviewText(warning) if warning else None
        return io.NodeOutput(canvas, geometry, geometry.width, geometry.height, ui=shown)


# The node of each layout, and what it makes.
NODE_OF = {CANVAS: "Canvas", SEPARATE: "Analogy References"}
PICTURES_OF = {CANVAS: ("canvas", "canvases"), SEPARATE: ("picture", "pictures")}


def picture_warnings(geometry: CanvasGeometry | Frame, bank: BasisBank | None, layout: str) -> str:
    """What to say of a picture of a layout that is made for a bank; empty when there is nothing to say."""
    warnings = [geometry.warning]
    if bank is not None:
        fits = bank.config.layout == layout
        warnings.append(size_warning(geometry, bank) if fits else layout_warning(bank))
    return "\n".join(filter(None, warnings))


def layout_warning(bank: BasisBank) -> str:
    """What to say of a bank that is used in the other layout than its own."""
    own = bank.config.layout
    other = CANVAS if own == SEPARATE else SEPARATE
    return (
        f"{bank.path.name} was trained with the layout {own}, and this is {other}: expect a poor result. Use"
        f" {NODE_OF[own]} in place of {NODE_OF[other]}."
    )


def size_warning(geometry: CanvasGeometry | Frame, bank: BasisBank) -> str:
    """What to say of a picture far from the size that a bank was trained on; empty for one that is near."""
    side, (one, many) = bank.canvas, PICTURES_OF[bank.config.layout]
    ratio = geometry.height * geometry.width / side**2
    if 1 / FARTHEST <= ratio <= FARTHEST:
        return ""
    return (
        f"The {one} is {geometry.width} x {geometry.height}, but {bank.path.name} was trained on {many} of {side} x"
        f" {side}: expect a poor result. Set long_side to {side}, or to {2 * side} at most."
    )


class CropResult(io.ComfyNode):
    """Cut b' out of a finished canvas, or out of its own frame."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LoRWeBCropResult",
            search_aliases=["uncrop canvas", "b prime"],
            display_name="Crop Result (LoRWeB)",
            category=CATEGORY,
            description="Cuts b' out of what the model made, a canvas or b' alone, and puts it back to b's own size.",
            inputs=[
                # Lazy, so that a canvas that is scaled on its way is refused before it is sampled.
                io.Image.Input(
                    "image",
                    lazy=True,
                    tooltip="The decoded picture, at the size that Canvas or Analogy References gave it.",
                ),
                Geometry.Input("geometry", tooltip="From the Canvas or Analogy References that it began with."),
                io.Boolean.Input(
                    "original_size",
                    default=True,
                    tooltip="On: b' has b's own size. Off: the size at which the model made it, for an upscaler.",
                ),
            ],
            outputs=[io.Image.Output(display_name="image_b_prime", tooltip="b': the edited image.")],
            hidden=[io.Hidden.dynprompt, io.Hidden.unique_id],
        )

    @classmethod
    def check_lazy_status(cls, geometry: CanvasGeometry | Frame, image=None, original_size: bool = True) -> list[str]:
        if image is not None:
            return []
        asked = cls.hidden.dynprompt  # with the nodes that others, such as loops, put there while it runs
        graph = {node: asked.get_node(node) for node in asked.all_node_ids()}
        require_unscaled(graph, cls.hidden.unique_id, (geometry.height, geometry.width))
        return ["image"]

    @classmethod
    def execute(cls, image, geometry: CanvasGeometry | Frame, original_size: bool = True) -> io.NodeOutput:
        return io.NodeOutput(geometry.crop(rgb(image, "image"), original_size))


NODES = [Canvas, CropResult]
