"""Class counts under noise: the only caller of the base classifier without gradients.

It knows no bounds and no radii. Requests of many inputs are packed into forward passes of one fixed shape, so memory
does not grow with the number of samples, and the counts do not depend on how the work is cut.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby
from threading import Event, Lock
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ddsmoothing.devices import keep_freed_memory, torch_threads, untouched
from ddsmoothing.errors import InputError, ModelError, unknown
from ddsmoothing.inputs import Batch
from ddsmoothing.noise import (
    FloatBlock,
    Generators,
    GridBlock,
    Noise,
    Stream,
    grid_table,
    noise_blocks,
    rows_per_block,
)

LARGEST_BLOCK = 256
BLOCK_ELEMENTS = 2**21  # input numbers in one forward pass, at most
LARGEST_WORKERS = 8  # forward passes side by side
PRECISIONS: Final[dict[str, torch.dtype | None]] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
SMALLEST_PROBE, LARGEST_PROBE = 32, 1024  # rows of a forward pass that the probe tries
SHARE_PASSES = 8  # forward passes in one share of the work, where there is enough of it: only the last is padded

Progress = Callable[[int], None]


class BaseClassifier(Protocol):
    """Anything that maps inputs ``(B, ...)`` to logits ``(B, K)``; a ``torch.nn.Module`` is one."""

    def __call__(self, x: torch.Tensor, /) -> torch.Tensor: ...


@dataclass(frozen=True, kw_only=True)
class Request:
    """So many noisy samples of one input at one noise scale.

    Attributes:
        row: index into the batch.   sigma: standard deviation.   stream, first_block: which noise.   n: samples.
    """

    row: int
    sigma: float
    stream: int
    n: int
    first_block: int = 0


class Executor(Protocol):
    """Who runs forward passes: this process (``ClassCounter``), workers elsewhere, or a file of kept counts."""

    def run(
        self, batch: Batch, requests: Sequence[Request], seed: int, progress: Progress | None = None
    ) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Yield ``(i, counts (K,))`` once for every request i, in any order, each as soon as it is known.

        The counts are a function of the input, the request and the seed, whoever draws them and however often.
        """


class Workers(Protocol):
    """Processes that run forward passes in place of this one.

    Attributes:
        listener: told ``worker lost`` and ``retry`` with details, where it is set.   size: how many workers there are.
        lost, retries: how often a worker was lost and a task sent again.
    """

    listener: Callable[..., None] | None
    size: int
    lost: int
    retries: int

    def executor(self, engine: Engine, noise: Noise, num_classes: int, block_size: int) -> Executor:
        """The executor of one model; arguments as for ``ClassCounter``."""


def cut_request(d: int, request: Request, samples: int) -> tuple[Request, Request | None]:
    """A request cut at a noise block after at most so many samples, but at least one block, and what is left of it.

    Its counts are the sum of both parts' counts, bit for bit.
    """
    rows = rows_per_block(d)
    blocks = max(1, samples // rows)
    if blocks * rows >= request.n:
        return request, None
    rest = replace(request, first_block=request.first_block + blocks, n=request.n - blocks * rows)
    return replace(request, n=blocks * rows), rest


def default_block_size(d: int) -> int:
    """Rows of one forward pass for d-dimensional inputs."""
    return max(1, min(LARGEST_BLOCK, BLOCK_ELEMENTS // d))


@dataclass(frozen=True, kw_only=True)
class Form:
    """In which form noisy inputs reach the model: number type and memory format."""

    dtype: torch.dtype | None
    channels_last: bool


class Engine:
    """A base classifier made ready to run: cast, laid out and compiled copies of a module, or the model itself.

    Args:
        model: a module or callable; only modules can be cast, laid out or compiled.
    """

    def __init__(
        self,
        model: BaseClassifier,
        *,
        precision: str = "fp32",
        channels_last: bool = False,
        compiled: bool = False,
    ) -> None:
        if precision not in PRECISIONS:
            raise InputError(unknown("precision", precision, PRECISIONS))
        dtype = PRECISIONS[precision]
        changed = dtype is not None or channels_last or compiled
        if changed and not isinstance(model, torch.nn.Module):
            raise InputError("precision, channels_last and compiled need a torch.nn.Module, got a bare callable.")
        self.form = Form(dtype=dtype, channels_last=channels_last)
        self.side_by_side = isinstance(model, torch.nn.Module) and not compiled
        self.model = model
        if changed:
            assert isinstance(model, torch.nn.Module)
            copied = copy.deepcopy(model).to(dtype=dtype)
            if channels_last:
                copied = copied.to(memory_format=torch.channels_last)
            self.model = torch.compile(copied.eval()) if compiled else copied


class ClassCounter:
    """Counts the base classifier's answers to noisy copies of inputs.

    Every forward pass has the same shape ``(block_size, ...)``; the last one of each share of the work is padded. On a
    CPU several forward passes of a module run side by side, each with its own noise, which costs less than many
    threads inside one pass; a bare callable, which may have state, is called by one thread only.
    """

    def __init__(self, engine: Engine, noise: Noise, num_classes: int, block_size: int) -> None:
        self._engine, self._noise, self._classes, self._rows = engine, noise, num_classes, block_size

    def run(
        self, batch: Batch, requests: Sequence[Request], seed: int, progress: Progress | None = None
    ) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """All counts at once, when the last forward pass is done; see ``Executor``."""
        yield from enumerate(self.count(batch, requests, seed, progress))

    def count(
        self, batch: Batch, requests: Sequence[Request], seed: int, progress: Progress | None = None
    ) -> NDArray[np.int64]:
        """Counts ``(len(requests), K)``; each row sums to the request's n.

        Args:
            progress: called with the number of samples done since its last call.
        Raises:
            ModelError: the model's answer is not ``(B, K)`` or not finite.
        """
        keep_freed_memory()
        threads = torch.get_num_threads()
        workers = min(threads, LARGEST_WORKERS) if self._engine.side_by_side else 1
        shares = self._shares(batch, requests, workers)
        stop, lock = Event(), Lock()

        def report(samples: int) -> None:
            if stop.is_set():
                raise _StoppedError
            if progress is not None:
                with lock:
                    progress(samples)

        with untouched(self._engine.model), torch_threads(threads // workers), ThreadPoolExecutor(workers) as pool:
            futures = [pool.submit(self._count_share, batch, requests, seed, share, report) for share in shares]
            try:
                return np.asarray(np.sum([future.result() for future in futures], axis=0), dtype=np.int64)
            except BaseException:
                stop.set()
                raise

    def _shares(self, batch: Batch, requests: Sequence[Request], workers: int) -> list[list[_Piece]]:
        """All noise blocks of all requests in consecutive shares, those on the grid first."""
        shares = []
        for on_grid in (True, False):
            pieces = [
                _Piece(request=i, block=block, rows=rows)
                for i, request in enumerate(requests)
                if batch.on_grid[request.row] == on_grid
                for block, rows in noise_blocks(batch.d, request.first_block, request.n)
            ]
            if not pieces:
                continue
            ends = np.cumsum([piece.rows for piece in pieces])
            total = int(ends[-1])
            each = min(4, max(1, total // (workers * SHARE_PASSES * self._rows)))  # shares for each worker
            size = max(self._rows, -(-total // (workers * each)))
            for _, group in groupby(zip(pieces, ends, strict=True), key=lambda pair: (int(pair[1]) - 1) // size):
                shares.append([piece for piece, _ in group])
        return shares

    def _count_share(
        self, batch: Batch, requests: Sequence[Request], seed: int, share: list[_Piece], report: Progress
    ) -> NDArray[np.int64]:
        """Counts ``(len(requests), K)`` of one share, whose inputs are all on the grid or all off it."""
        on_grid = bool(batch.on_grid[requests[share[0].request].row])
        noise = np.zeros((self._rows, batch.d), dtype=batch.grid.dtype if on_grid else np.float64)
        drawn = torch.from_numpy(noise)
        flat = torch.zeros((self._rows, batch.d), dtype=batch.dtype, device=batch.device)
        counts = torch.zeros(len(requests) * self._classes, dtype=torch.int64, device=batch.device)
        ones = torch.ones(self._rows, dtype=torch.int64, device=batch.device)
        total = torch.zeros((), dtype=torch.float64, device=batch.device)  # NaN or infinite as soon as one logit is
        levels = torch.tensor(float(batch.levels), dtype=batch.dtype, device=batch.device)
        owner = torch.zeros(self._rows, dtype=torch.int64)
        with torch.inference_mode():
            for parts in self._passes(batch, requests, seed, share, on_grid):
                used = 0
                for part in parts:
                    rows = noise[used : used + part.rows]
                    part.source.fill(rows)
                    rows += part.center
                    owner[used : used + part.rows] = part.request
                    used += part.rows
                if on_grid:  # integers are added first and divided once: see noise.py
                    torch.div(drawn.to(batch.device), levels, out=flat)
                else:
                    flat.copy_(drawn)
                noisy = self._formed(flat.reshape(self._rows, *batch.shape))
                logits = check_logits(self._engine.model(noisy), self._rows, self._classes)[:used]
                total += logits.sum(dtype=torch.float64)
                counts.index_add_(0, owner[:used].to(batch.device) * self._classes + logits.argmax(1), ones[:used])
                report(used)
            if not bool(torch.isfinite(total)):
                raise ModelError(
                    "the base classifier gave NaN or infinite logits on noisy inputs; a certificate from them would "
                    "be meaningless. Check its weights and the range of its inputs."
                )
        return counts.reshape(len(requests), self._classes).cpu().numpy()

    def _formed(self, noisy: torch.Tensor) -> torch.Tensor:
        form = self._engine.form
        if form.channels_last and noisy.ndim == 4:
            return noisy.to(dtype=form.dtype or noisy.dtype, memory_format=torch.channels_last)
        return noisy if form.dtype is None else noisy.to(form.dtype)

    def _passes(
        self, batch: Batch, requests: Sequence[Request], seed: int, share: list[_Piece], on_grid: bool
    ) -> Iterator[list[_Part]]:
        """Cut a share into full forward passes; only the last may be part empty."""
        parts: list[_Part] = []
        free, generators = self._rows, Generators()
        for piece in share:
            request = requests[piece.request]
            key = (seed, batch.ids[request.row], request.stream, piece.block)
            scale = self._noise.scale(request.sigma)
            center: NDArray[Any]
            source: GridBlock | FloatBlock
            if on_grid:
                center, source = (
                    batch.grid[request.row],
                    GridBlock(grid_table(self._noise.name, scale, batch.levels), key, batch.d, generators),
                )
            else:
                center, source = batch.values[request.row].double().numpy(), FloatBlock(self._noise, scale, key)
            left = piece.rows
            while left:
                rows = min(left, free)
                parts.append(_Part(request=piece.request, center=center, source=source, rows=rows))
                free, left = free - rows, left - rows
                if not free:
                    yield parts
                    parts, free = [], self._rows
        if parts:
            yield parts


def check_logits(logits: object, rows: int, num_classes: int) -> torch.Tensor:
    """Return what a base classifier gave if it is ``(rows, num_classes)``, else raise ModelError."""
    if not isinstance(logits, torch.Tensor) or logits.shape != (rows, num_classes):
        got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ModelError(
            f"the base classifier returned {got} for {rows} inputs, expected logits of shape ({rows}, {num_classes}); "
            f"is num_classes={num_classes} right?"
        )
    return logits


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


class _StoppedError(Exception):
    """Another worker failed or the user interrupted."""


class _Piece(NamedTuple):
    """So many rows of one noise block of one request."""

    request: int
    block: int
    rows: int


class _Part(NamedTuple):
    """Rows of one forward pass: an input and the noise block to draw from next."""

    request: int
    center: NDArray[Any]
    source: Any
    rows: int
