"""The one training loop: batches in a keyed order, an objective, a source of sigma, an optimizer, checkpoints.

It knows no objective's formula and no file format. All that is random is a function of the seed and of the place in the
run, so that a run that was stopped goes on as if it had not been.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from ddsmoothing.counting.contract import Progress
from ddsmoothing.counting.engine import PRECISIONS, at_sigma
from ddsmoothing.data import Dataset
from ddsmoothing.errors import ModelError, RunError
from ddsmoothing.training.baselines import Baseline, Own, Samples
from ddsmoothing.training.batches import Batch, Batches
from ddsmoothing.training.checkpoint import Checkpoint, Position, save_checkpoint
from ddsmoothing.training.config import TrainConfig
from ddsmoothing.training.distributed import World
from ddsmoothing.training.keyed import Purpose, keys, log_uniform, normal, seeded
from ddsmoothing.training.log import Log
from ddsmoothing.training.losses import Objective
from ddsmoothing.training.objectives import scaled
from ddsmoothing.training.optimizers import learning_rate, optimizer_of, restore_state, saved_state
from ddsmoothing.training.parts import normalisations, part_of, recompute
from ddsmoothing.training.sigma_table import SigmaTable
from ddsmoothing.training.validation import Validation

CHECKPOINT, BEST = "checkpoint.safetensors", "best.safetensors"
LOOK: Final = 25  # batches between two looks whether the loss is still a number: each look waits for the device
PICTURES: Final = 8
STATISTICS: Final = 20_480  # samples from which statistics of batch normalisation are taken anew
QUANTILES: Final = {"sigma_05": 0.05, "sigma_50": 0.5, "sigma_95": 0.95}


class Loop:
    """A model in training.

    Attributes:
        epoch, step: the next batch.   table: sigmas of all samples of the training split.   batches: its samples.
    """

    def __init__(
        self,
        config: TrainConfig,
        seed: int,
        model: nn.Module,
        data: Dataset,
        world: World,
        workers: int = 2,
        baseline: Baseline | None = None,
    ) -> None:
        self.config, self.seed, self.data, self.world = config, seed, data, world
        self.batches = Batches(config, seed, data, world, workers)
        self.model = model.to(world.device)
        if config.channels_last:
            self.model.to(memory_format=torch.channels_last)
        self._wrapped = world.wrap(self.model)
        self._optimizer = optimizer_of(config, self.model)
        self._scaler = torch.amp.GradScaler(
            world.device.type, enabled=config.precision == "fp16" and world.device.type == "cuda"
        )
        values = torch.full((len(data),), config.sigma_start, device=world.device)
        if config.data_dependent is not None and config.data_dependent.sigma0_test is not None:
            values[self.batches.held_out] = config.data_dependent.sigma0_test
        self.table = SigmaTable(values, *config.sigma_bounds)
        self._own = baseline if isinstance(baseline, Own) else None
        self._objective = Objective(config, self.model, self._wrapped, baseline)
        self._validation = Validation(config=config, seed=seed, batches=self.batches, table=self.table, world=world)
        self.epoch = self.step = 0
        self.best = -1e9
        self._sums = torch.zeros(3, dtype=torch.float64, device=world.device)
        self._shown: tuple[torch.Tensor, torch.Tensor] | None = None

    def lr(self) -> float:
        """The learning rate of the next batch."""
        return learning_rate(self.config, self.epoch, self.step, self.batches.number)

    # training

    def run(self, out: Path, log: Log | None, progress: Progress | None, stop: Callable[[], bool] | None) -> bool:
        """Train to the end, or until ``stop()`` says so after a batch; False then. Every epoch is saved to ``out``."""
        while self.epoch < self.config.epochs:
            if not self._train_epoch(progress, stop):
                self._exchange()
                self._save(out / CHECKPOINT)
                return False
            self._finish_epoch(out, log)
            if self.epoch < self.config.epochs and self._stopped(stop):
                return False
        return True

    def _train_epoch(self, progress: Progress | None, stop: Callable[[], bool] | None) -> bool:
        self._wrapped.train()
        if self.config.freeze is not None:
            part_of(self.model, self.config.freeze).eval()
        self._start = time.perf_counter()
        if isinstance(self.config.sigma, tuple):
            ids = torch.arange(len(self.data), device=self.world.device)
            low, high = self.config.sigma
            self.table.values = log_uniform(keys(self.seed, Purpose.SIGMA, self.epoch, 0, ids), low, high)
        for batch in self.batches.of_epoch(self.epoch, self.step):
            self.train_batch(batch)
            self.step += 1
            if self.step % LOOK == 0:
                self._check_loss()
            if progress is not None:
                progress(batch.size)
            if self.step < self.batches.number and self._stopped(stop):
                return False
        self._check_loss()
        return True

    def train_batch(self, batch: Batch) -> None:
        """One step of the optimizer on a batch, its sigmas moved first where they are of the samples."""
        config, device = self.config, self.world.device
        ids, x, y = batch[:3]
        for group in self._optimizer.param_groups:
            group["lr"] = self.lr()
        with seeded(device, self.seed, self.epoch, self.step, self.world.rank), self._autocast():
            asked = config.data_dependent
            if asked is not None and self.epoch >= asked.switch_epoch and batch.weight > 0.0:
                self.table.move(self.model, x, ids, asked, asked.steps, (self.seed, Purpose.ASCENT, self.epoch))
            samples = Samples(
                ids=ids,
                x=x,
                y=y,
                sigma=self.table.values[ids],
                seed=self.seed,
                epoch=self.epoch,
                weight=batch.weight,
            )
            loss = self._objective(samples)
        self._optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(self._scaler.scale(loss.value * batch.weight))
        self._scaler.step(self._optimizer)
        self._scaler.update()
        if batch.weight > 0.0:
            guess = y if loss.log_probs is None else loss.log_probs.detach().argmax(1)
            right = (guess == y).sum()
            self._sums += torch.stack([loss.value.detach() * len(y), right, torch.tensor(len(y), device=device)])
        self._shown = x[:PICTURES], loss.noisy.detach()[:PICTURES]

    def _autocast(self) -> torch.autocast:
        kind = PRECISIONS[self.config.precision]
        return torch.autocast(self.world.device.type, kind, enabled=kind is not None)

    def _stopped(self, stop: Callable[[], bool] | None) -> bool:
        """Is any process to stop? All of them then do."""
        return stop is not None and self.world.any(stop())

    def _exchange(self) -> None:
        """Give every process what the others found out about their samples."""
        self.table.exchange(self.world)
        if self._own is not None:
            self._own.table.exchange(self.world)

    def _check_loss(self) -> None:
        if not math.isfinite(float(self._sums[0])):
            raise ModelError(
                f"the loss is no number any more in epoch {self.epoch}, near batch {self.step}, at a learning rate of "
                f"{self.lr():g}. The last checkpoint is from before; try a lower --lr or a warm-up in another --out."
            )

    # the end of an epoch

    def _finish_epoch(self, out: Path, log: Log | None) -> None:
        self._exchange()
        if self.config.recompute_batchnorm and self.epoch + 1 == self.config.epochs:
            recompute(self.model, normalisations(self.model, self.config.freeze), self._passes())
        self.world.share_buffers(self.model)
        loss, right, count = self.world.total(self._sums).tolist()
        seconds = time.perf_counter() - self._start
        found, score = self._validation.of(self.model, self.epoch, self._autocast())
        sigma = self.table.values[self.batches.training]
        quantiles = np.quantile(sigma.cpu().numpy(), list(QUANTILES.values()))
        record: dict[str, Any] = {
            "epoch": self.epoch,
            "lr": self.lr(),
            "loss": loss / count,
            "accuracy": None if self.config.objective == "denoiser" else right / count,
            **found,
            "sigma_mean": float(sigma.double().mean()),
            "sigma_min": float(sigma.min()),
            **dict(zip(QUANTILES, quantiles.tolist(), strict=True)),
            "sigma_max": float(sigma.max()),
            "seconds": round(seconds, 3),
        }
        self.epoch, self.step = self.epoch + 1, 0
        self._sums.zero_()
        better = score is not None and score > self.best
        self.best = score if score is not None and better else self.best
        if log is not None and self._shown is not None:
            log.add(record, sigma, *self._shown)
        if better and self.config.keep == "best":
            self._save(out / BEST)
        self._save(out / CHECKPOINT)

    def _passes(self) -> Iterator[None]:
        """Passes over samples with noise of their own sigma, the same in every process."""
        for batch in self.batches.whole(STATISTICS, self.epoch):
            noise = normal(keys(self.seed, Purpose.BATCHNORM, self.epoch, 0, batch.ids), 1, batch.x.shape[1:])
            sigma = self.table.values[batch.ids]
            with self._autocast():
                at_sigma(self.model, sigma)(batch.x + scaled(noise, sigma)[:, 0])
            yield

    # saving

    def _save(self, path: Path) -> None:
        self._check_loss()
        sums = self.world.total(self._sums)
        if self.world.rank == 0:
            save_checkpoint(self.state(sums), path)

    def state(self, sums: torch.Tensor) -> Checkpoint:
        """Everything that the rest of the run depends on."""
        scale = self._scaler.get_scale() if self._scaler.is_enabled() else 1.0
        position = Position(
            config=self.config.model_dump(mode="json") | {"seed": self.seed},
            data=self.data.fingerprint(),
            epoch=self.epoch,
            step=self.step,
            best=self.best,
            scale=scale,
        )
        return Checkpoint(
            position=position,
            model=self.model.state_dict(),
            optimizer=saved_state(self._optimizer, self.model),
            sigma=self.table.values,
            sums=sums,
            votes=None if self._own is None else self._own.table.values,
        )

    def restore(self, state: Checkpoint) -> None:
        """Go on from a checkpoint of this run; RunError where it does not fit the model."""
        position = state.position
        self.epoch, self.step, self.best = position.epoch, position.step, position.best
        self.load(state.model, state.optimizer)
        own = None if self._own is None else self._own.table.values.shape
        if (
            state.sigma.shape != self.table.values.shape
            or state.sums.shape != self._sums.shape
            or own != (None if state.votes is None else state.votes.shape)
        ):
            raise RunError("the checkpoint's sigmas or votes are for another number of samples.")
        self.table.values = state.sigma.to(self.table.values)
        if self._own is not None and state.votes is not None:
            self._own.table.values = state.votes.to(self._own.table.values)
        if self.world.rank == 0:  # they are those of all processes
            self._sums = state.sums.to(self._sums)
        if self._scaler.is_enabled():
            self._scaler.load_state_dict(self._scaler.state_dict() | {"scale": position.scale})

    def load(self, model: dict[str, torch.Tensor], optimizer: dict[str, torch.Tensor]) -> None:
        """Take weights, and the optimizer's state of parameters by name; RunError where they do not fit."""
        expected = {name: value.shape for name, value in self.model.state_dict().items()}
        if expected != {name: value.shape for name, value in model.items()}:
            raise RunError("the checkpoint's weights are for another model: their names or shapes differ.")
        restore_state(self._optimizer, self.config.optimizer, self.model, optimizer)
        self.model.load_state_dict(model)
