"""What tells the models that caches are made with apart."""

from pathlib import Path
from typing import IO, Any

from ..hashing import content_hash

_BLOCK, _BLOCKS = 2**16, 64  # of a file that is too large to read for its hash alone


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
