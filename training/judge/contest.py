"""What an evaluation is of: settings, banks, and sets of analogies, of a run or of any bank."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf

from lorweb_core.checkpoint import BankFile, read_config

from ..bases import family_of
from ..config import Config, make_config
from ..data import AnalogyDataset, Manifest, geometry_of
from ..data.listed import Listed, ListedAnalogies, read_examples
from ..run.setup import analogies, load_data, validation_sets

Sets = Mapping[str, AnalogyDataset | ListedAnalogies]
# Banks that do not say otherwise are used at one megapixel.
_CANVAS = 1024


@dataclass
class Contest:
    """Banks and the analogies that they are to answer.

    Attributes:
        paths: of the banks, the first one's own settings are those of the configuration.
        digest: hash of the data that a bank may have been trained on without having seen the sets; None if unknown.
        checked: settings in which every bank has to agree with the configuration.
    """

    config: Config
    paths: list[Path]
    sets: Sets
    digest: str | None
    checked: Sequence[str]

    def numbers(self, name: str, most: int) -> list[int]:
        """Which analogies of a set are asked, each once."""
        dataset = self.sets[name]
        if isinstance(dataset, ListedAnalogies):
            return list(range(min(most, len(dataset))))
        return dataset.sampler.distinct(most)


def contest_of_run(config: Config, manifest: Path | None = None) -> tuple[Sets, str | None]:
    """(sets, hash of what was trained on): what a run held out, or all of another manifest or folder of analogies.

    Raises:
        DataError: when there are no analogies in it.
    """
    path = manifest or Path(config.data.manifest)
    if path.is_dir():
        return listed_contest(config, path.name, read_examples(path)), None
    if manifest is not None:
        return {path.stem: analogies(config, Manifest.load(path))}, None
    splits = load_data(config)[1]
    return validation_sets(config, splits), splits.train.digest


def listed_contest(config: Config, name: str, listed: Sequence[Listed]) -> Sets:
    """A set of listed analogies in squares of the configuration's size."""
    geometry = geometry_of(config.layout, config.data.canvas)
    return {name: ListedAnalogies(listed, geometry, config.data.fit, config.layout)}


def config_of_bank(path: Path, base: str, encoder: str | None, overrides: Sequence[str]) -> Config:
    """The settings that a bank without a run is evaluated with: its own, of its header or the YAML beside it.

    Args:
        base: diffusers folder or hub id. encoder: the same, where the bank's own name for it is neither.

    Raises:
        ValueError: for a bank that cannot be read, or overrides that are not understood.
    """
    bank, canvas = read_config(path), BankFile(path).metadata.get("canvas", "")
    beside = path.parent / bank.encoder
    own = str(beside) if beside.is_dir() else bank.encoder  # as the starter has it
    shape = {name: value for name, value in vars(bank).items() if name not in ("query_dim", "base_model", "encoder")}
    document = {
        "run": str(path.parent),
        "base": {"path": base, "gradient_checkpointing": False},
        "bank": {**shape, "encoder": encoder or own},
        "validation": {"guidance": family_of(base).guidance},
        "data": {"manifest": "none", "canvas": int(canvas) if canvas.isdecimal() else _CANVAS},
    }
    return make_config(OmegaConf.create(document), str(path), overrides)
