"""Workers on a Ray cluster: each is a process with one thread, or one GPU, that counts tasks of about a second.

It knows no samplers, no bounds and no files. The model goes to the cluster once, through Ray's object store: Ray
pickles it between processes of your own cluster, and nothing here unpickles a file. A worker that is lost is replaced,
and its tasks are sent again, which cannot change a result.
"""

from __future__ import annotations

import copy
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from ddsmoothing.counting.cluster import check_versions, connect, free_resources, ray_module, threads_a_gpu, versions
from ddsmoothing.counting.contract import Executor, Progress, Request, tally_shape
from ddsmoothing.counting.engine import Engine
from ddsmoothing.counting.here import Counter, counter_on
from ddsmoothing.counting.ledger import IN_HAND, Ledger, Pace, Task
from ddsmoothing.errors import DdsmoothingError, InputError, ModelError, RunError
from ddsmoothing.inputs import Batch
from ddsmoothing.noise import Noise

START_SECONDS: Final = 300.0  # without any worker, after which we give up
MOST_FAILED_STARTS: Final = 3  # in a row
POLL_SECONDS: Final = 1.0  # how often we look for late tasks while nothing comes back
KEPT_OBJECTS: Final = 4  # models and batches that a worker keeps

Counted = tuple[list[NDArray[np.int64]], float]  # what was asked, and seconds
Answer = Counted | DdsmoothingError | None  # or what the model did wrong, or nothing where the worker was lost


class CountingWorker:
    """What runs inside a worker's process, one task at a time: by one thread, or on a GPU with its share of the CPUs.

    Args:
        path: where else to look for the module that a model's class is in.   device: type of the device it has.
    """

    def __init__(self, path: list[str], device: str = "cpu") -> None:
        sys.path.extend(folder for folder in path if folder not in sys.path)
        torch.set_num_threads(1 if device == "cpu" else threads_a_gpu())
        self.kept: dict[str, Any] = {}  # of the object store, by reference; what was used last stands last

    def versions(self) -> dict[str, str]:
        """Versions of the packages that counts depend on."""
        return versions()

    def count(self, counter: list[Any], batch: list[Any], requests: list[Request], seed: int) -> Counted:
        """Count requests, and time it; counter and batch are references, in lists so that Ray waits."""
        ready, inputs = self._get(counter[0]), self._get(batch[0])
        start = time.perf_counter()
        counts = ready.count(inputs, requests, seed)
        return counts, time.perf_counter() - start

    def _get(self, ref: Any) -> Any:
        """An object of the store, made once; the ones used last are kept."""
        value = self.kept.pop(ref.hex(), None)
        if value is None:
            value = ray_module().get(ref)
            if isinstance(value, Shipped):
                value = value.counter()
        self.kept[ref.hex()] = value
        while len(self.kept) > KEPT_OBJECTS:
            self.kept.pop(next(iter(self.kept)))
        return value


@dataclasses.dataclass(frozen=True)
class Shipped:
    """A counter on its way to workers: its module on the CPU, and the type of device where it shall run."""

    engine: Engine
    noise: Noise
    num_classes: int
    block_size: int
    device: str

    def counter(self) -> Counter:
        device = None
        if isinstance(self.engine.model, torch.nn.Module):
            self.engine.model.to(device := torch.device(self.device))
        return counter_on(device, self.engine, self.noise, self.num_classes, self.block_size)


@dataclasses.dataclass(eq=False)
class Hand:
    """One worker as the driver sees it; pace: with each model."""

    actor: Any
    number: int
    ready: bool = False
    tasks: list[Task] = dataclasses.field(default_factory=list)
    pace: dict[int, Pace] = dataclasses.field(default_factory=dict)


class RayWorkers:
    """Workers on a Ray cluster, for ``SmoothedClassifier.with_workers``; a context manager that stops them.

    Args:
        address: of a running cluster, such as ``10.0.0.1:6379`` or ``auto``; None takes ``RAY_ADDRESS``, and without
            that (or for ``local``) starts Ray on this machine, to be stopped again.
        workers: how many; None takes one for each CPU of the cluster (for each GPU if device is ``cuda``).
        device: type of the device that models run on.
        gpus: indices of GPUs of this machine, for which Ray is started here with one worker each; needs ``cuda``.
    Attributes:
        listener: told ``worker lost`` and ``retry``.   size: number of workers.   lost, retries: how often.
        hands: the workers, ready or not.
    Raises: InputError without the extra ``ray``; RunError where the cluster cannot be reached.
    """

    def __init__(
        self,
        address: str | None = None,
        workers: int | None = None,
        *,
        device: str = "cpu",
        gpus: Sequence[int] = (),
    ) -> None:
        if workers is not None and workers < 1:
            raise InputError(f"the number of workers is {workers}, expected at least 1.")
        if gpus and (device != "cuda" or workers not in (None, len(gpus))):
            raise InputError(f"{len(gpus)} GPUs have a worker each, got {workers} workers on {device}.")
        self._device = device
        self.listener: Callable[..., None] | None = None
        self.lost = self.retries = 0
        self._executors: dict[tuple[int, str, int, int], RayExecutor] = {}
        self._batch: tuple[Batch, Any] | None = None
        self._pending: dict[Any, tuple[Hand, Task | None]] = {}
        self.hands: list[Hand] = []
        self._failed, self._started = 0, 0
        self._connected = connect(address, workers if device == "cpu" else None, gpus)
        try:
            self.size = (
                workers
                or len(gpus)
                or int(ray_module().cluster_resources().get("GPU" if device == "cuda" else "CPU", 0))
            )
            if not self.size:
                raise RunError(f"the cluster has nothing to run on {device} with; give the number of workers.")
            options = {"num_cpus": 1, "num_gpus": int(device == "cuda"), "max_restarts": 0, "max_task_retries": 0}
            self._actor = ray_module().remote(CountingWorker).options(**options)
            for _ in range(self.size):
                self._start()
        except BaseException:
            self.close()
            raise
        self._alone_since = time.monotonic()

    def __enter__(self) -> RayWorkers:
        return self

    def __exit__(self, kind: object, error: object, at: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the workers and let go of the cluster; Ray stops where it was started here."""
        self._pending.clear()
        for hand in self.hands:
            ray_module().kill(hand.actor)
        self.hands.clear()
        if self._connected:
            ray_module().shutdown()

    def executor(self, engine: Engine, noise: Noise, num_classes: int, block_size: int) -> Executor:
        """The executor of one model, which is sent to the cluster the first time."""
        key = (id(engine), noise.name, num_classes, block_size)
        if key not in self._executors:
            self._executors[key] = RayExecutor(self, engine, noise, num_classes, block_size)
        return self._executors[key]

    def ship(self, engine: Engine, noise: Noise, num_classes: int, block_size: int) -> Any:
        """Put a model into the object store; returns its reference."""
        shipped = copy.copy(engine)
        if isinstance(engine.model, torch.nn.Module) and self._device != "cpu":
            shipped.model = copy.deepcopy(engine.model).cpu()
        try:
            return ray_module().put(Shipped(shipped, noise, num_classes, block_size, self._device))
        except Exception as error:  # whatever a model's own pickling may raise
            reason = next((line for line in str(error).splitlines() if "FAIL" in line), str(error)).split("FAIL")[-1]
            raise ModelError(
                f"the base classifier cannot be sent to workers ({reason.strip().splitlines()[0]}); it must be "
                "picklable, so keep locks, files and generators out of it, or use the executor local."
            ) from None

    def place(self, batch: Batch) -> Any:
        """Put a batch into the object store; the last one is not sent again."""
        if self._batch is None or self._batch[0] is not batch:
            moved = dataclasses.replace(batch, device=torch.device(self._device))
            self._batch = (batch, ray_module().put(moved))
        return self._batch[1]

    @property
    def ready(self) -> int:
        """Workers that have started."""
        return sum(hand.ready for hand in self.hands)

    def idle(self) -> list[Hand]:
        """Workers that can take a task, those with the fewest first."""
        free = [hand for hand in self.hands if hand.ready and len(hand.tasks) < IN_HAND]
        return sorted(free, key=lambda hand: len(hand.tasks))

    def send(self, hand: Hand, task: Task, counter: Any, batch: Any, seed: int) -> None:
        """Give a worker a task."""
        ref = hand.actor.count.remote([counter], [batch], [request for _, request in task.parts], seed)
        hand.tasks.append(task)
        self._pending[ref] = (hand, task)

    def wait(self) -> Iterator[tuple[Hand, Task, Answer]]:
        """What comes back next: worker, task and its answer, None where the worker was lost with it."""
        waiting = list(self._pending)
        done, _ = ray_module().wait(waiting, num_returns=1, timeout=POLL_SECONDS)
        if done:
            done, _ = ray_module().wait(waiting, num_returns=len(waiting), timeout=0)
        for ref in done:
            if ref in self._pending:  # not of a worker that was lost a moment ago
                yield from self._back(ref)
        if self.ready:
            self._alone_since = time.monotonic()
        elif time.monotonic() - self._alone_since > START_SECONDS:
            raise RunError(
                f"no worker was ready for {START_SECONDS:.0f} s: {free_resources()}. Ask for fewer, or add machines."
            )

    def _back(self, ref: Any) -> Iterator[tuple[Hand, Task, Answer]]:
        hand, task = self._pending.pop(ref)
        try:
            answer = ray_module().get(ref)
        except ray_module().exceptions.RayTaskError as error:
            if task is None:
                raise _own_error(error) from None
            answer = _own_error(error)
        except ray_module().exceptions.RayError as error:
            yield from self._lose(hand, task, error)
            return
        if task is None:
            check_versions(answer)
            hand.ready, self._failed = True, 0
        else:
            hand.tasks.remove(task)
            yield hand, task, answer

    def _lose(self, hand: Hand, task: Task | None, error: Exception) -> Iterator[tuple[Hand, Task, None]]:
        """Replace a worker, and give its tasks back."""
        reason = " ".join(str(error).split())
        if not hand.ready:
            self._failed += 1
            if self._failed >= MOST_FAILED_STARTS:
                raise RunError(f"{self._failed} workers in a row could not start: {reason[:300]}") from None
        self.lost += 1
        self.tell("worker lost", worker=hand.number, tasks=len(hand.tasks), why=reason[:300])
        self._pending = {ref: pair for ref, pair in self._pending.items() if pair[0] is not hand}
        self.hands.remove(hand)
        ray_module().kill(hand.actor)
        self._start()
        for each in hand.tasks:
            yield hand, each, None

    def _start(self) -> None:
        self._started += 1
        path = [str(Path(folder).absolute()) for folder in sys.path]
        hand = Hand(self._actor.remote(path, self._device), self._started)
        self.hands.append(hand)
        self._pending[hand.actor.versions.remote()] = (hand, None)

    def tell(self, event: str, **details: Any) -> None:
        """Tell the listener, if there is one."""
        if self.listener is not None:
            self.listener(event, **details)


class RayExecutor:
    """One model on Ray workers; see ``Executor``.

    Args:
        pool: the workers.   engine, noise, num_classes, block_size: as for ``ClassCounter``.
    """

    def __init__(self, pool: RayWorkers, engine: Engine, noise: Noise, num_classes: int, block_size: int) -> None:
        self._pool, self._classes, self._rows = pool, num_classes, block_size
        self._engine = engine  # held, so that its id stays its own
        self._counter = pool.ship(engine, noise, num_classes, block_size)

    def run(
        self, batch: Batch, requests: Sequence[Request], seed: int, progress: Progress | None = None
    ) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Counts of each request when its last task is back."""
        none = ((i, tally_shape(request.tally, self._classes)) for i, request in enumerate(requests) if not request.n)
        yield from ((i, np.zeros(shape, np.int64)) for i, shape in none)
        ledger, placed = Ledger(batch.d, requests, self._classes, self._rows), self._pool.place(batch)
        mine: set[Task] = set()
        while not ledger.finished:
            self._hand_out(ledger, mine, batch.ids, placed, seed)
            for hand, task, answer in self._pool.wait():
                if task not in mine:  # left over from a call that was broken off
                    continue
                if answer is None:
                    self._again(ledger, task, batch.ids)
                    continue
                if isinstance(answer, DdsmoothingError):
                    raise answer
                counts, seconds = answer
                self._pace(hand).learn(task.samples, seconds)
                if progress is not None and not task.done:
                    progress(task.samples)
                yield from ledger.settle(task, counts)

    def _hand_out(self, ledger: Ledger, mine: set[Task], ids: tuple[int, ...], batch: Any, seed: int) -> None:
        """Fill the hands of all workers, first the empty ones."""
        for _ in range(IN_HAND):
            for hand in self._pool.idle():
                in_hand = sum(task.samples for task in hand.tasks)
                task = ledger.lend(self._pace(hand), in_hand, self._pool.ready, time.monotonic())
                if task is None:
                    continue
                if task.holders > 1:
                    self._report(task, ids, "late")
                mine.add(task)
                self._pool.send(hand, task, self._counter, batch, seed)

    def _again(self, ledger: Ledger, task: Task, ids: tuple[int, ...]) -> None:
        if ledger.lost(task):
            self._report(task, ids, "lost")

    def _report(self, task: Task, ids: tuple[int, ...], why: str) -> None:
        self._pool.retries += 1
        inputs = sorted({ids[request.row] for _, request in task.parts})
        self._pool.tell("retry", why=why, samples=task.samples, inputs=inputs)

    def _pace(self, hand: Hand) -> Pace:
        return hand.pace.setdefault(id(self), Pace())


def _own_error(error: Any) -> DdsmoothingError:
    """What a worker raised: our errors as they are, others as the model's failure."""
    cause = error.cause
    if isinstance(cause, DdsmoothingError):
        return cause
    text = " ".join(str(cause).split())[:300]
    return ModelError(
        f"the base classifier failed on a worker: {type(cause).__name__}: {text}. Every machine needs the same "
        "packages and your model's module."
    )
