"""A connection to a Ray cluster, or Ray started on this machine: what is set for it, and put back.

It knows no models and no work.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from typing import Any, Final

from ddsmoothing.errors import InputError, RunError, extra

CONNECT_SECONDS: Final = 10.0
SAME: Final = ("ddsmoothing", "torch", "numpy")  # packages whose versions must agree, since counts depend on them
VISIBLE: Final = "CUDA_VISIBLE_DEVICES"  # what Ray and CUDA go by


def ray_module() -> Any:
    """Ray, imported when it is needed."""
    try:
        import ray
        import ray.exceptions
    except ImportError:
        raise InputError(f"the executor ray needs Ray: {extra('ray')}; or use --executor local.") from None
    return ray


def connect(address: str | None, workers: int | None, gpus: Sequence[int] = ()) -> bool:
    """Connect to a cluster, or start Ray here; False if this process is connected already.

    Args:
        address: HOST:PORT, ``auto`` or ``local``; None takes ``RAY_ADDRESS``, and without that ``local``.
        workers: CPUs of a Ray that is started here; None leaves it to Ray.
        gpus: the only GPUs of this machine that a Ray started here may use; none leaves it to Ray.
    Raises: InputError, RunError.
    """
    ray = ray_module()
    if gpus and (ray.is_initialized() or address not in (None, "local")):
        raise InputError("GPUs are named for a Ray that is started here, and one is in use already; leave one of both.")
    if ray.is_initialized():
        return False
    address = "local" if gpus else address or os.environ.get("RAY_ADDRESS") or "local"
    own = address == "local"
    if "://" in address:
        raise InputError(f"the address is {address!r}, expected HOST:PORT, auto or local, on a machine of the cluster.")
    if not own and address != "auto":
        _check_reachable(address)
    rest = {"num_cpus": workers, "include_dashboard": False} if own else {}
    with ExitStack() as stack:
        stack.enter_context(_handlers_kept())
        stack.enter_context(_setting("RAY_USAGE_STATS_ENABLED", "0"))
        if gpus:  # Ray's processes take this over, and each worker sees one of them
            rest["num_gpus"] = len(gpus)
            stack.enter_context(_setting(VISIBLE, visible(gpus)))
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR", **rest)
        except (OSError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise RunError(f"cannot {'start' if own else 'use'} Ray ({address}): {reason[:300]}") from None
    return True


def visible(gpus: Sequence[int]) -> str:
    """Some of the GPUs that this process sees, as Ray and CUDA name them."""
    names = os.environ.get(VISIBLE)
    return ",".join(str(i) if not names else names.split(",")[i].strip() for i in gpus)


def threads_a_gpu() -> int:
    """In a worker that has one GPU: the CPUs of its machine for each GPU there, by which noise may be drawn."""
    ray = ray_module()
    here = ray.get_runtime_context().get_node_id()
    has = next(node["Resources"] for node in ray.nodes() if node["NodeID"] == here)
    return max(1, int(has.get("CPU", 1) // max(1, has.get("GPU", 1))))


def versions() -> dict[str, str]:
    """Versions of the packages that counts depend on, in this process."""
    return {name: version(name) for name in SAME}


def check_versions(there: dict[str, str]) -> None:
    """Raise RunError unless those of a worker are this process's."""
    for name, mine in versions().items():
        if there[name].split("+")[0] != mine.split("+")[0]:  # builds for CPU and for CUDA may meet
            raise RunError(
                f"a worker has {name} {there[name]}, this machine {mine}; counts could differ. Install the "
                "same versions everywhere."
            )


def _check_reachable(address: str) -> None:
    """Ray itself would wait for minutes, and write to standard error meanwhile."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise InputError(f"the address is {address!r}, expected HOST:PORT such as 10.0.0.1:6379, auto or local.")

    async def knock() -> None:
        _, writer = await asyncio.wait_for(asyncio.open_connection(host, int(port)), CONNECT_SECONDS)
        writer.close()

    try:
        asyncio.run(knock())
    except (OSError, OverflowError, TimeoutError) as error:
        raise RunError(
            f"no Ray cluster answers at {address} ({getattr(error, 'strerror', None) or 'no answer'}); is it running "
            f"(ray start --head), and can this machine reach it?"
        ) from None


@contextmanager
def _handlers_kept() -> Iterator[None]:
    """Ray takes the handler of SIGTERM; give it back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _setting(name: str, value: str) -> Iterator[None]:
    """An environment variable for the processes that are started inside."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def free_resources() -> str:
    """What the cluster has left, in words."""
    ray = ray_module()
    free = ray.available_resources()
    whole = ray.cluster_resources()
    return ", ".join(f"{free.get(kind, 0):g} of {whole.get(kind, 0):g} {kind}s free" for kind in ("CPU", "GPU"))
