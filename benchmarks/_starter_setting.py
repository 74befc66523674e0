"""What the starter is measured on: its parts, the rival banks, the held-out analogies."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from benchmarks._measure import print_table
from lorweb_core import BasisBank
from training import prepare
from training.config import Config, load_config
from training.data import AnalogyDataset, Manifest
from training.data.layouts import CANVAS
from training.device import pick_device
from training.evaluate import Evaluation
from training.judge.metrics import make_lpips
from training.pictures.edits import COMPOSITIONS, EDITS
from training.pictures.recipe import edit_of
from training.run.setup import analogies

CONFIG = Path("training/configs/starter.yaml")
SHIPPED = "starter"
LPIPS_VGG = "lpips_vgg"
SINGLE = "lora"  # the rival with N = 1: one LoRA with as many parameters
# The last one is what was trained on, for comparison.
SETS = ("held_out_photographs", "held_out_edits", "held_out_parameters", "compositions", "training")


class TwiceSeen(Evaluation):
    """Answers are also looked at through VGG-16: the starter was trained to please LPIPS through AlexNet.

    No direction is measured: the starter's image encoder has seen pairs only, and says little of a single image.
    """

    def __init__(self, config: Config, banks: Mapping[str, BasisBank], lpips: Path | None, device: torch.device):
        super().__init__(config, banks, lpips, device)
        self.vgg = make_lpips(lpips, Path(config.run) / "lpips", device, "vgg") if lpips else None

    def measure(self, item: dict, predicted: Tensor) -> dict[str, float | None]:
        """Every metric of one answer."""
        vgg = self.vgg(CANVAS.answer(item["target"]), predicted) if self.vgg else None
        return {**self.likeness(item, predicted), LPIPS_VGG: vgg}


@dataclass
class Setting:
    """What the command line says.

    Attributes:
        starter: folder of the shipped parts. run: of data, rivals and results. recipes: of the held-out sets' recipes.
        banks: rival -> bank file.
        lpips: the download that carries LPIPS's weights, or None.
        analogies: of the sets and banks that claims are made about. fewer: of all others.
        overrides: ``key=value`` settings over those of ``training/configs/starter.yaml``.
    """

    starter: Path
    run: Path
    recipes: Path
    banks: dict[str, Path] = field(default_factory=dict)
    lpips: Path | None = None
    analogies: int = 500
    fewer: int = 150
    overrides: tuple[str, ...] = ()

    @property
    def parts(self) -> list[str]:
        """Overrides that name the base and the image encoder."""
        return [f"base.path={self.starter / 'base'}", f"bank.encoder={self.starter / 'encoder'}", *self.overrides]

    @property
    def single(self) -> list[str]:
        """The single LoRA, where it is among the rivals."""
        return [SINGLE] if SINGLE in self.banks else []

    def config(self) -> Config:
        """The configuration that banks of the starter are trained with, on the canvas of the shipped one."""
        canvas = self.bank(SHIPPED).extra["canvas"]
        return load_config(CONFIG, [f"data.canvas={canvas}", *self.parts, f"run={self.run / 'results'}"])

    def bank(self, name: str) -> BasisBank:
        """The shipped bank or a rival."""
        return BasisBank.load(self.starter / "bank.safetensors" if name == SHIPPED else self.banks[name])

    def evaluation(self, *rivals: str) -> TwiceSeen:
        """The base with the shipped bank and rivals on it."""
        banks = {name: self.bank(name) for name in (SHIPPED, *rivals)}
        return TwiceSeen(self.config(), banks, self.lpips, pick_device())

    def dataset(self, name: str) -> AnalogyDataset:
        """The analogies of a set, whose images are drawn where they are not there yet.

        Raises:
            ValueError: when they cannot be drawn.
        """
        manifest = self.run / "data" / f"{name}.jsonl"
        if not manifest.is_file() and prepare.main([str(self.recipe(name)), "--out", str(manifest)]):
            raise ValueError(f"{self.recipe(name)}: no manifest could be made of this recipe")
        return analogies(self.config(), Manifest.load(manifest))

    def recipe(self, name: str) -> Path:
        """The recipe of a set."""
        return self.recipes / f"{name}.yaml"

    def report(self, measure: str, title: str, header: tuple[str, ...], rows: list[tuple], facts: object) -> None:
        """Print a table, and write what it was made of as ``results/<measure>.json``."""
        print_table(title, header, rows)
        folder = self.run / "results"
        folder.mkdir(parents=True, exist_ok=True)
        table = [dict(zip(header, map(str, row))) for row in rows]
        content = json.dumps({"title": title, "table": table, "facts": facts}, indent=1)
        (folder / f"{measure}.json").write_text(content, encoding="utf-8")


def family_of(task: str) -> str:
    """The family of the edit that a task ``<edit>/<draw>`` shows."""
    return (EDITS | COMPOSITIONS)[edit_of(task)].family
