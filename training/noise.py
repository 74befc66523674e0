"""What other packages say at every command, and nobody can act on."""

import logging
import os
import warnings

_VERBOSITIES = ("DIFFUSERS_VERBOSITY", "TRANSFORMERS_VERBOSITY")
_LOUD = ("httpx", "huggingface_hub", "torchao", "bitsandbytes", "torch.utils._pytree", "torch.distributed.elastic")
_PACKAGES = ("accelerate", "diffusers", "lpips", "peft", "torch", "torchao", "torchvision", "transformers")


def hide_loading_bars() -> None:
    """Without the bars of weights that are read or written in a moment, between those of what takes its time."""
    from diffusers.utils.logging import disable_progress_bar as hide_diffusers
    from transformers.utils.logging import disable_progress_bar as hide_transformers

    hide_diffusers()
    hide_transformers()


def quieten() -> None:
    """Let other packages say errors only, unless their own variables ask for more. Comes before they are imported."""
    for name in _VERBOSITIES:
        os.environ.setdefault(name, "error")
    for name in _LOUD:
        logging.getLogger(name).setLevel(logging.ERROR)
    for package in _PACKAGES:
        warnings.filterwarnings("ignore", module=rf"{package}(\.|$)")
