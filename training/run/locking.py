"""One training at a time in a run's folder."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

_LOCK, _HOLDER = ".lock", ".lock.json"


@contextmanager
def locked(run: Path, is_main: bool = True) -> Iterator[None]:
    """Keep other trainings out of the run's folder, which is made. The lock ends with the process, whatever ends it.

    Args:
        is_main: False in the processes that work for the main one, which holds the lock.

    Raises:
        ValueError: naming the process that trains there.
    """
    if not is_main:
        yield
        return
    run.mkdir(parents=True, exist_ok=True)
    lock, holder = FileLock(run / _LOCK), run / _HOLDER
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ValueError(
            f"{run}: {_described(holder)} trains in this folder; give another run=..., or end it"
        ) from error
    try:
        since = datetime.now().isoformat(" ", "seconds")
        holder.write_text(json.dumps({"process": os.getpid(), "host": socket.gethostname(), "since": since}))
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _described(holder: Path) -> str:
    try:
        other = json.loads(holder.read_text(encoding="utf-8"))
        return f"process {other['process']} on {other['host']} (since {other['since']})"
    except (OSError, ValueError, LookupError, TypeError):
        return "another process"
