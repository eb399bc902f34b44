"""How many rows a forward pass should have on this machine. Its noise is thrown away."""

from __future__ import annotations

import time

import torch

from ddsmoothing.counting.contract import Request
from ddsmoothing.counting.engine import Engine
from ddsmoothing.counting.local import BLOCK_ELEMENTS, LARGEST_WORKERS, ClassCounter
from ddsmoothing.inputs import Batch
from ddsmoothing.noise import Noise
from ddsmoothing.streams import Stream

SMALLEST_PROBE, LARGEST_PROBE = 32, 1024  # rows of a forward pass that the probe tries


def probe_block_size(engine: Engine, noise: Noise, num_classes: int, batch: Batch) -> int:
    """The rows of one forward pass with the highest rate on this machine, among powers of two.

    Larger blocks are tried until two in a row bring nothing; each is timed on the best of two runs.
    """
    largest = max(1, 4 * BLOCK_ELEMENTS // batch.d)
    best, best_rate, worse = 1, 0.0, 0
    size = min(largest, SMALLEST_PROBE)
    while size <= min(largest, LARGEST_PROBE) and worse < 2:
        counter = ClassCounter(engine, noise, num_classes, size)
        request = Request(
            row=0, sigma=0.25, stream=Stream.PILOT, n=2 * size * min(torch.get_num_threads(), LARGEST_WORKERS)
        )
        rate = 0.0
        for seed in range(3):  # the first run only warms up
            start = time.perf_counter()
            counter.count(batch, [request], seed)
            rate = max(rate, request.n / (time.perf_counter() - start)) if seed else 0.0
        best, best_rate, worse = (size, rate, 0) if rate > best_rate else (best, best_rate, worse + 1)
        size *= 2
    return best
