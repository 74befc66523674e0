"""What came through a link: ComfyUI holds a widget's own value to its range and choices, a linked one to nothing."""

import math

from comfy_api.latest import io
from torch import Tensor


def check_finite(**numbers: float) -> None:
    """Refuse NaN and infinity, which would make a black picture without a word.

    Args:
        numbers: input name -> value.

    Raises:
        ValueError: naming the input.
    """
    for name, number in numbers.items():
        if not math.isfinite(number):
            raise ValueError(f"{name} is {number}; connect a finite number")


def check_values(node: type[io.ComfyNode], **values: float | str) -> None:
    """Hold values to the ranges and choices of a node's own widgets.

    Args:
        values: input name -> value.

    Raises:
        ValueError: naming the input, the value and what it can be.
    """
    slots = {slot.id: slot for slot in node.define_schema().inputs}
    for name, value in values.items():
        slot = slots[name]
        if isinstance(slot, io.Combo.Input):
            if value not in slot.options:
                raise ValueError(f"{name} is {value!r}; it can be {', '.join(slot.options)}")
        elif not slot.min <= value <= slot.max:
            raise ValueError(f"{name} is {value}; it can be from {slot.min} to {slot.max}")


def rgb(images: Tensor, name: str) -> Tensor:
    """Images [B, H, W, 3] of an image input: grey ones get three channels, an alpha channel goes.

    Args:
        images: [B, H, W, C]; ComfyUI's own loader gives one channel for a grey file, since 0.9.
        name: of the input, for errors.

    Raises:
        ValueError: when they are no images, are none at all, or hold NaN or infinity.
    """
    if images.dim() != 4 or not images.numel():
        raise ValueError(
            f"{name} is of shape {' x '.join(map(str, images.shape))}; images are [images, height, width, channels]"
            " with at least one image and pixel (Convert Mask to Image makes one of a mask)"
        )
    colours = images[..., :3] if images.shape[-1] > 2 else images[..., :1].expand(-1, -1, -1, 3)
    for extreme in colours.aminmax():
        check_finite(**{name: float(extreme)})
    return colours


def triplet(image_a: Tensor, image_a_prime: Tensor, image_b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The three images of an analogy as ``rgb`` gives them.

    Raises:
        ValueError: as ``rgb``.
    """
    return rgb(image_a, "image_a"), rgb(image_a_prime, "image_a_prime"), rgb(image_b, "image_b")
