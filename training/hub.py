"""Where models come from: local folders, or hub ids that the user named."""

import difflib
import re
from pathlib import Path

_HUB_NAME = re.compile(r"\w[\w.-]*", re.ASCII)


def locate(name: str, what: str) -> dict:
    """Arguments of ``from_pretrained`` for a local folder, or for a hub id that the user named.

    A name whose first part is like a folder that is here is meant as a path, and not asked of the hub.

    Raises:
        ValueError: for a path that is neither.
    """
    if name and Path(name).expanduser().is_dir():
        return {"pretrained_model_name_or_path": str(Path(name).expanduser()), "local_files_only": True}
    owner, _, model = name.partition("/")
    if not _HUB_NAME.fullmatch(owner) or not _HUB_NAME.fullmatch(model):
        raise ValueError(f"{what}: there is no folder {name}, and it is no hub id of the form owner/name")
    here = sorted(path.name for path in Path().iterdir() if path.is_dir())
    for folder in difflib.get_close_matches(owner, here, n=1, cutoff=0.8):
        inside = sorted(path.name for path in Path(folder).iterdir() if path.is_dir())
        raise ValueError(
            f"{what}: there is no folder {name}, but {folder}/ is here with {', '.join(inside[:8]) or 'no folders'};"
            " name one of these, or another place"
        )
    return {"pretrained_model_name_or_path": name}
