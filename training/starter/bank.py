"""Train the starter's bank on drawn pairs: ``python -m training.starter bank``.

The trainer is that of any bank (``training.train``); its batches come ready from the device, where every pair is
encoded once, so that a step is the model's work alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from lorweb_core.query import QUERY_MODES, embed_images

from ..bases.kontext import EMBEDDED_PROMPTS, EmbeddedPrompts
from ..bases.loading import load_transformer
from ..config import Config, flat, load_config, save_config
from ..encoders.encoding import public_name
from ..encoders.vision import VisionEncoder
from ..run.accelerator import make_accelerator
from ..run.batches import Batch
from ..run.loop import BANK_NAME, Trainer
from ..run.objective import noise_from
from ..run.perception import Perception, perceptual_network
from ..run.setup import CONFIG_NAME
from ..run.tracking import make_trackers
from .base import told
from .pool import AT_ONCE, REFRESH, Encoded, Workshop, generator_of
from .shards import DrawSettings
from .telling import NOTHING


@dataclass
class BankSettings:
    """A run of the bank.

    Attributes:
        config: a configuration of ``training.train``, and ``set`` what replaces its settings, as ``key=value``.
        name: folder of the run below that of all parts.
        first: shards of pairs to wait for before the first step.
    """

    config: str = "training/configs/starter_gpu.yaml"
    set: list[str] = field(default_factory=list)
    name: str = "bank"
    first: int = 1


def bank_config(run: Path, drawn: DrawSettings, settings: BankSettings) -> Config:
    """The configuration of a bank on the base and with the image encoder of a run, for pairs that were drawn like that.

    Raises:
        ValueError: naming a setting that does not fit.
    """
    parts = [
        f"run={run / settings.name}", f"base.path={run / 'base' / 'base'}", "data.cache=null", "data.cache_latents=0",
        f"bank.encoder={run / 'encoder' / 'encoder'}", f"data.canvas={2 * drawn.side}",
    ]  # fmt: skip
    return load_config(Path(settings.config), [*parts, *settings.set])


def train_bank(shop: Workshop, settings: BankSettings) -> Path:
    """Train on drawn pairs; returns the bank's path.

    Raises:
        ValueError: for settings that do not fit, or parts that are missing.
    """
    config = bank_config(shop.run, shop.drawn, settings)
    folder = Path(config.run)
    folder.mkdir(parents=True, exist_ok=True)
    save_config(config, folder / CONFIG_NAME)
    accelerator = make_accelerator(config, make_trackers(["csv"], folder, 0)[0])
    device = accelerator.device
    lpips = perceptual_network(config.objective, folder)
    batches = PoolBatches(config, shop.encoded, VisionEncoder(config.bank.encoder, device))
    batches.refresh(settings.first)
    wanted = config.bank.resolve(
        batches.queries.shape[1], public_name(config.base.path), public_name(config.bank.encoder)
    )
    trainer = Trainer(
        config, accelerator, load_transformer(config.base, device), wanted, {"canvas": str(config.data.canvas)},
        lpips and Perception(lpips.to(device), shop.encoded.coder.pixels),
    )  # fmt: skip
    accelerator.init_trackers(config.log.project, flat(config))
    trainer.train(batches.from_step(trainer.step))
    accelerator.end_training()
    return folder / BANK_NAME


class PoolBatches:
    """Batches of analogies between the pairs of a pool, of latents and queries that are made once."""

    def __init__(self, config: Config, encoded: Encoded, vision: VisionEncoder):
        self.config, self.encoded, self.pool, self.vision = config, encoded, encoded.pool, vision
        self.mode, self.known = QUERY_MODES[config.bank.query_mode], 0
        if self.mode.images != ("a", "a'"):
            raise ValueError(f"bank.query_mode is {config.bank.query_mode!r}, but drawn pairs are encoded without b")
        width = self._queries(self.pool.images[:1]).shape[1]
        self.queries = torch.empty(self.pool.capacity, width, device=self.pool.device)
        # Told nothing, as in use: the base's own embedding of the empty prompt.
        (nothing,) = EmbeddedPrompts(Path(config.base.path) / EMBEDDED_PROMPTS)([NOTHING])
        self.pooled = nothing["pooled"].float().to(self.pool.device)

    def refresh(self, first: int = 0) -> None:
        """Take the pairs that were drawn since."""
        self.encoded.refresh(first)
        while self.known < len(self.pool):
            some = slice(self.known, min(self.known + AT_ONCE, len(self.pool)))
            self.queries[some] = self._queries(self.pool.images[some])
            self.known = some.stop

    def _queries(self, pairs: Tensor) -> Tensor:
        """Queries [B, q] of pairs, uint8 [B, 2, side, side, 3]."""
        a, a_prime = (pairs / 255).unbind(1)
        if self.mode.composite is None:
            return self.mode.combine(*(embed_images(image, self.mode, self.vision) for image in (a, a_prime)))
        return embed_images(self.mode.composite(a, a_prime), self.mode, self.vision)

    def from_step(self, step: int) -> Iterator[Batch]:
        """Endless batches, beginning with that of a step."""
        while True:
            if step % REFRESH == 0:
                self.refresh()
            yield self._batch(generator_of(self.config.train.seed, step, self.pool.device))
            step += 1

    def _batch(self, generator: torch.Generator) -> Batch:
        count = self.config.train.batch
        examples, answers, _ = self.pool.analogies(count, generator)
        reference, target = self.encoded.canvases(examples, answers)
        condition = told(reference, self.pooled.expand(count, -1))
        condition.query = self.queries[examples]
        return Batch(target, condition, noise_from(generator, tuple(target.shape), self.config.objective))
