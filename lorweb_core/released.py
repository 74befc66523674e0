"""The ``config.yaml`` of released checkpoints: which file is a bank's, and what it says."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

from .config import BankError, naming
from .wording import clipped, misspelt, shown

logger = logging.getLogger(__name__)

# A training configuration has a few thousand letters; a file of this size is none.
_LARGEST_YAML = 128 * 1024
# Settings that merge keys (``<<``) may add up to: nested merges of a small file unfold to billions.
_MOST_MERGED = 500
# PyYAML takes minutes over thousands of open brackets.
_DEEPEST = 100

# What the released trainer does where its configuration is silent.
_DEFAULT_MODE = "aa'bb'"
# The released way of a query mode whose plain name is ours.
_RELEASED_MODES = {"caa'": "caa'-middle"}
# Names in the released configuration -> ours.
_NAMES = {
    "loras_num": "num_loras",
    "lora_keys_dim": "key_dim",
    "lora_heads": "heads",
    "lora_softmax": "softmax",
    "mixing_coeffs_type": "mixing",
    "query_mode": "query_mode",
    "external_query_model": "encoder",
    "query_projection_type": "projection",
}
_EXTERNAL = "external_query"


def sibling_yaml(path: Path) -> Path | None:
    """The configuration of a released bank, or None.

    ``<bank>.yaml`` beside it; else the ``config.yaml`` of its folder or of the folder above, if no other bank lies
    there or if its ``config.name`` is the bank's name, which a training step may follow (``NAME_000000250``).
    """
    own = path.with_suffix(".yaml")
    if own.is_file():
        return own
    return next((shared for shared in shared_yamls(path) if _is_of(shared, path)), None)


def shared_yamls(path: Path) -> list[Path]:
    """The ``config.yaml`` files that may be a bank's: of its folder, and of the folder above."""
    candidates = (path.with_name("config.yaml"), path.absolute().parent.parent / "config.yaml")
    return [candidate for candidate in candidates if candidate.is_file()]


def _is_of(shared: Path, path: Path) -> bool:
    """Whether a ``config.yaml`` is of a bank. One above its folder has to be a configuration."""
    beside = shared.parent == path.parent
    patterns = ("*.safetensors",) if beside else ("*.safetensors", "*/*.safetensors")
    alone = sum(1 for pattern in patterns for _ in shared.parent.glob(pattern)) == 1
    if beside and alone:
        return True
    try:
        config = _read(shared)["config"]
        return "process" in config and (alone or _is_named(path.stem, config.get("name")))
    except (BankError, AttributeError, KeyError, TypeError):
        return False


def _is_named(stem: str, name: Any) -> bool:
    return isinstance(name, str | int) and re.fullmatch(re.escape(str(name)) + r"(_\d+)?", stem) is not None


def settings_from_file(path: Path) -> dict[str, Any]:
    """Settings in a YAML file; see ``settings_from_yaml``.

    Raises:
        BankError: naming the file, also when it is no YAML.
    """
    with naming(path.name):
        return settings_from_yaml(_read(path))


def _read(path: Path) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        def flatten_mapping(self, node: yaml.MappingNode) -> None:
            super().flatten_mapping(node)
            if len(node.value) > _MOST_MERGED:
                raise yaml.YAMLError(f"its merge keys add up to {len(node.value)} settings")

    size = path.stat().st_size
    if size > _LARGEST_YAML:
        raise BankError(f"it is {size:,} bytes long; a configuration has at most {_LARGEST_YAML:,}")
    try:
        text = path.read_text(encoding="utf-8")
        if max(accumulate((letter in "[{") - (letter in "]}") for letter in text), default=0) > _DEEPEST:
            raise yaml.YAMLError(f"it nests more than {_DEEPEST} brackets")
        return yaml.load(text, Loader)
    except Exception as error:  # PyYAML's constructors raise whatever a strange date or number leads to
        raise BankError(f"not valid YAML ({clipped(error)})") from error


def settings_from_yaml(document: Any) -> dict[str, Any]:
    """Settings in the ``config.yaml`` of a released checkpoint (``config.process[0].network``), as its code takes them.

    ``linear_alpha`` is none of them: the released code forces alpha = rank for this file format.

    Raises:
        BankError: when it has no such section, or configures an *internal* query: coefficients that depend on the
            activations cannot be composed into one LoRA.
    """
    process = _inside(document, "config", "process", 0)
    network = _inside(process, "network")
    kwargs = _section("network_kwargs", _inside(network, "network_kwargs"))
    model = _section("model", process.get("model"))
    others = kwargs.keys() - {*_NAMES, _EXTERNAL}
    for name in _NAMES.keys() - kwargs.keys():
        if hint := misspelt(name, others, cutoff=0.8):
            logger.warning("network_kwargs says nothing of %s%s", name, hint)
    _expect_external_query(kwargs.get(_EXTERNAL))
    settings = {ours: kwargs[theirs] for theirs, ours in _NAMES.items() if kwargs.get(theirs) is not None}
    mode = settings.get("query_mode", _DEFAULT_MODE)
    settings["query_mode"] = _RELEASED_MODES.get(mode, mode) if isinstance(mode, str) else mode
    rank = next((network[name] for name in ("rank", "linear") if network.get(name) is not None), None)
    if rank is not None:
        settings["rank"] = rank
    if model.get("name_or_path"):
        settings["base_model"] = model["name_or_path"]
    return settings


def _expect_external_query(value: Any) -> None:
    if value is False:
        raise BankError(
            "external_query is false: the coefficients of this bank depend on the activations at every step, so they"
            " cannot be composed into one LoRA; only banks with an image query (external_query: true) work here"
        )
    if value not in (None, True):
        raise BankError(f"external_query is {shown(value)}; expected true or false")


def _inside(document: Any, *keys: str | int) -> Any:
    """What stands under keys, one in the other."""
    for key in keys:
        try:
            document = document[key]
        except (KeyError, IndexError, TypeError) as error:
            found = document if isinstance(document, Mapping) else ()
            raise BankError(
                f"it has no section {key} of config.process[0].network.network_kwargs{misspelt(str(key), found)}"
            ) from error
    return document


def _section(name: str, section: Any) -> Mapping[str, Any]:
    if not isinstance(section, Mapping | None):
        raise BankError(f"its section {name} is {shown(section)}; expected settings by name")
    return section or {}
