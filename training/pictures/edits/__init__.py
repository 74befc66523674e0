"""The catalogue of edits: over four hundred ways to change an image, in ten families."""

from functools import cache

from . import (
    atmosphere,
    colours,
    content,
    filters,
    finish,
    geometry,
    media,
    objects,
    overlays,
    regions,
    selective,
    stickers,
    stylise,
    tone,
    warps,
)
from .edit import Choice, Edit, Parameters, Span, compose, eight_bits

_MODULES = (
    tone, colours, selective, filters, finish, geometry, warps, overlays, regions, atmosphere, content, stickers,
    objects, stylise, media,
)  # fmt: skip

EDITS: dict[str, Edit] = {edit.name: edit for module in _MODULES for edit in module.EDITS}
FAMILIES: tuple[str, ...] = tuple(dict.fromkeys(edit.family for edit in EDITS.values()))

# Held-out edits have trained neighbours on both sides, such as tints of other hues.
HELD_OUT_EDITS: tuple[str, ...] = tuple(name for module in _MODULES for name in module.HELD_OUT)
TRAINING_EDITS: tuple[str, ...] = tuple(name for name in EDITS if name not in HELD_OUT_EDITS)
# An edit that changes nothing: a model learns from it that a' may be a.
IDENTITY = colours.IDENTITY

_COMPOSED = (
    ("invert", "border_white"), ("sepia", "vignette"), ("grey", "border_colour"), ("tint_blue", "scanlines"),
    ("mirror", "tint_red"), ("flip", "grey"), ("gaussian_blur", "insert_red_disc"), ("mosaic", "grey"),
    ("posterise", "circle_black"), ("duotone_navy_cream", "letterbox"), ("insert_yellow_star", "invert"),
    ("insert_blue_square", "border_black"), ("half_turn", "invert"), ("darken", "insert_white_ring"),
    ("edges_on_black", "tint_green"), ("threshold", "stripes_vertical"), ("zoom_out", "sepia"),
    ("motion_blur_horizontal", "shade_top"), ("halftone", "badge_top_left"), ("swap_red_blue", "mirror"),
    ("red_to_blue", "border_white"), ("remove_discs", "grey"), ("background_blue", "scanlines"),
    ("move_right", "invert"),
)  # fmt: skip
# Two trained edits, one after the other; never trained on together, in neither order.
COMPOSITIONS: dict[str, Edit] = {
    edit.name: edit for edit in (compose(EDITS[first], EDITS[second]) for first, second in _COMPOSED)
}


@cache
def followers(first: str) -> tuple[str, ...]:
    """The trained edits that may follow a trained one in training: all that can, but for those held out with it, and
    for the one that changes nothing.
    """
    barred = {IDENTITY, *(name for pair in _COMPOSED if first in pair for name in pair if name != first)}
    return tuple(name for name in TRAINING_EDITS if EDITS[name].apply is not None and name not in barred)


__all__ = [
    "COMPOSITIONS", "Choice", "EDITS", "Edit", "FAMILIES", "HELD_OUT_EDITS", "IDENTITY", "Parameters", "Span",
    "TRAINING_EDITS", "compose", "eight_bits", "followers",
]  # fmt: skip
