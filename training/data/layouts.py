"""How a base is shown an analogy: on one canvas, or as three references with b' alone as the answer."""

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from lorweb_core.canvas import stack_quadrants

Item = dict[str, Tensor]


class Layout(Protocol):
    """What depends on the layout.

    Attributes:
        name: as in the bank's header.
        quadrants: of a side of the answer's image that b' has: 2 on a canvas, 1 alone.
    """

    name: str
    quadrants: int

    def arrange(self, a: Tensor, a_prime: Tensor, b: Tensor, b_prime: Tensor | None) -> Item:
        """The images of an item, all [H, W, 3] in 0..1, of four of one size: the references, and the ``target``."""
        ...

    def references(self, columns: Mapping[str, Any]) -> tuple[Tensor, ...]:
        """Batches [B, H, W, 3] of the reference images of collated items, in the order in which the base sees them."""
        ...

    def answer(self, image: Tensor) -> Tensor:
        """b' [..., h, w, 3] of the image that is sampled, [..., H, W, 3]."""
        ...


class Canvas:
    """The method's: the reference is the canvas a | a' over b | b, the answer the canvas a | a' over b | b'."""

    name, quadrants = "canvas", 2

    def arrange(self, a: Tensor, a_prime: Tensor, b: Tensor, b_prime: Tensor | None) -> Item:
        """See ``Layout``."""
        item = {"a": a, "a_prime": a_prime, "b": b, "reference": _canvas(a, a_prime, b, b)}
        return item if b_prime is None else item | {"target": _canvas(a, a_prime, b, b_prime)}

    def references(self, columns: Mapping[str, Any]) -> tuple[Tensor, ...]:
        """The one canvas."""
        return (columns["reference"],)

    def answer(self, image: Tensor) -> Tensor:
        """The last quadrant."""
        return image[..., image.shape[-3] // 2 :, image.shape[-2] // 2 :, :]


class Separate:
    """For bases that were trained with several references: a, a' and b, and b' alone, as large as b."""

    name, quadrants = "separate", 1

    def arrange(self, a: Tensor, a_prime: Tensor, b: Tensor, b_prime: Tensor | None) -> Item:
        """See ``Layout``."""
        item = {"a": a, "a_prime": a_prime, "b": b}
        return item if b_prime is None else item | {"target": b_prime}

    def references(self, columns: Mapping[str, Any]) -> tuple[Tensor, ...]:
        """a, a' and b."""
        return columns["a"], columns["a_prime"], columns["b"]

    def answer(self, image: Tensor) -> Tensor:
        """All of it."""
        return image


CANVAS, SEPARATE = Canvas(), Separate()
LAYOUTS: dict[str, Layout] = {layout.name: layout for layout in (CANVAS, SEPARATE)}


def _canvas(*quadrants: Tensor) -> Tensor:
    return stack_quadrants(*(image[None] for image in quadrants))[0]
