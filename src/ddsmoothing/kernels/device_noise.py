"""Grid noise drawn where it is used: the integers of ``noise.GridBlock`` added to inputs, by ``triton_kernels``.

Nothing here waits for the device. Triton is imported when noise is first drawn, not before.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from threading import Lock
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from ddsmoothing.kernels.rounding import on_grid_values
from ddsmoothing.noise import LEVELS, GridBlock, GridTable, grid_table

COUNTERS, LANES, NUMBERS = 128, 64, 1024  # of a program: counters that decide, cells refined at once, divisions
LARGEST_LAUNCH: Final = 2**24  # coordinates in one launch: the lists of undecided cells take four bytes for each
LARGEST_TABLES: Final = 256  # scales whose tables are kept; then all are dropped
_CELLS: Final = 2**16


@dataclass(frozen=True, kw_only=True)
class Part:
    """The first rows of one noise block, and where they go.

    Attributes:
        words: the block's address, ``(seed, input id, stream, block)``.
        table: of the integers; of 16 bits.
        centre: row of the inputs that the noise is added to.
        row: first row of the output.
        rows: how many, at most what the block holds.
    """

    words: tuple[int, int, int, int]
    table: GridTable
    centre: int
    row: int
    rows: int


def supported(device: torch.device) -> bool:
    """Whether Triton can draw noise on this device: CUDA and ROCm, or any where it is interpreted."""
    wanted = device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"
    return wanted and importlib.util.find_spec("triton") is not None


@cache
def fault(device: torch.device) -> str | None:
    """Why noise is not to be drawn on this device, tried once on some blocks; None where all its numbers are right."""
    if not supported(device):
        return "Triton is not installed or does not serve this device"
    rng, d, rows = np.random.default_rng(0), 37, 60
    centres = rng.integers(0, 256, (3, d)).astype(np.int16)
    parts = [
        Part(
            words=(2**64 - 1 - i, 2**63 + i, i, 2**64 - 1 - i),
            table=grid_table(name, scale),
            centre=i,
            row=i * rows,
            rows=rows,
        )
        for i, (name, scale) in enumerate((("gaussian", 0.25), ("gaussian", 12.0), ("uniform", 0.8)))
    ]
    try:
        with current(device):
            drawer, sums = DeviceNoise(device), torch.empty((len(parts) * rows, d), dtype=torch.int16, device=device)
            drawer.draw(sums, to_device(centres, device), parts)
            quotients = [torch.empty_like(sums, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)]
            for quotient in quotients:
                drawer.divide(quotient, sums, LEVELS)
            sums, quotients = sums.cpu(), [quotient.cpu() for quotient in quotients]
    except Exception as error:  # a compiler or driver may fail in many ways
        return f"Triton failed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    for part, each in zip(parts, sums.numpy().reshape(len(parts), rows, d), strict=True):
        wanted = np.empty((rows, d), dtype=np.int16)
        GridBlock(part.table, part.words, d).fill(wanted)
        if not np.array_equal(each, wanted + centres[part.centre]):
            return "its integers are not those of the CPU"
    exact = on_grid_values(sums, LEVELS, torch.float32)
    right = all(torch.equal(quotient, exact.to(quotient.dtype)) for quotient in quotients)
    return None if right else "it divides otherwise than the CPU"


def current(device: torch.device) -> AbstractContextManager[Any]:
    """Make it torch's current device, on which kernels are launched."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def to_device(array: NDArray[Any], device: torch.device) -> torch.Tensor:
    """An array on a device, copied without waiting where the device allows it."""
    host = torch.from_numpy(np.ascontiguousarray(array))
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)


class Tables:
    """Tables of many scales side by side on a device, each put there once."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._drop(1)

    def _drop(self, room: int) -> None:
        """Forget all tables; leave room for so many."""
        self._places: dict[int, tuple[int, int]] = {}
        self._kept: list[GridTable] = []  # so that no other takes the identity of one
        self.first = torch.empty((room, _CELLS), dtype=torch.int16, device=self._device)
        self.below = torch.empty((room, _CELLS + 1), dtype=torch.int32, device=self._device)
        self.thresholds = torch.empty(room * 2**12, dtype=torch.int64, device=self._device)
        self._end = 0

    def places(self, tables: Sequence[GridTable]) -> list[tuple[int, int, int]]:
        """Offsets of each table's ``first``, ``below`` and ``thresholds``; those that are not there yet are added."""
        wanted = {id(table): table for table in tables}
        new = [table for key, table in wanted.items() if key not in self._places]
        if len(self._places) + len(new) > LARGEST_TABLES:
            self._drop(len(wanted))
            new = list(wanted.values())
        for table in new:
            self.put(table)
        found = [self._places[id(table)] for table in tables]
        return [(place * _CELLS, place * (_CELLS + 1), at) for place, at in found]

    def put(self, table: GridTable) -> None:
        """Put one more table there."""
        place, end = len(self._places), self._end + len(table.thresholds)
        self.first = _with_room(self.first, place + 1)
        self.below = _with_room(self.below, place + 1)
        self.thresholds = _with_room(self.thresholds, end)
        self.first[place].copy_(to_device(table.first, self._device))
        self.below[place].copy_(to_device(table.below, self._device))
        self.thresholds[self._end : end].copy_(to_device(table.thresholds.view(np.int64), self._device))
        self._places[id(table)], self._end = (place, self._end), end
        self._kept.append(table)


def _with_room(held: torch.Tensor, size: int) -> torch.Tensor:
    """A tensor with at least so many rows, the first of them those held."""
    if len(held) >= size:
        return held
    grown = held.new_empty((max(size, 2 * len(held)), *held.shape[1:]))
    grown[: len(held)].copy_(held)
    return grown


class DeviceNoise:
    """Draws grid noise on one device and one stream of it, while they are the current ones.

    Args:
        device: with ``fault(device)`` None.
    """

    def __init__(self, device: torch.device) -> None:
        from ddsmoothing.kernels import triton_kernels

        self._kernels, self._device, self._tables, self._lock = triton_kernels, device, Tables(device), Lock()

    def draw(self, out: torch.Tensor, centres: torch.Tensor, parts: Sequence[Part]) -> None:
        """Write ``X + K`` for all parts, which may be of many inputs and scales.

        Args:
            out: ``(rows, d)`` int16, contiguous.   centres: ``(B, d)`` int16, the inputs' integers X.
        """
        with self._lock:  # of the tables, which threads on one stream share
            for launch in launches_of(parts, out.shape[1]):
                self._launch(out, centres, launch)

    def _launch(self, out: torch.Tensor, centres: torch.Tensor, parts: Sequence[Part]) -> None:
        d = out.shape[1]
        grid = (len(parts), max(_programs(part, d) for part in parts))
        places = self._tables.places([part.table for part in parts])
        lines = to_device(_lines(parts, places), self._device)
        counts = torch.empty(grid, dtype=torch.int32, device=self._device)
        cells = torch.empty((*grid, 16 * COUNTERS), dtype=torch.int32, device=self._device)
        mark, tables = parts[0].table.undecided, self._tables
        self._kernels.decide[grid](
            out, centres, lines, tables.first, cells, counts, grid[1], d=d, mark=mark, size=COUNTERS, num_warps=4
        )
        upto = counts.cumsum(1)
        self._kernels.refine[grid](
            *(out, centres, lines, tables.below, tables.thresholds, cells, counts, upto, grid[1]),
            **{"d": d, "size": COUNTERS, "lanes": LANES, "num_warps": 2},
        )

    def divide(self, out: torch.Tensor, sums: torch.Tensor, levels: int) -> None:
        """Write ``sums / levels``, divided in float32, in the type and memory format of out.

        Args:
            out: ``(rows, ...)`` float32, float16 or bfloat16.   sums: ``(rows, d)`` int16, contiguous.
        """
        pixels = 0 if out.is_contiguous() else out[0, 0].numel()
        flat = torch.as_strided(out, (out.numel(),), (1,))
        brain = out.dtype == torch.bfloat16
        self._kernels.divide[(-(-out.numel() // NUMBERS),)](
            *(flat.view(torch.int16) if brain else flat, sums, float(levels), out.numel()),
            **{"d": sums.shape[1], "pixels": pixels, "brain": brain, "size": NUMBERS, "num_warps": 4},
        )


def _programs(part: Part, d: int) -> int:
    """How many programs decide the coordinates of a part."""
    return -(-part.rows * -(-d // 4) // (4 * COUNTERS))


def launches_of(parts: Sequence[Part], d: int) -> list[list[Part]]:
    """Parts cut into launches: of a bounded number of coordinates, all parts as long as the longest, and of scales."""
    found: list[list[Part]] = []
    longest, scales = 0, set[int]()
    for part in parts:
        longest, scales = max(longest, _programs(part, d)), scales | {id(part.table)}
        lanes = longest * (len(found[-1]) + 1 if found else 1) * 16 * COUNTERS
        if not found or lanes > LARGEST_LAUNCH or len(scales) > LARGEST_TABLES:
            found.append([])
            longest, scales = _programs(part, d), {id(part.table)}
        found[-1].append(part)
    return found


def _lines(parts: Sequence[Part], places: list[tuple[int, int, int]]) -> NDArray[np.int64]:
    """A line of int64 for each part, as ``triton_kernels`` reads them."""
    words = np.array([part.words for part in parts], dtype=np.uint64).view(np.int64)
    others = [
        (part.rows, part.row, part.centre, *place, part.table.start) for part, place in zip(parts, places, strict=True)
    ]
    return np.concatenate([words, np.array(others, dtype=np.int64)], axis=1)
