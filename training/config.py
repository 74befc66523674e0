"""The one configuration tree of a training run: typed, with YAML files and ``key=value`` overrides on top."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from lorweb_core import BankConfig
from lorweb_core.canvas import FITS
from lorweb_core.config import PROJECTIONS
from lorweb_core.mixing import MIXINGS
from lorweb_core.query import QUERY_MODES
from lorweb_core.wording import clipped

from .data.analogies import CAPTIONS, OVER
from .data.layouts import LAYOUTS, Layout
from .limits import ALIASES, RANGES
from .tuner import INITS

QUANTISATIONS = ("none", "nf4", "int8", "torchao-int8")
PRECISIONS = ("no", "fp16", "bf16")
WEIGHTINGS = ("bell", "none")
TIMESTEPS = ("uniform", "logit_normal", "mode")
SAVE_DTYPES = {"float32": 4, "bfloat16": 2, "float16": 2}  # and their bytes
MADE_IN_RUN = "made-in-run"  # stands for the random base and the photographs that a tiny run makes for itself
OPTIMIZERS = ("adamw", "adamw8bit", "prodigy")


@dataclass
class BaseConfig:
    """The frozen model."""

    path: str = "???"
    dtype: str = "bfloat16"
    quantise: str = "none"
    gradient_checkpointing: bool = True
    compile: bool = False


@dataclass
class BankSettings:
    """Shape and mixing of the bank; its query width follows from the encoder and the mode.

    ``targets`` is a regular expression of module paths; empty stands for the base's own layers.
    """

    num_loras: int = 32
    rank: int = 4
    key_dim: int = 128
    heads: int = 1
    softmax: bool = True
    mixing: str = "mean"
    alpha: float | None = None
    projection: str = "linear"
    query_mode: str = "cat-aa'b"
    encoder: str = "openai/clip-vit-large-patch14"
    targets: str = ""
    init: str = "linear"
    start: str = ""
    save_dtype: str = "float32"
    layout: str = "canvas"

    @property
    def bytes_each(self) -> int:
        """Bytes of a number in the bank file."""
        return SAVE_DTYPES[self.save_dtype]

    def resolve(self, embedding_dim: int, base_model: str, encoder: str) -> BankConfig:
        """The bank's own configuration, once the width of one encoder embedding is known."""
        other = ("targets", "init", "encoder", "start", "save_dtype")
        settings = {name: value for name, value in vars(self).items() if name not in other}
        query_dim = embedding_dim * QUERY_MODES[self.query_mode].parts
        return BankConfig(**settings, query_dim=query_dim, base_model=base_model, encoder=encoder)


@dataclass
class DataConfig:
    """What is trained on."""

    manifest: str = "???"
    hold_tasks: float = 0.0
    hold_task_names: list[str] = field(default_factory=list)
    hold_images: float = 0.0
    hold_pairs: int = 0
    canvas: int = 512
    fit: str = "crop"
    swap: float = 0.0
    over: str = "tasks"
    caption: str = "answer"
    workers: int = 2
    prompt_tokens: int = 512
    cache: str | None = None
    cache_latents: int = 0
    examples: int = 1


@dataclass
class ObjectiveConfig:
    """Flow matching, and what may be added to it."""

    weighting: str = "bell"
    timesteps: str = "uniform"
    shift: float = 1.0
    canvas_weight: float = 1.0
    guidance: float = 1.0
    caption_dropout: float = 0.05
    entropy: float = 0.0
    balance: float = 0.0
    perceptual: float = 0.0
    lpips: str = ""
    changed: float = 0.0
    perceptual_share: float = 1.0


@dataclass
class OptimizerConfig:
    """The optimiser and its schedule."""

    name: str = "adamw"
    lr: float = 1e-3
    mixer_lr: float | None = None
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = 1e-8
    weight_decay: float = 0.05
    clip: float = 1.0
    schedule: str = "constant"
    warmup: int = 0
    ema: float = 0.0


@dataclass
class TrainConfig:
    """Length and size of the run."""

    steps: int = 10_000
    batch: int = 6
    accumulate: int = 1
    precision: str = "bf16"
    seed: int = 0
    minutes: float = 0.0


@dataclass
class CheckpointConfig:
    """When the state is saved."""

    every: int = 500
    keep: int = 2
    resume: bool = True


@dataclass
class ValidationConfig:
    """Sampled grids while training."""

    every: int = 1000
    analogies: int = 4
    steps: int = 28
    guidance: float = 2.5


@dataclass
class LogConfig:
    """What is written while training."""

    every: int = 10
    trackers: list[str] = field(default_factory=lambda: ["csv", "tensorboard"])
    project: str = "lorweb"


@dataclass
class Config:
    """The whole tree."""

    run: str = "???"
    tiny: bool = False
    base: BaseConfig = field(default_factory=BaseConfig)
    bank: BankSettings = field(default_factory=BankSettings)
    data: DataConfig = field(default_factory=DataConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    log: LogConfig = field(default_factory=LogConfig)

    @property
    def layout(self) -> Layout:
        """How the base is shown an analogy."""
        return LAYOUTS[self.bank.layout]


_CHOICES = {
    "base.quantise": QUANTISATIONS,
    "base.dtype": ("float32", "bfloat16", "float16"),
    "bank.init": tuple(INITS),
    "bank.save_dtype": tuple(SAVE_DTYPES),
    "bank.layout": tuple(LAYOUTS),
    "bank.mixing": MIXINGS,
    "bank.projection": PROJECTIONS,
    "bank.query_mode": tuple(QUERY_MODES),
    "data.fit": FITS,
    "data.over": OVER,
    "data.caption": CAPTIONS,
    "objective.weighting": WEIGHTINGS,
    "objective.timesteps": TIMESTEPS,
    "optimizer.name": OPTIMIZERS,
    "train.precision": PRECISIONS,
}
_DEEPEST = 20  # of a configuration file; ours are two deep


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file over the defaults, then ``key=value`` overrides, and check every value.

    Raises:
        ValueError: naming the file or the override, the key, what was expected and what was found.
    """
    try:
        _check_shape(path)
        document = OmegaConf.load(path)
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not valid YAML ({clipped(error)})") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: cannot be read ({clipped(error)})") from error
    return make_config(document, str(path), overrides)


def _check_shape(path: Path) -> None:
    """Refuse what unfolds without end or takes for ever, before a document is made of it."""
    depth = 0
    with open(path, encoding="utf-8") as file:
        for event in yaml.parse(file):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _DEEPEST or isinstance(event, yaml.AliasEvent):
                raise ValueError(f"it has aliases (*name), or is nested more than {_DEEPEST} deep; write it out")


def make_config(document: DictConfig, origin: str, overrides: Sequence[str] = ()) -> Config:
    """Settings over the defaults, then ``key=value`` overrides, all checked; raises as ``load_config``.

    Args:
        origin: what errors call the settings.
    """
    tree = _merge(OmegaConf.structured(Config), document, origin)
    for override in overrides:
        if "=" not in override:
            raise ValueError(f"{override!r} is no override; write key=value, such as train.steps=2000")
        tree = _merge(tree, parse_overrides([override]), override)
    if tree.train.precision == str(False):
        tree.train.precision = "no"  # YAML reads a bare no as false
    _check(tree)
    config = OmegaConf.to_object(tree)
    # All of a bank but the width of its query, which the encoder will tell.
    replace(config.bank, projection="linear").resolve(1, config.base.path, config.bank.encoder)
    return config


def parse_overrides(overrides: Sequence[str]) -> DictConfig:
    """``key=value`` settings, with values in YAML.

    Raises:
        ValueError: when a value is no YAML, such as half a list that the shell split at a blank.
    """
    try:
        return OmegaConf.from_dotlist(list(overrides))
    except yaml.YAMLError as error:
        raise ValueError(f"{' '.join(overrides)}: not valid YAML ({error}); quote it where it has blanks") from error


def save_config(config: Config, path: Path) -> None:
    """Write the resolved configuration as YAML that ``load_config`` reads."""
    OmegaConf.save(OmegaConf.structured(config), path)


def _merge(tree: DictConfig, document: DictConfig, origin: str) -> DictConfig:
    if not isinstance(document, DictConfig):
        raise ValueError(f"{origin}: expected keys with values")
    try:
        return OmegaConf.merge(tree, document)
    except ConfigKeyError as error:
        key, nearest = clipped(error.full_key), _nearest(error.full_key)
        raise ValueError(f"{clipped(origin)}: there is no key {key!r}; did you mean {nearest!r}?") from error
    except OmegaConfBaseException as error:
        raise ValueError(f"{clipped(origin)}: {error.full_key}: {clipped(str(error).splitlines()[0])}") from error


def _nearest(key: str) -> str:
    """The known key that is most like an unknown one, by its whole name or by its last part."""
    last = key.rsplit(".", 1)[-1]
    if last in ALIASES:
        return ALIASES[last]
    return max(known_keys(), key=lambda name: max(_likeness(key, name), _likeness(last, name.rsplit(".", 1)[-1])))


def _likeness(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()


def known_keys(group: Any = None, prefix: str = "") -> list[str]:
    """Every dotted key of the tree, groups included."""
    found = []
    for entry in fields(group or Config):
        found.append(prefix + entry.name)
        if is_dataclass(entry.type):
            found += known_keys(entry.type, f"{prefix}{entry.name}.")
    return found


def _check(tree: DictConfig) -> None:
    missing = OmegaConf.missing_keys(tree)
    if missing:
        raise ValueError(
            f"no value for {', '.join(sorted(missing))}; set it in the file or as {sorted(missing)[0]}=..."
        )
    check_values(tree)
    if tree.data.cache_latents and not tree.data.cache:
        raise ValueError("data.cache_latents needs a folder to keep the latents in; set data.cache")
    if tree.bank.alpha is not None and not tree.bank.alpha > 0:
        raise ValueError(f"bank.alpha is {tree.bank.alpha}; expected more than 0, or null for bank.rank")
    if not all(0 <= beta < 1 for beta in tree.optimizer.betas):
        raise ValueError(f"optimizer.betas is {list(tree.optimizer.betas)}; expected two numbers from 0 to below 1")
    if tree.data.canvas % 32:
        raise ValueError(f"data.canvas is {tree.data.canvas}; expected a multiple of 32")
    if not tree.run.strip():
        raise ValueError("run is empty; expected a folder of its own for this run")
    _check_targets(tree.bank.targets)
    if tree.data.examples > 1 and not (tree.data.cache and QUERY_MODES[tree.bank.query_mode].cacheable):
        raise ValueError(
            "data.examples above 1 needs embeddings of images, or of example pairs: set data.cache, and a query_mode"
            " that makes no composite with b"
        )


def _check_targets(pattern: str) -> None:
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"bank.targets is {clipped(pattern)!r}, which is no regular expression ({error})") from error


def check_values(tree: DictConfig, prefix: str = "") -> None:
    """Check the choices and numbers of a tree that has all or some of the keys of a configuration.

    Raises:
        ValueError: naming the key, what was expected and what was found.
    """
    for key, value in ((key, OmegaConf.select(tree, key)) for key in (*_CHOICES, *RANGES)):
        if value is None:
            continue
        if key in _CHOICES and value not in _CHOICES[key]:
            raise ValueError(f"{prefix}{key} is {value!r}; expected one of {', '.join(_CHOICES[key])}")
        if key in RANGES:
            _check_range(prefix + key, value, *RANGES[key])


def _check_range(key: str, value: float, least: float, most: float) -> None:
    if not value >= least:  # which NaN is not either
        raise ValueError(f"{key} is {value}; expected at least {least}")
    if not value <= most:
        raise ValueError(
            f"{key} is {value}; expected at most {most:g}" if least else f"{key} is {value}; expected 0 to {most:g}"
        )


def flat(config: Config) -> dict[str, str | float]:
    """The configuration as dotted keys, for trackers."""
    entries: dict[str, str | float] = {}

    def visit(group: dict, prefix: str) -> None:
        for name, value in group.items():
            if isinstance(value, dict):
                visit(value, f"{prefix}{name}.")
            else:
                entries[prefix + name] = value if isinstance(value, int | float | str | bool) else str(value)

    visit(asdict(config), "")
    return entries
