"""Training and evaluation of basis banks: diffusers, peft and accelerate around ``lorweb_core``."""

from .noise import quieten

quieten()

from .compat import avoid_cudnn_attention, cure_torchvision  # noqa: E402  (imports torch, which is to be quiet)

cure_torchvision()
avoid_cudnn_attention()
