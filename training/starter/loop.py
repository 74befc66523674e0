"""A plain training loop for the starter's own parts: resumable, logged, and limited by steps or by the clock."""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm.auto import tqdm

from ..config import OptimizerConfig
from ..run.checkpointing import Checkpoints
from ..run.clock import Clock
from ..run.optim import check_optimizer, make_optimizer, make_schedule, with_settings_of
from ..run.tracking import CSVTracker

logger = logging.getLogger(__name__)


@dataclass
class LoopSettings:
    """Length of a run, and how often it writes.

    Attributes:
        steps: optimiser steps. batch: samples a step. seed: of weights and data.
        minutes: ends the run when they are over, and the schedule with it; 0 for no limit.
        checkpoint: steps between checkpoints. log: steps between rows of ``metrics.csv``.
    """

    steps: int
    batch: int
    seed: int = 0
    minutes: float = 0.0
    checkpoint: int = 500
    log: int = 50


def fit(
    run: Path,
    module: nn.Module,
    losses: Callable[[int, float], dict[str, Tensor]],
    settings: LoopSettings,
    optimizer_config: OptimizerConfig,
    evaluate: Callable[[], dict[str, float]] | None = None,
) -> None:
    """Train a module in place, from the newest checkpoint of the run if there is one.

    Args:
        run: folder of ``metrics.csv``, ``evaluation.csv`` and the checkpoints.
        module: all its parameters that want gradients are trained, on the device that they are on.
        losses: (step, share of the run that is done) -> named scalars, of which "loss" is minimised.
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
    clock = Clock(settings.steps, settings.minutes, checkpoints.state(first)["share"] if first else 0.0)
    schedule = make_schedule(optimizer_config, optimizer, clock, first)
    if first:
        _restore(checkpoints, first, module, optimizer)
    log, evaluation = (CSVTracker(run / name, first) for name in ("metrics.csv", "evaluation.csv"))
    started, logged, done = time.perf_counter(), first, first
    progress = tqdm(initial=first, total=settings.steps, unit="step", desc=run.name)
    over = clock.is_over(done)
    while not over:
        values = losses(done, clock.share(done))
        values["loss"].backward()
        if optimizer_config.clip:
            nn.utils.clip_grad_norm_(trained.values(), optimizer_config.clip)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        done += 1
        progress.update()
        over = clock.is_over(done)
        due = done % settings.checkpoint == 0 or over
        if done % settings.log == 0 or due:
            row = {name: value.item() for name, value in values.items()}
            if not math.isfinite(row["loss"]):
                raise ValueError(f"the loss is {row['loss']} at step {done - 1}: lower the learning rate")
            seconds = (time.perf_counter() - started) / (done - logged)
            row |= {"lr": schedule.get_last_lr()[0], "seconds_per_step": seconds}
            log.log(row, done)
            started, logged = time.perf_counter(), done
        if due and evaluate is not None:
            evaluation.log(evaluate(), done)
        if due:
            _save(checkpoints, done, clock.share(done), module, optimizer)
    progress.close()


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


def _save(checkpoints: Checkpoints, step: int, share: float, module: nn.Module, optimizer: Optimizer) -> None:
    state = optimizer.state_dict()
    moments = {f"{number}.{name}": value for number, entry in state["state"].items() for name, value in entry.items()}
    checkpoints.save(
        step,
        {"weights": module.state_dict(), "optimizer": moments},
        {"groups": state["param_groups"], "share": share},
    )
