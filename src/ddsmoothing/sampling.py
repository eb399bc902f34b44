"""Class counts under noise: the only caller of the base classifier without gradients.

It knows no bounds and no radii. Requests of many inputs are packed into forward passes of one fixed shape, so memory
does not grow with the number of samples, and the counts do not depend on how the work is cut.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from threading import Event, Lock
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ddsmoothing.devices import torch_threads, untouched
from ddsmoothing.errors import InputError, ModelError, ShapeError
from ddsmoothing.noise import LEVELS, FloatBlock, GridBlock, Noise, check_word, grid_table, noise_blocks

LARGEST_BLOCK = 256
BLOCK_ELEMENTS = 2**21  # input numbers in one forward pass, at most
LARGEST_WORKERS = 8  # forward passes side by side
SHARE_PASSES = 8  # forward passes in one share of the work, at least: only the last is padded

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


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Inputs made ready for sampling.

    Attributes:
        grid: int16 ``(B, d)``, the integers X of inputs ``X/255``.   values: the inputs ``(B, d)`` as given.
        on_grid: ``(B,)`` bool.   ids: the noise key of each input.   sha256: of each input's bytes.
        shape: of one input.   device, dtype: of the samples.
    """

    grid: NDArray[np.int16]
    values: torch.Tensor
    on_grid: NDArray[np.bool_]
    ids: tuple[int, ...]
    sha256: tuple[str, ...]
    shape: tuple[int, ...]
    device: torch.device
    dtype: torch.dtype

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def d(self) -> int:
        """Numbers in one input."""
        return math.prod(self.shape)


def prepare(x: torch.Tensor, ids: Sequence[int] | None, device: torch.device | None) -> Batch:
    """Check a batch of inputs, find which lie on the 8-bit grid, and give each an id.

    Args:
        x: ``(B, ...)``, uint8 (taken as X/255) or floating point.
        ids: one 64-bit integer an input, or None: the first 64 bits of the SHA-256 of the input's bytes.
        device: where the base classifier runs; None means where x is.
    Raises: ShapeError, InputError.
    """
    if not isinstance(x, torch.Tensor):
        raise ShapeError(f"got {type(x).__name__}, expected a torch.Tensor (B, ...) of inputs.")
    if x.ndim < 2 or len(x) == 0 or x[0].numel() == 0:
        raise ShapeError(
            f"got inputs of shape {tuple(x.shape)}, expected (B, ...) with at least one input; add x[None]?"
        )
    if x.dtype != torch.uint8 and not x.is_floating_point():
        raise ShapeError(f"got inputs of type {x.dtype}, expected uint8 (0..255) or floating point.")
    device = device or x.device
    flat = x.detach().flatten(1).cpu()
    if flat.dtype == torch.uint8:
        grid = flat.to(torch.int16)
        flat = flat.to(torch.float32) / LEVELS
        on_grid = torch.ones(len(flat), dtype=torch.bool)
    else:
        if not bool(torch.isfinite(flat).all()):
            raise InputError("the inputs contain NaN or infinity, expected finite numbers.")
        near = (flat.double() * LEVELS).round()
        on_grid = ((near / LEVELS).to(flat.dtype) == flat).all(1) & ((near >= 0) & (near <= LEVELS)).all(1)
        on_grid &= ((near.to(flat.dtype) / LEVELS) == flat).all(1)
        grid = torch.where(on_grid[:, None], near, 0.0).to(torch.int16)
    sha256 = tuple(_digest(g, v, bool(on)) for g, v, on in zip(grid.numpy(), flat, on_grid, strict=True))
    return Batch(
        grid=grid.numpy(),
        values=flat,
        on_grid=on_grid.numpy(),
        ids=_ids(ids, sha256),
        sha256=sha256,
        shape=tuple(x.shape[1:]),
        device=device,
        dtype=flat.dtype,
    )


def _digest(grid: NDArray[np.int16], value: torch.Tensor, on_grid: bool) -> str:
    """SHA-256 of an input's 8-bit integers, or of its little-endian float64 numbers if it is off the grid."""
    data = grid.astype(np.uint8) if on_grid else value.double().numpy().astype("<f8")
    return hashlib.sha256(data.tobytes()).hexdigest()


def _ids(ids: Sequence[int] | None, sha256: tuple[str, ...]) -> tuple[int, ...]:
    if ids is None:
        return tuple(int(digest[:16], 16) for digest in sha256)
    checked = tuple(check_word(int(i) if isinstance(i, np.integer) else i, "input id") for i in ids)
    if len(checked) != len(sha256):
        raise ShapeError(f"got {len(checked)} ids for {len(sha256)} inputs, expected one each.")
    if len(set(checked)) != len(checked):
        raise InputError("ids are not distinct; inputs that share an id would share their noise. Give each its own.")
    return checked


def default_block_size(d: int) -> int:
    """Rows of one forward pass for d-dimensional inputs."""
    return max(1, min(LARGEST_BLOCK, BLOCK_ELEMENTS // d))


class ClassCounter:
    """Counts the base classifier's answers to noisy copies of inputs.

    Every forward pass has the same shape ``(block_size, ...)``; the last one of each share of the work is padded. On a
    CPU several forward passes of a module run side by side, each with its own noise, which costs less than many
    threads inside one pass; a bare callable, which may have state, is called by one thread only.
    """

    def __init__(self, model: BaseClassifier, noise: Noise, num_classes: int, block_size: int) -> None:
        self._model, self._noise, self._classes, self._rows = model, noise, num_classes, block_size

    def count(
        self, batch: Batch, requests: Sequence[Request], seed: int, progress: Progress | None = None
    ) -> NDArray[np.int64]:
        """Counts ``(len(requests), K)``; each row sums to the request's n.

        Args:
            progress: called with the number of samples done since its last call.
        Raises:
            ModelError: the model's answer is not ``(B, K)`` or not finite.
        """
        threads = torch.get_num_threads()
        workers = min(threads, LARGEST_WORKERS) if isinstance(self._model, torch.nn.Module) else 1
        shares = self._shares(batch, requests, workers)
        stop, lock = Event(), Lock()

        def report(samples: int) -> None:
            if stop.is_set():
                raise _StoppedError
            if progress is not None:
                with lock:
                    progress(samples)

        with untouched(self._model), torch_threads(threads // workers), ThreadPoolExecutor(workers) as pool:
            futures = [pool.submit(self._count_share, batch, requests, seed, share, report) for share in shares]
            try:
                return np.asarray(np.sum([future.result() for future in futures], axis=0), dtype=np.int64)
            except BaseException:
                stop.set()
                raise

    def _shares(self, batch: Batch, requests: Sequence[Request], workers: int) -> list[list[_Piece]]:
        """All noise blocks of all requests in consecutive shares, those on the 8-bit grid first."""
        shares = []
        for on_grid in (True, False):
            pieces = [
                _Piece(request=i, block=block, rows=rows)
                for i, request in enumerate(requests)
                if batch.on_grid[request.row] == on_grid
                for block, rows in noise_blocks(batch.d, request.first_block, request.n)
            ]
            ends = np.cumsum([piece.rows for piece in pieces])
            size = max(SHARE_PASSES * self._rows, -(-int(ends[-1]) // workers // 4)) if pieces else 1
            for _, group in groupby(zip(pieces, ends, strict=True), key=lambda pair: (int(pair[1]) - 1) // size):
                shares.append([piece for piece, _ in group])
        return shares

    def _count_share(
        self, batch: Batch, requests: Sequence[Request], seed: int, share: list[_Piece], report: Progress
    ) -> NDArray[np.int64]:
        """Counts ``(len(requests), K)`` of one share, whose inputs are all on the grid or all off it."""
        on_grid = bool(batch.on_grid[requests[share[0].request].row])
        noise = np.zeros((self._rows, batch.d), dtype=np.int16 if on_grid else np.float64)
        noisy = torch.zeros((self._rows, *batch.shape), dtype=batch.dtype, device=batch.device)
        counts = torch.zeros(len(requests) * self._classes, dtype=torch.int64, device=batch.device)
        ones = torch.ones(self._rows, dtype=torch.int64, device=batch.device)
        finite = torch.ones((), dtype=torch.bool, device=batch.device)
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
                noisy.reshape(self._rows, -1).copy_(torch.from_numpy(noise))
                if on_grid:
                    noisy /= LEVELS  # integers are added first and divided once: see noise.py
                logits = check_logits(self._model(noisy), self._rows, self._classes)[:used]
                finite &= torch.isfinite(logits).all()
                counts.index_add_(0, owner[:used].to(batch.device) * self._classes + logits.argmax(1), ones[:used])
                report(used)
            if not bool(finite):
                raise ModelError(
                    "the base classifier gave NaN or infinite logits on noisy inputs; a certificate from them would "
                    "be meaningless. Check its weights and the range of its inputs."
                )
        return counts.reshape(len(requests), self._classes).cpu().numpy()

    def _passes(
        self, batch: Batch, requests: Sequence[Request], seed: int, share: list[_Piece], on_grid: bool
    ) -> Iterator[list[_Part]]:
        """Cut a share into full forward passes; only the last may be part empty."""
        parts: list[_Part] = []
        free = self._rows
        for piece in share:
            request = requests[piece.request]
            key = (seed, batch.ids[request.row], request.stream, piece.block)
            scale = self._noise.scale(request.sigma)
            center: NDArray[Any]
            source: GridBlock | FloatBlock
            if on_grid:
                center, source = batch.grid[request.row], GridBlock(grid_table(self._noise.name, scale), key, batch.d)
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
