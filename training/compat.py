"""Make transformers and diffusers importable where torchvision's compiled operators do not match torch."""

import importlib.util

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_library: torch.library.Library | None = None  # schemas live as long as the object that defined them


def cure_torchvision() -> None:
    """Define the two operators whose absence stops ``import torchvision``, if it does stop.

    torchvision's CUDA wheels beside a CPU build of torch fail with "operator torchvision::nms does not
    exist", and transformers and diffusers import torchvision whenever it is installed. Nothing here ever
    calls the operators.
    """
    global _library
    if importlib.util.find_spec("torchvision") is None or hasattr(torch.ops.torchvision, "nms"):
        return
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        _library = torch.library.Library("torchvision", "DEF")
        for schema in _SCHEMAS:
            _library.define(schema)
