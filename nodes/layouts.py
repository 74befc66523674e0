"""How an analogy becomes latents for ComfyUI's models, and where in them the answer lies."""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..lorweb_core.canvas import stack_quadrants
from ..lorweb_core.config import CANVAS, SEPARATE
from ..lorweb_core.tasks import Pair
from .references import encode


class Analogy(NamedTuple):
    """An analogy as a model sees it.

    Attributes:
        latent: [1, channels, (frames,) h, w], with the answer in it. references: the latents that the model is shown.
        mask: [h, w], 1 where the answer is.
    """

    latent: Tensor
    references: tuple[Tensor, ...]
    mask: Tensor


class Layout(Protocol):
    """One way of showing analogies.

    Attributes:
        across: pictures that the model's whole picture has each way.
    """

    across: int

    def encode(self, vae, example: Pair, b: Tensor, answer: Tensor) -> Analogy:
        """Pictures [H, W, 3] of one size, in whole tokens, as latents."""
        ...

    def answer(self, latent: Tensor) -> Tensor:
        """The answer's part of a latent [..., h, w]."""
        ...


class OnCanvas:
    """a | a' over b | b', and for the reference a | a' over b | b."""

    across = 2

    def encode(self, vae, example: Pair, b: Tensor, answer: Tensor) -> Analogy:
        canvases = (stack_quadrants(*(x[None] for x in (*example, b, last))) for last in (b, answer))
        reference, latent = (encode(vae, canvas) for canvas in canvases)
        mask = torch.zeros(latent.shape[-2:])
        self.answer(mask).fill_(1)
        return Analogy(latent, (reference,), mask)

    def answer(self, latent: Tensor) -> Tensor:
        height, width = latent.shape[-2:]
        return latent[..., height // 2 :, width // 2 :]


class Separately:
    """b' alone, and references a, a', b in this order."""

    across = 1

    def encode(self, vae, example: Pair, b: Tensor, answer: Tensor) -> Analogy:
        *references, latent = (encode(vae, x[None]) for x in (*example, b, answer))
        return Analogy(latent, tuple(references), torch.ones(latent.shape[-2:]))

    def answer(self, latent: Tensor) -> Tensor:
        return latent


LAYOUTS: Mapping[str, Layout] = {CANVAS: OnCanvas(), SEPARATE: Separately()}
