"""Caches of what the frozen encoders make of the data. An encoder is loaded only when something is missing."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from lorweb_core.query import QueryMode, embed_images

from ..bases.coding import LatentCoder, prompt_encoder
from ..config import Config
from ..data import AnalogyDataset, EmbeddingCache, ImageRef, Manifest, collate, load_quadrants, square_canvas, text_key
from ..hashing import content_hash
from .vision import VisionEncoder

_BLOCK, _BLOCKS = 2**16, 64  # of a file that is too large to read for its hash alone
_READERS = 4
_PROMPT_PARTS = ("", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")


def build_prompt_cache(config: Config, manifest: Manifest, device: torch.device, dtype: torch.dtype) -> EmbeddingCache:
    """Text embeddings of every distinct prompt, and of the empty one that caption dropout needs."""
    prompts = {text_key(prompt): prompt for prompt in ["", *manifest.prompts()]}
    weights = {part: describe_weights(config.base.path, part) for part in _PROMPT_PARTS}
    settings = {"weights": weights, "tokens": config.data.prompt_tokens, "dtype": str(dtype)}
    cache = EmbeddingCache(Path(config.data.cache) / "prompts", settings)
    if cache.missing(prompts):
        encoder = prompt_encoder(config.base.path, device, dtype, config.data.prompt_tokens)
        cache.get_or_build(
            prompts.items(), lambda batch: dict(zip(("tokens", "pooled"), encoder(batch))), label="encoding prompts"
        )
    return cache


def build_query_cache(config: Config, spec: QueryMode, manifest: Manifest, device: torch.device) -> EmbeddingCache:
    """Embeddings of every image as it appears in a quadrant, or of every example pair as the mode shows it."""
    geometry, fit = square_canvas(config.data.canvas), config.data.fit
    if spec.composite is None:
        kind, seen = "images", {key: (image,) for key, image in manifest.images().items()}
    else:
        # Pairs that are cropped are others than pairs that are squeezed.
        kind = "pairs" if spec.stretch else "pairs_middle"
        seen = _example_pairs(manifest, config.data.swap > 0)
    settings = {
        "weights": describe_weights(config.bank.encoder),
        "hidden": spec.hidden,
        "canvas": config.data.canvas,
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


def build_latent_cache(config: Config, training: AnalogyDataset, coder: LatentCoder) -> EmbeddingCache:
    """Reference and target latents of the first ``data.cache_latents`` analogies."""
    settings = {
        "weights": describe_weights(config.base.path, "vae"),
        "canvas": config.data.canvas,
        "fit": config.data.fit,
        "dtype": config.base.dtype,
    }
    cache = EmbeddingCache(Path(config.data.cache) / "latents", settings)
    positions = {training.sampler[i].key: i for i in range(config.data.cache_latents)}

    def encode(batch: list[int]) -> Mapping[str, Tensor]:
        with ThreadPoolExecutor(_READERS) as readers:  # decoding and resizing release the interpreter
            items = list(readers.map(training.__getitem__, batch))
        return dict(zip(("reference", "target"), coder.encode_pair(collate(items))))

    return cache.get_or_build(positions.items(), encode, label="encoding canvases")


def describe_weights(name: str, part: str = "") -> dict[str, Any]:
    """What tells a local model apart: sizes and hashes of its weights and settings. A hub id stands for itself.

    Args:
        name: folder or hub id. part: subfolder that is meant.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return {"hub": name, "part": part}
    files = (path for path in sorted((folder / part).glob("*")) if path.suffix in (".safetensors", ".json", ".model"))
    return {path.name: [path.stat().st_size, content_hash(_sample(path))] for path in files}


def _sample(path: Path) -> bytes:
    """Blocks spread evenly over a file, which show any training of its weights; all of a small one."""
    last = max(0, path.stat().st_size - _BLOCK)
    starts = sorted({last * i // (_BLOCKS - 1) for i in range(_BLOCKS)})
    with path.open("rb") as file:
        return b"".join(_read_at(file, start) for start in starts)


def _read_at(file: IO[bytes], start: int) -> bytes:
    file.seek(start)
    return file.read(_BLOCK)
