"""What frozen encoders make of images, prompts and canvases, kept on disk so that the encoders can go.

A cache is a folder of safetensors shards. A shard is named after the hash of its own bytes and appears when it is
complete, so an interrupted build goes on where it was, and a damaged shard gives itself away. Items are found by the
hash of their content; encoder and preprocessing are the fingerprint, and other fingerprints live in other folders.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from lorweb_core.atomic import TEMPORARY_SUFFIX, replacing

from ..hashing import content_hash, settings_hash
from .errors import DataError
from .units import duration, size

logger = logging.getLogger(__name__)

SHARD_ITEMS = 1024
SHARD_BYTES = 128 * 2**20
_OPEN_SHARDS = 64
_VERIFIERS = 4

Compute = Callable[[list[Any]], Mapping[str, Tensor]]


class EmbeddingCache:
    """Tensors by content key: ``cache[key]`` -> name -> tensor, read from memory-mapped files.

    Args:
        folder: where caches of this kind live; this one gets a subfolder named after its fingerprint.
        fingerprint: JSON-like settings that the tensors depend on besides the content: encoder and its weights,
            preprocessing, canvas size, precision.

    Attributes:
        folder: this cache's own folder.
    """

    def __init__(self, folder: str | Path, fingerprint: Mapping[str, Any]):
        self.fingerprint = dict(fingerprint)
        self.folder = Path(folder) / settings_hash(self.fingerprint)
        self._shards: dict[str, Path] = {}
        self._handles: OrderedDict[Path, Any] = OrderedDict()
        self._seen: set[Path] = set()

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Which keys have to be built, so that a caller can leave the encoder unloaded when none has.

        Every shard that this object has not seen yet is read and its hash compared; damaged ones are reported and
        deleted.
        """
        keys = dict.fromkeys(keys)
        if any(key not in self._shards for key in keys):
            self._look_for_shards()
        return [key for key in keys if key not in self._shards]

    def get_or_build(
        self, items: Iterable[tuple[str, Any]], compute: Compute, batch_size: int = 8, label: str = "caching"
    ) -> EmbeddingCache:
        """Build what is missing, and return the cache itself. One process at a time builds.

        Args:
            items: (content key, whatever ``compute`` needs to make its tensors).
            compute: list of the latter -> name -> tensor [n, ...], one row an item. Not called when nothing is missing.

        Raises:
            DataError: when the disk has too little room for the whole, or fills up. Finished shards stay.
        """
        items = dict(items)
        wanted = self.missing(items)
        if not wanted:
            return self
        with self._writing():
            self._prepare_folder()
        logger.info("%s: %d of %d items are to be built in %s", label, len(wanted), len(items), self.folder)
        pending = {key: items[key] for key in wanted}
        for shard in _shards(self._computed(pending, compute, batch_size, label)):
            with self._writing():
                self._write(shard)
        return self

    def __contains__(self, key: str) -> bool:
        return not self.missing([key])

    def __getitem__(self, key: str) -> dict[str, Tensor]:
        """Tensors of an item by name.

        Raises:
            DataError: when the item is not cached, or its shard is gone or damaged.
        """
        if key not in self:
            raise DataError(f"{self.folder}: nothing is cached for content {key}; build the cache with this manifest")
        path = self._shards[key]
        try:
            names, handle = self._handle(path)
            return {name: handle.get_tensor(_join(key, name)) for name in names}
        except (OSError, SafetensorError) as error:
            raise DataError(f"{path}: the cache shard cannot be read ({error}); start again to rebuild it") from error

    def stack(self, keys: Sequence[str]) -> dict[str, Tensor]:
        """Tensors [len(keys), ...] of several items by name."""
        rows = [self[key] for key in keys]
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    def __getstate__(self) -> dict[str, Any]:
        """Open files do not travel to other processes."""
        return vars(self) | {"_handles": OrderedDict()}

    def _handle(self, path: Path) -> tuple[list[str], Any]:
        """Tensor names and the open file of a shard; the least recently used one is closed when there are many."""
        if path not in self._handles:
            handle = safe_open(path, framework="pt", device="cpu")
            self._handles[path] = (json.loads(handle.metadata()["names"]), handle)
            if len(self._handles) > _OPEN_SHARDS:
                self._handles.popitem(last=False)
        self._handles.move_to_end(path)
        return self._handles[path]

    def _look_for_shards(self) -> None:
        paths = sorted(set(self.folder.glob("*.safetensors")) - self._seen)
        with ThreadPoolExecutor(_VERIFIERS) as executor:
            checked = executor.map(self._check_shard, paths)
            for path, keys in tqdm(zip(paths, checked), total=len(paths), desc="checking cache", disable=not paths):
                self._shards |= dict.fromkeys(keys, path)
        self._seen.update(path for path in paths if path.is_file())

    def _check_shard(self, path: Path) -> list[str]:
        """Keys of a sound shard; a damaged one is deleted, and its items are missing."""
        reason = _damage(path, settings_hash(self.fingerprint))
        if reason is None:
            with safe_open(path, framework="pt", device="cpu") as shard:
                return json.loads(shard.metadata()["keys"])
        logger.warning("%s: the cache shard %s; it is deleted and its items are built again", path, reason)
        path.unlink(missing_ok=True)
        return []

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DataError(
                f"{self.folder}: writing the cache failed ({error}). Make room or name another cache folder, and start"
                " again: what is built is kept"
            ) from error

    def _prepare_folder(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.glob(f".*{TEMPORARY_SUFFIX}"):
            if leftover.is_file():
                leftover.unlink()
        with replacing(self.folder / "fingerprint.json") as temporary:
            temporary.write_text(json.dumps(self.fingerprint, indent=2, sort_keys=True))
        others = [path for path in self.folder.parent.iterdir() if path.is_dir() and path != self.folder]
        if others:
            logger.info(
                "%s: not cached yet with these settings; %d caches made with other settings lie beside it",
                self.folder,
                len(others),
            )

    def _computed(
        self, pending: Mapping[str, Any], compute: Compute, batch_size: int, label: str
    ) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """(key, tensors) of every pending item, in order."""
        waiting = iter(pending.items())
        started = time.perf_counter()
        with tqdm(total=len(pending), desc=label, unit="item") as progress:
            while batch := list(islice(waiting, batch_size)):
                columns = compute([payload for _, payload in batch])
                rows = _rows(columns, len(batch))
                if progress.n == 0:
                    self._announce(rows[0], len(pending), (time.perf_counter() - started) / len(batch), label)
                yield from zip((key for key, _ in batch), rows)
                progress.update(len(batch))

    def _announce(self, row: Mapping[str, Tensor], count: int, seconds: float, label: str) -> None:
        """Say what the build takes, and refuse what cannot fit."""
        needed, free = count * _bytes(row), shutil.disk_usage(self.folder).free
        logger.info(
            "%s: %d items, about %s and %s on disk (%s free)",
            label,
            count,
            duration(seconds * count),
            size(needed),
            size(free),
        )
        if needed > free:
            raise DataError(
                f"{self.folder}: caching {count:,} items needs {size(needed)}, but only {size(free)} are free;"
                " name another cache folder, or train without this cache"
            )

    def _write(self, items: Mapping[str, Mapping[str, Tensor]]) -> None:
        metadata = {
            "fingerprint": settings_hash(self.fingerprint),
            "keys": json.dumps(list(items)),
            "names": json.dumps(list(next(iter(items.values())))),
        }
        data = save({_join(key, name): t for key, row in items.items() for name, t in row.items()}, metadata)
        path = self.folder / f"{content_hash(data)}.safetensors"
        with replacing(path) as temporary:
            temporary.write_bytes(data)
        self._seen.add(path)
        self._shards |= dict.fromkeys(items, path)


def _damage(path: Path, fingerprint: str) -> str | None:
    """What is wrong with a shard, or None."""
    try:
        if content_hash(path.read_bytes()) != path.stem:
            return "is damaged (its content does not have the hash of its name)"
        with safe_open(path, framework="pt", device="cpu") as shard:
            found = (shard.metadata() or {}).get("fingerprint")
    except (OSError, SafetensorError) as error:
        return f"cannot be read ({error})"
    return None if found == fingerprint else f"was made with other settings ({found}, not {fingerprint})"


def _shards(items: Iterable[tuple[str, dict[str, Tensor]]]) -> Iterator[dict[str, dict[str, Tensor]]]:
    """Group items into shards that are small enough to lose when a build is interrupted."""
    shard: dict[str, dict[str, Tensor]] = {}
    total = 0
    for key, row in items:
        shard[key] = row
        total += _bytes(row)
        if len(shard) >= SHARD_ITEMS or total >= SHARD_BYTES:
            yield shard
            shard, total = {}, 0
    if shard:
        yield shard


def _rows(columns: Mapping[str, Tensor], count: int) -> list[dict[str, Tensor]]:
    for name, column in columns.items():
        if len(column) != count:
            raise DataError(f"the encoder returned {len(column)} rows of {name!r} for {count} items")
    return [{name: _own(column[i]) for name, column in columns.items()} for i in range(count)]


def _own(row: Tensor) -> Tensor:
    """A copy on the CPU, contiguous as safetensors wants it, that does not keep the whole batch in memory."""
    return row.detach().cpu().clone(memory_format=torch.contiguous_format)


def _bytes(row: Mapping[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in row.values())


def _join(key: str, name: str) -> str:
    return f"{key}/{name}"
