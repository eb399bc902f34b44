"""Class counts under noise, by this process. It knows no bounds and no radii."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from threading import Event, Lock
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ddsmoothing.counting.contract import Progress, Request, tally_shape
from ddsmoothing.counting.engine import Engine, check_logits
from ddsmoothing.counting.tallies import Tallies
from ddsmoothing.devices import keep_freed_memory, torch_threads, untouched
from ddsmoothing.errors import ModelError
from ddsmoothing.inputs import Batch
from ddsmoothing.noise import FloatBlock, GridBlock, Noise, grid_table
from ddsmoothing.streams import Generators, noise_blocks

LARGEST_BLOCK = 256
BLOCK_ELEMENTS = 2**21  # input numbers in one forward pass, at most
LARGEST_WORKERS = 8  # forward passes side by side
SHARE_PASSES = 8  # forward passes in one share of the work, where there is enough of it: only the last is padded


def default_block_size(d: int) -> int:
    """Rows of one forward pass for d-dimensional inputs."""
    return max(1, min(LARGEST_BLOCK, BLOCK_ELEMENTS // d))


class ClassCounter:
    """Counts the base classifier's answers to noisy copies of inputs.

    Every forward pass has the same shape ``(block_size, ...)``; the last one of each share of the work is padded. On a
    CPU several forward passes of a module run side by side, each with its own noise, which costs less than many
    threads inside one pass; a bare callable, which may have state, is called by one thread only.
    """

    def __init__(self, engine: Engine, noise: Noise, num_classes: int, block_size: int) -> None:
        self._engine, self._noise, self._classes, self._rows = engine, noise, num_classes, block_size

    def run(
        self, batch: Batch, requests: Sequence[Request], seed: int, progress: Progress | None = None
    ) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """All counts at once, when the last forward pass is done; see ``Executor``."""
        yield from enumerate(self.count(batch, requests, seed, progress))

    def count(
        self, batch: Batch, requests: Sequence[Request], seed: int, progress: Progress | None = None
    ) -> list[NDArray[np.int64]]:
        """What each request asks to be counted; see ``Request``.

        Args:
            progress: called with the number of samples done since its last call.
        Raises:
            ModelError: the model's answer is not ``(B, K)`` or not finite.
        """
        keep_freed_memory()
        threads = torch.get_num_threads()
        workers = min(threads, LARGEST_WORKERS) if self._engine.side_by_side else 1
        shares = self._shares(batch, requests, workers)
        stop, lock = Event(), Lock()

        def report(samples: int) -> None:
            if stop.is_set():
                raise _StoppedError
            if progress is not None:
                with lock:
                    progress(samples)

        with untouched(self._engine.model), torch_threads(threads // workers), ThreadPoolExecutor(workers) as pool:
            futures = [pool.submit(self._count_share, batch, requests, seed, share, report) for share in shares]
            try:
                found = [np.zeros(tally_shape(request.tally, self._classes), dtype=np.int64) for request in requests]
                for future in futures:
                    for i, counts in future.result():
                        found[i] += counts
                return found
            except BaseException:
                stop.set()
                raise

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
        self, batch: Batch, requests: Sequence[Request], seed: int, share: list[_Piece], report: Progress
    ) -> list[tuple[int, NDArray[np.int64]]]:
        """Requests of one share, whose inputs are all on the grid or all off it, and what was counted of each."""
        mine = sorted({piece.request for piece in share})
        place = {request: i for i, request in enumerate(mine)}
        on_grid = bool(batch.on_grid[requests[share[0].request].row])
        noise = np.zeros((self._rows, batch.d), dtype=batch.grid.dtype if on_grid else np.float64)
        drawn = torch.from_numpy(noise)
        flat = torch.zeros((self._rows, batch.d), dtype=batch.dtype, device=batch.device)
        tallies = Tallies([requests[i] for i in mine], self._classes, batch.device)
        total = torch.zeros((), dtype=torch.float64, device=batch.device)  # NaN or infinite as soon as one logit is
        levels = torch.tensor(float(batch.levels), dtype=batch.dtype, device=batch.device)
        owner = torch.zeros(self._rows, dtype=torch.int64)
        with torch.inference_mode():
            for parts in self._passes(batch, requests, seed, share, on_grid):
                used = 0
                for part in parts:
                    rows = noise[used : used + part.rows]
                    part.source.fill(rows)
                    rows += part.center
                    owner[used : used + part.rows] = place[part.request]
                    used += part.rows
                if on_grid:  # integers are added first and divided once: see noise.py
                    torch.div(drawn.to(batch.device), levels, out=flat)
                else:
                    flat.copy_(drawn)
                noisy = self._formed(flat.reshape(self._rows, *batch.shape))
                logits = check_logits(self._engine.model(noisy), self._rows, self._classes)[:used]
                total += logits.sum(dtype=torch.float64)
                tallies.add(logits, owner[:used].to(batch.device))
                report(used)
            if not bool(torch.isfinite(total)):
                raise ModelError(
                    "the base classifier gave NaN or infinite logits on noisy inputs; a certificate from them would "
                    "be meaningless. Check its weights and the range of its inputs."
                )
        return list(zip(mine, tallies.found(), strict=True))

    def _formed(self, noisy: torch.Tensor) -> torch.Tensor:
        form = self._engine.form
        if form.channels_last and noisy.ndim == 4:
            return noisy.to(dtype=form.dtype or noisy.dtype, memory_format=torch.channels_last)
        return noisy if form.dtype is None else noisy.to(form.dtype)

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
