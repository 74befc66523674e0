"""Training and evaluation of basis banks: diffusers, peft and accelerate around ``lorweb_core``."""

from .compat import avoid_cudnn_attention, cure_torchvision

cure_torchvision()
avoid_cudnn_attention()
