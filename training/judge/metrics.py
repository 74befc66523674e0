"""How good a predicted b' is: against the true one (PSNR, SSIM, LPIPS) and along the shown edit (direction)."""

from collections.abc import Callable
from pathlib import Path

import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor
from torch.nn import functional as F

from ..lpips_weights import load_lpips

METRICS = ("psnr", "ssim", "lpips", "direction")
# Which way is better, for reports.
HIGHER_IS_BETTER = {"psnr": True, "ssim": True, "lpips": False, "direction": True}
_IDENTICAL_PSNR = 100.0  # of images without any difference, in dB

Distance = Callable[[Tensor, Tensor], float]


def make_lpips(weights: Path, cache: Path, device: torch.device, net: str = "alex") -> Distance:
    """LPIPS of two images [H, W, 3] in 0..1.

    Raises:
        ValueError: as ``load_lpips``.
    """
    model = load_lpips(weights, cache, net).to(device)

    @torch.no_grad()
    def distance(one: Tensor, other: Tensor) -> float:
        pair = (image.movedim(-1, 0)[None].to(device) for image in (one, other))
        return model(*pair, normalize=True).item()

    return distance


def direction(a: Tensor, a_prime: Tensor, b: Tensor, predicted: Tensor) -> float:
    """Cosine between the shown edit a' - a and the made edit predicted - b, of image embeddings [e].

    0 for a prediction that equals b.
    """
    return F.cosine_similarity(a_prime - a, predicted - b, dim=0, eps=1e-6).item()


def fidelity(target: Tensor, predicted: Tensor) -> dict[str, float]:
    """PSNR in dB and SSIM of images [H, W, 3] in 0..1."""
    one, other = (image.clamp(0, 1).numpy() for image in (target, predicted))
    same = torch.equal(target, predicted)
    return {
        "psnr": _IDENTICAL_PSNR if same else float(peak_signal_noise_ratio(one, other, data_range=1.0)),
        "ssim": float(structural_similarity(one, other, channel_axis=-1, data_range=1.0)),
    }
