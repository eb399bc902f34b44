"""Is a base classifier a function of one row: the same logits whatever else is in its batch, and whenever it is asked?

A certificate speaks of a function. Looked at are logits of noisy rows: asked twice, in another order, in smaller
batches, beside other rows, after other calls and by several threads at once. It finds signs and proves nothing.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Final

import torch

from ddsmoothing.counting.engine import Caller, Engine
from ddsmoothing.errors import ModelError
from ddsmoothing.inputs import Batch
from ddsmoothing.modules import state

LOOKED_AT: Final = 4  # inputs
ROWS: Final = 16  # of the quick check: about two hundred forward passes of one row
CALLS: Final = 8
THREADS: Final = 2
ROUNDS: Final = 2  # passes of each thread
SPREAD: Final = (1.0, 0.5, 2.0)  # sigmas of neighbouring rows, in units of the one given
ROUNDING: Final = {torch.bfloat16: 0.05, torch.float16: 0.02}  # of logits, in units of the largest
FLOAT32_CPU: Final = 1e-4
FLOAT32_ELSEWHERE: Final = 2e-3  # TF32


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One sign that a model is no function.

    Attributes:
        name: ``randomness``, ``batch``, ``calls`` or ``threads``.   text: what was seen.
    """

    name: str
    text: str


def check_is_function(
    engine: Engine, x: torch.Tensor, sigma: float, *, num_classes: int | None = None, rows: int = ROWS
) -> None:
    """The quick check, for the start of a run.

    Args:
        engine: of the base classifier.
        x: ``(B, ...)`` floating point, on the model's device; a few inputs are enough.
        sigma: standard deviation of the noise, as in the run.
        num_classes: K.
        rows: of the largest batch, at most the run's block.
    Raises: ModelError naming the first sign that the model is no function of one row, or what it does wrong.
    """
    with closing(faults_of(engine, x, sigma, num_classes=num_classes, rows=rows)) as faults:
        fault = next(faults, None)
    if fault is not None:
        raise ModelError(f"the base classifier is no function of its input: {fault.text}; a certificate needs one.")


def check_inputs(engine: Engine, batch: Batch, sigma: float, num_classes: int, rows: int) -> None:
    """The same of the first inputs of a batch made ready; rows: of one forward pass in the run."""
    x = batch.values[:LOOKED_AT].reshape(-1, *batch.shape).to(device=batch.device, dtype=batch.dtype)
    check_is_function(engine, x, sigma, num_classes=num_classes, rows=min(ROWS, rows))


def faults_of(
    engine: Engine,
    x: torch.Tensor,
    sigma: float,
    *,
    num_classes: int | None = None,
    rows: int = ROWS,
    calls: int = CALLS,
    threads: int = THREADS,
) -> Generator[Fault]:
    """Signs that a model is no function; arguments as for ``check_is_function``.

    Args:
        calls: small batches asked before the first one is asked again.   threads: at once.
    Raises: ModelError where the model cannot be asked, gives NaN, or writes into its buffers.
    """
    noisy, each = noisy_rows(x, sigma, rows)
    with engine.open() as (caller,):
        asked = _Asked(engine, caller, noisy, each, num_classes)
        yield from asked.faults(calls)
    if rows > 1:
        yield from _side_by_side(engine, asked, threads)


def noisy_rows(x: torch.Tensor, sigma: float, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """So many noisy copies of inputs and the sigma ``(rows,)`` of each; the noise is of no certificate's stream."""
    generator = torch.Generator().manual_seed(0)
    each = sigma * torch.tensor(SPREAD).repeat(-(-rows // len(SPREAD)))[:rows]
    copies = x[torch.arange(rows, device=x.device) % len(x)]
    noise = torch.randn(copies.shape, generator=generator) * each.reshape(-1, *[1] * (x.ndim - 1))
    return copies + noise.to(copies), each.to(x.device)


def changing_attributes(engine: Engine, x: torch.Tensor, sigma: float) -> list[str]:
    """Names of attributes, in a copy of the model, that one pass changes."""
    with engine.open() as (caller,):
        before = state(caller.model)
        caller.logits(x.clone(), sigma)
        after = state(caller.model)
    return sorted(name.removeprefix(".") for name in before | after if before.get(name) != after.get(name))


class _Asked:
    """A batch of noisy rows whose logits are known, against which those of other batches are held."""

    def __init__(
        self, engine: Engine, caller: Caller, x: torch.Tensor, sigma: torch.Tensor, num_classes: int | None
    ) -> None:
        self.x, self.sigma, self._caller, self._classes = x, sigma, caller, num_classes
        self._logits = self.ask(x, sigma)
        size = self._logits.abs().amax(0)  # of each class: one may be far larger than all others
        self._on_cpu = x.device.type == "cpu"
        relative = ROUNDING.get(engine.form.dtype or x.dtype, FLOAT32_CPU if self._on_cpu else FLOAT32_ELSEWHERE)
        self._rounding = relative * torch.maximum(size, size.median())

    def ask(self, x: torch.Tensor, sigma: torch.Tensor, caller: Caller | None = None) -> torch.Tensor:
        """Logits ``(B, K)`` in float64."""
        return (caller or self._caller).logits(x.clone(), sigma, self._classes).double()

    def moved(self, logits: torch.Tensor, rows: torch.Tensor | slice, exactly: bool = False) -> float:
        """The largest difference to the known logits of these rows that rounding does not explain; 0 if it all does."""
        moved = (logits - self._logits[rows]).abs()
        allowed = torch.zeros_like(self._rounding) if exactly and self._on_cpu else self._rounding
        return float(torch.where(moved > allowed, moved, 0.0).max())

    def faults(self, calls: int) -> Iterator[Fault]:
        """What one thread sees."""
        everything = slice(None)
        if moved := self.moved(self.ask(self.x, self.sigma), everything, exactly=True):
            yield Fault(name="randomness", text=f"two passes on the same rows differ by {moved:.2g}")
            return
        if (where := self._in_other_batches()) is not None:
            yield Fault(name="batch", text=f"a row's logits move {where}")
        for _ in range(calls):
            self._again(slice(0, 1))
        if moved := self.moved(self.ask(self.x, self.sigma), everything):
            yield Fault(name="calls", text=f"logits move by {moved:.2g} after other calls of the model")

    def _again(self, rows: torch.Tensor | slice) -> float:
        """How far these rows move as a batch of their own; 0 where the model takes no batch of that size."""
        try:
            logits = self.ask(self.x[rows], self.sigma[rows])
        except ModelError:
            return 0.0
        return self.moved(logits, rows)

    def _in_other_batches(self) -> str | None:
        size = len(self.x)
        if moved := self._again(torch.arange(size, device=self.x.device).roll(size // 2 + 1).flip(0)):
            return f"by {moved:.2g} with its place in the batch"
        for fewer in sorted({1, 2, size // 2 + 1, size - 1} & set(range(1, size))):
            if moved := max(self._again(slice(0, fewer)), self._again(slice(size - fewer, size))):
                return f"by {moved:.2g} in a batch of {fewer} rows"
        kept = torch.tensor(sorted({0, size // 2, size - 1}), device=self.x.device)
        for name, shift, scale in (("brighter", 1.0, 0.5), ("darker", -1.0, 2.0)):
            x, sigma = self.x + shift, self.sigma * scale
            x[kept], sigma[kept] = self.x[kept], self.sigma[kept]
            if moved := self.moved(self.ask(x, sigma)[kept], kept):
                return f"by {moved:.2g} beside {name} rows"
        return None


def _side_by_side(engine: Engine, asked: _Asked, threads: int) -> Iterator[Fault]:
    """Several threads at once, each with other rows, against one thread."""
    with engine.open(threads) as callers:
        if len(callers) == 1:
            return

        def one(number: int) -> float:
            order = torch.arange(len(asked.x), device=asked.x.device).roll(number)
            x, sigma = asked.x[order], asked.sigma[order]
            return max(asked.moved(asked.ask(x, sigma, callers[number]), order) for _ in range(ROUNDS))

        with ThreadPoolExecutor(threads) as pool:
            moved = max(pool.map(one, range(threads)))
    if moved:
        yield Fault(name="threads", text=f"logits move by {moved:.2g} when {threads} threads call it at once")
