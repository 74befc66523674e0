"""Bank files: safetensors in the released layout, read and written; ours adds the configuration to the header.

Keys are ``transformer.<diffusers module path>.<tensor>`` with the tensors of ``TENSORS``.
"""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from .atomic import replacing
from .config import BankConfig, BankError, naming, settings_from_header
from .query import QUERY_MODES
from .released import settings_from_file, sibling_yaml
from .tensorfile import TensorFile
from .wording import clipped, shown

PREFIX = "transformer."
LORA_A, LORA_B, KEYS, TO_Q, BIAS = "lora_A", "lora_B", "lora_keys", "att_lora_to_q.weight", "lora_B_bias"
TENSORS = (LORA_A, LORA_B, KEYS, TO_Q, BIAS)
_OLD_BIAS = "lora_up_bias"
_DIMENSIONS = {LORA_A: 3, LORA_B: 3, KEYS: 2, TO_Q: 2, BIAS: 2}
_REQUIRED = (LORA_A, LORA_B, KEYS)
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_CLIP_VIT_L_WIDTH = 768
_LONGEST_NAME = 200
# Of the settings that no shape tells, those whose absence is worth a word.
_UNTOLD = ("softmax", "query_mode", "heads", "mixing", "encoder")
_ORDINARY_LORA = re.compile(
    r"\.(lora_[AB](\.\w+)?\.weight|lora_(up|down)\.weight|lora\.(up|down)\.weight|hada_w1_a|lokr_w1)$"
)

Progress = Callable[[int, int], None]
Shapes = dict[str, tuple[int, ...]]


class BankFile(TensorFile):
    """A bank's safetensors file. Its tensors go by their present names, also where the file has an older one.

    Raises:
        BankError: when there is no such file, or it is not a complete safetensors file.
    """

    def __init__(self, path: str | os.PathLike, mmap: bool = True):
        super().__init__(path, mmap)
        self._stored = {_current_name(name): name for name in self.names}
        if len(self._stored) < len(self.names):
            raise BankError(f"{self.path}: holds the same biases as {BIAS} and as {_OLD_BIAS}; only one may be there")

    def tensor(self, name: str) -> Tensor:
        """The named tensor, not yet read from disk where the file is mapped."""
        return super().tensor(self._stored[name])

    def layout(self) -> Layout:
        """The shapes of the bank in it; see ``read_layout``."""
        return read_layout({name: self.describe(stored) for name, stored in self._stored.items()})


@dataclass(frozen=True)
class Layout:
    """The shapes of a bank: ``layers[module path][tensor name]``, and the numbers that all layers share."""

    layers: dict[str, Shapes]
    num_loras: int
    rank: int
    key_dim: int
    query_dim: int
    has_projection: bool


def read_layout(described: Mapping[str, tuple[tuple[int, ...], str]]) -> Layout:
    """Group tensors by layer and check every shape against every other.

    Args:
        described: tensor name -> (shape, dtype name).

    Raises:
        BankError: naming the layer, what was expected and what was found.
    """
    layers = _group_by_layer(described)
    optional = {tensor for tensor in (TO_Q, BIAS) if 2 * sum(tensor in s for s in layers.values()) > len(layers)}
    has_projection = TO_Q in optional
    for name, shapes in layers.items():
        _check_complete(name, shapes, optional)
        _check_dimensions(name, shapes)
    num_loras, rank = _common(shapes[LORA_A][::2] for shapes in layers.values())
    key_dim = _common(shapes[KEYS][1] for shapes in layers.values())
    query_dim = _common(shapes[TO_Q][1] for shapes in layers.values()) if has_projection else key_dim
    layout = Layout(layers, num_loras, rank, key_dim, query_dim, has_projection)
    for name, shapes in layers.items():
        _check_shapes(name, shapes, layout)
    return layout


def _common(values: Iterable) -> Any:
    """What most layers say, so that an error names the odd one out and not the others."""
    return Counter(values).most_common(1)[0][0]


def _current_name(name: str) -> str:
    """A tensor's name; the biases had another once."""
    return f"{name.removesuffix(_OLD_BIAS)}{BIAS}" if name.endswith(f".{_OLD_BIAS}") else name


def _group_by_layer(described: Mapping[str, tuple[tuple[int, ...], str]]) -> dict[str, Shapes]:
    layers: dict[str, Shapes] = {}
    strangers = []
    for name, (shape, dtype) in described.items():
        tensor = next((t for t in TENSORS if name.startswith(PREFIX) and name.endswith("." + t)), None)
        if tensor is None or len(name) > _LONGEST_NAME:
            strangers.append(clipped(name, _LONGEST_NAME))
            continue
        layer = name[len(PREFIX) : -len(tensor) - 1]
        if dtype not in _DTYPES:
            raise BankError(f"{tensor} of layer {layer} is stored as {dtype}; expected one of {', '.join(_DTYPES)}")
        layers.setdefault(layer, {})[tensor] = shape
    if strangers:
        raise BankError(_explain_strangers(strangers, bool(layers)))
    if not layers:
        raise BankError("the file holds no tensors")
    return {layer: layers[layer] for layer in sorted(layers, key=_model_order)}


def _model_order(layer: str) -> tuple:
    """Double blocks before single blocks, block 2 before block 10: the order in which the model runs them."""
    parts = [(int(part), "") if part.isdecimal() else (-1, part) for part in layer.split(".")]
    return layer.startswith("single_"), parts


def _explain_strangers(names: list[str], some_known: bool) -> str:
    if any(_ORDINARY_LORA.search(name) for name in names):
        return (
            f"this is an ordinary LoRA, not a bank (it holds {names[0]}); put it in models/loras and use the stock"
            " LoRA loader"
        )
    wanted = f"{PREFIX}<layer>.{{{', '.join(TENSORS)}}}"
    if some_known:
        return f"{len(names)} tensors are not part of a bank, such as {names[0]}; a bank holds only {wanted}"
    return f"this is not a LoRWeB bank: expected tensors named {wanted}; found {names[0]} and {len(names) - 1} others"


def _check_complete(layer: str, shapes: Shapes, optional: set[str]) -> None:
    wanted = {*_REQUIRED, *optional}
    missing = [name for name in TENSORS if name in wanted - shapes.keys()]
    if missing:
        raise BankError(
            f"{' and '.join(missing)} missing in layer {layer}; the file is incomplete, get it again or retrain"
        )
    for name in shapes.keys() - wanted:
        raise BankError(f"{name} is in layer {layer}, and not in most others; all layers must agree")


def _check_dimensions(layer: str, shapes: Shapes) -> None:
    for tensor, shape in shapes.items():
        if len(shape) != _DIMENSIONS[tensor] or 0 in shape:
            raise BankError(
                f"{tensor} of layer {layer} has shape {shown(list(shape))}; expected {_DIMENSIONS[tensor]} dimensions,"
                " none of them 0"
            )


def _check_shapes(layer: str, shapes: Shapes, layout: Layout) -> None:
    n, r, d, q = layout.num_loras, layout.rank, layout.key_dim, layout.query_dim
    features_in, features_out = shapes[LORA_A][1], shapes[LORA_B][2]
    expected = {
        LORA_A: (n, features_in, r),
        LORA_B: (n, r, features_out),
        KEYS: (n, d),
        TO_Q: (d, q),
        BIAS: (n, features_out),
    }
    for tensor, shape in shapes.items():
        if shape != expected[tensor]:
            raise BankError(
                f"{tensor} of layer {layer} has shape {list(shape)}; expected {list(expected[tensor])}, since most"
                f" layers have N = {n}, rank {r}, key width {d} and query width {q}"
            )


def find_settings(metadata: Mapping[str, str], path: Path) -> tuple[dict[str, Any], str]:
    """(settings, where they stand) of a bank file: those in its header, else in a released bank's YAML."""
    settings = settings_from_header(metadata)
    yaml_path = None if settings else sibling_yaml(path)
    return (settings, "the header") if yaml_path is None else (settings_from_file(yaml_path), yaml_path.name)


def resolve_config(layout: Layout, settings: Mapping[str, Any], origin: str) -> tuple[BankConfig, list[str]]:
    """The configuration of a bank: what its header or YAML says, and what shapes tell.

    Args:
        settings: from ``origin``, which errors name.

    Returns:
        The configuration, and the names of settings that are not given and that shapes cannot tell (defaults stand).

    Raises:
        BankError: when a setting contradicts the tensors.
    """
    shapes = {
        "num_loras": layout.num_loras,
        "rank": layout.rank,
        "key_dim": layout.key_dim,
        "query_dim": layout.query_dim,
        "projection": "linear" if layout.has_projection else "none",
    }
    for name, found in shapes.items():
        if settings.get(name, found) != found:
            hint = (
                ""
                if origin == "the header"
                else f"; if {origin} belongs to another bank, name this bank's file like the bank"
            )
            raise BankError(f"{origin} says {name} = {shown(settings[name])}, but the tensors say {found!r}{hint}")
    with naming(origin):
        config = BankConfig(**{"query_mode": _likely_mode(layout.query_dim), **settings, **shapes})
    parts = QUERY_MODES[config.query_mode].parts
    if config.query_dim % parts:
        raise BankError(
            f"query mode {config.query_mode} needs {parts} equal parts, but the query width is {config.query_dim}"
        )
    return config, [name for name in _UNTOLD if name not in settings]


def read_config(path: Path) -> BankConfig:
    """The configuration of a bank file, from its header and the YAML beside it, without reading a tensor.

    Raises:
        BankError: as ``BasisBank.load``, of what the header tells.
    """
    file = BankFile(path)
    with naming(path):
        return resolve_config(file.layout(), *find_settings(file.metadata, file.path))[0]


def _likely_mode(query_dim: int) -> str:
    """The paper's mode where three embeddings can fill the query, else the mode that uses all images in one width."""
    return "ca'-ca+cb" if query_dim % 3 or query_dim == _CLIP_VIT_L_WIDTH else "cat-aa'b"


def check_finite(layer: str, tensor_name: str, tensor: Tensor) -> float:
    """The largest magnitude of a tensor. The extremes tell of NaN and Inf too, and finding them allocates nothing.

    Raises:
        BankError: when it holds NaN or Inf.
    """
    low, high = tensor.aminmax()
    if not (torch.isfinite(low) and torch.isfinite(high)):
        bad = int((~torch.isfinite(tensor)).sum())
        raise BankError(
            f"{tensor_name} of layer {layer} holds {bad} values that are NaN or infinite; the file is damaged or its"
            " training diverged, use another checkpoint"
        )
    return max(-float(low), float(high))


def write_bank(
    path: str | os.PathLike,
    layers: Mapping[str, Mapping[str, Tensor]],
    config: BankConfig,
    extra: Mapping[str, str] | None = None,
) -> None:
    """Write a bank file: the released layout with the configuration in the safetensors header.

    The file appears under its name only when it is complete.

    Args:
        layers: module path without "transformer." -> tensor name (one of ``TENSORS``) -> tensor.
        extra: further header entries (strings), such as the training step.

    Raises:
        BankError: when the tensors do not make a bank, or contradict the configuration.
    """
    dtype_names = {dtype: name for name, dtype in _DTYPES.items()}
    tensors = {
        _current_name(f"{PREFIX}{layer}.{name}"): tensor.detach().contiguous()
        for layer, named in layers.items()
        for name, tensor in named.items()
    }
    with naming(path):
        layout = read_layout({n: (tuple(t.shape), dtype_names.get(t.dtype, str(t.dtype))) for n, t in tensors.items()})
        metadata = {"format": "pt", **(extra or {}), "lorweb_config": config.to_json()}
        resolve_config(layout, settings_from_header(metadata), "the header")
    save_atomically(tensors, path, metadata)


def save_atomically(
    tensors: Mapping[str, Tensor], path: str | os.PathLike, metadata: Mapping[str, str], replace: bool = True
) -> None:
    """``save_file`` under a temporary name, then renamed: a full disk or a kill never leaves half a file.

    Args:
        replace: False never replaces a file.

    Raises:
        FileExistsError: when there is a file of that name and it must not be replaced.
        OSError: when it cannot be written, saying how much room it needs and there is.
    """
    try:
        with replacing(path, replace) as temporary:
            # safetensors makes files that only their owner can read; banks and LoRAs are shared like any other file.
            temporary.touch()
            mode = temporary.stat().st_mode
            save_file(dict(tensors), temporary, metadata=dict(metadata))
            temporary.chmod(mode)
    except FileExistsError:
        raise
    except (SafetensorError, OSError) as error:
        raise OSError(_explain_unwritten(tensors, Path(path), error)) from error


def _explain_unwritten(tensors: Mapping[str, Tensor], path: Path, error: Exception) -> str:
    folder = path.absolute().parent
    if not folder.is_dir():
        return f"{path}: there is no folder {folder}; make it first"
    size, free = sum(tensor.nbytes for tensor in tensors.values()), shutil.disk_usage(folder).free
    return (
        f"{path}: could not be written ({clipped(error)}); it takes {size:,} bytes, and {free:,} are free there. Make"
        " room, or choose a folder that you may write to"
    )


def iterate_with_progress(items: Iterable, progress: Progress | None, total: int):
    """Yield items and report (done, total) after each."""
    for done, item in enumerate(items, 1):
        yield item
        if progress is not None:
            progress(done, total)
