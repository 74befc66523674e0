"""Apply: a model with the LoRA that the coefficients make of the bank, in its weights or at run time."""

import logging
from collections.abc import Mapping

import comfy.lora
import comfy.utils
from comfy_api.latest import io, ui

from ..lorweb_core import BasisBank, MixingCoefficients
from ..lorweb_core.checkpoint import PREFIX
from ..lorweb_core.layers import FAMILIES, likely_families, places
from ..lorweb_core.lora import ComposedLoRA
from .adapter import BasisAdapter
from .progress import no_bar
from .runtime import Rows, add_at_run_time, refuse_changed
from .sockets import CATEGORY, Basis, Coefficients, schema

logger = logging.getLogger(__name__)

# A weight's key, or (key, (dim, start, length)) for a slice of a fused one; sometimes with a function on the delta.
Target = str | tuple

PATCH, RUNTIME = "patch", "runtime"
# Through a link; the slider ends earlier.
LARGEST_STRENGTH = 100


class Apply(io.ComfyNode):
    """Emit a MODEL patched with one analogy."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LoRWeBApply",
            search_aliases=["edit by example", "apply lora", "visual analogy"],
            display_name="Apply Analogy (LoRWeB)",
            category=CATEGORY,
            description="Puts the edit on the model, as one ordinary LoRA. Stacks with other LoRAs in any order; the"
            " weights are patched once, before sampling, or the edit is added at run time, and the model that came in"
            " stays as it is.",
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
                io.Combo.Input(
                    "mode",
                    options=[PATCH, RUNTIME],
                    default=PATCH,
                    optional=True,
                    tooltip="patch: the edit is in the weights, and a step costs what it costs without. runtime: layers"
                    " add the edit to what they give, so no weight is patched again after a change, and packed weights"
                    " (NF4, int4) take it too; a step costs a little more.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The patched model, for the sampler or more LoRAs."),
                io.String.Output(display_name="report", tooltip="How many of the bank's layers the model has."),
            ],
        )

    @classmethod
    def execute(
        cls, model, basis: BasisBank, coefficients: MixingCoefficients, strength: float, mode: str = PATCH
    ) -> io.NodeOutput:
        if not abs(strength) <= LARGEST_STRENGTH:  # so neither does NaN pass
            raise ValueError(f"strength is {strength}; it can be from -{LARGEST_STRENGTH} to {LARGEST_STRENGTH}")
        if strength == 0:
            report = f"{basis.path.name}: strength 0, the model is untouched"
            return io.NodeOutput(model, report, ui=ui.PreviewText(report))
        edited, report = apply_lora(model, basis.compose(coefficients, no_bar), strength, mode)
        return io.NodeOutput(edited, report, ui=ui.PreviewText(report))


def apply_lora(model, lora: ComposedLoRA, strength: float, mode: str = PATCH) -> tuple[object, str]:
    """A clone of the model with the LoRA's adapters, in the weights or at run time.

    Returns:
        (edited ModelPatcher, report of matched layers).

    Raises:
        ValueError: when no layer of the bank is in the model, one has another shape, or cannot take the mode.
    """
    bank = lora.bank
    targets = require_targets(model, bank, mode)
    if mode == RUNTIME:
        edited = add_at_run_time(model, lora, parts_of(targets), strength)
    else:
        edited = _patch(model, lora, targets, strength)
    refuse_changed(edited, bank)
    missing = [name for name in bank.layers if name not in targets]
    how = "at run time" if mode == RUNTIME else "patched"
    report = f"{bank.path.name}: {len(targets)} of {len(bank.layers)} layers {how}, strength {strength:g}"
    if missing:
        report += f"; the model lacks {', '.join(missing[:5])}{' and others' if len(missing) > 5 else ''}"
        logger.warning(report)
    else:
        logger.info(report)
    return edited, report


def _patch(model, lora: ComposedLoRA, targets: dict[str, Target], strength: float):
    """A clone of the model with the adapters among its patches."""
    patches = {}
    for name, target in targets.items():
        patches[target] = BasisAdapter.of(lora.bank.layers[name], lora.layer_coefficients(name), lora.bank.config.scale)
        bias = lora.bias(name)
        if bias is not None:
            patches[_bias_target(target)] = ("diff", (bias,))
    patched = model.clone()
    accepted = set(patched.add_patches(patches, strength))
    rejected = [str(target) for target in patches if target not in accepted]
    if rejected:
        raise ValueError(f"the model refused {len(rejected)} of {len(patches)} patches, such as {rejected[0]}")
    return patched


def parts_of(targets: dict[str, Target]) -> dict[str, dict[str, Rows]]:
    """Module path in the model -> layers of the bank -> the rows that each adds to."""
    parts: dict[str, dict[str, Rows]] = {}
    for name, target in targets.items():
        part = _slice(target)
        parts.setdefault(_module_path(target), {})[name] = part and slice(part[1], part[1] + part[2])
    return parts


def require_targets(model, bank: BasisBank, mode: str = PATCH) -> dict[str, Target]:
    """``find_targets``, of which there must be some.

    Raises:
        ValueError: when the model is of another family, or has no layer of the bank; and as ``find_targets``.
    """
    _require_family(model, bank)
    targets = find_targets(model, bank, mode)
    if not targets:
        raise ValueError(_nothing_matches(model, bank))
    return targets


def find_targets(model, bank: BasisBank, mode: str = PATCH) -> dict[str, Target]:
    """Which weight of the model each layer of the bank adapts, shapes checked; layers that it lacks are left out.

    Raises:
        ValueError: naming a layer that has another shape than the bank's factors, or cannot take the mode.
    """
    targets = name_targets(model, bank)
    there, check = (_module, _check_module) if mode == RUNTIME else (_weight, _check_weight)
    present = {name: target for name, target in targets.items() if there(model, target) is not None}
    for name, target in present.items():
        check(model, name, target, bank)
    return present


def _require_family(model, bank: BasisBank) -> None:
    """Refuse a model of another family than the bank's: some layers have the same names and widths in both.

    Raises:
        ValueError: naming both and what to do.
    """
    config = getattr(getattr(model.model, "model_config", None), "unet_config", {})
    found = next((family for family in FAMILIES if family.comfyui == config.get("image_model")), None)
    wanted = likely_families(bank.layers, bank.config.base_model)
    if found is not None and found not in wanted:
        raise ValueError(
            f"{_does_not_fit(bank)}, of the family {wanted[0].name}, and the model is of the family {found.name}; load"
            " the bank's base with Load Diffusion Model, or a bank that was trained on this model"
        )


def name_targets(model, bank: BasisBank) -> dict[str, Target]:
    """Which weight of the model each layer of the bank should be: by ComfyUI's own map, else by ours."""
    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    ours = target_table({name: layer.out_features for name, layer in bank.layers.items()})
    named = {name: keys.get(PREFIX + name, ours.get(name)) for name in bank.layers}
    return {name: target for name, target in named.items() if target is not None}


def target_table(widths: Mapping[str, int]) -> dict[str, Target]:
    """Layers of a bank, with their numbers of outputs, as targets by our own table."""
    targets = {}
    for name, (module, start) in places(widths).items():
        key = f"diffusion_model.{module}.weight"
        targets[name] = key if start is None else (key, (0, start, widths[name]))
    return targets


def _key(target: Target) -> str:
    return target if isinstance(target, str) else target[0]


def _module_path(target: Target) -> str:
    return _key(target).removesuffix(".weight")


def _attribute(model, path: str):
    try:
        return comfy.utils.get_attr(model.model, path)
    except AttributeError:
        return None


def _weight(model, target: Target):
    return _attribute(model, _key(target))


def _module(model, target: Target):
    return _attribute(model, _module_path(target))


def _does_not_fit(bank: BasisBank) -> str:
    return f"the bank does not fit this model: {bank.path.name} was trained on {bank.config.base_model}"


def _check_weight(model, name: str, target: Target, bank: BasisBank) -> None:
    layer = bank.layers[name]
    key, expected = _key(target), (layer.out_features, layer.in_features)
    whole = found = tuple(_weight(model, target).shape)
    if _slice(target) and len(whole) == 2:
        dim, start, length = _slice(target)
        found = tuple(max(0, min(length, size - start)) if axis == dim else size for axis, size in enumerate(whole))
    if found != expected:
        raise ValueError(
            f"{_does_not_fit(bank)}, and its factors of layer {name} make a {expected[0]} x {expected[1]} delta, but"
            f" the model's weight {key} is {' x '.join(map(str, whole))}; this is another base, or one that is stored"
            " in a packed 4-bit format (NF4, Nunchaku), which cannot be patched: choose mode runtime, or use a bf16,"
            " fp8 or GGUF file"
        )


def _check_module(model, name: str, target: Target, bank: BasisBank) -> None:
    """A module tells its widths, or is believed until it runs: a packed weight tells nothing."""
    layer, module, path = bank.layers[name], _module(model, target), _module_path(target)
    dim, start, length = _slice(target) or (0, 0, None)
    reshaped = not isinstance(target, str) and len(target) > 2
    if not callable(getattr(module, "forward", None)) or dim != 0 or reshaped:
        raise ValueError(
            f"mode runtime does not suit this model: for layer {name} it has {path} ({type(module).__name__}), which is"
            " no layer whose output an edit can be added to; choose mode patch"
        )
    before, after = (getattr(module, side, None) for side in ("in_features", "out_features"))
    expected = (layer.in_features, layer.out_features)
    found = (before or expected[0], after or expected[1]) if length is None else (before or expected[0], length)
    if found != expected or (after is not None and start + found[1] > after):
        raise ValueError(
            f"{_does_not_fit(bank)}, and its factors of layer {name} go from {expected[0]} to {expected[1]}, but the"
            f" model's {path} goes from {before} to {after}; this is another base"
        )


def _slice(target: Target) -> tuple[int, int, int] | None:
    """(dim, start, length) of a fused weight, where a layer is a part of one."""
    return None if isinstance(target, str) else target[1]


def _bias_target(target: Target) -> Target:
    """The bias that goes with a weight, sliced alike."""
    key = _key(target).removesuffix("weight") + "bias"
    return key if isinstance(target, str) else (key, *target[1:])


def _nothing_matches(model, bank: BasisBank) -> str:
    return (
        f"none of the {len(bank.layers)} layers of {bank.path.name} is in this model ({type(model.model).__name__});"
        f" the bank adapts {bank.config.base_model}, with layers such as {next(iter(bank.layers))}. Load that model"
        " with Load Diffusion Model (bf16 or fp8) or a GGUF loader; Nunchaku names its layers differently"
    )


NODES = [Apply]
