"""Runs a Python program in this process after making torchvision importable.

``python harness/launch.py path/to/main.py ARGS`` or ``python -m harness.launch -m package.module ARGS``. With
``--end-with-stdin`` before them the program ends when its standard input does: a server then never outlives the
process that started it, however that one ended.

PyPI's torchvision is built for CUDA. Beside a CPU build of torch its import fails with "operator torchvision::nms
does not exist", and takes down everything that imports it (ComfyUI, transformers, diffusers).
"""

from __future__ import annotations

import importlib.util
import os
import runpy
import sys
import threading
from pathlib import Path

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_libraries = []  # a torch.library.Library takes its schemas along when it is collected


def cure_torchvision() -> bool:
    """Declare the operators that torchvision misses, where its import would fail without them.

    Returns:
        Whether a cure was needed.
    """
    if "torchvision" in sys.modules or _torch_has_cuda():
        return False
    try:
        import torchvision  # noqa: F401
    except ImportError:
        return False  # not installed, so nothing will import it
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        _declare_schemas()
        return True
    return False


def _torch_has_cuda() -> bool:
    """Told from torch's files: ComfyUI sets up CUDA's allocator before it imports torch."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return False
    version = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    return "cuda: Optional[str] = None" not in version


def _declare_schemas() -> None:
    import torch

    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        library.define(schema)
    _libraries.append(library)


def _end_with_stdin() -> None:
    def wait() -> None:
        sys.stdin.buffer.read()
        os._exit(1)  # sys.exit would end this thread alone

    threading.Thread(target=wait, daemon=True).start()


def main(arguments: list[str]) -> None:
    """Run the program that the arguments name, as ``python`` itself would."""
    if arguments[0] == "--end-with-stdin":
        _end_with_stdin()
        arguments = arguments[1:]
    cure_torchvision()
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        return
    script = Path(arguments[0]).resolve()
    sys.argv = [str(script), *arguments[1:]]
    sys.path[0] = str(script.parent)
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
