"""Caches of what the frozen encoders make of the data. An encoder is loaded only when something is missing."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from lorweb_core.query import QueryMode, embed_images

from ..bases import Coder
from ..config import Config
from ..data import AnalogyDataset, EmbeddingCache, ImageRef, Manifest, collate, geometry_of, load_quadrants
from ..hashing import content_hash
from .vision import VisionEncoder
from .weights import describe_weights

_READERS = 4


def build_query_cache(config: Config, spec: QueryMode, manifest: Manifest, device: torch.device) -> EmbeddingCache:
    """Embeddings of every image as it appears in a quadrant, or of every example pair as the mode shows it."""
    geometry, fit = geometry_of(config.layout, config.data.canvas), config.data.fit
    if spec.composite is None:
        kind, seen = "images", {key: (image,) for key, image in manifest.images().items()}
    else:
        # Pairs that are cropped are others than pairs that are squeezed.
        kind = "pairs" if spec.stretch else "pairs_middle"
        seen = _example_pairs(manifest, config.data.swap > 0)
    settings = {
        "weights": describe_weights(config.bank.encoder),
        "hidden": spec.hidden,
        "side": config.data.canvas // config.layout.quadrants,
        "fit": fit,
    }
    cache = EmbeddingCache(Path(config.data.cache) / kind, settings)
    if cache.missing(seen):
        encoder = VisionEncoder(config.bank.encoder, device)

        def embed(batch: list[tuple[ImageRef, ...]]) -> Mapping[str, Tensor]:
            quadrants = [load_quadrants(images, geometry, fit) for images in zip(*batch)]
            shown = quadrants[0] if spec.composite is None else spec.composite(*quadrants)
            return {"embedding": embed_images(shown, spec, encoder)}

        cache.get_or_build(seen.items(), embed, label=f"encoding {kind}")
    return cache


def pair_key(before: str, after: str) -> str:
    """Key of an example pair, of the keys of its images."""
    return content_hash(f"{before} {after}".encode())


def _example_pairs(manifest: Manifest, swapped: bool) -> dict[str, tuple[ImageRef, ImageRef]]:
    """Every pair by its key, with ``swapped`` the other way round as well."""
    pairs = [pair for known in manifest for pair in ((known, known.swapped()) if swapped else (known,))]
    return {pair_key(pair.before.key, pair.after.key): (pair.before, pair.after) for pair in pairs}


def build_latent_cache(config: Config, training: AnalogyDataset, coder: Coder) -> EmbeddingCache:
    """Latents of the references [n, C, h, w] and of the target of the first ``data.cache_latents`` analogies."""
    settings = {
        "weights": describe_weights(config.base.path, "vae"),
        "canvas": config.data.canvas,
        "fit": config.data.fit,
        "dtype": config.base.dtype,
        "layout": config.bank.layout,
    }
    cache = EmbeddingCache(Path(config.data.cache) / "latents", settings)
    positions = {training.sampler[i].key: i for i in range(config.data.cache_latents)}

    def encode(batch: list[int]) -> Mapping[str, Tensor]:
        with ThreadPoolExecutor(_READERS) as readers:  # decoding and resizing release the interpreter
            columns = collate(list(readers.map(training.__getitem__, batch)))
        references = [coder.encode(images) for images in training.layout.references(columns)]
        return {"references": torch.stack(references, 1), "target": coder.encode(columns["target"])}

    return cache.get_or_build(positions.items(), encode, label="encoding images")
