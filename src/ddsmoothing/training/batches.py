"""Which samples are trained on and which validate, in which order, and how they are read. It knows no model."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import torch

from ddsmoothing.data import Dataset, augmentation
from ddsmoothing.errors import DataError
from ddsmoothing.training.config import TrainConfig
from ddsmoothing.training.distributed import World
from ddsmoothing.training.keyed import Purpose, keys


class Batch(NamedTuple):
    """This process's part of a batch, on the device.

    Attributes:
        weight: of its mean loss in the mean over all processes.   size: of the whole batch.
    """

    ids: torch.Tensor
    x: torch.Tensor
    y: torch.Tensor
    weight: float
    size: int


class Batches:
    """The samples of a run.

    Attributes:
        training, held_out: indices of the samples trained on, and of those that validate.
        number: batches in an epoch.
    """

    def __init__(self, config: TrainConfig, seed: int, data: Dataset, world: World, workers: int) -> None:
        self._config, self._seed, self._data, self._world, self._workers = config, seed, data, world, workers
        self._augment = augmentation(config.augmentation)
        ids = torch.arange(min(len(data), config.maximum or len(data)))
        shuffled = self._shuffled(ids, Purpose.HELD_OUT, 0)
        count = config.held_out(len(data))
        self.held_out, self.training = shuffled[:count].sort().values, shuffled[count:].sort().values
        if len(self.training) == 0:
            raise DataError(f"{len(ids)} samples, {count} of them held out: none is left to train on.")
        self.number = math.ceil(config.samples(len(data)) / config.batch)

    def _shuffled(self, ids: torch.Tensor, purpose: Purpose, epoch: int) -> torch.Tensor:
        return ids[keys(self._seed, purpose, epoch, 0, ids).argsort()]

    def of_epoch(self, epoch: int, first: int) -> Iterator[Batch]:
        """The batches of an epoch from ``first`` on, changed at random as the options say."""
        order = self._shuffled(self.training, Purpose.ORDER, epoch)
        return self._loaded(torch.split(order, self._config.batch)[first : self.number], epoch)

    def to_validate(self) -> Iterator[Batch]:
        """The held-out samples as they are; a batch of weight 0 is another process's."""
        return self._loaded(torch.split(self.held_out, self._config.batch), None)

    def whole(self, count: int, epoch: int) -> Iterator[Batch]:
        """So many samples in the order of an epoch, changed as in it; the same in every process."""
        order = self._shuffled(self.training, Purpose.ORDER, epoch)[:count]
        return self._loaded(torch.split(order, self._config.batch), epoch, shared=False)

    def _loaded(self, batches: tuple[torch.Tensor, ...], epoch: int | None, shared: bool = True) -> Iterator[Batch]:
        """Batches read a few ahead by threads, in order."""
        waiting: deque[Future[Batch]] = deque()
        with ThreadPoolExecutor(self._workers) as pool:
            for ids in batches:
                waiting.append(pool.submit(self._load, ids, epoch, shared))
                if len(waiting) > self._workers:
                    yield self._placed(waiting.popleft().result())
            while waiting:
                yield self._placed(waiting.popleft().result())

    def _load(self, ids: torch.Tensor, epoch: int | None, shared: bool) -> Batch:
        size = self._world.size if shared else 1
        mine = ids[self._world.rank % size :: size]
        weight = len(mine) * size / len(ids)
        mine = mine if len(mine) else ids[:1]  # every process needs a pass for the gradients' exchange; it weighs 0
        x, y = self._data[mine.numpy()]
        if epoch is not None and self._augment is not None:
            key = keys(self._seed, Purpose.AUGMENTATION, epoch, 0, mine)
            x = self._augment(x, [word % 2**63 for word in key.tolist()])
        return Batch(mine, x, y, weight, len(ids))

    def _placed(self, batch: Batch) -> Batch:
        ids, x, y = (part.to(self._world.device, non_blocking=True) for part in batch[:3])
        return Batch(ids, x, y, batch.weight, batch.size)
