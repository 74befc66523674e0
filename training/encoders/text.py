"""What the base's text encoders say: run as they are needed, or read from caches of what they said beforehand.

Most say it of a prompt alone. Some families' see the reference images as well, so that theirs is of one analogy.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..bases import Family, Told, family_of
from ..config import Config
from ..data import AnalogyDataset, EmbeddingCache, Manifest, collate, text_key
from ..hashing import content_hash
from .weights import describe_weights

_REMEMBERED = 256  # prompts, where one of T5 takes four megabytes
_PARTS = ("", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "processor")

Columns = dict[str, Any]  # what ``collate`` makes of dataset items
Prompts = Callable[[Sequence[str], Columns], list[Told]]  # (prompts, columns) -> what is said of each


class LivePrompts:
    """Text encoders that are loaded when they are first asked; those prompts asked for last stay in memory.

    Args:
        known: all prompts that will be asked for, where that is known and they alone decide: the encoders, which are
            large, are then freed at once. The family's negative prompt is always among them.
    """

    def __init__(self, config: Config, device: torch.device, known: Sequence[str] | None = None):
        self.config, self.device = config, device
        self.family: Family = family_of(config.base.path)
        self._look_up: Callable[[str], Told] = lru_cache(_REMEMBERED)(self._encode_alone)
        if known is not None and not self.family.sees_images:
            asked = {*known, *([] if self.family.negative is None else [self.family.negative])}
            self._look_up = {prompt: self._encode_alone(prompt) for prompt in asked}.__getitem__
            del self._encode

    @cached_property
    def _encode(self):
        base = self.config.base
        return self.family.load_prompts(
            base.path, self.device, getattr(torch, base.dtype), self.config.data.prompt_tokens
        )

    def _encode_alone(self, prompt: str) -> Told:
        return {name: value.cpu() for name, value in self._encode([prompt], [()])[0].items()}

    def __call__(self, prompts: Sequence[str], columns: Columns) -> list[Told]:
        """What is said of each."""
        if not self.family.sees_images:
            return list(map(self._look_up, prompts))
        return self._encode(prompts, list(zip(*self.config.layout.references(columns))))


@dataclass
class CachedPrompts:
    """What is said of prompts alone, from a cache."""

    cache: EmbeddingCache

    def __call__(self, prompts: Sequence[str], columns: Columns) -> list[Told]:
        """What is said of each."""
        return [self.cache[text_key(prompt)] for prompt in prompts]


@dataclass
class CachedSights:
    """What is said of prompts and images, from a cache for listed analogies, and of others as they come."""

    cache: EmbeddingCache
    live: LivePrompts

    def __call__(self, prompts: Sequence[str], columns: Columns) -> list[Told]:
        """What is said of each."""
        keys = [_sight_key(*pair) for pair in zip(columns.get("analogy_key", prompts), prompts)]
        if self.cache.missing(keys):
            return self.live(prompts, columns)
        return [self.cache[key] for key in keys]


def cached_prompts(config: Config, manifest: Manifest, device: torch.device) -> CachedPrompts:
    """What is said of every distinct prompt, of the empty one that caption dropout needs, and of the negative one."""
    family = family_of(config.base.path)
    prompts = {text_key(prompt): prompt for prompt in ["", *manifest.prompts(), family.negative or ""]}
    settings = _settings(config) | {"tokens": config.data.prompt_tokens}
    cache = EmbeddingCache(Path(config.data.cache) / "prompts", settings)
    if cache.missing(prompts):
        live = LivePrompts(config, device)

        def encode(batch: list[str]) -> Mapping[str, torch.Tensor]:
            return _columns([live._encode_alone(prompt) for prompt in batch])

        cache.get_or_build(prompts.items(), encode, label="encoding prompts")
    return CachedPrompts(cache)


class Sight(NamedTuple):
    """An analogy of a dataset, with the prompts that are asked about it."""

    dataset: AnalogyDataset
    index: int
    prompts: tuple[str, ...]


def cached_sights(config: Config, sights: Sequence[Sight], device: torch.device) -> CachedSights:
    """What is said of listed analogies; each is one item, because their lengths differ."""
    settings = _settings(config) | {"canvas": config.data.canvas, "fit": config.data.fit, "layout": config.bank.layout}
    cache, live = EmbeddingCache(Path(config.data.cache) / "sights", settings), LivePrompts(config, device)
    asked = {
        _sight_key(sight.dataset.sampler[sight.index].key, prompt): (sight, prompt)
        for sight in sights
        for prompt in sight.prompts
    }

    def encode(batch: list[tuple[Sight, str]]) -> Mapping[str, torch.Tensor]:
        return _columns([live([prompt], collate([sight.dataset[sight.index]]))[0] for sight, prompt in batch])

    cache.get_or_build(asked.items(), encode, batch_size=1, label="encoding prompts with their images")
    if "_encode" in vars(live):
        del live._encode  # a large model, which may not be needed again
    return CachedSights(cache, live)


def _sight_key(analogy: str, prompt: str) -> str:
    return content_hash(f"{analogy} {prompt}".encode())


def _settings(config: Config) -> dict[str, Any]:
    weights = {part: describe_weights(config.base.path, part) for part in _PARTS}
    return {"weights": weights, "dtype": str(getattr(torch, config.base.dtype))}


def _columns(told: Sequence[Told]) -> Mapping[str, torch.Tensor]:
    return {name: torch.stack([one[name] for one in told]) for name in told[0]}
