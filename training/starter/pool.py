"""What the starter's parts are trained on: drawn pairs where the training runs, more of them while it goes on."""

import time
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from lorweb_core.canvas import LATENT_SHRINK, stack_quadrants

from ..bases import KONTEXT, Coder
from ..device import pick_device
from .shards import Drawn, DrawSettings, read_shard, shard_path

LATENT_CHANNELS = 16
REFRESH = 16  # steps of a training between looks for new shards
AT_ONCE = 64  # pairs that are encoded in one go
_PATIENCE = 0.2  # seconds between looks for a shard


class Pool:
    """Pairs of tasks, uint8 [n, 2, side, side, 3] on a device; the pairs of a task lie side by side.

    Shards are taken in the order of their numbers, as far as there are any.

    Args:
        folder: of the shards. settings: they were drawn with.
    """

    def __init__(self, folder: Path, settings: DrawSettings, device: torch.device):
        self.folder, self.settings, self.device = folder, settings, device
        self.tasks: list[Drawn] = []
        shape = (2, settings.side, settings.side, 3)
        self.images = torch.empty(self.capacity, *shape, dtype=torch.uint8, device=device)

    @property
    def capacity(self) -> int:
        """Pairs of all shards."""
        return self.settings.shards * self.settings.tasks * self.settings.pairs

    def __len__(self) -> int:
        """Pairs that are there."""
        return len(self.tasks) * self.settings.pairs

    def refresh(self, wait_for: int = 0) -> None:
        """Take the shards that are there and not taken yet.

        Args:
            wait_for: wait until as many shards are taken in all.
        """
        while (number := len(self.tasks) // self.settings.tasks) < self.settings.shards:
            path = shard_path(self.folder, number)
            if path.exists():
                self._take(path)
            elif number < wait_for:
                time.sleep(_PATIENCE)
            else:
                return

    def _take(self, path: Path) -> None:
        tasks, images = read_shard(path)
        if images.shape[:2] != (self.settings.tasks, self.settings.pairs) or images.shape[2:] != self.images.shape[1:]:
            raise ValueError(f"{path} was drawn with other settings ({list(images.shape)}); delete {path.parent}")
        here = slice(len(self), len(self) + self.settings.tasks * self.settings.pairs)
        self.images[here] = images.flatten(0, 1).to(self.device)
        self.tasks += tasks

    def pictures(self, count: int, generator: torch.Generator) -> Tensor:
        """Random images before or after an edit: float32 [count, 3, side, side] in 0..1."""
        places = torch.randint(2 * len(self), (count,), generator=generator, device=self.device)
        return self.images.flatten(0, 1)[places].movedim(-1, 1) / 255

    def examples(self, count: int, generator: torch.Generator) -> Tensor:
        """``count`` tasks, each with two of its pairs: uint8 [count, 2, 2, side, side, 3]."""
        first, second, _ = self.analogies(count, generator)
        return torch.stack((self.images[first], self.images[second]), 1)

    def analogies(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Numbers of two different pairs of a random task, and of the task: [count] each."""
        pairs = self.settings.pairs

        def draw(size: int) -> Tensor:
            return torch.randint(size, (count,), generator=generator, device=self.device)

        task, first, step = draw(len(self.tasks)), draw(pairs), 1 + draw(pairs - 1)
        return task * pairs + first, task * pairs + (first + step) % pairs, task


class Encoded:
    """A pool with latents of every pair in every quadrant where it can stand, so that any two make a canvas.

    A quadrant is encoded inside a whole canvas, because the autoencoder looks over its edges.

    Attributes:
        reference: canvases a | a' over a | a, [n, 16, h, w]. target: a | a' over a | a'.
    """

    def __init__(self, pool: Pool, coder: Coder):
        self.pool, self.coder, self.known = pool, coder, 0
        side = 2 * pool.settings.side // LATENT_SHRINK
        dtype = torch.bfloat16 if pool.device.type == "cuda" else torch.float32
        shape = 2, pool.capacity, LATENT_CHANNELS, side, side
        self.reference, self.target = torch.empty(shape, dtype=dtype, device=pool.device)

    def refresh(self, wait_for: int = 0) -> None:
        """Take the shards that are there, as the pool does, and encode their pairs."""
        self.pool.refresh(wait_for)
        while self.known < len(self.pool):
            some = slice(self.known, min(self.known + AT_ONCE, len(self.pool)))
            before, after = (self.pool.images[some].float() / 255).unbind(1)
            with torch.autocast(self.pool.device.type, torch.bfloat16, enabled=self.pool.device.type == "cuda"):
                self.reference[some] = self.coder.encode(stack_quadrants(before, after, before, before))
                self.target[some] = self.coder.encode(stack_quadrants(before, after, before, after))
            self.known = some.stop

    def canvases(self, examples: Tensor, answers: Tensor) -> tuple[Tensor, Tensor]:
        """(reference, target) latents [B, 16, h, w] in float32 of analogies between pairs given by number [B]."""
        half = self.reference.shape[-2] // 2
        return tuple(
            torch.cat((latents[examples, :, :half], latents[answers, :, half:]), 2).float()
            for latents in (self.reference, self.target)
        )

    def images(self, answers: Tensor) -> tuple[Tensor, Tensor]:
        """(reference, target) latents [B, 16, h/2, w/2] in float32 of the bottom-right quadrants alone."""
        half = self.reference.shape[-1] // 2
        return tuple(latents[answers, :, half:, half:].float() for latents in (self.reference, self.target))


class Workshop:
    """What the parts of a run share: its folder, the device, and the pairs, which lie there once.

    Args:
        run: folder of all parts. drawn: how the pairs of ``run/pool`` are drawn.
    """

    def __init__(self, run: Path, drawn: DrawSettings):
        self.run, self.drawn, self.device = run, drawn, pick_device()

    @cached_property
    def pool(self) -> Pool:
        """The pairs."""
        return Pool(self.run / "pool", self.drawn, self.device)

    @cached_property
    def encoded(self) -> Encoded:
        """The pairs as latents of the run's autoencoder.

        Raises:
            ValueError: when there is none yet.
        """
        vae = self.run / "autoencoder" / "vae"
        if not vae.is_dir():
            raise ValueError(f"{vae}: there is no autoencoder; train it with `python -m training.starter autoencoder`")
        return Encoded(self.pool, KONTEXT.load_coder(str(vae.parent), self.device, torch.float32))


def generator_of(seed: int, step: int, device: torch.device) -> torch.Generator:
    """What a step of a run draws with, a function of both alone."""
    return torch.Generator(device).manual_seed((seed << 32) + step)
