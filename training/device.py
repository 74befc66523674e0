"""Where training and evaluation run."""

import logging

import torch

logger = logging.getLogger(__name__)

_WITHOUT_BF16 = ("NO AVX", "AVX2")  # what x86 processors without instructions for bfloat16 can at most


def pick_device() -> torch.device:
    """This machine's accelerator, or its CPU when it has none or torch cannot use it."""
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")


def prefer_speed() -> None:
    """Let a GPU round the factors of float32 products to TF32, and try which convolution is fastest for a shape."""
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True


def warn_of_slow_bf16(device: torch.device, cure: str) -> None:
    """Say where bfloat16 is slow: a starter's step took 15 seconds on two cores of such a CPU, one in float32.

    Args:
        cure: the setting that makes it float32.
    """
    if device.type == "cpu" and torch.backends.cpu.get_cpu_capability() in _WITHOUT_BF16:
        logger.warning("this CPU has no instructions for bfloat16 and is many times slower in it; set %s", cure)
