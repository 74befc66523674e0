"""A transformer as a pipeline of text to image calls it, with reference images beside what is sampled.

Pipelines of edits scale their reference images to areas of their own; analogies are shown at the sizes that training
showed them at. So the family's pipeline of text to image gives schedule, guidance and decoding, and the velocity is
the family's own, the very function that training asks.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn

from .family import Conditioning, Told


class Referring(nn.Module):
    """A transformer around which a pipeline is made; ``condition`` is set before every use of the pipeline.

    Args:
        pack, unpack: latents [B, C, h, w] to the pipeline's tokens; and back, given the latents' size (h, w).
    """

    def __init__(
        self,
        model: nn.Module,
        pack: Callable[[Tensor], Tensor],
        unpack: Callable[[Tensor, tuple[int, int]], Tensor],
    ):
        super().__init__()
        self.model, self.pack, self.unpack = model, pack, unpack
        self.condition: Conditioning | None = None

    @property
    def config(self):
        """The transformer's."""
        return self.model.config

    @property
    def dtype(self) -> torch.dtype:
        """The transformer's."""
        return self.model.dtype

    @property
    def device(self) -> torch.device:
        """The transformer's."""
        return self.model.device

    def cache_context(self, name: str) -> AbstractContextManager:
        """Nothing is cached between steps."""
        return nullcontext()

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_hidden_states_mask: Tensor | None = None,
        **others,
    ) -> tuple[Tensor]:
        """The velocity of the tokens of what is sampled, as the pipeline wants it; ``others`` is known here."""
        condition = replace(self.condition, text=_told(encoder_hidden_states, encoder_hidden_states_mask))
        x_t = self.unpack(hidden_states, tuple(condition.references[-1].shape[-2:]))
        return (self.pack(condition.family.velocity(self.model, x_t, timestep, condition)),)


def _told(tokens: Tensor, mask: Tensor | None) -> Told:
    return {"tokens": tokens} if mask is None else {"tokens": tokens, "mask": mask}
