"""Sampled grids while training: a, a', b, the target b' and the predicted b'."""

from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from ..config import Config
from ..data.analogies import AnalogyDataset, collate
from ..encoders.encoding import Columns
from ..tuner import LoRWeBModel
from .batches import Batches
from .tracking import labelled_grid


class Validator:
    """Samples a fixed list of analogies and saves them as one labelled picture a time.

    Every process samples all of them, because a sharded model needs every process; the main one saves.

    Args:
        sets: name -> analogies, such as those of held-out tasks.
    """

    def __init__(
        self,
        config: Config,
        accelerator: Accelerator,
        batches: Batches,
        sets: dict[str, AnalogyDataset],
        tuner: LoRWeBModel,
    ):
        self.config, self.accelerator, self.batches, self.sets = config.validation, accelerator, batches, sets
        self.tuner, self.folder = tuner, Path(config.run) / "validation"
        encoding = batches.encoding
        self.sample = encoding.family.sampler(config.base.path, tuner, encoding.coder)

    def __call__(self, step: int) -> None:
        """Sample every set and save ``<set>-<step>.png``."""
        for name, dataset in self.sets.items():
            rows = [self._sample(dataset[i], i) for i in range(self.config.analogies)]
            if self.accelerator.is_main_process:
                self._save(name, step, rows)

    @torch.no_grad()
    def _sample(self, item: dict, seed: int) -> dict[str, Tensor]:
        columns: Columns = collate([item])
        references, _ = self.batches.encoding.latents(columns)
        condition = self.batches.condition(columns, references, columns["prompt"], sampled=True)
        query, condition.query = condition.query, None  # which the tuner is told for all steps at once
        with self.accelerator.autocast(), self.tuner.mixing(query):
            made = self.sample(condition, self.config.steps, self.config.guidance, seed)
        answer = self.batches.encoding.layout.answer
        return {
            "a": item["a"],
            "a'": item["a_prime"],
            "b": item["b"],
            "b' target": answer(item["target"]),
            "b' predicted": answer(made),
        }

    def _save(self, name: str, step: int, rows: list[dict[str, Tensor]]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        grid = labelled_grid(rows)
        grid.save(self.folder / f"{name}-{step:08d}.png")
        for tracker in self.accelerator.trackers:
            if tracker.name == "tensorboard":
                pixels = torch.frombuffer(bytearray(grid.tobytes()), dtype=torch.uint8)
                tracker.log_images({name: pixels.view(1, grid.height, grid.width, 3).numpy()}, step, dataformats="NHWC")
            elif tracker.name == "wandb":
                tracker.log_images({name: [grid]}, step)
