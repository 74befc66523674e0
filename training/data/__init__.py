"""The data side of training: manifests of pairs, analogies sampled from them, caches of what encoders make of them."""

from ..hashing import text_key
from .analogies import (
    Analogy,
    AnalogyDataset,
    AnalogySampler,
    collate,
    geometry_of,
    load_quadrant,
    load_quadrants,
    square_canvas,
)
from .cache import EmbeddingCache
from .errors import DataError, ImageError
from .images import ImageRef, load_image
from .layouts import LAYOUTS, Layout
from .manifest import Manifest, Pair
from .splits import Splits, split

__all__ = [
    "Analogy",
    "AnalogyDataset",
    "AnalogySampler",
    "DataError",
    "EmbeddingCache",
    "ImageError",
    "ImageRef",
    "LAYOUTS",
    "Layout",
    "Manifest",
    "Pair",
    "Splits",
    "collate",
    "geometry_of",
    "load_image",
    "load_quadrant",
    "load_quadrants",
    "split",
    "square_canvas",
    "text_key",
]
