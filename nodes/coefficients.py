"""Blend, Adjust and Plot: what people do with mixing coefficients."""

from collections.abc import Iterator
from contextlib import contextmanager

from comfy_api.latest import io, ui

from ..lorweb_core import MixingCoefficients
from ..lorweb_core.patterns import parse_block_scales, parse_overrides
from ..lorweb_core.plot import heatmap
from .progress import interruptible
from .sockets import ADVANCED, CATEGORY, Coefficients, coefficients_output, image_of, schema
from .values import check_finite, check_values

LARGEST_BLEND = 16
MORE = [f"coefficients_{number}" for number in range(3, LARGEST_BLEND + 1)]  # the inputs that grow


def _growing_inputs() -> list:
    """More edits to blend, where ComfyUI has inputs that grow as they are connected."""
    if not hasattr(io, "Autogrow"):
        return []
    edit = Coefficients.Input("edit", tooltip="One more edit of the same bank.")
    template = io.Autogrow.TemplateNames(edit, names=MORE, min=0)
    return [
        io.Autogrow.Input("more", template=template, optional=True, tooltip="More edits, averaged with the second.")
    ]


class BlendCoefficients(io.ComfyNode):
    """Interpolate two edits, or one and the average of several."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LoRWeBBlendCoefficients",
            search_aliases=["mix edits", "interpolate edits"],
            display_name="Blend Coefficients (LoRWeB)",
            category=CATEGORY,
            description="Interpolates two edits of one bank. Chain several of these nodes to blend more than two.",
            inputs=[
                Coefficients.Input("coefficients_1", tooltip="The edit at blend 0."),
                Coefficients.Input("coefficients_2", tooltip="The edit at blend 1, made with the same bank."),
                io.Float.Input(
                    "blend",
                    default=0.5,
                    min=-1.0,
                    max=2.0,
                    step=0.01,
                    display_mode=io.NumberDisplay.slider,
                    tooltip="0 is the first edit, 1 the second, 0.5 their average; beyond 0 and 1 it extrapolates.",
                ),
                *_growing_inputs(),
            ],
            outputs=[Coefficients.Output(display_name="coefficients", tooltip="The blended edit.")],
            draws=True,
        )

    @classmethod
    def execute(
        cls,
        coefficients_1: MixingCoefficients,
        coefficients_2: MixingCoefficients,
        blend: float,
        more: dict[str, MixingCoefficients] | None = None,
    ) -> io.NodeOutput:
        check_finite(blend=blend)
        others = [coefficients_2, *(edit for edit in (more or {}).values() if edit is not None)]
        weights = [1 - blend, *[blend / len(others)] * len(others)]
        return coefficients_output(MixingCoefficients.blend([coefficients_1, *others], weights))


class AdjustCoefficients(io.ComfyNode):
    """Temperature, top-k, block scales and overrides, in this order."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LoRWeBAdjustCoefficients",
            search_aliases=["sharpen edit", "temperature", "block scales"],
            display_name="Adjust Coefficients (LoRWeB)",
            category=CATEGORY,
            description="Sharpens, thins out and weighs an edit: temperature, then top-k, then scales per block,"
            " then single coefficients set by hand.",
            inputs=[
                Coefficients.Input("coefficients", tooltip="The edit to adjust."),
                io.Float.Input(
                    "temperature",
                    default=1.0,
                    min=0.05,
                    max=10.0,
                    step=0.05,
                    tooltip="Below 1 the strongest basis elements win, above 1 all become alike; 1 changes nothing.",
                ),
                io.Int.Input(
                    "top_k",
                    default=0,
                    min=0,
                    max=1024,
                    tooltip="Keep only this many basis elements per layer, the strongest; 0 keeps all.",
                ),
                io.String.Input(
                    "block_scales",
                    default="",
                    multiline=True,
                    placeholder="block scales, one a line:\ntransformer_blocks.{0-4} = 0.5\n*.proj_out = 1.2",
                    tooltip="One 'pattern = factor' a line: multiplies the coefficients of all layers that the"
                    " pattern covers. Wildcards * and ?, number ranges {0-4}, and # for comments.",
                ),
                io.String.Input(
                    "overrides",
                    default="",
                    multiline=True,
                    placeholder="overrides, one a line:\ntransformer_blocks.3 7 = 0.4",
                    tooltip="One 'pattern index = value' a line: sets the coefficient of one basis element (counted"
                    " from 0) by hand in all layers that the pattern covers.",
                    **ADVANCED,
                ),
            ],
            outputs=[Coefficients.Output(display_name="coefficients", tooltip="The adjusted edit.")],
            draws=True,
        )

    @classmethod
    def execute(
        cls, coefficients: MixingCoefficients, temperature: float, top_k: int, block_scales: str, overrides: str
    ) -> io.NodeOutput:
        check_finite(temperature=temperature)
        check_values(cls, top_k=top_k)
        adjusted = coefficients.temperature(temperature)
        if top_k:
            adjusted = adjusted.top_k(min(top_k, adjusted.num_loras))
        with _errors_of("block_scales"):
            adjusted = adjusted.scale_blocks(interruptible(parse_block_scales(block_scales)))
        with _errors_of("overrides"):
            adjusted = adjusted.override(interruptible(parse_overrides(overrides)))
        return coefficients_output(adjusted)


@contextmanager
def _errors_of(widget: str) -> Iterator[None]:
    """Put the widget's name before what is wrong with its text.

    Texts are read when the node runs: of errors found before that the page shows no word as long as any other output
    of the graph can run.
    """
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{widget}: {error}") from error


class PlotCoefficients(io.ComfyNode):
    """Show coefficients as a heatmap and as JSON."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LoRWeBPlotCoefficients",
            search_aliases=["heatmap", "show coefficients"],
            display_name="Plot Coefficients (LoRWeB)",
            category=CATEGORY,
            description="Draws the coefficients, layers by basis elements, with how many elements are used in effect"
            " and which are strongest.",
            inputs=[Coefficients.Input("coefficients", tooltip="The edit to look at.")],
            outputs=[
                io.Image.Output(display_name="heatmap", tooltip="Layers by basis elements."),
                io.String.Output(display_name="json", tooltip="All coefficients as JSON text."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, coefficients: MixingCoefficients) -> io.NodeOutput:
        picture = image_of(heatmap(coefficients))
        return io.NodeOutput(picture, coefficients.to_json(), ui=ui.PreviewImage(picture, cls=cls))


NODES = [BlendCoefficients, AdjustCoefficients, PlotCoefficients]
