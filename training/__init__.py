"""Training and evaluation of basis banks: diffusers, peft and accelerate around ``lorweb_core``."""

from .compat import cure_torchvision

cure_torchvision()
