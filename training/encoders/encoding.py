"""From analogies to what the model is told: by running the frozen encoders, or from caches made beforehand."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lorweb_core import BankConfig
from lorweb_core.query import QUERY_MODES, TRIPLET, ImageEncoder, QueryMode, embed_images

from ..bases.coding import LatentCoder, prompt_encoder
from ..config import Config
from ..data import AnalogyDataset, EmbeddingCache, Manifest, text_key
from .caches import build_latent_cache, build_prompt_cache, build_query_cache, pair_key
from .vision import VisionEncoder

logger = logging.getLogger(__name__)

_REMEMBERED_PROMPTS = 256

Columns = dict[str, Any]  # what ``collate`` makes of dataset items


@dataclass
class Encoding:
    """How columns become tensors; each part reads a cache or runs an encoder.

    Attributes:
        query: columns -> analogy queries [B, q].
        prompts: prompts -> (token embeddings [B, T, D], pooled [B, P]).
        latents: columns with pixels -> (reference, target), normalised latents [B, 16, h, w] each.
        bank: configuration of the bank that fits the image encoder.
        coder: the autoencoder, which also decodes what validation samples.
        vision: the image encoder where it stays loaded.
        needs_pixels: whether training items must carry their images.
    """

    query: Callable[[Columns], Tensor]
    prompts: Callable[[Sequence[str]], tuple[Tensor, Tensor]]
    latents: Callable[[Columns], tuple[Tensor, Tensor]]
    bank: BankConfig
    coder: LatentCoder
    vision: VisionEncoder | None = None
    needs_pixels: bool = True


def live_encoding(config: Config, device: torch.device, prompts: Sequence[str] | None = None) -> Encoding:
    """Every encoder stays loaded and runs as it is needed; prompts are remembered.

    Args:
        prompts: all that will be asked for, where that is known: the large text encoders are then freed at once.
    """
    dtype, spec = getattr(torch, config.base.dtype), QUERY_MODES[config.bank.query_mode]
    coder = LatentCoder(config.base.path, device, dtype)
    vision = VisionEncoder(config.bank.encoder, device)
    width = embed_images(torch.zeros(1, 64, 64, 3), spec, vision).shape[1]
    table = PromptTable(prompt_encoder(config.base.path, device, dtype, config.data.prompt_tokens))
    if prompts is not None:
        table.complete(prompts)
    return Encoding(
        query=lambda columns: paired_query(spec, columns, vision),
        prompts=table,
        latents=coder.encode_pair,
        bank=bank_config(config, width),
        coder=coder,
        vision=vision,
    )


def cached_encoding(config: Config, device: torch.device, manifest: Manifest, training: AnalogyDataset) -> Encoding:
    """Encoders run once over everything they will be asked for, and are freed.

    Args:
        manifest: all pairs, held-out ones included.
        training: the analogies that are trained on; ``data.cache_latents`` of them get their latents cached.
    """
    dtype, spec = getattr(torch, config.base.dtype), QUERY_MODES[config.bank.query_mode]
    prompts, vision = build_prompt_cache(config, manifest, device, dtype), None
    if spec.cacheable:
        query = CachedQuery(spec, build_query_cache(config, spec, manifest, device))
        first = AnalogyDataset(training.sampler, training.geometry, pixels=False)[0]
        width = query({"image_keys": [first["image_keys"]]}).shape[1] // spec.parts
    else:
        vision = VisionEncoder(config.bank.encoder, device)  # its images are whole canvases: too many to list
        width = embed_images(torch.zeros(1, 64, 64, 3), spec, vision).shape[1]
        query = lambda columns: paired_query(spec, columns, vision)  # noqa: E731
    coder = LatentCoder(config.base.path, device, dtype)
    latents = build_latent_cache(config, training, coder) if config.data.cache_latents else None
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return Encoding(
        query=query,
        prompts=CachedPrompts(prompts),
        latents=coder.encode_pair if latents is None else CachedLatents(latents, coder),
        bank=bank_config(config, width),
        coder=coder,
        vision=vision,
        needs_pixels=latents is None or not spec.cacheable,
    )


def bank_config(config: Config, width: int) -> BankConfig:
    """The bank that a configuration asks for, with an encoder that gives ``width`` numbers for an image."""
    return config.bank.resolve(width, public_name(config.base.path), public_name(config.bank.encoder))


def public_name(name: str) -> str:
    """What a bank's header calls a model: its hub id, or its folder's name without the path."""
    folder = Path(name).expanduser()
    return folder.resolve().name if folder.is_dir() else name


def same_model(name: str, other: str) -> bool:
    """Whether two banks' headers mean the same model: one may say owner/name and the other the name of a folder."""
    return name.rsplit("/", 1)[-1] == other.rsplit("/", 1)[-1]


def paired_query(spec: QueryMode, columns: Columns, encoder: ImageEncoder) -> Tensor:
    """Analogy queries [B, q] of a batch whose every sample has its own example pair."""
    images = dict(zip(TRIPLET, (columns["a"], columns["a_prime"], columns["b"]), strict=True))
    if spec.composite is not None:
        return embed_images(spec.composite(*(images[name] for name in spec.images)), spec, encoder)
    return spec.combine(*(embed_images(images[name], spec, encoder) for name in spec.images))


@dataclass
class CachedQuery:
    """Analogy queries from embeddings of single images, or of example pairs."""

    spec: QueryMode
    cache: EmbeddingCache

    def __call__(self, columns: Columns) -> Tensor:
        """[B, q]."""
        if self.spec.composite is not None:
            return self.cache.stack([pair_key(*keys[:2]) for keys in columns["image_keys"]])["embedding"]
        keys = dict(zip(TRIPLET, zip(*columns["image_keys"], strict=True), strict=True))
        return self.spec.combine(*(self.cache.stack(keys[name])["embedding"] for name in self.spec.images))


@dataclass
class CachedPrompts:
    """Prompt embeddings from a cache."""

    cache: EmbeddingCache

    def __call__(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(token embeddings [B, T, D], pooled [B, P])."""
        rows = self.cache.stack([text_key(prompt) for prompt in prompts])
        return rows["tokens"], rows["pooled"]


@dataclass
class CachedLatents:
    """Latents of the analogies on the cached list, and of any other by the autoencoder."""

    cache: EmbeddingCache
    coder: LatentCoder

    def __call__(self, columns: Columns) -> tuple[Tensor, Tensor]:
        """(reference, target) [B, 16, h, w]."""
        keys = columns["analogy_key"]
        if "target" in columns and self.cache.missing(keys):
            return self.coder.encode_pair(columns)
        rows = self.cache.stack(keys)
        return rows["reference"], rows["target"]


class PromptTable:
    """Embeddings of prompts; those asked for last stay in memory, where one of T5 takes four megabytes."""

    def __init__(self, encode: Callable[[Sequence[str]], tuple[Tensor, Tensor]]):
        @lru_cache(maxsize=_REMEMBERED_PROMPTS)
        def look_up(prompt: str) -> tuple[Tensor, Tensor]:
            tokens, pooled = encode([prompt])
            return tokens[0].cpu(), pooled[0].cpu()

        self._look_up: Callable[[str], tuple[Tensor, Tensor]] = look_up

    def complete(self, prompts: Sequence[str]) -> None:
        """Encode all prompts that will be asked for, and let go of the encoder."""
        self._look_up = {prompt: self._look_up(prompt) for prompt in prompts}.__getitem__

    def __call__(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(token embeddings [B, T, D], pooled [B, P])."""
        tokens, pooled = zip(*map(self._look_up, prompts), strict=True)
        return torch.stack(tokens), torch.stack(pooled)


class Repeated(Dataset):
    """The first n analogies of a dataset over and over; ``index`` keeps counting."""

    def __init__(self, dataset: AnalogyDataset, count: int):
        self.dataset, self.count, self.pixels = dataset, count, dataset.pixels

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The item at a position."""
        return {**self.dataset[index % self.count], "index": index}
