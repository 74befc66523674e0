"""Where training and evaluation run."""

import torch


def pick_device() -> torch.device:
    """This machine's accelerator, or its CPU when it has none or torch cannot use it."""
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
