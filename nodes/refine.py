"""Refine Edit: the coefficients of an edit, fitted to its example pairs on the MODEL itself."""

import logging
import time
from collections.abc import Sequence
from itertools import chain
from math import ceil

import comfy.utils
import numpy as np
from comfy_api.latest import io, ui
from torch import Tensor

from ..lorweb_core import BasisBank, Frame, MixingCoefficients
from ..lorweb_core.losscurve import beside, loss_curve
from ..lorweb_core.refine import Record, Refined, Settings, refine_pairs, settings_for
from ..lorweb_core.tasks import Pair, answered
from .fitting import FittedModel
from .layouts import LAYOUTS
from .progress import no_bar
from .sockets import ADVANCED, CATEGORY, Basis, Coefficients, fit_input, image_of, schema
from .values import check_finite, check_values, rgb

logger = logging.getLogger(__name__)

_DEFAULT = Settings()
# Seconds between two previews, and how many times what one costs.
_PAUSE, _SELDOM = 3.0, 20


class RefineEdit(io.ComfyNode):
    """Fit an edit to its example pairs; no weight changes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LoRWeBRefineEdit",
            search_aliases=["fit edit", "optimise edit", "train edit", "test-time training"],
            display_name="Refine Edit (LoRWeB)",
            category=CATEGORY,
            description="Fits the coefficients that Encode Analogy guessed to the example pairs: the model itself tries"
            " to make a' of a, and the coefficients move so that it does better. Two pairs or more are best: each is"
            " answered with the others as examples, and one of them judges. The guess is kept where the judge prefers"
            " nothing to it. No weight changes.",
            inputs=[
                io.Model.Input("model", tooltip="The model that the bank is for; LoRAs and edits may be on it."),
                Basis.Input("basis", tooltip="The bank that the coefficients were made with."),
                Coefficients.Input(
                    "coefficients", tooltip="Where it begins: from Encode Analogy with the same pairs, or a saved edit."
                ),
                io.Vae.Input("vae", tooltip="The model's autoencoder."),
                io.Conditioning.Input(
                    "conditioning",
                    tooltip="The prompt that you will sample with, and FluxGuidance; without references.",
                ),
                io.Image.Input("image_a", tooltip="a: the examples before the edit, a batch of them; four are good."),
                io.Image.Input("image_a_prime", tooltip="a': the same examples after the edit, as many images as a."),
                io.Int.Input(
                    "steps",
                    default=_DEFAULT.steps,
                    min=1,
                    max=1000,
                    tooltip="At most so many until the judge has chosen, and half as many after that; half of them for"
                    " a single pair. It ends before when the held-out loss no longer falls. A step costs as much as"
                    " about eight sampling steps of that size.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**32 - 1,
                    control_after_generate=False,
                    tooltip="Of which examples a step takes. The same seed gives the same edit.",
                ),
                io.Float.Input(
                    "tie",
                    default=_DEFAULT.tie,
                    min=0.0,
                    max=10.0,
                    step=0.01,
                    tooltip="Holds the edit to the guess: 0 lets it go, 0.1 ties it loosely, 1 tightly. For few or odd"
                    " pairs.",
                ),
                io.Int.Input(
                    "long_side",
                    default=0,
                    min=0,
                    max=4096,
                    step=32,
                    tooltip="Longer side in pixels of what the model is shown, the whole canvas. 0 is the size that the"
                    " bank was trained on: quickest, and an edit refined there serves larger canvases.",
                ),
                fit_input(),
                io.Image.Input(
                    "image_b",
                    optional=True,
                    tooltip="b: the picture to edit, for a single pair: the model edits it, and that is the example to"
                    " answer a with. Several pairs do not need it.",
                ),
                io.Int.Input(
                    "draws",
                    default=_DEFAULT.draws,
                    min=1,
                    max=32,
                    optional=True,
                    tooltip="Examples in a step. Fewer are quicker and less steady.",
                    **ADVANCED,
                ),
                io.Float.Input(
                    "rate",
                    default=_DEFAULT.rate,
                    min=0.001,
                    max=2.0,
                    step=0.01,
                    optional=True,
                    tooltip="How far a step goes. Lower it when the held-out loss rises at once.",
                    **ADVANCED,
                ),
                io.Int.Input(
                    "sampling_steps",
                    default=8,
                    min=1,
                    max=100,
                    optional=True,
                    tooltip="For a single pair: sampling steps of the example that the model makes up.",
                    **ADVANCED,
                ),
            ],
            outputs=[
                Coefficients.Output(display_name="coefficients", tooltip="The refined edit, for Apply and the rest."),
                io.String.Output(display_name="report", tooltip="What it brought, or that the guess was kept."),
                io.Image.Output(display_name="plot", tooltip="The loss of the steps and the loss held out."),
            ],
            draws=True,
        )

    @classmethod
    def execute(
        cls,
        model,
        basis: BasisBank,
        coefficients: MixingCoefficients,
        vae,
        conditioning,
        image_a,
        image_a_prime,
        steps: int,
        seed: int,
        tie: float,
        long_side: int,
        fit: str,
        image_b=None,
        draws: int = _DEFAULT.draws,
        rate: float = _DEFAULT.rate,
        sampling_steps: int = 8,
    ) -> io.NodeOutput:
        check_finite(tie=tie, rate=rate)
        check_values(cls, steps=steps, seed=seed, tie=tie, long_side=long_side, fit=fit)
        check_values(cls, draws=draws, rate=rate, sampling_steps=sampling_steps)
        a, a_prime = _examples(image_a, image_a_prime)
        basis.compose(coefficients, no_bar)  # refuses those of another bank
        layout = LAYOUTS[basis.config.layout]
        frame = Frame.plan(*a.shape[1:3], 0, long_side or basis.canvas, layout.across)
        pairs = [Pair(*images) for images in zip(frame.fill(a, fit), frame.fill(a_prime, fit))]
        pictures = [] if image_b is None else list(frame.fill(rgb(image_b, "image_b"), fit))
        settings = Settings(steps=steps, draws=draws, rate=rate, tie=tie, seed=seed)
        fitted = FittedModel(model, basis, conditioning, vae, layout, sampling_steps)
        refined, curve = _refine(fitted, coefficients, pairs, pictures, settings)
        report = _report(refined, pairs, settings_for(len(pairs), settings).steps)
        plot = image_of(curve)
        return io.NodeOutput(refined.coefficients, report, plot, ui=ui.PreviewImage(plot, cls=cls))


def _examples(image_a: Tensor, image_a_prime: Tensor) -> tuple[Tensor, Tensor]:
    """Both images of the example pairs.

    Raises:
        ValueError: when they are no images, or not as many.
    """
    a, a_prime = rgb(image_a, "image_a"), rgb(image_a_prime, "image_a_prime")
    if len(a) != len(a_prime):
        raise ValueError(
            f"image_a holds {len(a)} images and image_a_prime {len(a_prime)}; an example pair needs one of each"
        )
    return a, a_prime


def _refine(
    model: FittedModel, guess: MixingCoefficients, pairs: list[Pair], pictures: list[Tensor], settings: Settings
) -> tuple[Refined, np.ndarray]:
    """What came out, and its curve."""
    progress = _Progress(model, settings_for(len(pairs), settings), pairs)
    # All of them first, so that the autoencoder and the model do not take the GPU from each other.
    for task in chain(*answered(pairs)):
        model.analogy(*task.example, *task.answer)
    refined = refine_pairs(guess, model, pairs, settings, pictures, progress.show)
    curve = loss_curve(refined.history, refined.step)
    progress.finish(curve)
    return refined, curve


def _report(refined: Refined, pairs: Sequence[Pair], steps: int) -> str:
    height, width = pairs[0].before.shape[:2]
    first, last = refined.history[0], refined.history[-1]
    shown = f"{len(pairs)} example pair{'s' if len(pairs) > 1 else ''} of {width} x {height} pixels"
    report = (
        f"{refined.report()}\n{shown}; {last.step} of at most {steps} steps\n"
        f"loss held out: {first.held_out:.5f} for the guess, {refined.record.held_out:.5f} for what came out"
    )
    logger.info(report)
    return report


class _Progress:
    """The bar, counted in calls of the model; as preview the curves, and what becomes of the held-out answer."""

    def __init__(self, model: FittedModel, settings: Settings, pairs: Sequence[Pair]):
        self.model, self.settings = model, settings
        self.history: list[Record] = []
        self.done, self.calls = 0, _calls(settings, pairs)
        self.bar = comfy.utils.ProgressBar(self.calls)
        self.next = 0.0
        model.on_call = self.count

    def count(self) -> None:
        self.done += 1
        self.bar.update_absolute(min(self.done, self.calls - 1))

    def show(self, record: Record) -> None:
        """Told of every judgement."""
        self.history.append(record)
        logger.info("step %d: loss %.5f, held out %.5f", *record)
        seen, self.model.seen = self.model.seen, None
        start = time.monotonic()
        if start < self.next:
            return
        picture = beside(loss_curve(self.history, steps=self.settings.steps), seen and self.model.decode(seen.latent))
        self.bar.update_absolute(self.done, preview=("JPEG", picture, None))
        now = time.monotonic()
        self.next = now + max(_PAUSE, _SELDOM * (now - start))

    def finish(self, curve: np.ndarray) -> None:
        """The page goes on showing the last preview, so that has to be what the node shows."""
        self.bar.update_absolute(self.calls, preview=("JPEG", beside(curve, None), None))


def _calls(settings: Settings, pairs: Sequence[Pair]) -> int:
    """How often the model will be called if no step is spared; of a single pair, about."""
    judgements = 1 + ceil(settings.steps / settings.every)
    tasks = answered(pairs)
    held_out, before = (len(tasks[0]), 2 * sum(map(len, tasks))) if len(pairs) > 1 else (4, 41)
    steps = settings.steps + settings.joined
    return before + steps * settings.draws + (judgements + 1) * settings.judged * held_out


NODES = [RefineEdit]
