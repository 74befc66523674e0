"""LoRWeB in pure PyTorch: images -> query -> mixing coefficients -> weight deltas -> canvas -> b'."""

from .bank import BasisBank, BasisLayer
from .canvas import CanvasGeometry, Frame
from .coefficients import MixingCoefficients
from .config import BankConfig, BankError
from .lora import ComposedLoRA, TruncatedLoRA

__all__ = [
    "BankConfig",
    "BankError",
    "BasisBank",
    "BasisLayer",
    "CanvasGeometry",
    "ComposedLoRA",
    "Frame",
    "MixingCoefficients",
    "TruncatedLoRA",
]
