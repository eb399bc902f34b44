"""How many samples a second a model gives here, by passes that grow. The noise is thrown away."""

from __future__ import annotations

import time
from typing import Final

import torch

from ddsmoothing.counting.contract import Request
from ddsmoothing.counting.engine import Engine
from ddsmoothing.counting.here import counter_on, has_loop
from ddsmoothing.counting.local import LARGEST_WORKERS
from ddsmoothing.inputs import Batch
from ddsmoothing.noise import Noise
from ddsmoothing.streams import Stream

GROWTH: Final = 4  # of the rows of a pass from one to the next
DEVICE_PASSES: Final = 4  # asked for at once on a GPU


def samples_a_second(
    engine: Engine, noise: Noise, num_classes: int, batch: Batch, rows: int, seconds: float, *, growing: bool = True
) -> float:
    """The rate in passes of so many rows, or of as many as the time allows: a slow model is asked for few.

    Passes grow from one row, and none is begun that would end too late; only the first one may. What has to be compiled
    for each number of rows should not grow.
    """
    begun = time.perf_counter()
    side = DEVICE_PASSES if has_loop(batch.device) else min(torch.get_num_threads(), LARGEST_WORKERS)
    size, best, warm = 1 if growing else rows, 0.0, False
    while True:
        start = time.perf_counter()
        request = Request(row=0, sigma=0.25, stream=Stream.PILOT, n=size * side)
        counter_on(batch.device, engine, noise, num_classes, size).count(batch, [request], seed=0)
        now = time.perf_counter()
        best = max(best, request.n / (now - start)) if warm else request.n / (now - start)
        if size == rows and warm:
            return best
        warm = warm or size == rows or size > 1
        size = min(rows, GROWTH * size)
        if now - begun + size * side / best > seconds:
            return best
