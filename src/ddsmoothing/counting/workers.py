"""Where forward passes run: in this process, or on the workers of a Ray cluster.

It knows no certificates and no files. Counts are a function of input, noise and model, so that neither the number of
workers nor a worker that is lost changes a result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Final

from ddsmoothing.errors import InputError, unknown

if TYPE_CHECKING:
    from ddsmoothing.counting.contract import Workers

__all__ = ["EXECUTORS", "workers_of"]


@contextmanager
def _local(address: str | None, workers: int | None, device: str, gpus: Sequence[int]) -> Iterator[None]:
    if address is not None or workers is not None or gpus:
        raise InputError("an address, a number of workers and several GPUs belong to the executor ray, got local.")
    yield None


@contextmanager
def _ray(address: str | None, workers: int | None, device: str, gpus: Sequence[int]) -> Iterator[Workers]:
    from ddsmoothing.counting.on_ray import RayWorkers

    with RayWorkers(address, workers, device=device, gpus=gpus) as started:
        yield started


Start = Callable[[str | None, int | None, str, Sequence[int]], AbstractContextManager["Workers | None"]]
EXECUTORS: Final[dict[str, Start]] = {
    "local": _local,
    "ray": _ray,
}


def workers_of(
    executor: str,
    *,
    address: str | None = None,
    workers: int | None = None,
    device: str = "cpu",
    gpus: Sequence[int] = (),
) -> AbstractContextManager[Workers | None]:
    """The workers of an executor, for ``SmoothedClassifier.with_workers``; None for ``local``. Leaving it stops them.

    Args:
        executor: ``local`` or ``ray``.   address: of a running Ray cluster.   workers: how many.
        device: type of the device that the model is on.   gpus: of this machine, one worker each, started here.
    Raises: InputError and its kin; RunError where the cluster cannot be reached.
    """
    if executor not in EXECUTORS:
        raise InputError(unknown("executor", executor, EXECUTORS))
    return EXECUTORS[executor](address, workers, device, gpus)
