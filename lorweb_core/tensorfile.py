"""A safetensors file held open: its tensors come from the very file that was opened, or not at all."""

from __future__ import annotations

import os
import weakref
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open
from torch import Tensor

from .config import BankError
from .wording import clipped

_CHANGED = (
    "the file has changed since the bank was loaded; load it again. To put another file in its place, copy that beside"
    " it under another name and rename it"
)


class _Stamp(NamedTuple):
    """What is another of another file, and of a file that somebody wrote into."""

    device: int
    inode: int
    size: int
    changed_ns: int


class TensorFile:
    """A safetensors file opened for reading; tensors are views of the memory-mapped file.

    Args:
        mmap: False reads tensors into memory instead: a mapped file that is overwritten or cut off while it is read
            kills the process.

    Attributes:
        path: its name. metadata: entries of its header. names: of its tensors.

    Raises:
        BankError: when there is no such file, or it is not a complete safetensors file.
    """

    def __init__(self, path: str | os.PathLike, mmap: bool = True):
        self.path, self.mapped = Path(path), mmap
        if not os.path.isfile(self.path):  # pathlib's own raises for names that are too long
            raise BankError(f"{clipped(self.path, 1000)}: {_explain_absent(self.path)}")
        try:
            # The file itself, whatever its name comes to mean.
            self._file = open(self.path, "rb")  # noqa: SIM115
            weakref.finalize(self, self._file.close)
            self._stamp = self._status()
            self._handle = _open(self.path, mmap)
        except (SafetensorError, OSError) as error:
            raise BankError(
                f"{self.path}: not a readable safetensors file ({clipped(error)}); it is"
                f" {self.path.stat().st_size:,} bytes long, so compare that with the source and download or copy it"
                " again"
            ) from error
        self.require_named()
        self.metadata: dict[str, str] = self._handle.metadata() or {}
        self.names: list[str] = list(self._handle.keys())

    @property
    def size(self) -> int:
        """Bytes of the file as it was opened."""
        return self._stamp.size

    def tensor(self, name: str) -> Tensor:
        """The named tensor, of a mapped file not yet read from disk.

        Raises:
            BankError: when the file was changed since it was opened.
        """
        self.require_unchanged()
        try:
            return self._handle.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise BankError(f"{self.path}: {name} cannot be read ({clipped(error)})") from error

    def describe(self, name: str) -> tuple[tuple[int, ...], str]:
        """(shape, safetensors dtype name) from the header alone."""
        view = self._handle.get_slice(name)
        return tuple(view.get_shape()), view.get_dtype()

    def require_unchanged(self) -> None:
        """Refuse a file that was written into or cut off since it was opened; one that was renamed is whole.

        Raises:
            BankError: saying what to do.
        """
        if self._status() != self._stamp:
            raise BankError(f"{self.path}: {_CHANGED}")

    def require_named(self) -> None:
        """Refuse a file whose name another has taken, or nobody has.

        Raises:
            BankError: saying what to do.
        """
        try:
            same = os.path.samestat(os.fstat(self._file.fileno()), os.stat(self.path))
        except FileNotFoundError:
            same = False
        if not same:
            raise BankError(f"{self.path}: {_CHANGED}")

    def reopened(self):
        """The same file with a mapping of its own, whose pages are released with it.

        Raises:
            BankError: when another file has taken its name.
        """
        other = type(self)(self.path, self.mapped)
        if other._stamp != self._stamp:
            raise BankError(f"{self.path}: {_CHANGED}")
        return other

    def _status(self) -> _Stamp:
        status = os.fstat(self._file.fileno())
        return _Stamp(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def _open(path: Path, mmap: bool):
    """safetensors' reader; versions before 0.8 can only map."""
    try:
        return safe_open(path, framework="pt", device="cpu", **({} if mmap else {"backend": "pread"}))
    except TypeError:
        return _Copying(safe_open(path, framework="pt", device="cpu"))


class _Copying:
    """A mapped reader whose tensors are copies."""

    def __init__(self, handle):
        self._handle = handle

    def __getattr__(self, name: str):
        return getattr(self._handle, name)

    def get_tensor(self, name: str) -> Tensor:
        return self._handle.get_tensor(name).clone()


def _explain_absent(path: Path) -> str:
    if os.path.islink(path):
        return f"this is a link to {os.readlink(path)}, which is not there; put the file there or copy it here"
    if os.path.isdir(path):
        return "this is a folder; name the .safetensors file in it"
    if "\\" in path.name and os.path.isfile(Path(*path.parts[:-1], *path.name.split("\\"))):
        return "there is no such file; on this system the folders in a name are separated by /"
    return "there is no such file"
