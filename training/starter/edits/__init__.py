"""The catalogue of edits: over a hundred ways to change an image, in ten families."""

from . import content, filters, geometry, overlays, stylise, tone
from .edit import Choice, Edit, Parameters, Span, compose

_MODULES = (tone, filters, geometry, overlays, content, stylise)

EDITS: dict[str, Edit] = {edit.name: edit for module in _MODULES for edit in module.EDITS}
FAMILIES: tuple[str, ...] = tuple(dict.fromkeys(edit.family for edit in EDITS.values()))

# Held-out edits have trained neighbours on both sides, such as tints of other hues.
HELD_OUT_EDITS: tuple[str, ...] = tuple(name for module in _MODULES for name in module.HELD_OUT)
TRAINING_EDITS: tuple[str, ...] = tuple(name for name in EDITS if name not in HELD_OUT_EDITS)

__all__ = ["Choice", "EDITS", "Edit", "FAMILIES", "HELD_OUT_EDITS", "Parameters", "Span", "TRAINING_EDITS", "compose"]
