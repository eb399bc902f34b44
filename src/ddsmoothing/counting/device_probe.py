"""How many rows a forward pass should have on a GPU: as many as fit and bring something. Its noise is thrown away."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import torch

from ddsmoothing.counting.contract import Request
from ddsmoothing.counting.device import LARGEST_NUMBERS, LARGEST_ROWS, DeviceCounter
from ddsmoothing.counting.engine import Engine
from ddsmoothing.inputs import Batch
from ddsmoothing.noise import Noise
from ddsmoothing.streams import Stream

GAIN: Final = 1.03  # what twice as many rows have to bring
SMALLEST: Final = 32


def probe_rows(engine: Engine, noise: Noise, num_classes: int, batch: Batch) -> int:
    """The rows of one forward pass on the device of a batch, a power of two; for ``DeviceCounter``."""

    def rate(rows: int) -> float:
        counter, best = DeviceCounter(engine, noise, num_classes, rows), 0.0
        request = Request(row=0, sigma=0.25, stream=Stream.PILOT, n=4 * rows)
        for seed in range(3):  # the first run only warms up
            start = time.perf_counter()
            counter.counted(batch, [request], seed)
            best = max(best, request.n / (time.perf_counter() - start)) if seed else 0.0
        return best

    return fastest_rows(rate, max(1, min(LARGEST_ROWS, LARGEST_NUMBERS // batch.d)))


def fastest_rows(rate: Callable[[int], float], largest: int) -> int:
    """Double the rows until that brings less than 3 % or memory is short; where it is short at once, halve them.

    Args:
        rate: samples a second at so many rows; raises ``torch.OutOfMemoryError``.
        largest: that may be tried.
    Returns: A number of rows that was tried and fits; 1 if nothing does.
    """
    rows = SMALLEST
    while rows > largest:
        rows //= 2
    best, best_rate = 0, 0.0
    while rows <= largest:
        try:
            found = rate(rows)
        except torch.OutOfMemoryError:
            if best or rows == 1:
                break
            rows, largest = rows // 2, rows // 2
            continue
        if best and found < GAIN * best_rate:
            break
        best, best_rate = rows, found
        rows *= 2
    return max(1, best)
