"""Counts under noise on a GPU, which never waits for this process: one thread, one stream. It knows no bounds.

A pass is: a slice of integers drawn ahead, one division, the model, what is counted of its logits. Counts stay on the
device until all passes of a group of requests were asked for.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from ddsmoothing.counting.ahead import Pace, Passes, blocks_of, source_for
from ddsmoothing.counting.contract import DUELS, Counter, Progress, Request, tally_shape
from ddsmoothing.counting.engine import Caller, Engine
from ddsmoothing.counting.tallies import Tallies
from ddsmoothing.errors import DdsmoothingWarning, InputError, ModelError
from ddsmoothing.inputs import Batch
from ddsmoothing.kernels.device_noise import current, to_device
from ddsmoothing.kernels.numerics import settled_numerics
from ddsmoothing.noise import Noise

LARGEST_ROWS: Final = 2**14  # of a forward pass
LARGEST_NUMBERS: Final = 2**27  # in its inputs
DEFAULT_NUMBERS: Final = 2**24
WORTH_A_GRAPH: Final = 16  # passes still to come: capturing costs about as much as three

Call = Callable[[], torch.Tensor]


def default_rows(d: int) -> int:
    """Rows of a forward pass on a GPU where none were looked for."""
    return max(1, min(4096, DEFAULT_NUMBERS // d))


class DeviceCounter(Counter):
    """Counts the base classifier's answers to noisy copies of inputs, as ``ClassCounter`` does, on a GPU.

    Every forward pass has the same shape ``(block_size, ...)``. Of a module a CUDA graph is made once many passes are
    to come, and used if it gives the same logits, bit for bit.

    Args:
        engine, noise, num_classes, block_size: as for ``ClassCounter``.
        tf32: see ``settled_numerics``.
    """

    def __init__(self, engine: Engine, noise: Noise, num_classes: int, block_size: int, *, tf32: bool = False) -> None:
        self._engine, self._noise, self._classes, self._rows = engine, noise, num_classes, block_size
        self._tf32 = tf32

    def count(
        self, batch: Batch, requests: Sequence[Request], seed: int, progress: Progress | None = None
    ) -> list[NDArray[np.int64]]:
        """As for ``Counter``; InputError where a pass does not fit the device's memory."""
        try:
            return self.counted(batch, requests, seed, progress)
        except torch.OutOfMemoryError as error:
            raise InputError(
                f"{self._rows} inputs of {batch.d:,} numbers do not fit the memory of {batch.device} beside the model; "
                "use a smaller block size."
            ) from error

    def counted(
        self, batch: Batch, requests: Sequence[Request], seed: int, progress: Progress | None = None
    ) -> list[NDArray[np.int64]]:
        """As ``count``, but torch's own error where memory is short."""
        found = [np.zeros(tally_shape(request.tally, self._classes), dtype=np.int64) for request in requests]
        groups: dict[tuple[bool, bool], list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault((not batch.on_grid[request.row], request.tally == DUELS), []).append(i)
        settled, here = settled_numerics(batch.device, tf32=self._tf32), current(batch.device)
        try:
            with settled, here, torch.inference_mode(), self._engine.open() as (caller,):
                for _, group in sorted(groups.items()):
                    counts = self._count_group(caller, batch, [requests[i] for i in group], seed, progress)
                    for i, each in zip(group, counts, strict=True):
                        found[i] = each
        except ModelError as error:
            if isinstance(error.__cause__, torch.OutOfMemoryError):
                raise error.__cause__ from None
            raise
        return found

    def _count_group(
        self, caller: Caller, batch: Batch, requests: Sequence[Request], seed: int, progress: Progress | None
    ) -> list[NDArray[np.int64]]:
        """Counts of requests whose inputs are all on the grid or all off it, and of which all or none duel."""
        x, sigma = self._inputs(batch)
        sigmas = to_device(np.array([*(request.sigma for request in requests), 1.0], dtype=np.float32), batch.device)
        tallies = Tallies([*requests, replace(requests[-1], n=0)], self._classes, batch.device)  # the last: padding
        total = sum(request.n for request in requests)
        passes = Passes(
            source_for(batch, self._noise, requests),
            blocks_of(batch, requests, self._noise, seed),
            total=total,
            rows=self._rows,
            d=batch.d,
            padding=len(requests),
            device=batch.device,
        )
        forward = Forward(
            lambda: caller.logits(x, sigma, self._classes),
            passes=-(-total // self._rows) if self._engine.captures and has_graphs(batch.device) else 0,
        )
        pace = Pace(batch.device, progress)
        for owner, used in passes.into(x):
            torch.index_select(sigmas, 0, owner, out=sigma)
            tallies.add(forward(), owner)
            pace.passed(used)
        pace.finish()
        self._engine.captures &= not forward.refused
        if forward.went_wrong():  # a graph that gives other logits is not used again
            self._engine.captures = False
            return self._count_group(caller, batch, requests, seed, None)
        return tallies.found()[:-1]

    def _inputs(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Where the inputs and sigmas of every pass are: in the form that the model takes."""
        form, shape = self._engine.form, (self._rows, *batch.shape)
        layout = torch.channels_last if form.channels_last and len(shape) == 4 else torch.contiguous_format
        x = torch.zeros(shape, dtype=form.dtype or batch.dtype, device=batch.device).to(memory_format=layout)
        return x, torch.ones(self._rows, dtype=torch.float32, device=batch.device)


def has_graphs(device: torch.device) -> bool:
    """Whether forward passes can be captured there."""
    return device.type == "cuda"


def captured(call: Call) -> tuple[Callable[[], None], torch.Tensor]:
    """A forward pass as a CUDA graph: what runs it, and where its logits then are."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # gives the memory of graphs that are gone back
        logits = call()
    return graph.replay, logits


class Forward:
    """A forward pass from and to tensors that stay where they are: called, and after a while replayed as a graph.

    The graph's first logits are compared with those of the pass that was called before, on the same inputs.

    Args:
        call: the pass.   passes: that are to come, 0 for no graph.
    Attributes:
        refused: the pass could not be captured, which was said.
    """

    def __init__(self, call: Call, passes: int) -> None:
        self._call, self._left, self.refused = call, passes, False
        self._replay: Callable[[], None] | None = None
        self._logits: torch.Tensor | None = None
        self._differs: torch.Tensor | None = None

    def __call__(self) -> torch.Tensor:
        """The logits of what the inputs hold now, good until the next call."""
        if self._replay is not None and self._logits is not None:
            self._replay()
            return self._logits
        logits, self._left = self._call(), self._left - 1
        if self._left >= WORTH_A_GRAPH:
            self._capture(logits)
        return logits

    def _capture(self, logits: torch.Tensor) -> None:
        try:
            replay, found = captured(self._call)
            replay()
        except (RuntimeError, ModelError) as error:
            reason = next(iter(str(error.__cause__ or error).splitlines()), type(error).__name__)
            warnings.warn(f"the model runs without a CUDA graph: {reason}", DdsmoothingWarning, stacklevel=2)
            self._left, self.refused = 0, True
            return
        self._replay, self._logits, self._differs = replay, found, (found != logits).any()

    def went_wrong(self) -> bool:
        """Whether the graph gave other logits than the pass; waits for the device."""
        return self._differs is not None and bool(self._differs)
