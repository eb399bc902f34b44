"""From grid points to inputs of a model: one division, the same bits on every device. It draws nothing.

A grid certificate speaks of the numbers ``(X + K) / levels``. On CUDA a tensor divided by a Python number is multiplied
by its reciprocal, which gives other floats for half of all pixels; so whatever feeds a model divides here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch


def on_grid_values(
    integers: torch.Tensor,
    levels: int,
    dtype: torch.dtype,
    device: torch.device | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """The numbers ``X / levels`` that grid points stand for; gradients pass.

    Args:
        integers: whole numbers X, or sums with integer noise, of any type and shape.
        levels: grid steps to the unit.
        dtype: of the numbers: ``integers`` in this type divided by ``levels`` in this type, rounded once.
        device: where they are wanted; None: where the integers are.
        out: a tensor of this type on that device to write them into.
    """
    device = integers.device if device is None else device
    if divides_exactly(device, dtype, levels):
        return _divided(integers.to(device), levels, dtype, out)
    found = _divided(integers.cpu(), levels, dtype)
    return found.to(device) if out is None else out.copy_(found)


def _divided(integers: torch.Tensor, levels: int, dtype: torch.dtype, out: torch.Tensor | None = None) -> torch.Tensor:
    """By a tensor that lives where the integers do: another one would be taken for a Python number."""
    divisor = torch.full((), float(levels), dtype=dtype, device=integers.device)
    return integers.to(dtype) / divisor if out is None else out.copy_(integers).div_(divisor)


@cache
def divides_exactly(device: torch.device, dtype: torch.dtype, levels: int) -> bool:
    """Whether a device divides as the CPU does: tried once, on all integers of 16 bits."""
    return device.type == "cpu" or same_bits(lambda x: _divided(x.to(device), levels, dtype), levels, dtype)


def same_bits(divide: Callable[[torch.Tensor], torch.Tensor], levels: int, dtype: torch.dtype) -> bool:
    """Whether a way to divide gives the numbers that the CPU gives; False where it cannot."""
    integers = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    try:
        found = divide(integers).cpu()
    except (RuntimeError, TypeError):  # a device without this type
        return False
    return torch.equal(found, _divided(integers, levels, dtype))
