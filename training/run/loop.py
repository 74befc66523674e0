"""The training loop: steps, logs, checkpoints, the bank at the end."""

import logging
import math
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from diffusers import ModelMixin
from diffusers.training_utils import EMAModel
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from tqdm.auto import tqdm

from lorweb_core import BankConfig, MixingCoefficients
from lorweb_core.checkpoint import write_bank

from ..bases import family_of, targets_of
from ..config import Config
from ..tuner import LoRWeBConfig, LoRWeBModel
from ..tuner.model import gather
from .batches import Batch
from .checkpointing import Checkpoints, checkpoint_folder
from .clock import Clock
from .objective import flow_loss, imbalance
from .optim import make_optimizer, make_schedule, with_settings_of
from .perception import Perception
from .start import DATA_HASH, begin_with, check_resumed, joined_hashes
from .stopping import Stopped, StopSignals
from .tracking import peak_memory

logger = logging.getLogger(__name__)

BANK_NAME = "bank.safetensors"
GIBIBYTE = 2**30


class Trainer:
    """One run. Everything random in it is a function of (seed, sample index), so its position is its whole state.

    Args:
        config: the run's configuration.
        accelerator: devices, processes, precision, trackers.
        transformer: the frozen base.
        bank: configuration of the bank to train.
        header: strings for the bank file's header, such as the data hash.
        perception: what ``objective.perceptual`` weighs.
        checkpoints: of the run, where they have been looked at already.

    Raises:
        ValueError: when the run's checkpoint is of another bank or base, or the run is complete and the data another.
    """

    def __init__(
        self,
        config: Config,
        accelerator: Accelerator,
        transformer: ModelMixin,
        bank: BankConfig,
        header: dict[str, str],
        perception: Perception | None = None,
        checkpoints: Checkpoints | None = None,
    ):
        self.config, self.accelerator, self.header, self.perception = config, accelerator, header, perception
        self.run = Path(config.run)
        self.checkpoints = checkpoints or Checkpoints(checkpoint_folder(config), config.checkpoint.keep)
        self.step = 0
        torch.manual_seed(config.train.seed)
        self.tuner = LoRWeBModel(
            transformer, LoRWeBConfig(bank=bank, init=config.bank.init, target_modules=targets_of(config))
        )
        self.tuner.train()
        if config.base.compile:
            transformer.compile_repeated_blocks()
        self._prepare()

    def _trainable(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.tuner.named_parameters() if p.requires_grad}

    def _prepare(self) -> None:
        """Bank, optimiser, schedule and EMA, from the newest checkpoint if there is one."""
        done = self.checkpoints.resumable
        self.accelerator.wait_for_everyone()  # all have seen the same, before the main process moves anything
        if done and self.accelerator.is_main_process:
            self.checkpoints.set_aside_newer(done)
        tensors, state = self.checkpoints.load(done) if done else ({}, {})
        self.clock = Clock(self.config.train.steps, self.config.train.minutes, state.get("share", 0.0))
        if done:
            check_resumed(self.config, state, self.tuner.bank_config)
            self.header = self._header_of_all_data(state.get("header", self.header), done)
            with self._naming_checkpoint(done):
                self.tuner.load_adapter_state_dict(tensors["adapter"])
        elif self.config.bank.start:
            begin_with(self.tuner, Path(self.config.bank.start))
        optimizer = make_optimizer(self.config.optimizer, self._trainable())
        self.schedule = make_schedule(self.config.optimizer, optimizer, self.clock, done)
        idle = family_of(self.config.base.path).idle
        self.accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=idle)
        self.model, self.optimizer = self.accelerator.prepare(self.tuner, optimizer)
        self.tuner = self.accelerator.unwrap_model(self.model)
        self.trained = self._trainable()
        self.ema = self._make_ema()
        if done:
            with self._naming_checkpoint(done):
                self._restore(tensors, state)
            logger.info("resumed from step %d", self.step)

    @contextmanager
    def _naming_checkpoint(self, step: int) -> Iterator[None]:
        try:
            yield
        except (ValueError, LookupError, TypeError, RuntimeError) as error:
            raise ValueError(
                f"{self.checkpoints.path(step)}: this checkpoint is of a run with another base, bank or optimiser"
                f" ({str(error).splitlines()[-1].strip()}); give another run=..., or the settings that it began with"
            ) from error

    def _header_of_all_data(self, before: Mapping[str, str], done: int) -> dict[str, str]:
        """The header of a run that goes on: with the hashes of all its data, where that is not what it was.

        Raises:
            ValueError: when the run is complete, so that nothing of the other data would be trained on.
        """
        known = before.get(DATA_HASH, "unknown")
        if known.split()[-1] == self.header[DATA_HASH].split()[-1] and before.get("canvas") == self.header["canvas"]:
            return {**self.header, DATA_HASH: known}
        if self.clock.is_over(done):
            raise ValueError(
                f"{self.run}: this run reached its last step, {done}, with other data ({dict(before)}, not"
                f" {self.header}), so nothing would be trained on this; raise train.steps to go on with it, or give"
                " another run=..., which can begin with this one's bank (bank.start=...)"
            )
        logger.warning("the run goes on with other data than before: %s, not %s", self.header, before)
        return {**self.header, DATA_HASH: joined_hashes(known, self.header[DATA_HASH])}

    def _make_ema(self) -> EMAModel | None:
        if not self.config.optimizer.ema:
            return None
        return EMAModel(self.trained.values(), decay=self.config.optimizer.ema)

    def train(self, batches: Iterator[Batch], validate=None) -> None:
        """Run to the last step. ``batches`` yields ``train.accumulate`` of them a step, from the current step on.

        Args:
            validate: called with the step every ``validation.every`` steps.

        Raises:
            Stopped: by Ctrl-C or SIGTERM, when the step that was under way is saved.
        """
        with StopSignals() as signals:
            self._train(batches, validate, signals)

    def _train(self, batches: Iterator[Batch], validate, signals: StopSignals) -> None:
        config = self.config
        progress = tqdm(
            total=config.train.steps, initial=self.step, unit="step", disable=not self.accelerator.is_main_process
        )
        over = self.clock.is_over(self.step)
        if over:
            logger.info("%s is complete: its %d steps are done", self.run, self.step)
            self._write_bank(self._bank_state())  # the run may have been killed after its last checkpoint, before this
        started, unlogged = time.perf_counter(), []
        while not over:
            unlogged.append(self._train_step(batches))
            self.step += 1
            progress.update()
            over = self.clock.is_over(self.step)
            stopped = self._told_to_stop(signals) and not over
            due_checkpoint = over or stopped or self.step % config.checkpoint.every == 0
            if self.step % config.log.every == 0 or due_checkpoint:
                row = self._summarise(unlogged, (time.perf_counter() - started) / len(unlogged))
                started, unlogged = time.perf_counter(), []
                progress.set_postfix(loss=f"{row['loss']:.4f}")
                self.accelerator.log(row, step=self.step)
            paused = time.perf_counter()
            if due_checkpoint:
                self.save()  # before validation, which may fail where training does not
            due_validation = config.validation.every and self.step % config.validation.every == 0
            if validate is not None and due_validation and not stopped:
                with self._averaged():
                    validate(self.step)
            started += time.perf_counter() - paused
            if stopped:
                progress.close()
                raise Stopped(self.step, signals.received or signal.SIGTERM)
        progress.close()

    def _told_to_stop(self, signals: StopSignals) -> bool:
        """Whether any process was; all of them agree."""
        if self.accelerator.num_processes == 1:
            return bool(signals.received)
        if signals.received:
            self.accelerator.set_trigger()
        return self.accelerator.check_trigger()

    def _train_step(self, batches: Iterator[Batch]) -> dict[str, Tensor]:
        """One optimiser step over ``train.accumulate`` batches; the mean of their metrics."""
        sums: dict[str, Tensor] = {}
        for _ in range(self.config.train.accumulate):
            with self.accelerator.accumulate(self.model):
                loss, metrics = self._losses(next(batches))
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients and self.config.optimizer.clip:
                    self.accelerator.clip_grad_norm_(list(self.trained.values()), self.config.optimizer.clip)
                self.optimizer.step()
                self.optimizer.zero_grad()
            for name, value in metrics.items():
                sums[name] = sums.get(name, 0) + value.detach() / self.config.train.accumulate
        self.schedule.step()
        if self.ema is not None:
            self.ema.step(self.trained.values())
        return sums

    def _losses(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to minimise, and what is worth logging of it."""
        config = self.config.objective
        with self.accelerator.autocast():
            flow, estimate = flow_loss(self.model, batch.latents, batch.draw, batch.condition, config)
            lpips = None
            if self.perception:
                lpips = self.perception.of_share(estimate, batch.latents, config.perceptual_share)
        flow = flow.mean()
        coefficients = MixingCoefficients(
            self.tuner.coefficients, tuple(self.tuner.tuner_layers), self.tuner.bank_config.softmax
        )
        entropy = coefficients.entropy().mean()
        loss = flow - config.entropy * entropy if config.entropy else flow
        if config.balance:
            loss = loss + config.balance * imbalance(coefficients)
        metrics = {"loss": flow, "entropy": entropy, "effective_number": coefficients.effective_number().mean()}
        if lpips is not None:
            loss = loss + config.perceptual * lpips
            metrics["lpips"] = lpips
        return loss, metrics

    def _summarise(self, steps: list[dict[str, Tensor]], seconds: float) -> dict[str, float]:
        """A row of the log: means over the steps since the last one, and over all processes."""
        means = {name: torch.stack([metrics[name] for metrics in steps]).mean() for name in steps[0]}
        means = {name: self.accelerator.reduce(value, "mean").item() for name, value in means.items()}
        if not math.isfinite(means["loss"]):
            raise self._diverged(f"the loss is {means['loss']}")
        train = self.config.train
        analogies = train.batch * train.accumulate * self.accelerator.num_processes
        return {
            **means,
            "lr": self.schedule.get_last_lr()[0],
            "seconds_per_step": seconds,
            "analogies_per_second": analogies / seconds,
            "peak_memory_gib": peak_memory() / GIBIBYTE,
        }

    def save(self) -> None:
        """Write a checkpoint and the bank of this step. All processes take part; the main one writes."""
        optimizer, rest = self._optimizer_state()
        tensors = {"adapter": self.tuner.adapter_state_dict(), "optimizer": optimizer}
        if not all(value.isfinite().all() for value in tensors["adapter"].values()):
            raise self._diverged("there are weights that are no numbers")
        state = {"share": self.clock.share(self.step)}
        state |= {"step": self.step, "optimizer": rest, "header": self.header, "bank": asdict(self.tuner.bank_config)}
        if self.accelerator.scaler is not None:
            state["scaler"] = self.accelerator.scaler.state_dict()
        if self.ema is not None:
            tensors["ema"], state["ema"] = self._ema_state()
        if self.accelerator.is_main_process:
            self.checkpoints.save(self.step, tensors, state)
        self._write_bank(self._bank_state())
        self.accelerator.wait_for_everyone()

    def _diverged(self, found: str) -> ValueError:
        return ValueError(
            f"{found} at step {self.step}: the run has diverged. Lower optimizer.lr or lengthen optimizer.warmup and"
            f" start again; it goes on from step {(self.checkpoints.steps() or [0])[-1]}"
        )

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The averaged parameters inside, where there is an average: what validation shows and the bank holds."""
        if self.ema is None:
            yield
            return
        self.ema.store(self.trained.values())
        self.ema.copy_to(self.trained.values())
        try:
            yield
        finally:
            self.ema.restore(self.trained.values())

    def _bank_state(self) -> dict[str, Tensor]:
        """The adapter state that the bank is written from; of an average a copy, since the parameters are put back."""
        if self.ema is None:
            return self.tuner.adapter_state_dict()
        with self._averaged():
            return {name: value.clone() for name, value in self.tuner.adapter_state_dict().items()}

    def _write_bank(self, adapter: dict[str, Tensor]) -> None:
        if not self.accelerator.is_main_process:
            return
        path, extra = self.run / BANK_NAME, {**self.header, "step": str(self.step)}
        layers = self.tuner.bank_tensors({name: self._as_saved(name, value) for name, value in adapter.items()})
        try:
            write_bank(path, layers, self.tuner.bank_config, extra)
        except (OSError, SafetensorError) as error:
            raise OSError(
                f"{path}: the bank cannot be written ({error}). The checkpoint of step {self.step} is good: make room"
                " and start the same command again"
            ) from error

    def _as_saved(self, name: str, value: Tensor) -> Tensor:
        """A tensor on the CPU in the precision of the file.

        Raises:
            ValueError: when it holds more than that precision can.
        """
        kind = self.config.bank.save_dtype
        saved = value.cpu().to(getattr(torch, kind))
        if not saved.isfinite().all():
            raise ValueError(
                f"{name} holds {value.abs().max():.3g}, which is beyond {kind}; the checkpoint of step {self.step} is"
                " good: set bank.save_dtype=float32 and start the same command again"
            )
        return saved

    def _optimizer_state(self) -> tuple[dict[str, Tensor], dict]:
        """(tensors named parameter/entry, the rest as JSON)."""
        state = self.optimizer.state_dict()
        tensors: dict[str, Tensor] = {}
        scalars: dict[str, dict] = {}
        for index, name in enumerate(self._names_by_index()):
            for key, value in _entries(state["state"].get(index, {})):
                if isinstance(value, Tensor):
                    tensors[f"{name}/{key}"] = gather(value)
                else:
                    scalars.setdefault(name, {})[key] = value
        return tensors, {"name": self.config.optimizer.name, "scalars": scalars, "groups": state["param_groups"]}

    def _names_by_index(self) -> list[str]:
        """Names of the parameters in the order in which the optimiser numbers them, group after group."""
        names = {id(p): name for name, p in self.trained.items()}
        return [names[id(p)] for group in self.optimizer.param_groups for p in group["params"]]

    def _restore(self, tensors: dict[str, dict[str, Tensor]], state: dict) -> None:
        self.step = state["step"]
        entries: dict[str, dict] = {name: dict(values) for name, values in state["optimizer"]["scalars"].items()}
        for key, value in tensors["optimizer"].items():
            name, entry = key.rsplit("/", 1)
            entries.setdefault(name, {})[entry] = _shard_like(value, self.trained[name])
        numbered = {index: entries[name] for index, name in enumerate(self._names_by_index()) if name in entries}
        groups = with_settings_of(self.optimizer.param_groups, state["optimizer"]["groups"])
        self.optimizer.load_state_dict({"state": numbered, "param_groups": groups})
        if self.accelerator.scaler is not None and "scaler" in state:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if self.ema is not None and "ema" in tensors:
            shadow = [tensors["ema"][name] for name in self.trained]
            self.ema.load_state_dict({**state["ema"], "decay": self.config.optimizer.ema, "shadow_params": shadow})
            self.ema.to(self.accelerator.device)

    def _ema_state(self) -> tuple[dict[str, Tensor], dict]:
        state = self.ema.state_dict()
        shadow = state.pop("shadow_params")
        return dict(zip(self.trained, shadow, strict=True)), state


def _entries(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Optimiser entries of one parameter; bitsandbytes wraps its own in one more dictionary, but loads them bare."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from value.items()
        else:
            yield key, value


def _shard_like(value: Tensor, parameter: Tensor) -> Tensor:
    """An optimiser entry placed like its parameter; entries of another shape (step counters) stay whole."""
    if isinstance(parameter, DTensor) and value.shape == parameter.shape:
        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
    return value
