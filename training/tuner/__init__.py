"""LoRWeB as a PEFT tuner: config, layer, mixer, model."""

from .config import FLUX_TARGETS, LoRWeBConfig
from .layer import LoRWeBLayer
from .mixer import Mixer
from .model import LoRWeBModel

__all__ = ["FLUX_TARGETS", "LoRWeBConfig", "LoRWeBLayer", "LoRWeBModel", "Mixer"]
