"""``models/lorweb``, where banks lie, ``models/lorweb_edits``, where edit cards do, and the errors that say so."""

import logging
import os
from functools import lru_cache, partial
from pathlib import PurePath

import folder_paths

from ..lorweb_core.card import is_card
from ..lorweb_core.wording import meant

logger = logging.getLogger(__name__)

FOLDER = "lorweb"
EXTENSIONS = {".safetensors"}
EDITS_FOLDER = "lorweb_edits"
EDIT_EXTENSIONS = {".png", ".json"}


def register_folders() -> None:
    """Make the pack's folders known to ComfyUI, beside any that ``extra_model_paths.yaml`` already gave it.

    Cards are found where Save Edit puts them, too, as ComfyUI finds LoRAs in ``output/loras``.
    """
    _register(FOLDER, EXTENSIONS)
    _register(EDITS_FOLDER, EDIT_EXTENSIONS)
    folder_paths.add_model_folder_path(EDITS_FOLDER, os.path.join(folder_paths.get_output_directory(), EDITS_FOLDER))


def _register(folder: str, extensions: set[str]) -> None:
    default = os.path.join(folder_paths.models_dir, folder)
    try:
        os.makedirs(default, exist_ok=True)
    except OSError as error:  # a folder that cannot be written, or a link to nowhere
        logger.warning("LoRWeB: %s cannot be made (%s); files are looked for in it once it is there", default, error)
    folder_paths.add_model_folder_path(folder, default)
    # ComfyUI starts a new folder with no extensions, which lists every file in it.
    paths, _ = folder_paths.folder_names_and_paths[folder]
    folder_paths.folder_names_and_paths[folder] = (paths, extensions)


def basis_names() -> list[str]:
    """The bank files there are, as the combo box shows them."""
    return folder_paths.get_filename_list(FOLDER)


def basis_path(name: str) -> str:
    """Full path of a bank file.

    Raises:
        FileNotFoundError: naming the folders that were searched and the files that are there.
    """
    path = folder_paths.get_full_path(FOLDER, name)
    if path is None:
        folders = " or ".join(folder_paths.get_folder_paths(FOLDER))
        there = ", ".join(basis_names()) or "no .safetensors file"
        hint = meant(name, basis_names())
        raise FileNotFoundError(f"there is no bank {name!r}{hint}; put it into {folders} (found there: {there})")
    return path


def edit_names() -> list[str]:
    """The edit cards there are, as Load Edit shows them: those of the input folder by their name alone, as ComfyUI's
    upload calls them, others with ``lorweb_edits/`` before it."""
    inputs = folder_paths.get_input_directory()
    entries = os.scandir(inputs) if os.path.isdir(inputs) else ()
    uploaded = sorted(entry.name for entry in entries if entry.name.lower().endswith(".png") and _is_card(entry))
    return [f"{EDITS_FOLDER}/{name}" for name in folder_paths.get_filename_list(EDITS_FOLDER)] + uploaded


def _is_card(entry: os.DirEntry) -> bool:
    status = entry.stat()
    return _was_card(entry.path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=100_000)
def _was_card(path: str, changed: int, size: int) -> bool:
    """``is_card`` of a file as it was then: ComfyUI asks for the names many times for every run."""
    return is_card(path)


def edit_path(name: str) -> str:
    """Full path of an edit card by its name in Load Edit.

    Raises:
        FileNotFoundError: naming the folders that were searched.
    """
    kept = name.removeprefix(f"{EDITS_FOLDER}/")
    find = folder_paths.get_annotated_filepath if kept == name else partial(folder_paths.get_full_path, EDITS_FOLDER)
    path = None if os.path.isabs(kept) or ".." in PurePath(kept).parts else find(kept)
    if path is None or not os.path.isfile(path):
        folders = " or ".join(folder_paths.get_folder_paths(EDITS_FOLDER))
        hint = meant(name, edit_names())
        raise FileNotFoundError(f"there is no edit card {name!r}{hint}; put it into {folders}, or drop it on Load Edit")
    return path


def new_output(prefix: str, folder: str, extension: str) -> str:
    """Full path of a new file below ComfyUI's output folder, never one that is there.

    Args:
        prefix: folder and beginning of the name; a folder alone gets a name, nothing at all the one in ``folder``.
    """
    if os.path.basename(prefix.strip()) in ("", ".", ".."):
        prefix = os.path.join(prefix.strip() or folder, "lorweb")
    into, name, counter, _, _ = folder_paths.get_save_image_path(prefix, folder_paths.get_output_directory())
    while os.path.lexists(path := os.path.join(into, f"{name}_{counter:05}_{extension}")):
        counter += 1
    return path
