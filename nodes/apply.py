"""Apply: patch a model with the LoRA that the coefficients make of the bank."""

import logging

import comfy.lora
import comfy.utils
from comfy_api.latest import io, ui

from ..lorweb_core import BasisBank, MixingCoefficients
from ..lorweb_core.checkpoint import PREFIX
from ..lorweb_core.lora import ComposedLoRA
from .adapter import BasisAdapter
from .sockets import CATEGORY, Basis, Coefficients

logger = logging.getLogger(__name__)

# A weight's key, or (key, (dim, start, length)) for a slice of a fused one; sometimes with a function on the delta.
Target = str | tuple


class Apply(io.ComfyNode):
    """Emit a MODEL patched with one analogy."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoRWeBApply",
            display_name="Apply Analogy (LoRWeB)",
            category=CATEGORY,
            description="Patches the model with the edit, as one ordinary LoRA. Stacks with other LoRAs in any"
            " order; the weights are patched once, before sampling, and the model that came in stays as it is.",
            inputs=[
                io.Model.Input("model", tooltip="The model the bank was trained on, such as FLUX.1-Kontext-dev."),
                Basis.Input("basis", tooltip="The bank that the coefficients were made with."),
                Coefficients.Input("coefficients", tooltip="From Encode Analogy, perhaps blended or adjusted."),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-2.0,
                    max=2.0,
                    step=0.05,
                    display_mode=io.NumberDisplay.slider,
                    tooltip="1 is the edit as shown, more exaggerates it, 0 leaves the model untouched, negative"
                    " inverts.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The patched model, for the sampler or more LoRAs."),
                io.String.Output(display_name="report", tooltip="How many of the bank's layers the model has."),
            ],
        )

    @classmethod
    def execute(cls, model, basis: BasisBank, coefficients: MixingCoefficients, strength: float) -> io.NodeOutput:
        if strength == 0:
            report = f"{basis.path.name}: strength 0, the model is untouched"
            return io.NodeOutput(model, report, ui=ui.PreviewText(report))
        patched, report = apply_lora(model, basis.compose(coefficients), strength)
        return io.NodeOutput(patched, report, ui=ui.PreviewText(report))


def apply_lora(model, lora: ComposedLoRA, strength: float) -> tuple[object, str]:
    """A clone of the model with the LoRA's adapters added.

    Returns:
        (patched ModelPatcher, report of matched layers).

    Raises:
        ValueError: when no layer of the bank is in the model, or a weight has another shape.
    """
    bank = lora.bank
    targets = find_targets(model, bank)
    if not targets:
        raise ValueError(_nothing_matches(model, bank))
    patches = {}
    for name, target in targets.items():
        layer = bank.layers[name]
        patches[target] = BasisAdapter.of(layer, lora.layer_coefficients(name), bank.config.scale)
        bias = lora.bias(name)
        if bias is not None:
            patches[_bias_target(target)] = ("diff", (bias,))
    patched = model.clone()
    accepted = set(patched.add_patches(patches, strength))
    rejected = [str(target) for target in patches if target not in accepted]
    if rejected:
        raise ValueError(f"the model refused {len(rejected)} of {len(patches)} patches, such as {rejected[0]}")
    missing = [name for name in bank.layers if name not in targets]
    report = f"{bank.path.name}: {len(targets)} of {len(bank.layers)} layers patched, strength {strength:g}"
    if missing:
        report += f"; the model lacks {', '.join(missing[:5])}{' and others' if len(missing) > 5 else ''}"
        logger.warning(report)
    else:
        logger.info(report)
    return patched, report


def find_targets(model, bank: BasisBank) -> dict[str, Target]:
    """Which weight of the model each layer of the bank adapts, shapes checked; layers that it lacks are left out.

    Raises:
        ValueError: naming a layer whose weight has another shape than the bank's factors.
    """
    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    targets = {name: keys[PREFIX + name] for name in bank.layers if PREFIX + name in keys}
    present = {name: target for name, target in targets.items() if _has_weight(model, target)}
    for name, target in present.items():
        _check_shape(model, name, target, (bank.layers[name].out_features, bank.layers[name].in_features))
    return present


def _key(target: Target) -> str:
    return target if isinstance(target, str) else target[0]


def _has_weight(model, target: Target) -> bool:
    try:
        comfy.utils.get_attr(model.model, _key(target))
    except AttributeError:
        return False
    return True


def _check_shape(model, name: str, target: Target, expected: tuple[int, int]) -> None:
    key = _key(target)
    whole = found = tuple(comfy.utils.get_attr(model.model, key).shape)
    if not isinstance(target, str) and target[1] is not None and len(whole) == 2:
        dim, start, length = target[1]
        found = tuple(max(0, min(length, size - start)) if axis == dim else size for axis, size in enumerate(whole))
    if found != expected:
        raise ValueError(
            f"layer {name}: the bank's factors make a {expected[0]} x {expected[1]} delta, but the model's weight"
            f" {key} is {' x '.join(map(str, whole))}; the bank was trained on another base, or the model is stored"
            " in a packed 4-bit format (NF4, Nunchaku), which cannot be patched: use a bf16, fp8 or GGUF file"
        )


def _bias_target(target: Target) -> Target:
    """The bias that goes with a weight, sliced alike."""
    key = _key(target).removesuffix("weight") + "bias"
    return key if isinstance(target, str) else (key, *target[1:])


def _nothing_matches(model, bank: BasisBank) -> str:
    return (
        f"none of the {len(bank.layers)} layers of {bank.path.name} is in this model ({type(model.model).__name__});"
        f" the bank adapts {bank.config.base_model}, with layers such as {next(iter(bank.layers))}. Load that model"
        " with Load Diffusion Model (bf16 or fp8) or a GGUF loader; Nunchaku and NF4 models name and pack their"
        " weights differently and cannot be patched"
    )


NODES = [Apply]
