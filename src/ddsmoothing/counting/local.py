"""Class counts under noise, by this process. It knows no bounds and no radii."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from queue import SimpleQueue
from threading import Event, Lock
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ddsmoothing.counting.contract import Counter, Progress, Request, tally_shape
from ddsmoothing.counting.engine import Caller, Engine
from ddsmoothing.counting.tallies import Tallies
from ddsmoothing.devices import keep_freed_memory, torch_threads
from ddsmoothing.inputs import Batch
from ddsmoothing.kernels.rounding import on_grid_values
from ddsmoothing.noise import FloatBlock, GridBlock, Noise, grid_table
from ddsmoothing.streams import Generators, noise_blocks

LARGEST_BLOCK = 256
BLOCK_ELEMENTS = 2**21  # input numbers in one forward pass, at most
LARGEST_WORKERS = 8  # forward passes side by side
SHARE_PASSES = 8  # forward passes in one share of the work, where there is enough of it: only the last is padded


def default_block_size(d: int) -> int:
    """Rows of one forward pass for d-dimensional inputs."""
    return max(1, min(LARGEST_BLOCK, BLOCK_ELEMENTS // d))


class ClassCounter(Counter):
    """Counts the base classifier's answers to noisy copies of inputs.

    Every forward pass has the same shape ``(block_size, ...)``; the last one of each share of the work is padded. On a
    CPU several forward passes of a module run side by side, each with its own noise and its own copy of the module's
    attributes, which costs less than many threads inside one pass; what has no such copies, as a bare callable, is
    called by one thread only.
    """

    def __init__(self, engine: Engine, noise: Noise, num_classes: int, block_size: int) -> None:
        self._engine, self._noise, self._classes, self._rows = engine, noise, num_classes, block_size

    def count(
        self, batch: Batch, requests: Sequence[Request], seed: int, progress: Progress | None = None
    ) -> list[NDArray[np.int64]]:
        keep_freed_memory()
        threads = torch.get_num_threads()
        workers = min(threads, LARGEST_WORKERS)
        passes = -(-sum(request.n for request in requests) // self._rows)
        stop, lock = Event(), Lock()

        def report(samples: int) -> None:
            if stop.is_set():
                raise _StoppedError
            if progress is not None:
                with lock:
                    progress(samples)

        found = [np.zeros(tally_shape(request.tally, self._classes), dtype=np.int64) for request in requests]
        with self._engine.open(max(1, min(workers, passes))) as callers:
            free = SimpleQueue[Caller]()
            for caller in callers:
                free.put(caller)
            shares = self._shares(batch, requests, len(callers))
            each = threads // workers if callers[0].private else threads  # whatever is asked: sums depend on it
            with torch_threads(each), ThreadPoolExecutor(len(callers)) as pool:
                futures = [
                    pool.submit(self._count_share, free, batch, requests, seed, share, report) for share in shares
                ]
                try:
                    for future in futures:
                        for i, counts in future.result():
                            found[i] += counts
                except BaseException:
                    stop.set()
                    raise
        return found

    def _shares(self, batch: Batch, requests: Sequence[Request], workers: int) -> list[list[_Piece]]:
        """All noise blocks of all requests in consecutive shares, those on the grid first."""
        shares = []
        for on_grid in (True, False):
            pieces = [
                _Piece(request=i, block=block, rows=rows)
                for i, request in enumerate(requests)
                if batch.on_grid[request.row] == on_grid
                for block, rows in noise_blocks(batch.d, request.first_block, request.n)
            ]
            if not pieces:
                continue
            ends = np.cumsum([piece.rows for piece in pieces])
            total = int(ends[-1])
            each = min(4, max(1, total // (workers * SHARE_PASSES * self._rows)))  # shares for each worker
            size = max(self._rows, -(-total // (workers * each)))
            for _, group in groupby(zip(pieces, ends, strict=True), key=lambda pair: (int(pair[1]) - 1) // size):
                shares.append([piece for piece, _ in group])
        return shares

    def _count_share(
        self,
        free: SimpleQueue[Caller],
        batch: Batch,
        requests: Sequence[Request],
        seed: int,
        share: list[_Piece],
        report: Progress,
    ) -> list[tuple[int, NDArray[np.int64]]]:
        """Requests of one share, whose inputs are all on the grid or all off it, and what was counted of each."""
        caller = free.get()
        mine = sorted({piece.request for piece in share})
        place = {request: i for i, request in enumerate(mine)}
        on_grid = bool(batch.on_grid[requests[share[0].request].row])
        noise = np.zeros((self._rows, batch.d), dtype=batch.grid.dtype if on_grid else np.float64)
        drawn = torch.from_numpy(noise)
        flat = torch.zeros((self._rows, batch.d), dtype=batch.dtype, device=batch.device)
        tallies = Tallies([requests[i] for i in mine], self._classes, batch.device)
        owner = torch.zeros(self._rows, dtype=torch.int64)
        sigma = torch.ones(self._rows, dtype=torch.float32)
        try:
            for parts in self._passes(batch, requests, seed, share, on_grid):
                used = 0
                for part in parts:
                    rows = slice(used, used + part.rows)
                    part.source.fill(noise[rows])
                    noise[rows] += part.center
                    owner[rows], sigma[rows] = place[part.request], requests[part.request].sigma
                    used += part.rows
                sigma[used:] = 1.0
                if on_grid:  # integers are added first and divided once: see noise.py
                    on_grid_values(drawn, batch.levels, batch.dtype, batch.device, flat)
                else:
                    flat.copy_(drawn)
                noisy = flat.reshape(self._rows, *batch.shape)
                logits = caller.logits(noisy, sigma, self._classes, used)
                tallies.add(logits, owner[:used].to(batch.device))
                report(used)
            caller.check_finite()
            return list(zip(mine, tallies.found(), strict=True))
        finally:
            free.put(caller)

    def _passes(
        self, batch: Batch, requests: Sequence[Request], seed: int, share: list[_Piece], on_grid: bool
    ) -> Iterator[list[_Part]]:
        """Cut a share into full forward passes; only the last may be part empty."""
        parts: list[_Part] = []
        free, generators = self._rows, Generators()
        for piece in share:
            request = requests[piece.request]
            key = (seed, batch.ids[request.row], request.stream, piece.block)
            scale = self._noise.scale(request.sigma)
            center: NDArray[Any]
            source: GridBlock | FloatBlock
            if on_grid:
                center, source = (
                    batch.grid[request.row],
                    GridBlock(grid_table(self._noise.name, scale, batch.levels), key, batch.d, generators),
                )
            else:
                center, source = batch.values[request.row].double().numpy(), FloatBlock(self._noise, scale, key)
            left = piece.rows
            while left:
                rows = min(left, free)
                parts.append(_Part(request=piece.request, center=center, source=source, rows=rows))
                free, left = free - rows, left - rows
                if not free:
                    yield parts
                    parts, free = [], self._rows
        if parts:
            yield parts


class _StoppedError(Exception):
    """Another worker failed or the user interrupted."""


class _Piece(NamedTuple):
    """So many rows of one noise block of one request."""

    request: int
    block: int
    rows: int


class _Part(NamedTuple):
    """Rows of one forward pass: an input and the noise block to draw from next."""

    request: int
    center: NDArray[Any]
    source: Any
    rows: int
