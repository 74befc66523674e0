"""``models/lorweb``: where banks lie, and the errors that say so."""

import logging
import os

import folder_paths

logger = logging.getLogger(__name__)

FOLDER = "lorweb"
EXTENSIONS = {".safetensors"}


def register_basis_folder() -> None:
    """Make ``models/lorweb`` known to ComfyUI, beside any folders that ``extra_model_paths.yaml`` already gave it."""
    default = os.path.join(folder_paths.models_dir, FOLDER)
    try:
        os.makedirs(default, exist_ok=True)
    except OSError as error:  # a folder that cannot be written, or a link to nowhere
        logger.warning("LoRWeB: %s cannot be made (%s); banks are looked for in it once it is there", default, error)
    folder_paths.add_model_folder_path(FOLDER, default)
    # ComfyUI starts a new folder with no extensions, which lists every file in it.
    paths, _ = folder_paths.folder_names_and_paths[FOLDER]
    folder_paths.folder_names_and_paths[FOLDER] = (paths, EXTENSIONS)


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
        raise FileNotFoundError(f"there is no bank {name!r}; put it into {folders} (found there: {there})")
    return path
