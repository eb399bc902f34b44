"""Noisy inputs for passes on a device, drawn ahead of them in whole noise blocks. It runs no model and counts nothing.

Integers are drawn where they are used if the device can (``kernels.device_noise``). All other noise is drawn by this
machine's threads into pinned memory, in turns into two buffers, and copied while the device is at work.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ddsmoothing.counting.contract import Request
from ddsmoothing.errors import DdsmoothingWarning
from ddsmoothing.inputs import Batch
from ddsmoothing.kernels.device_noise import DeviceNoise, Part, fault, supported, to_device
from ddsmoothing.kernels.rounding import divides_exactly, on_grid_values
from ddsmoothing.noise import FloatBlock, GridBlock, Noise, grid_table
from ddsmoothing.streams import Generators, noise_blocks

PASSES: Final = 4  # forward passes of noise drawn at once, at least
_DIVIDED: Final = (torch.float32, torch.float16, torch.bfloat16)  # what the kernel that divides can write


class Block(NamedTuple):
    """The rows wanted of one noise block of a request."""

    owner: int
    row: int
    words: tuple[int, int, int, int]
    scale: float
    rows: int


def blocks_of(batch: Batch, requests: Sequence[Request], noise: Noise, seed: int) -> Iterator[Block]:
    """All noise blocks of some requests, one after another; a block's owner is the place of its request."""
    for owner, request in enumerate(requests):
        scale = noise.scale(request.sigma)
        for block, rows in noise_blocks(batch.d, request.first_block, request.n):
            words = (seed, batch.ids[request.row], int(request.stream), block)
            yield Block(owner=owner, row=request.row, words=words, scale=scale, rows=rows)


class Moment:
    """A point in a device's work: where that is known, when it is past."""

    def __init__(self, device: torch.device) -> None:
        self._event: Any = None
        if device.type == "cuda":
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record(torch.cuda.current_stream(device))

    def past(self) -> bool:
        return self._event is None or bool(self._event.query())

    def wait(self) -> None:
        if self._event is not None:
            self._event.synchronize()


class Source(Protocol):
    """Where noisy inputs come from.

    Attributes:
        like: an empty tensor of the type and device of the rows that are drawn ahead.
    """

    like: torch.Tensor

    def draw(self, out: torch.Tensor, blocks: Sequence[Block]) -> None:
        """Write inputs with noise, one row ``(d,)`` each."""

    def write(self, drawn: torch.Tensor, x: torch.Tensor) -> None:
        """Write drawn rows as inputs of the model, in the type and memory format of x ``(rows, ...)``."""


def source_for(batch: Batch, noise: Noise, requests: Sequence[Request]) -> Source:
    """The source of some requests, whose inputs are all on the grid or all off it."""
    tables = [
        grid_table(noise.name, scale, batch.levels)
        for scale in dict.fromkeys(noise.scale(request.sigma) for request in requests)
        if batch.on_grid[requests[0].row]
    ]
    wanted = batch.device.type == "cuda" or supported(batch.device)
    if tables and wanted and all(table.first.dtype == np.int16 for table in tables):
        if (reason := fault(batch.device)) is None:
            return DeviceSource(batch, noise)
        text = f"noise is drawn on the CPU and copied to {batch.device}: {reason}."
        warnings.warn(text, DdsmoothingWarning, stacklevel=2)
    return HostSource(batch, noise, on_grid=bool(tables))


@lru_cache(maxsize=8)
def drawer(device: torch.device, stream: int) -> DeviceNoise:
    """One for each stream, kept for its tables."""
    return DeviceNoise(device)


class DeviceSource:
    """Integers drawn by the device itself."""

    def __init__(self, batch: Batch, noise: Noise) -> None:
        stream = torch.cuda.current_stream(batch.device).cuda_stream if batch.device.type == "cuda" else 0
        self._drawer, self._batch, self._name = drawer(batch.device, stream), batch, noise.name
        self._centres = to_device(batch.grid, batch.device)
        self.like = torch.empty(0, dtype=torch.int16, device=batch.device)

    def draw(self, out: torch.Tensor, blocks: Sequence[Block]) -> None:
        firsts = np.cumsum([0, *(block.rows for block in blocks)]).tolist()
        parts = [
            Part(
                words=block.words,
                table=grid_table(self._name, block.scale, self._batch.levels),
                centre=block.row,
                row=first,
                rows=block.rows,
            )
            for block, first in zip(blocks, firsts[:-1], strict=True)
        ]
        self._drawer.draw(out, self._centres, parts)

    def write(self, drawn: torch.Tensor, x: torch.Tensor) -> None:
        if self._batch.dtype == torch.float32 and x.dtype in _DIVIDED:
            self._drawer.divide(x, drawn, self._batch.levels)
        else:
            x.copy_(on_grid_values(drawn, self._batch.levels, self._batch.dtype).reshape(x.shape))


class Turns:
    """Memory of this machine in turns: written again when what was in it has been copied to the device."""

    def __init__(self) -> None:
        self._held: deque[tuple[torch.Tensor, Moment]] = deque()

    def __len__(self) -> int:
        return len(self._held)

    def take(self, out: torch.Tensor) -> torch.Tensor:
        """Memory for rows like ``out`` that no copy reads any more."""
        if len(self._held) > 1:
            held, copied = self._held.popleft()
            copied.wait()
            if len(held) >= len(out):
                return held[: len(out)]
        return torch.empty(out.shape, dtype=out.dtype, pin_memory=out.device.type == "cuda")

    def copying(self, held: torch.Tensor, device: torch.device) -> None:
        """A copy of it to the device was asked for just now."""
        self._held.append((held, Moment(device)))


class HostSource:
    """Numbers drawn by threads of this machine: integers, or floats in the type of the inputs."""

    def __init__(self, batch: Batch, noise: Noise, *, on_grid: bool) -> None:
        self._batch, self._noise, self._on_grid = batch, noise, on_grid
        there = not on_grid or divides_exactly(batch.device, batch.dtype, batch.levels)
        dtype = torch.from_numpy(batch.grid[:0]).dtype if on_grid else batch.dtype
        self.like = torch.empty(0, dtype=dtype, device=batch.device if there else "cpu")
        self._turns = Turns()

    def draw(self, out: torch.Tensor, blocks: Sequence[Block]) -> None:
        host = out if out.device.type == "cpu" else self._turns.take(out)
        ends = np.cumsum([block.rows for block in blocks])
        threads = max(1, min(torch.get_num_threads(), len(blocks)))
        shares = [share for share in np.array_split(np.arange(len(blocks)), threads) if len(share)]

        def fill(share: NDArray[np.int64]) -> None:
            generators = Generators()
            with torch.inference_mode():  # as where the rows were made
                for i in share:
                    self._fill(host[ends[i] - blocks[i].rows : ends[i]], blocks[i], generators)

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(fill, shares))
        if host is not out:
            out.copy_(host, non_blocking=True)
            self._turns.copying(host, out.device)

    def _fill(self, rows: torch.Tensor, block: Block, generators: Generators) -> None:
        if self._on_grid:
            table = grid_table(self._noise.name, block.scale, self._batch.levels)
            sums = rows.numpy()
            GridBlock(table, block.words, self._batch.d, generators).fill(sums)
            sums += self._batch.grid[block.row]
        else:
            drawn = np.empty(rows.shape)
            FloatBlock(self._noise, block.scale, block.words).fill(drawn)
            drawn += self._batch.values[block.row].double().numpy()
            rows.copy_(torch.from_numpy(drawn))

    def write(self, drawn: torch.Tensor, x: torch.Tensor) -> None:
        if self._on_grid:
            drawn = on_grid_values(drawn, self._batch.levels, self._batch.dtype)
        x.copy_(drawn.reshape(x.shape))


class Passes:
    """Noise cut into forward passes of one shape, of which only the last is padded.

    Args:
        source, blocks: what is drawn.   total: rows of all blocks.   rows: of a pass.   d: numbers in a row.
        padding: the owner of rows that count for nothing.   device: where owners are wanted.
    """

    def __init__(
        self,
        source: Source,
        blocks: Iterator[Block],
        *,
        total: int,
        rows: int,
        d: int,
        padding: int,
        device: torch.device,
    ) -> None:
        self._source, self._blocks, self._total, self._rows = source, blocks, total, rows
        self._padding, self._device, self._d = padding, device, d
        self._drawn, self._owner = source.like.new_empty((0, d)), torch.empty(0, dtype=torch.int64, device=device)

    def into(self, x: torch.Tensor) -> Iterator[tuple[torch.Tensor, int]]:
        """Write pass after pass into x ``(rows, ...)``; yields owners ``(rows,)`` and how many rows are no padding."""
        head = have = done = 0
        while done < self._total:
            if have - head < min(self._rows, self._total - done):
                have, head = self._refill(head, have), 0
            end = head + self._rows
            if (used := min(self._rows, have - head)) < self._rows:
                self._drawn[have:end] = self._drawn[head]
                self._owner[have:end] = self._padding
            self._source.write(self._drawn[head:end], x)
            yield self._owner[head:end], used
            head, done = head + used, done + used

    def _refill(self, head: int, have: int) -> int:
        """Draw at least PASSES passes after the rows that are left, fewer than one pass; returns how many there are."""
        left, blocks, drawn = have - head, list[Block](), 0
        while drawn < PASSES * self._rows and (block := next(self._blocks, None)) is not None:
            blocks.append(block)
            drawn += block.rows
        old, owner = self._drawn, self._owner
        if len(old) < left + drawn + self._rows:
            self._drawn = old.new_zeros((left + drawn + self._rows, self._d))
            self._owner = owner.new_empty(len(self._drawn))
        if left:
            self._drawn[:left].copy_(old[head:have])
            self._owner[:left].copy_(owner[head:have])
        self._source.draw(self._drawn[left : left + drawn], blocks)
        owners = np.repeat([block.owner for block in blocks], [block.rows for block in blocks])
        self._owner[left : left + drawn].copy_(to_device(owners, self._device))
        return left + drawn


class Pace:
    """Tells how many samples are done, without waiting for the device until it is far behind.

    Args:
        progress: called with the samples done since its last call, or None.
        ahead: passes that may be asked for before the first of them is done.
    """

    def __init__(self, device: torch.device, progress: Callable[[int], None] | None, ahead: int = 4 * PASSES) -> None:
        self._device, self._progress, self._ahead = device, progress, ahead
        self._waiting: deque[tuple[Moment, int]] = deque()

    def passed(self, samples: int) -> None:
        """A pass of so many samples was asked for."""
        self._waiting.append((Moment(self._device), samples))
        while self._waiting and (len(self._waiting) > self._ahead or self._waiting[0][0].past()):
            self._tell()

    def finish(self) -> None:
        """Wait for all passes."""
        while self._waiting:
            self._tell()

    def _tell(self) -> None:
        moment, samples = self._waiting.popleft()
        moment.wait()
        if self._progress is not None:
            self._progress(samples)
