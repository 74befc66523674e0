"""From analogies to what the model is told: encoders, and caches of what they made."""

from .vision import VisionEncoder

__all__ = ["VisionEncoder"]
