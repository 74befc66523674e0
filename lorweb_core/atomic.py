"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows, which deletes no file that is open: lock enough
    fcntl = None

TEMPORARY_SUFFIX = ".tmp"
_PREFIX, _LOCK = ".lorweb-", "lock"
# Our temporary folders, and the temporary files of version 0.1.
_OURS = re.compile(r"\.(lorweb-.+|.+\.[0-9a-f]{32})\.tmp")
_DAY = 24 * 3600.0


@contextmanager
def replacing(path: str | os.PathLike, replace: bool = True) -> Iterator[Path]:
    """Yield a temporary path; when the block ends, what was written there becomes ``path``; when it fails, nothing.

    The file reaches the disk before the name does, so a crash leaves the old file or the new one. The temporary path is
    in a folder of its own beside ``path``, where libraries may leave their own temporary files; folders of writers that
    were killed are deleted.

    Args:
        replace: False never replaces a file.

    Raises:
        FileExistsError: when there is a file at ``path`` at the end and it must not be replaced.
    """
    path = Path(path)
    remove_leftovers(path.parent)
    folder, lock = _locked_folder(path.parent)
    try:
        temporary = folder / f"part{TEMPORARY_SUFFIX}"
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path) if replace else _place(temporary, path)
    finally:
        lock.close()
        shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(parent: str | os.PathLike) -> None:
    """Delete the temporary files in a folder whose writers are gone: killed, or a day old."""
    with suppress(OSError):
        for entry in [Path(entry) for entry in os.scandir(parent) if _OURS.fullmatch(entry.name)]:
            with suppress(OSError):
                old = time.time() - entry.stat().st_mtime > _DAY
                if entry.is_dir():
                    _remove_folder(entry, old)
                elif old:
                    entry.unlink()


def _remove_folder(folder: Path, old: bool) -> None:
    """Delete a temporary folder, unless it is in use (OSError)."""
    if old:
        shutil.rmtree(folder)
    elif fcntl is None:
        (folder / _LOCK).unlink()
        shutil.rmtree(folder)
    else:
        with open(folder / _LOCK, "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)


def _locked_folder(parent: Path) -> tuple[Path, IO[bytes]]:
    """A new temporary folder and its lock, held: others see by it that the writer lives, and it goes when that does."""
    while True:
        # Its name has one length, whatever the file's: names of 255 letters can be written.
        folder = Path(tempfile.mkdtemp(TEMPORARY_SUFFIX, _PREFIX, parent))
        with suppress(FileNotFoundError):  # somebody took it for abandoned before it was locked
            lock = open(folder / _LOCK, "xb")  # noqa: SIM115
            with suppress(OSError):  # some network drives have no locks
                if fcntl is not None:
                    fcntl.flock(lock, fcntl.LOCK_EX)
            if (folder / _LOCK).exists():
                return folder, lock
            lock.close()


def _place(temporary: Path, path: Path) -> None:
    """Give a finished file its name, unless there is a file of that name (FileExistsError): in one step."""
    try:
        os.link(temporary, path)
    except FileExistsError as error:
        raise FileExistsError(f"{path}: there is a file of this name already; choose another") from error
    except OSError:  # no hard links on this drive
        with open(path, "xb"):
            os.replace(temporary, path)
