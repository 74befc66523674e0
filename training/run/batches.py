"""Batches of analogies ready for a training step: latents, conditioning, noise."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ..bases import Conditioning
from ..config import Config
from ..data.analogies import collate
from ..encoders.encoding import Columns, Encoding
from ..hashing import random_words, uniform
from .objective import Noise, draw_noise
from .stopping import leave_to_parent


@dataclass
class Batch:
    """Latents x_0 [B, C, h, w] of the targets, what the model is told, and the random part."""

    latents: Tensor
    condition: Conditioning
    draw: Noise


@dataclass(frozen=True)
class Share:
    """This process's share of the work: the sample positions of step s are the same whatever the processes are.

    Attributes:
        process: number of this process. processes: how many there are.
        batch: samples per process and batch. accumulate: batches per step.
    """

    process: int
    processes: int
    batch: int
    accumulate: int

    def positions(self, step: int) -> Iterator[list[int]]:
        """Positions of this process's batches from a step on, for ever."""
        batch = step * self.accumulate * self.processes + self.process
        while True:
            yield list(range(batch * self.batch, (batch + 1) * self.batch))
            batch += self.processes


class _Positions(Sampler[list[int]]):
    def __init__(self, share: Share, step: int):
        self.share, self.step = share, step

    def __iter__(self) -> Iterator[list[int]]:
        return self.share.positions(self.step)


class Batches:
    """Batches of a run, from any step on.

    Args:
        guidance: value for a guidance-distilled model, or None.
    """

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        encoding: Encoding,
        share: Share,
        device: torch.device,
        guidance: float | None,
    ):
        self.config, self.dataset, self.encoding, self.share = config, dataset, encoding, share
        self.device, self.guidance = device, guidance

    def from_step(self, step: int) -> Iterator[Batch]:
        """Endless batches, beginning with the first of a step."""
        workers = self.config.data.workers if self.dataset.pixels else 0
        loader = DataLoader(
            self.dataset,
            batch_sampler=_Positions(self.share, step),
            num_workers=workers,
            collate_fn=collate,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=leave_to_parent,
        )
        return map(self._encode, loader)

    def _encode(self, columns: Columns) -> Batch:
        positions, seed = columns["index"], self.config.train.seed
        references, target = self.encoding.latents(columns)
        generators = [_generator("noise", seed, i) for i in positions]
        draw = draw_noise(tuple(target.shape[1:]), generators, self.config.objective)
        draw = Noise(draw.noise.to(self.device), draw.t.to(self.device))
        condition = self.condition(
            columns, references, [self._caption(*pair) for pair in zip(positions, columns["prompt"])]
        )
        return Batch(target.to(self.device, torch.float32), condition, draw)

    def condition(
        self, columns: Columns, references: Sequence[Tensor], prompts: Sequence[str], sampled: bool = False
    ) -> Conditioning:
        """What the model is told about the analogies of the columns; see ``Encoding.tell``."""
        condition = self.encoding.tell(columns, references, prompts, sampled)
        condition.query = self._query(columns).to(self.device)
        if self.guidance is not None:
            condition.guidance = torch.full((len(prompts),), self.guidance, device=self.device)
        return condition

    def _query(self, columns: Columns) -> Tensor:
        """Analogy queries [B, q]: of the example pairs, or drawn anew from several of each task (``data.examples``)."""
        if "example_keys" not in columns:
            return self.encoding.query(columns)
        rows = zip(columns["index"], columns["example_keys"], columns["image_keys"])
        return torch.stack([self._drawn_query(*row) for row in rows])

    def _drawn_query(self, position: int, examples: Sequence[tuple[str, str]], image_keys: tuple[str, ...]) -> Tensor:
        *_, b = image_keys
        queries = self.encoding.query({"image_keys": [(*pair, b) for pair in examples]})
        return draw_query(queries, _generator("query", self.config.train.seed, position))

    def _caption(self, position: int, prompt: str) -> str:
        """The prompt, or nothing with the chance ``objective.caption_dropout``."""
        drop = self.config.objective.caption_dropout
        return "" if drop and uniform("caption", self.config.train.seed, position) < drop else prompt


def draw_query(queries: Tensor, generator: torch.Generator) -> Tensor:
    """A query [q] as of one more example, of the Gaussian that the queries [n, q] of n examples of a task are of.

    Training that meets such a query in place of an example's own meets none twice, so it cannot learn by heart what in
    an example's query is of its pictures and not of the edit. Around the mean of n, whose variance is 1/n of that of
    one, the rest of it is 1 - 1/n of their unbiased covariance: sum g_i (q_i - mean) / sqrt(n), with g_i of variance 1.
    A single example stays what it is.
    """
    mean = queries.mean(0)
    weights = torch.randn(len(queries), generator=generator)
    return mean + weights @ (queries - mean) / len(queries) ** 0.5


def _generator(stream: str, seed: int, position: int) -> torch.Generator:
    return torch.Generator().manual_seed(random_words(stream, seed, position)[0] >> 1)
