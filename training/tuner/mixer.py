"""Keys and query projections of all layers, stacked, so that one batched product mixes the whole model."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorweb_core import BankConfig
from lorweb_core.mixing import attention_logits, mixing_coefficients


class Mixer(nn.Module):
    """Analogy query -> mixing coefficients of every layer, by the core's formula.

    Attributes:
        keys: [L, N, d], standard normal at initialisation.
        to_q: [L, d, q], initialised like ``nn.Linear``; None for projection "none".
    """

    def __init__(
        self, num_layers: int, bank: BankConfig, device: torch.device | None = None, dtype: torch.dtype | None = None
    ):
        super().__init__()
        self.bank = bank
        kwargs = {"device": device, "dtype": dtype}
        self.keys = nn.Parameter(torch.randn(num_layers, bank.num_loras, bank.key_dim, **kwargs))
        self.to_q = None
        if bank.projection == "linear":
            bound = bank.query_dim**-0.5
            weight = torch.empty(num_layers, bank.key_dim, bank.query_dim, **kwargs)
            self.to_q = nn.Parameter(weight.uniform_(-bound, bound))

    def forward(self, query: Tensor) -> Tensor:
        """query [B, q] -> coefficients [B, L, N], in the precision of the keys whatever autocast says."""
        with torch.autocast(query.device.type, enabled=False):
            z = query.to(self.keys.dtype)
            if self.to_q is None:
                u = z[:, None]
            else:
                u = F.linear(z, self.to_q.flatten(0, 1)).unflatten(-1, self.to_q.shape[:2])
            logits = attention_logits(self.keys, u, self.bank.heads)
            return mixing_coefficients(logits, self.bank.softmax, self.bank.mixing)
