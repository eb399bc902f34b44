"""The one training loop: batches in a keyed order, an objective, a source of sigma, SGD, checkpoints.

It knows no objective's formula and no file format. All that is random is a function of the seed and of the place in the
run, so that a run that was stopped goes on as if it had not been.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from ddsmoothing.counting.contract import Progress
from ddsmoothing.data import Dataset, augmentation
from ddsmoothing.devices import untouched
from ddsmoothing.errors import DataError, ModelError, RunError
from ddsmoothing.training.checkpoint import Checkpoint, Position, save_checkpoint
from ddsmoothing.training.config import TrainConfig
from ddsmoothing.training.distributed import World
from ddsmoothing.training.keyed import Purpose, keys, log_uniform, normal, seeded
from ddsmoothing.training.log import Log
from ddsmoothing.training.objectives import Loss, gaussian, macer, scaled, smoothadv
from ddsmoothing.training.sigma_table import SigmaTable

CHECKPOINT, BEST = "checkpoint.safetensors", "best.safetensors"
LOOK: Final = 25  # batches between two looks whether the loss is still a number: each look waits for the device
PICTURES: Final = 8
AUTOCAST: Final[dict[str, torch.dtype]] = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Batch(NamedTuple):
    """This process's part of a batch; weight: of its mean loss in the mean over all processes."""

    ids: torch.Tensor
    x: torch.Tensor
    y: torch.Tensor
    weight: float
    size: int


class Loop:
    """A model in training.

    Attributes:
        epoch, step: the next batch.   table: sigmas of all samples of the training split.
        training, held_out: indices of the samples trained on, and of those that validate.
    """

    def __init__(
        self, config: TrainConfig, seed: int, model: nn.Module, data: Dataset, world: World, workers: int = 2
    ) -> None:
        self.config, self.seed, self.data, self.world, self._workers = config, seed, data, world, workers
        self.model = model.to(world.device)
        if config.channels_last:
            self.model.to(memory_format=torch.channels_last)
        self._wrapped = world.wrap(self.model)
        self._optimizer = torch.optim.SGD(
            self.model.parameters(),
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            nesterov=config.nesterov,
        )
        self._scaler = torch.amp.GradScaler(
            world.device.type, enabled=config.precision == "fp16" and world.device.type == "cuda"
        )
        self._augment = augmentation(config.augmentation)
        ids = torch.arange(min(len(data), config.maximum or len(data)))
        shuffled = self._shuffled(ids, Purpose.HELD_OUT, 0)
        count = config.held_out(len(data))
        self.held_out, self.training = shuffled[:count].sort().values, shuffled[count:].sort().values
        if len(self.training) == 0:
            raise DataError(f"{len(ids)} samples, {count} of them held out: none is left to train on.")
        values = torch.full((len(data),), config.sigma_start, device=world.device)
        if config.data_dependent is not None and config.data_dependent.sigma0_test is not None:
            values[self.held_out] = config.data_dependent.sigma0_test
        self.table = SigmaTable(values, *config.sigma_bounds)
        self.epoch = self.step = 0
        self.best = -1.0
        self._sums = torch.zeros(3, dtype=torch.float64, device=world.device)
        self._shown: tuple[torch.Tensor, torch.Tensor] | None = None

    # what a run is

    @property
    def batches(self) -> int:
        """Batches in an epoch."""
        return math.ceil(self.config.samples(len(self.data)) / self.config.batch)

    def _shuffled(self, ids: torch.Tensor, purpose: Purpose, epoch: int) -> torch.Tensor:
        return ids[keys(self.seed, purpose, epoch, 0, ids).argsort()]

    def lr(self) -> float:
        """The learning rate of the next batch."""
        config, done = self.config, self.epoch + self.step / self.batches
        rate = config.lr
        if config.schedule == "step":
            rate *= config.step_factor ** (self.epoch // config.step_epochs)
        elif config.schedule == "cosine":
            rate *= 0.5 * (1.0 + math.cos(math.pi * done / config.epochs))
        grown = (done + 1.0 / self.batches) / config.warmup if config.warmup > 0.0 else 1.0
        return rate * min(1.0, grown)

    # training

    def run(self, out: Path, log: Log | None, progress: Progress | None, stop: Callable[[], bool] | None) -> bool:
        """Train to the end, or until ``stop()`` says so after a batch; False then. Every epoch is saved to ``out``."""
        while self.epoch < self.config.epochs:
            if not self._train_epoch(progress, stop):
                self.table.exchange(self.world)
                self._save(out / CHECKPOINT)
                return False
            self._finish_epoch(out, log)
            if self.epoch < self.config.epochs and self._stopped(stop):
                return False
        return True

    def _train_epoch(self, progress: Progress | None, stop: Callable[[], bool] | None) -> bool:
        self._wrapped.train()
        self._start = time.perf_counter()
        if isinstance(self.config.sigma, tuple):
            ids = torch.arange(len(self.data), device=self.world.device)
            low, high = self.config.sigma
            self.table.values = log_uniform(keys(self.seed, Purpose.SIGMA, self.epoch, 0, ids), low, high)
        order = self._shuffled(self.training, Purpose.ORDER, self.epoch)
        for batch in self._loaded(torch.split(order, self.config.batch)[self.step : self.batches]):
            self._train_batch(batch)
            self.step += 1
            if self.step % LOOK == 0:
                self._check_loss()
            if progress is not None:
                progress(batch.size)
            if self.step < self.batches and self._stopped(stop):
                return False
        self._check_loss()
        return True

    def _train_batch(self, batch: Batch) -> None:
        config, device = self.config, self.world.device
        ids, x, y = (part.to(device, non_blocking=True) for part in batch[:3])
        for group in self._optimizer.param_groups:
            group["lr"] = self.lr()
        with seeded(device, self.seed, self.epoch, self.step, self.world.rank), self._autocast():
            asked = config.data_dependent
            if asked is not None and self.epoch >= asked.switch_epoch and batch.weight > 0.0:
                self.table.move(self.model, x, ids, asked, asked.steps, (self.seed, Purpose.ASCENT, self.epoch))
            loss = self._loss(x, y, self._noise(ids, x, config.copies), self.table.values[ids])
        self._optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(self._scaler.scale(loss.value * batch.weight))
        self._scaler.step(self._optimizer)
        self._scaler.update()
        if batch.weight > 0.0:
            right = (loss.log_probs.detach().argmax(1) == y).sum()
            self._sums += torch.stack([loss.value.detach() * len(y), right, torch.tensor(len(y), device=device)])
        self._shown = x[:PICTURES], loss.noisy.detach()[:PICTURES]

    def _loss(self, x: torch.Tensor, y: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> Loss:
        config, noise = self.config, scaled(noise, sigma)
        if config.objective == "smoothadv":
            attack = config.smoothadv
            epsilon = attack.epsilon * min(1.0, (self.epoch + 1) / max(1, attack.warmup))
            return smoothadv(self._wrapped, x, y, noise, attacked=self.model, epsilon=epsilon, steps=attack.steps)
        if config.objective == "macer":
            return macer(self._wrapped, x, y, noise, sigma=sigma, **config.macer.model_dump())
        return gaussian(self._wrapped, x, y, noise)

    def _noise(self, ids: torch.Tensor, x: torch.Tensor, copies: int) -> torch.Tensor:
        return normal(keys(self.seed, Purpose.NOISE, self.epoch, 0, ids), copies, x.shape[1:])

    def _loaded(self, batches: tuple[torch.Tensor, ...], augment: bool = True) -> Iterator[Batch]:
        """Batches read a few ahead by threads, in order."""
        waiting: deque[Future[Batch]] = deque()
        with ThreadPoolExecutor(self._workers) as pool:
            for ids in batches:
                waiting.append(pool.submit(self._load, ids, augment))
                if len(waiting) > self._workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def _load(self, ids: torch.Tensor, augment: bool) -> Batch:
        mine = ids[self.world.rank :: self.world.size]
        weight = len(mine) * self.world.size / len(ids)
        mine = mine if len(mine) else ids[:1]  # every process needs a pass for the gradients' exchange; it weighs 0
        x, y = self.data[mine.numpy()]
        if augment and self._augment is not None:
            key = keys(self.seed, Purpose.AUGMENTATION, self.epoch, 0, mine)
            x = self._augment(x, [word % 2**63 for word in key.tolist()])
        return Batch(mine, x, y, weight, len(ids))

    def _autocast(self) -> torch.autocast:
        kind = AUTOCAST.get(self.config.precision)
        return torch.autocast(self.world.device.type, kind, enabled=kind is not None)

    def _stopped(self, stop: Callable[[], bool] | None) -> bool:
        """Is any process to stop? All of them then do."""
        return stop is not None and self.world.any(stop())

    def _check_loss(self) -> None:
        if not math.isfinite(float(self._sums[0])):
            raise ModelError(
                f"the loss is no number any more in epoch {self.epoch}, near batch {self.step}, at a learning rate of "
                f"{self.lr():g}. The last checkpoint is from before; try a lower --lr or a warm-up in another --out."
            )

    # the end of an epoch

    def _finish_epoch(self, out: Path, log: Log | None) -> None:
        self.table.exchange(self.world)
        self.world.share_buffers(self.model)
        loss, right, count = self.world.total(self._sums).tolist()
        sigma = self.table.values[self.training]
        seconds = time.perf_counter() - self._start
        record: dict[str, Any] = {
            "epoch": self.epoch,
            "lr": self.lr(),
            "loss": loss / count,
            "accuracy": right / count,
            **self._validate(),
            "sigma_mean": float(sigma.double().mean()),
            "sigma_min": float(sigma.min()),
            "sigma_max": float(sigma.max()),
            "seconds": round(seconds, 3),
        }
        self.epoch, self.step = self.epoch + 1, 0
        self._sums.zero_()
        better = record["validation_accuracy"] is not None and record["validation_accuracy"] > self.best
        self.best = record["validation_accuracy"] if better else self.best
        if log is not None and self._shown is not None:
            log.add(record, sigma, *self._shown)
        if better and self.config.keep == "best":
            self._save(out / BEST)
        self._save(out / CHECKPOINT)

    def _validate(self) -> dict[str, float | None]:
        """Loss and accuracy on noisy held-out samples, and accuracy on clean ones."""
        names = ("validation_loss", "validation_accuracy", "validation_clean_accuracy")
        if len(self.held_out) == 0:
            return dict.fromkeys(names)
        sums = torch.zeros(4, dtype=torch.float64, device=self.world.device)
        asked = self.config.data_dependent
        for batch in self._loaded(torch.split(self.held_out, self.config.batch), augment=False):
            ids, x, y = (part.to(self.world.device) for part in batch[:3])
            if batch.weight == 0.0:
                continue
            if asked is not None and asked.steps_test > 0:
                words = self.seed, Purpose.VALIDATION, self.epoch
                self.table.move(self.model, x, ids, asked, asked.steps_test, words)
            noise = normal(keys(self.seed, Purpose.VALIDATION, 2**32, 0, ids), 1, x.shape[1:])
            noisy = x + scaled(noise, self.table.values[ids])[:, 0]
            with untouched(self.model), torch.no_grad(), self._autocast():
                clean, logits = self.model(x), self.model(noisy).float()
            sums += torch.stack(
                [
                    cross_entropy(logits, y, reduction="sum"),
                    (logits.argmax(1) == y).sum(),
                    (clean.argmax(1) == y).sum(),
                    torch.tensor(len(y), device=y.device),
                ]
            )
        self.table.exchange(self.world)
        *found, count = self.world.total(sums).tolist()
        return dict(zip(names, (value / count for value in found), strict=True))

    # saving

    def _save(self, path: Path) -> None:
        self._check_loss()
        sums = self.world.total(self._sums)
        if self.world.rank == 0:
            save_checkpoint(self.state(sums), path)

    def state(self, sums: torch.Tensor) -> Checkpoint:
        """Everything that the rest of the run depends on."""
        buffers = {
            name: self._optimizer.state.get(parameter, {}).get("momentum_buffer")
            for name, parameter in self.model.named_parameters()
        }
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
            momentum={name: buffer for name, buffer in buffers.items() if buffer is not None},
            sigma=self.table.values,
            sums=sums,
        )

    def restore(self, state: Checkpoint) -> None:
        """Go on from a checkpoint of this run; RunError where it does not fit the model."""
        position = state.position
        self.epoch, self.step, self.best = position.epoch, position.step, position.best
        self.load(state.model, state.momentum)
        if state.sigma.shape != self.table.values.shape or state.sums.shape != self._sums.shape:
            raise RunError("the checkpoint's sigmas are for another number of samples.")
        self.table.values = state.sigma.to(self.table.values)
        if self.world.rank == 0:  # they are those of all processes
            self._sums = state.sums.to(self._sums)
        if self._scaler.is_enabled():
            self._scaler.load_state_dict(self._scaler.state_dict() | {"scale": position.scale})

    def load(self, model: dict[str, torch.Tensor], momentum: dict[str, torch.Tensor]) -> None:
        """Take weights, and the momentum of parameters by name; RunError where they do not fit."""
        expected = {name: value.shape for name, value in self.model.state_dict().items()}
        if expected != {name: value.shape for name, value in model.items()}:
            raise RunError("the checkpoint's weights are for another model: their names or shapes differ.")
        parameters = dict(self.model.named_parameters())
        for name, buffer in momentum.items():
            if name not in parameters or parameters[name].shape != buffer.shape:
                raise RunError(f"the checkpoint's momentum of {name} is for another model.")
            kept = torch.empty_like(parameters[name], requires_grad=False).copy_(buffer)
            self._optimizer.state[parameters[name]]["momentum_buffer"] = kept
        self.model.load_state_dict(model)
