"""A plain training loop for the starter's own parts: resumable, logged, its data a function of the step alone."""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from ..checkpointing import Checkpoints
from ..config import OptimizerConfig
from ..optim import check_optimizer, make_optimizer, make_schedule, with_settings_of
from ..tracking import CSVTracker

logger = logging.getLogger(__name__)


@dataclass
class LoopSettings:
    """Length of a run, and how often it writes.

    Attributes:
        steps: optimiser steps. batch: samples a step. seed: of weights and data.
        checkpoint: steps between checkpoints. log: steps between rows of ``metrics.csv``.
        workers: processes that draw samples ahead of a GPU, not on Windows; 0 draws them between the steps, right for
            a CPU.
    """

    steps: int
    batch: int
    seed: int = 0
    checkpoint: int = 500
    log: int = 50
    workers: int = 0


class _Steps(Dataset):
    """What each step is made of."""

    def __init__(self, sample: Callable[[int], Any]):
        self.sample = sample

    def __getitem__(self, step: int) -> Any:
        return self.sample(step)


def fit(
    run: Path,
    module: nn.Module,
    sample: Callable[[int], Any],
    losses: Callable[[Any], dict[str, Tensor]],
    settings: LoopSettings,
    optimizer_config: OptimizerConfig,
    evaluate: Callable[[], dict[str, float]] | None = None,
) -> None:
    """Train a module in place, from the newest checkpoint of the run if there is one.

    Args:
        run: folder of ``metrics.csv``, ``evaluation.csv`` and the checkpoints.
        module: all its parameters that want gradients are trained, on the device that they are on.
        sample: step -> what it is made of: tensors on the CPU, alone or in tuples. A function of the step alone.
        losses: a sample on the module's device -> named scalars, of which "loss" is minimised.
        evaluate: numbers for ``evaluation.csv``, called at every checkpoint.

    Raises:
        ValueError: for an optimiser that cannot work here, when the loss is no longer a number, or when the checkpoint
            is of a run with other settings.
    """
    check_optimizer(optimizer_config, sharded=False)
    if optimizer_config.ema:
        raise ValueError("optimizer.ema averages the weights of banks only; set it to 0")
    run.mkdir(parents=True, exist_ok=True)
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    optimizer = make_optimizer(optimizer_config, trained)
    checkpoints = Checkpoints(run / "checkpoints", keep=1)
    first = (checkpoints.steps() or [0])[-1]
    schedule = make_schedule(optimizer_config, optimizer, settings.steps, first)
    if first:
        _restore(checkpoints, first, module, optimizer)
    log, evaluation = (CSVTracker(run / name, first) for name in ("metrics.csv", "evaluation.csv"))
    started, logged, device = time.perf_counter(), first, next(iter(trained.values())).device
    steps = range(first, settings.steps)
    # Workers are forked, because ``sample`` is a closure, which cannot be sent to a fresh process.
    context = "fork" if settings.workers else None
    samples = DataLoader(
        _Steps(sample), batch_size=None, sampler=steps, num_workers=settings.workers, multiprocessing_context=context
    )
    progress = tqdm(samples, initial=first, total=settings.steps, unit="step", desc=run.name)
    for step, drawn in zip(steps, progress):
        values = losses(send_to_device(drawn, device))
        values["loss"].backward()
        if optimizer_config.clip:
            nn.utils.clip_grad_norm_(trained.values(), optimizer_config.clip)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        done = step + 1
        due = done % settings.checkpoint == 0 or done == settings.steps
        if done % settings.log == 0 or due:
            row = {name: value.item() for name, value in values.items()}
            if not math.isfinite(row["loss"]):
                raise ValueError(f"the loss is {row['loss']} at step {step}: lower the learning rate")
            seconds = (time.perf_counter() - started) / (done - logged)
            row |= {"lr": schedule.get_last_lr()[0], "seconds_per_step": seconds}
            log.log(row, done)
            started, logged = time.perf_counter(), done
        if due and evaluate is not None:
            evaluation.log(evaluate(), done)
        if due:
            _save(checkpoints, done, module, optimizer)


def _restore(checkpoints: Checkpoints, step: int, module: nn.Module, optimizer: Optimizer) -> None:
    tensors, state = checkpoints.load(step)
    try:
        module.load_state_dict(tensors["weights"])
    except RuntimeError as error:
        raise ValueError(
            f"{checkpoints.folder}: the checkpoint of step {step} is of a run with other settings; give another"
            f" run=..., or the settings that this one began with ({str(error).splitlines()[-1].strip()})"
        ) from error
    entries: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors["optimizer"].items():
        number, name = key.split(".", 1)
        entries.setdefault(int(number), {})[name] = value
    groups = with_settings_of(optimizer.param_groups, state["groups"])
    optimizer.load_state_dict({"state": entries, "param_groups": groups})
    logger.info("resumed from step %d", step)


def _save(checkpoints: Checkpoints, step: int, module: nn.Module, optimizer: Optimizer) -> None:
    state = optimizer.state_dict()
    moments = {f"{number}.{name}": value for number, entry in state["state"].items() for name, value in entry.items()}
    checkpoints.save(
        step,
        {"weights": module.state_dict(), "optimizer": moments},
        {"groups": state["param_groups"]},
    )
