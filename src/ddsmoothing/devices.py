"""What is borrowed from the caller: devices, modes, threads; all are given back as they came.

It knows no noise and no certificates.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from threading import RLock, local
from typing import Any, Final

import torch

from ddsmoothing.errors import InputError

KEPT_BYTES = 256 * 2**20
LARGEST_KEPT_BLOCK = 32 * 2**20  # glibc takes no more
TABLES: Final = ("_parameters", "_buffers", "_modules")  # of a module
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


def named_devices(names: str) -> tuple[torch.device, ...]:
    """The device of that name, or several: ``cuda:0,cuda:1``, or all CUDA devices for ``all``.

    Raises: InputError naming the devices that exist. Several have to be CUDA devices of one kind, since counts in near
        ties may differ between kinds.
    """
    if names == "all":
        names = ",".join(f"cuda:{i}" for i in range(torch.cuda.device_count()))
        if not names:
            raise InputError("there is no CUDA device here, and --device all means all of them.")
    devices = tuple(named_device(name.strip()) for name in names.split(","))
    if len(devices) == 1:
        return devices
    if any(device.type != "cuda" or device.index is None for device in devices) or len(set(devices)) < len(devices):
        raise InputError(f"the devices are {names!r}, expected different CUDA devices such as cuda:0,cuda:1, or all.")
    kinds = sorted({torch.cuda.get_device_name(device) for device in devices})
    if len(kinds) > 1:
        raise InputError(f"devices are of several kinds, whose counts could differ ({', '.join(kinds)}); name some.")
    return devices


def device_of(model: Any) -> torch.device | None:
    """Where a module's first parameter or buffer lives; None for anything else."""
    if isinstance(model, torch.nn.Module):
        for tensor in (*model.parameters(), *model.buffers()):
            return tensor.device
    return None


class _Loan:
    """Something in use: what puts it back when the last of its users lets go, and a turn for one at a time."""

    def __init__(self, thing: Any) -> None:
        self.thing, self.put_back, self.users, self.turn = thing, _take(thing), 0, RLock()


_LOANS: Final[dict[int, _Loan]] = {}
_LOCK: Final = RLock()


@contextmanager
def untouched(model: Any) -> Iterator[Any]:
    """Run a module in eval mode and without gradients for its parameters, and leave it exactly as it came.

    Modes, flags and attributes of a module are put back when its last user lets go of it, in whatever threads and order
    they come and go; numbers inside its tensors are not. A bare callable is left alone.

    Yields: a lock that all share who use this model at the same time, for one that only one may call at a time.
    """
    things = [model]
    if isinstance(model, torch.nn.Module):
        things += [*list(model.modules())[1:], *model.parameters()]
    held: list[_Loan] = []
    try:
        with _LOCK:
            for thing in things:
                if id(thing) not in _LOANS:
                    _LOANS[id(thing)] = _Loan(thing)
                held.append(_LOANS[id(thing)])
                held[-1].users += 1
        yield held[0].turn
    finally:
        with _LOCK:
            for loan in held:
                loan.users -= 1
                if not loan.users:
                    del _LOANS[id(loan.thing)]
                    loan.put_back()


def _take(thing: Any) -> Callable[[], object]:
    """Make a module or parameter ready; returns what puts it back."""
    if isinstance(thing, torch.nn.Module):
        mode, before = thing.training, dict(vars(thing))
        tables = [(table, dict(table)) for name, table in before.items() if name in TABLES and isinstance(table, dict)]
        thing.training = False
        return partial(_put_back, thing, mode, before, tables)
    if isinstance(thing, torch.nn.Parameter):
        wanted = thing.requires_grad
        thing.requires_grad_(False)
        return partial(thing.requires_grad_, wanted)
    return bool


def _put_back(
    module: torch.nn.Module, mode: bool, before: dict[str, Any], tables: list[tuple[dict[str, Any], dict[str, Any]]]
) -> None:
    attributes = vars(module)
    for name in attributes.keys() - before.keys():
        del attributes[name]
    attributes.update(before)
    for table, entries in tables:
        table.clear()
        table.update(entries)
    module.training = mode


class _Depth(local):
    """How many uses of ``torch_threads`` a thread is inside."""

    uses = 0


_DEPTH: Final = _Depth()
_ACTIVE: Final[list[tuple[int, int]]] = []  # uses in all threads: their setting, and what it was before


@contextmanager
def torch_threads(each: int) -> Iterator[None]:
    """Let every thread started inside use so many threads of its own; the setting is put back afterwards.

    A thread takes over the setting that is in force when it first computes. One that did so while another thread's use
    was open goes back to what was there before that use.
    """
    with _LOCK:
        before = torch.get_num_threads()
        if not _DEPTH.uses and before in (setting for setting, _ in _ACTIVE):
            before = _ACTIVE[0][1]
        _ACTIVE.append((each, before))
        _DEPTH.uses += 1
        torch.set_num_threads(each)
    try:
        yield
    finally:
        with _LOCK:
            _ACTIVE.remove((each, before))
            _DEPTH.uses -= 1
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
