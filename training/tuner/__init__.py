"""LoRWeB as a PEFT tuner: config, layer, mixer, model."""

from .config import INITS, LoRWeBConfig
from .layer import LoRWeBLayer
from .mixer import Mixer
from .model import LoRWeBModel

__all__ = ["INITS", "LoRWeBConfig", "LoRWeBLayer", "LoRWeBModel", "Mixer"]
