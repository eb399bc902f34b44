"""What is borrowed from the caller: devices, modes, threads; all are given back as they came.

It knows no noise and no certificates.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch

from ddsmoothing.errors import InputError

KEPT_BYTES = 256 * 2**20
LARGEST_KEPT_BLOCK = 32 * 2**20  # glibc takes no more
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def named_device(name: str | torch.device) -> torch.device:
    """The device of that name; ``auto`` is the first CUDA device, else the CPU.

    Raises: InputError naming the devices that exist.
    """
    if isinstance(name, str) and name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    known = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        known.append("mps")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        device = None
    if device is None or not any(str(device) in (entry, entry.split(":")[0]) for entry in known):
        raise InputError(f"there is no device {str(name)!r} here, expected one of: {', '.join(known)}.")
    return device


def device_of(model: Any) -> torch.device | None:
    """Where a module's first parameter or buffer lives; None for anything else."""
    if isinstance(model, torch.nn.Module):
        for tensor in (*model.parameters(), *model.buffers()):
            return tensor.device
    return None


@contextmanager
def untouched(model: Any) -> Iterator[None]:
    """Run a module in eval mode and without gradients for its parameters, and leave it exactly as it came."""
    modules = list(model.modules()) if isinstance(model, torch.nn.Module) else []
    parameters = list(model.parameters()) if isinstance(model, torch.nn.Module) else []
    modes = [module.training for module in modules]
    wanted = [parameter.requires_grad for parameter in parameters]
    try:
        for module in modules:
            module.training = False
        for parameter in parameters:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
        for parameter, flag in zip(parameters, wanted, strict=True):
            parameter.requires_grad_(flag)


@contextmanager
def torch_threads(each: int) -> Iterator[None]:
    """Let every thread started inside use so many threads of its own; the setting is put back afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(each)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@cache
def keep_freed_memory() -> bool:
    """Ask glibc, once in a process, to keep freed memory for the next forward pass; True where it took the wish.

    By default glibc gives the large buffers of each pass back to the system, which then clears new pages for the next
    one: a quarter of the time of a small model. Up to KEPT_BYTES stay with the process instead. Elsewhere nothing
    happens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, LARGEST_KEPT_BLOCK)) and bool(mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES))
