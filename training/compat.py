"""What versions of the libraries need that do not fit each other, or err."""

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


def avoid_cudnn_attention() -> None:
    """Let torch choose among its other attention kernels: going backward, cuDNN's returns NaN for some lengths.

    torch 2.11 and later prefer it on Hopper GPUs (pytorch/pytorch issue 196678, NVIDIA/cudnn-frontend issue 160).
    """
    torch.backends.cuda.enable_cudnn_sdp(False)
