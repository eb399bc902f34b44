"""A base classifier with its noise, and who counts for it: requests in, counts out. It knows no rules and no claims."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Final, Self

import numpy as np
import torch
from numpy.typing import NDArray

from ddsmoothing.certificate import Certificate
from ddsmoothing.claims import total_variation
from ddsmoothing.conversation import converse
from ddsmoothing.counting.contract import BaseClassifier, Executor, Progress, Request, Workers
from ddsmoothing.counting.engine import Engine
from ddsmoothing.counting.function import check_inputs
from ddsmoothing.counting.here import counter_on, default_rows_on, probed_rows
from ddsmoothing.devices import device_of
from ddsmoothing.errors import InputError, ModelError
from ddsmoothing.inputs import Batch, prepare
from ddsmoothing.plan import Result, Talk

PROBE_SIGMA: Final = 0.25  # for a model that takes sigma


class Smoothing:
    """What a smoothed classifier has before any rule says what its counts mean.

    Attributes:
        model: The base classifier.
        certificate: Its noise and norm.
        block_size: Rows of one forward pass, None where the input's size decides.
        executor: Who counts; None: the workers, or this process.
        workers: Processes that run forward passes; None: this process.
    """

    model: BaseClassifier
    certificate: Certificate
    block_size: int | None
    precision: str
    channels_last: bool
    compiled: bool
    snap: bool
    levels: int
    any_range: bool
    executor: Executor | None = None
    workers: Workers | None = None
    _classes: list[int]  # K where it is known; shared by all forms of a classifier
    _to_check: set[bool]  # empty when the check is done; shared too
    _engine: Engine

    @property
    def num_classes(self) -> int:
        """K; InputError where it was not given and no input was seen yet."""
        if not self._classes:
            raise InputError("how many classes the model has is known after its first input; give num_classes=K.")
        return self._classes[0]

    def prepare(self, x: torch.Tensor, ids: Sequence[int] | None = None) -> Batch:
        """Inputs made ready for ``count``; where K was not given, the first ones show it."""
        norm = self.certificate.norm if self.snap else None
        batch = prepare(x, ids, device_of(self.model), norm, self.levels, self.any_range)
        if not self._classes:
            self._classes.append(self._probed_classes(batch))
        return batch

    def _probed_classes(self, batch: Batch) -> int:
        x = batch.values[:1].reshape(-1, *batch.shape).to(device=batch.device, dtype=batch.dtype)
        found = int(self.eager_engine().logits(x, PROBE_SIGMA).shape[1])
        if found < 2:
            raise ModelError(
                f"the base classifier gives {found} logit for an input, expected K >= 2, one for each class."
            )
        return found

    def count(
        self, batch: Batch, requests: Sequence[Request], seed: int, progress: Progress | None = None
    ) -> list[NDArray[np.int64]]:
        """What each request asks to be counted, summed over its n samples; see ``Request``.

        Args:
            batch: Inputs made ready; see ``prepare``.
            requests: Of its rows.
            seed: Of the noise.
            progress: Called with the number of samples done since its last call.
        """
        executor = self.executor or self.counter(batch.d)
        counts = dict(executor.run(batch, requests, seed, progress))
        return [counts[i] for i in range(len(requests))]

    @property
    def engine(self) -> Engine:
        """The one way to the base classifier, in the form that is certified."""
        return self._engine

    def eager_engine(self) -> Engine:
        """The same way, not compiled: for batches of many sizes, each of which torch.compile would compile for."""
        if not self.compiled:
            return self._engine
        return Engine(self.model, precision=self.precision, channels_last=self.channels_last)

    def counter(self, d: int) -> Executor:
        """Who counts d-dimensional inputs: the workers, where there are any, or this process."""
        parts = self._engine, self.certificate.noise, self.num_classes, self.block_rows(d)
        return counter_on(device_of(self.model), *parts) if self.workers is None else self.workers.executor(*parts)

    def with_workers(self, workers: Workers | None) -> Self:
        """The same classifier, its forward passes run by these workers; None: by this process."""
        return self._with(workers=workers)

    def with_executor(self, executor: Executor) -> Self:
        """The same classifier, its forward passes run by another executor."""
        return self._with(executor=executor)

    def with_any_range(self) -> Self:
        """The same classifier, for inputs outside [0, 1] too: perturbed ones lie there."""
        return self._with(any_range=True)

    def with_block_size(self, block_size: int) -> Self:
        """The same classifier with another number of rows in one forward pass."""
        return self._with(block_size=block_size)

    def _with(self, **attributes: Any) -> Self:
        other = copy.copy(self)
        vars(other).update(attributes)
        return other

    def probe_block_size(self, batch: Batch) -> int:
        """The fastest rows of one forward pass here, found by a short timed probe; the noise it uses is thrown away."""
        return probed_rows(self._engine, self.certificate.noise, self.num_classes, batch)

    def block_rows(self, d: int) -> int:
        """Rows of one forward pass for d-dimensional inputs."""
        return self.block_size or default_rows_on(device_of(self.model), d)

    def converse(
        self,
        batch: Batch,
        sigma: NDArray[np.float64],
        talks: Sequence[Talk[Result]],
        seed: int,
        progress: Progress | None,
    ) -> list[Result]:
        """Give every input's sampler the samples it asks for, all inputs' wishes of a round in one packed count.

        Args:
            batch: Inputs made ready; see ``prepare``.
            sigma: ``(B,)`` of each input.
            talks: The samplers, one for each input.
            seed: Of the noise.
            progress: Called with the number of samples done since its last call.
        """

        def count(requests: Sequence[Request]) -> list[NDArray[np.int64]]:
            return self.count(batch, requests, seed, progress)

        return converse(batch, sigma, talks, lambda row, s: self.tv(batch, row, s), count)

    def tv(self, batch: Batch, row: int, sigma: float) -> float:
        """Upper bound on the total-variation distance of an input's noise to the theorem's, for inputs on the grid.

        It is 0 for all others, whose noise is in floating point: what that differs by is not known.

        Args:
            batch: Inputs made ready; see ``prepare``.
            row: Which of them.
            sigma: Of its noise.
        """
        return total_variation(self.certificate, sigma, batch.d, batch.levels) if batch.on_grid[row] else 0.0

    def check_function(self, batch: Batch, sigma: float) -> None:
        """See, once, whether the base classifier is a function of one row, which every certificate takes for granted.

        Raises: ModelError naming the first sign that it is not.
        """
        if self._to_check:
            check_inputs(self.eager_engine(), batch, sigma, self.num_classes, self.block_rows(batch.d))
            self._to_check.clear()
