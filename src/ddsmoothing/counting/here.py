"""Who counts in this process, and in passes of how many rows: the loop for a GPU on one, else threads of the CPU."""

from __future__ import annotations

import torch

from ddsmoothing.counting.device import DeviceCounter, default_rows
from ddsmoothing.counting.device_probe import probe_rows
from ddsmoothing.counting.engine import Engine
from ddsmoothing.counting.local import ClassCounter, default_block_size
from ddsmoothing.counting.probe import probe_block_size
from ddsmoothing.inputs import Batch
from ddsmoothing.kernels.numerics import settled_numerics
from ddsmoothing.noise import Noise

Counter = ClassCounter | DeviceCounter


def has_loop(device: torch.device | None) -> bool:
    """Whether the loop for a GPU serves it; None is where a bare callable's inputs lie."""
    return device is not None and device.type == "cuda"


def counter_on(device: torch.device | None, engine: Engine, noise: Noise, num_classes: int, block_size: int) -> Counter:
    """Who counts a model that lives on a device; the other arguments are those of ``ClassCounter``."""
    make = DeviceCounter if has_loop(device) else ClassCounter
    return make(engine, noise, num_classes, block_size)


def default_rows_on(device: torch.device | None, d: int) -> int:
    """Rows of a pass of d-dimensional inputs where none were looked for."""
    return default_rows(d) if has_loop(device) else default_block_size(d)


def probed_rows(engine: Engine, noise: Noise, num_classes: int, batch: Batch) -> int:
    """The fastest rows of a pass where a batch lies, found by a short timed probe; its noise is thrown away."""
    probe = probe_rows if has_loop(batch.device) else probe_block_size
    return probe(engine, noise, num_classes, batch)


def numerics_on(device: torch.device) -> dict[str, bool]:
    """How floats are computed while samples are counted there, for the header of a run; nothing to say on a CPU."""
    with settled_numerics(device) as record:
        return record
