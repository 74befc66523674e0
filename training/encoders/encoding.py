"""From analogies to what the model is told: by running the frozen encoders, or from caches made beforehand."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lorweb_core import BankConfig
from lorweb_core.query import QUERY_MODES, TRIPLET, ImageEncoder, QueryMode, embed_images

from ..bases import Coder, Conditioning, Family, Told, family_of, joined, moved
from ..config import Config
from ..data import AnalogyDataset, EmbeddingCache, Layout, Manifest
from .caches import build_latent_cache, build_query_cache, pair_key
from .text import Columns, LivePrompts, Prompts, Sight, cached_prompts, cached_sights
from .vision import VisionEncoder

Latents = tuple[tuple[Tensor, ...], Tensor]  # of the reference images, and of the target


@dataclass
class Encoding:
    """How columns become tensors; each part reads a cache or runs an encoder.

    Attributes:
        family, layout: of the base, and how it is shown an analogy.
        device, dtype: of what the base is told.
        query: columns -> analogy queries [B, q].
        prompts: (prompts, columns) -> what the text encoders say of each.
        latents: columns with pixels -> (references, target), normalised latents [B, C, h, w] each.
        bank: configuration of the bank that fits the image encoder.
        coder: the autoencoder, which also decodes what validation samples.
        vision: the image encoder where it stays loaded.
        needs_pixels: whether training items must carry their images.
    """

    family: Family
    layout: Layout
    device: torch.device
    dtype: torch.dtype
    query: Callable[[Columns], Tensor]
    prompts: Prompts
    latents: Callable[[Columns], Latents]
    bank: BankConfig
    coder: Coder
    vision: VisionEncoder | None = None
    needs_pixels: bool = True

    def tell(
        self, columns: Columns, references: Sequence[Tensor], prompts: Sequence[str], sampled: bool = False
    ) -> Conditioning:
        """What the base is told about the analogies of the columns, but for their query and guidance.

        Args:
            references: latents [B, C, h, w] of the reference images.
            sampled: whether images are made with it, which may need a negative prompt.
        """
        negative = self.family.negative if sampled else None

        def said(words: Sequence[str]) -> Told:
            return moved(joined(self.prompts(words, columns)), self.device, self.dtype)

        return Conditioning(
            self.family,
            self.layout,
            tuple(latents.to(self.device, self.dtype) for latents in references),
            said(prompts),
            negative=None if negative is None else said([negative] * len(prompts)),
        )


def live_encoding(config: Config, device: torch.device, prompts: Sequence[str] | None = None) -> Encoding:
    """Every encoder stays loaded and runs as it is needed; prompts are remembered.

    Args:
        prompts: all that will be asked for, where that is known: the large text encoders are then freed at once.
    """
    dtype, spec = getattr(torch, config.base.dtype), QUERY_MODES[config.bank.query_mode]
    family, layout = family_of(config.base.path), config.layout
    coder = family.load_coder(config.base.path, device, dtype)
    vision = VisionEncoder(config.bank.encoder, device)
    width = embed_images(torch.zeros(1, 64, 64, 3), spec, vision).shape[1]
    return Encoding(
        family,
        layout,
        device,
        dtype,
        query=lambda columns: paired_query(spec, columns, vision),
        prompts=LivePrompts(config, device, prompts),
        latents=LiveLatents(coder, layout),
        bank=bank_config(config, width),
        coder=coder,
        vision=vision,
    )


def cached_encoding(
    config: Config,
    device: torch.device,
    manifest: Manifest,
    training: AnalogyDataset,
    shown: Sequence[AnalogyDataset] = (),
) -> Encoding:
    """Encoders run once over everything they will be asked for, and are freed.

    Args:
        manifest: all pairs, held-out ones included.
        training: the analogies that are trained on; ``data.cache_latents`` of them get their latents cached.
        shown: sets of analogies of which ``validation.analogies`` are sampled.
    """
    dtype, spec = getattr(torch, config.base.dtype), QUERY_MODES[config.bank.query_mode]
    family, layout, vision = family_of(config.base.path), config.layout, None
    if family.sees_images:
        prompts = cached_sights(config, _sights(config, training, shown), device)
    else:
        prompts = cached_prompts(config, manifest, device)
    if spec.cacheable:
        query = CachedQuery(spec, build_query_cache(config, spec, manifest, device))
        first = AnalogyDataset(training.sampler, training.geometry, pixels=False)[0]
        width = query({"image_keys": [first["image_keys"]]}).shape[1] // spec.parts
    else:
        vision = VisionEncoder(config.bank.encoder, device)  # its images are whole canvases: too many to list
        width = embed_images(torch.zeros(1, 64, 64, 3), spec, vision).shape[1]
        query = lambda columns: paired_query(spec, columns, vision)  # noqa: E731
    coder = family.load_coder(config.base.path, device, dtype)
    latents: Callable[[Columns], Latents] = LiveLatents(coder, layout)
    if config.data.cache_latents:
        latents = CachedLatents(build_latent_cache(config, training, coder), latents)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return Encoding(
        family,
        layout,
        device,
        dtype,
        query=query,
        prompts=prompts,
        latents=latents,
        bank=bank_config(config, width),
        coder=coder,
        vision=vision,
        needs_pixels=not config.data.cache_latents or not spec.cacheable,
    )


def _sights(config: Config, training: AnalogyDataset, shown: Sequence[AnalogyDataset]) -> list[Sight]:
    """The analogies whose text is asked for more than once, and their prompts."""
    negative = family_of(config.base.path).negative
    dropped = ("",) if config.objective.caption_dropout else ()
    trained = [Sight(training, i, (training.prompt(i), *dropped)) for i in range(config.data.cache_latents)]
    count = config.validation.analogies if config.validation.every else 0
    return trained + [Sight(each, i, (each.prompt(i), negative)) for each in shown for i in range(count)]


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
class LiveLatents:
    """Latents of analogies by the autoencoder."""

    coder: Coder
    layout: Layout

    def __call__(self, columns: Columns) -> Latents:
        """(references, target) [B, C, h, w] each."""
        references = tuple(map(self.coder.encode, self.layout.references(columns)))
        return references, self.coder.encode(columns["target"])


@dataclass
class CachedLatents:
    """Latents of the analogies on the cached list, and of any other as they come."""

    cache: EmbeddingCache
    live: LiveLatents

    def __call__(self, columns: Columns) -> Latents:
        """(references, target) [B, C, h, w] each."""
        keys = columns["analogy_key"]
        if "target" in columns and self.cache.missing(keys):
            return self.live(columns)
        rows = self.cache.stack(keys)
        return rows["references"].unbind(1), rows["target"]


class Repeated(Dataset):
    """The first n analogies of a dataset over and over; ``index`` keeps counting."""

    def __init__(self, dataset: AnalogyDataset, count: int):
        self.dataset, self.count, self.pixels = dataset, count, dataset.pixels

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The item at a position."""
        return {**self.dataset[index % self.count], "index": index}
