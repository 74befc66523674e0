"""Checkpoints of a run: folders of safetensors and JSON that exist complete or not at all."""

import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..config import Config

logger = logging.getLogger(__name__)

_NAME = re.compile(r"step-(\d{8})")
_STATE = "state.json"
_CHECKSUMS = "checksums"  # entry of the state: file name -> SHA-256, and of the state's own other entries


class DamagedCheckpoint(ValueError):
    """A checkpoint is not what was written; the message names the file."""


class Checkpoints:
    """The checkpoints of one run.

    A checkpoint is written under a hidden name and renamed when all of it is on disk, so a kill or a full disk at any
    moment leaves the last good one, and older ones are removed only after that.

    Args:
        folder: where they lie, one folder each.
        keep: how many of the newest are kept.
    """

    def __init__(self, folder: Path, keep: int):
        self.folder, self.keep = folder, keep

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, oldest first."""
        names = (_NAME.fullmatch(path.name) for path in self.folder.glob("step-*"))
        return sorted(int(match[1]) for match in names if match)

    @cached_property
    def resumable(self) -> int:
        """Step of the newest checkpoint that is as it was written, 0 where there is none at all. Looked up once.

        Raises:
            ValueError: when there are checkpoints and every one is damaged.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                self.check(step)
            except DamagedCheckpoint as error:
                logger.warning("%s; going back to an older checkpoint", error)
            else:
                return step
        if steps:
            raise ValueError(
                f"{self.folder}: every checkpoint is damaged ({', '.join(map(str, steps))}); remove this folder to"
                " begin anew, with the last bank as bank.start where that is whole"
            )
        return 0

    def check(self, step: int) -> None:
        """Compare the files of a checkpoint with their checksums.

        Raises:
            DamagedCheckpoint: naming the first file that differs or is missing.
        """
        folder, state = self.path(step), self.state(step)
        sums = state.pop(_CHECKSUMS, None)
        if not isinstance(sums, dict):
            raise DamagedCheckpoint(f"{folder / _STATE}: has no checksums of the files beside it, so is not complete")
        if sums.get(_STATE) != _sum_of(state):
            raise DamagedCheckpoint(f"{folder / _STATE}: was changed after it was written")
        for name in sums.keys() - {_STATE}:
            try:
                found = _sum_of_file(folder / name)
            except OSError as error:
                raise DamagedCheckpoint(f"{folder / name}: cannot be read ({error.strerror})") from error
            if found != sums[name]:
                raise DamagedCheckpoint(f"{folder / name}: is damaged; its state says another checksum")

    def set_aside_newer(self, step: int) -> None:
        """Rename the checkpoints after a step to ``damaged-...``, so that they are in nobody's way."""
        for newer in (found for found in self.steps() if found > step):
            aside = self.folder / f"damaged-{self.path(newer).name}"
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(self.path(newer), aside)
            logger.warning("%s is now called %s", self.path(newer), aside.name)

    def path(self, step: int) -> Path:
        """Folder of the checkpoint of a step."""
        return self.folder / f"step-{step:08d}"

    def save(self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
        """Write a checkpoint.

        Args:
            tensors: file name without suffix -> tensor name -> tensor.
            state: everything else, as JSON.

        Raises:
            OSError: when it cannot be written; nothing is left of it, and the last good checkpoint is untouched.
        """
        if self.path(step).exists():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self._remove_unfinished()
        unfinished = self.folder / f".step-{step:08d}.tmp"
        try:
            _write(unfinished, tensors, state)
            os.replace(unfinished, self.path(step))
            _sync(self.folder)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise self._explain(step, error) from error
        for old in self.steps()[: -self.keep]:
            shutil.rmtree(self.path(old))

    def load(self, step: int) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """(tensors, state) as they were given to ``save``."""
        tensors = {path.stem: load_file(path) for path in sorted(self.path(step).glob("*.safetensors"))}
        state = self.state(step)
        state.pop(_CHECKSUMS, None)
        return tensors, state

    def state(self, step: int) -> dict[str, Any]:
        """The state alone.

        Raises:
            DamagedCheckpoint: when it cannot be read.
        """
        path = self.path(step) / _STATE
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise DamagedCheckpoint(f"{path}: cannot be read ({error})") from error
        if not isinstance(state, dict):
            raise DamagedCheckpoint(f"{path}: holds a {type(state).__name__}, expected the entries of a state")
        return state

    def _remove_unfinished(self) -> None:
        for path in self.folder.glob(".step-*.tmp"):
            logger.warning("%s is an unfinished checkpoint of an interrupted run; removed", path)
            shutil.rmtree(path)

    def _explain(self, step: int, error: Exception) -> OSError:
        free = shutil.disk_usage(self.folder).free
        last = self.steps()[-1:] or ["none"]
        return OSError(
            getattr(error, "errno", None) or errno.EIO,
            f"{self.folder}: the checkpoint of step {step} cannot be written ({error}); {free / 2**20:,.0f} MiB"
            f" are free. The last good checkpoint is {last[0]}: make room and start the same command again",
        )


def checkpoint_folder(config: Config) -> Path:
    """Where a run's checkpoints lie."""
    return Path(config.run) / "checkpoints"


def _write(folder: Path, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
    folder.mkdir()
    for name, group in tensors.items():
        # Copies, because safetensors refuses tensors that share memory, as the tables of 8-bit optimisers do.
        copies = {key: value.detach().to("cpu", copy=True).contiguous() for key, value in group.items()}
        save_file(copies, folder / f"{name}.safetensors")
    sums = {path.name: _sum_of_file(path) for path in sorted(folder.iterdir())}
    sums[_STATE] = _sum_of(state)
    (folder / _STATE).write_text(json.dumps({**state, _CHECKSUMS: sums}), encoding="utf-8")
    for path in (*folder.iterdir(), folder):
        _sync(path)


def _sum_of_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sum_of(state: Mapping[str, Any]) -> str:
    """Checksum of a state as it comes back from JSON, where names are text and tuples are lists."""
    text = json.dumps(json.loads(json.dumps(state)), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _sync(path: Path) -> None:
    """Force a file, or the entries of a folder, to disk (folders cannot be opened on Windows, nor need be)."""
    if path.is_dir() and os.name == "nt":
        return
    # Windows syncs only what is open for writing; a folder can be opened for reading alone.
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
