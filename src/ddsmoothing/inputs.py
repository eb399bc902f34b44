"""Inputs made ready for sampling: on the 8-bit grid or not, with an id and a hash each.

It knows no models and draws nothing. Whether an input lies on the grid is decided for each input by itself.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ddsmoothing.errors import InputError, ShapeError
from ddsmoothing.noise import LEVELS, check_word, snap_to_grid


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Inputs made ready for sampling.

    Attributes:
        grid: int16 ``(B, d)``, the integers X of inputs ``X/255``.   values: the inputs ``(B, d)`` as given.
        on_grid: ``(B,)`` bool.   ids: the noise key of each input.   sha256: of each input's bytes.
        moved: ``(B,)`` bound on the distance each input was moved to the grid, 0 unless that was asked for.
        shape: of one input.   device, dtype: of the samples.
    """

    grid: NDArray[np.int16]
    values: torch.Tensor
    on_grid: NDArray[np.bool_]
    ids: tuple[int, ...]
    sha256: tuple[str, ...]
    moved: NDArray[np.float64]
    shape: tuple[int, ...]
    device: torch.device
    dtype: torch.dtype

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def d(self) -> int:
        """Numbers in one input."""
        return math.prod(self.shape)


def prepare(x: torch.Tensor, ids: Sequence[int] | None, device: torch.device | None, snap: str | None = None) -> Batch:
    """Check a batch of inputs, find which lie on the 8-bit grid, and give each an id.

    Args:
        x: ``(B, ...)``, uint8 (taken as X/255) or floating point.
        ids: one 64-bit integer an input, or None: the first 64 bits of the SHA-256 of the input's bytes.
        device: where the base classifier runs; None means where x is.
        snap: a norm: move inputs to the nearest grid point, and keep how far in that norm. None leaves them.
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
    moved = np.zeros(len(x))
    if snap is not None and x.is_floating_point():
        x, moved = _snapped(x, snap)
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
        moved=moved,
        shape=tuple(x.shape[1:]),
        device=device,
        dtype=flat.dtype,
    )


def _snapped(x: torch.Tensor, norm: str) -> tuple[torch.Tensor, NDArray[np.float64]]:
    """Inputs in [0, 1] at their nearest grid points, as uint8, and bounds ``(B,)`` on the distances."""
    values = x.detach().cpu().double().flatten(1).numpy()
    if not (np.isfinite(values).all() and values.min() >= 0.0 and values.max() <= 1.0):
        raise InputError("only inputs in [0, 1] can be moved to the 8-bit grid; scale them, or do without snap.")
    nearest, moved = snap_to_grid(values, norm)
    same = (torch.from_numpy(nearest).to(x.dtype) / LEVELS).numpy() == x.detach().cpu().flatten(1).numpy()
    return torch.from_numpy(nearest.astype(np.uint8)).reshape(x.shape), np.where(same.all(1), 0.0, moved)


def _digest(grid: NDArray[np.int16], value: torch.Tensor, on_grid: bool) -> str:
    """SHA-256 of an input's 8-bit integers, or of its little-endian float64 numbers if it is off the grid."""
    data = grid.astype(np.uint8) if on_grid else value.double().numpy().astype("<f8")
    return hashlib.sha256(data.tobytes()).hexdigest()


def _ids(ids: Sequence[int] | None, sha256: tuple[str, ...]) -> tuple[int, ...]:
    if ids is None:
        return tuple(int(digest[:16], 16) for digest in sha256)
    given = ids.tolist() if isinstance(ids, (torch.Tensor, np.ndarray)) else ids
    try:
        checked = tuple(check_word(i, "input id") for i in given)
    except TypeError:
        raise InputError(f"ids are {ids!r}, expected one 64-bit integer for each input.") from None
    if len(checked) != len(sha256):
        raise ShapeError(f"got {len(checked)} ids for {len(sha256)} inputs, expected one each.")
    if len(set(checked)) != len(checked):
        raise InputError("ids are not distinct; inputs that share an id would share their noise. Give each its own.")
    return checked
