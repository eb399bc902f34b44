"""Inputs made ready for sampling: on the grid or not, with an id and a hash each.

It knows no models and draws nothing. Whether an input lies on the grid is decided for each input by itself.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ddsmoothing.errors import DdsmoothingWarning, InputError, ShapeError, SigmaError
from ddsmoothing.kernels.rounding import on_grid_values
from ddsmoothing.noise import LARGEST_LEVELS, LARGEST_SIGMA, LEVELS, snap_to_grid
from ddsmoothing.streams import check_word

ROUNDING: Final = 2.0**-10  # that float16 pixels may lie outside [0, 1]
OFF_GRID: Final = (
    "some inputs do not lie on the stated grid of {} steps to the unit, so they get float noise, which is not exact; "
    "snap=True (--snap) moves them to it, or state their true steps."
)
INTEGERS: Final = {torch.uint8: LEVELS, torch.uint16: 65535}  # pixels as they are stored, and their grid's levels


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Inputs made ready for sampling.

    Attributes:
        levels: the grid is ``X / levels``, X an integer: 255 for 8-bit images.
        grid: ``(B, d)`` the integers X, int16 for 8-bit images, else int32.   values: the inputs ``(B, d)`` as given.
        on_grid: ``(B,)`` bool.   ids: the noise key of each input.   sha256: of each input's bytes.
        moved: ``(B,)`` bound on the distance each input was moved to the grid, 0 unless that was asked for.
        shape: of one input.   device, dtype: of the samples.
        any_range: inputs outside [0, 1] were let in on request; sigma and radii are in their units, whatever these are.
    """

    levels: int
    grid: NDArray[np.int16] | NDArray[np.int32]
    values: torch.Tensor
    on_grid: NDArray[np.bool_]
    ids: tuple[int, ...]
    sha256: tuple[str, ...]
    moved: NDArray[np.float64]
    shape: tuple[int, ...]
    device: torch.device
    dtype: torch.dtype
    any_range: bool = False

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def d(self) -> int:
        """Numbers in one input."""
        return math.prod(self.shape)


def check_levels(levels: int) -> int:
    """Return a usable number of grid steps to the unit, else raise InputError."""
    if isinstance(levels, bool) or not isinstance(levels, int) or not 1 <= levels <= LARGEST_LEVELS:
        raise InputError(
            f"levels is {levels!r}, expected a whole number, 1 to {LARGEST_LEVELS}: 255 for 8-bit pixels, 65535 for "
            "16 bits, 100 for columns in steps of 0.01."
        )
    return levels


def check_sigma(sigma: ArrayLike, size: int) -> NDArray[np.float64]:
    """One sigma for each of ``size`` inputs, float64; SigmaError or ShapeError if it is not usable."""
    if isinstance(sigma, torch.Tensor):
        sigma = sigma.detach().cpu().numpy()
    try:
        values = np.asarray(sigma, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise SigmaError(f"sigma is {sigma!r}, expected one number or one for each input.") from None
    if np.asarray(sigma).dtype == np.bool_:
        raise SigmaError(f"sigma is {sigma!r}, expected a number.")
    if values.shape not in ((), (1,), (size,)):
        raise ShapeError(f"got sigma of shape {values.shape}, expected one number or one for each of {size} inputs.")
    for value in values.ravel():
        if not (math.isfinite(value) and 0.0 < value <= LARGEST_SIGMA):
            raise SigmaError(
                f"sigma is {value}, expected a positive finite number of at most {LARGEST_SIGMA:g} in the units of the "
                "input (pixels in [0, 1]: a sigma given for 0..255 is to be divided by 255)."
            )
    return np.array(np.broadcast_to(values, (size,)))


def prepare(
    x: torch.Tensor | NDArray[Any],
    ids: Sequence[int] | None,
    device: torch.device | None,
    snap: str | None = None,
    levels: int = LEVELS,
    any_range: bool = False,
) -> Batch:
    """Check a batch of inputs, find which lie on the grid, and give each an id.

    Args:
        x: ``(B, ...)``, a tensor or array, floating point, or uint8 (taken as X/255), or uint16 (X/65535).
        ids: one 64-bit integer an input, or None: the first 64 bits of the SHA-256 of the input's bytes.
        device: where the base classifier runs; None means where x is.
        snap: a norm: move inputs to the nearest grid point, and keep how far in that norm. None leaves them.
        levels: of the grid; 255 for 8-bit images, 65535 for 16 bits, 100 for columns in steps of 0.01.
        any_range: let in inputs outside [0, 1] on the grid of 255 levels, which is that of pixels; on other grids the
            range is free.
    Raises: ShapeError, InputError. Warns where levels are stated and inputs lie off their grid.
    """
    if isinstance(x, np.ndarray) and x.dtype.kind in "uif":
        x = torch.from_numpy(np.array(x))
    if not isinstance(x, torch.Tensor):
        raise ShapeError(f"got {type(x).__name__}, expected a tensor or an array (B, ...) of inputs.")
    if x.ndim < 2 or len(x) == 0 or x[0].numel() == 0:
        raise ShapeError(
            f"got inputs of shape {tuple(x.shape)}, expected (B, ...) with at least one input; add x[None]?"
        )
    if x.dtype not in INTEGERS and not x.is_floating_point():
        raise ShapeError(f"got inputs of type {x.dtype}, expected uint8 (0..255), uint16 or floating point.")
    if x.dtype in INTEGERS and levels != INTEGERS[x.dtype]:
        raise ShapeError(
            f"got inputs of type {x.dtype}, which stand for X/{INTEGERS[x.dtype]}, for a grid of {levels} levels; give "
            f"them as floating point, or say levels={INTEGERS[x.dtype]}."
        )
    device = device or x.device
    flat = x.detach().flatten(1).cpu()
    moved = np.zeros(len(x))
    integer = torch.int16 if levels == LEVELS else torch.int32
    if flat.dtype in INTEGERS:
        grid, on_grid = flat.to(integer), torch.ones(len(flat), dtype=torch.bool)
        flat = on_grid_values(grid, levels, torch.float32)
    else:
        if not bool(torch.isfinite(flat).all()):
            raise InputError("the inputs contain NaN or infinity, expected finite numbers.")
        if levels == LEVELS and not any_range:
            _check_range(float(flat.min()), float(flat.max()))
        if snap is not None:
            flat, moved = _snapped(flat, snap, levels)
        near = (flat.double() * levels).round()
        low, high = _range(levels)
        on_grid = ((near >= low) & (near <= high)).all(1) & ((near / levels).to(flat.dtype) == flat).all(1)
        on_grid &= (on_grid_values(near, levels, flat.dtype) == flat).all(1)
        if flat.element_size() < 4:  # a coarse type may not tell grid points apart
            for other in (near - 1, near + 1):
                on_grid &= (on_grid_values(other, levels, flat.dtype) != flat).all(1)
        if snap is not None and not bool(on_grid.all()):
            raise InputError(
                f"numbers of type {flat.dtype} do not tell the points of a grid of {levels} levels apart; give the "
                "inputs as float32 or float64, or do without snap."
            )
        if levels != LEVELS and not bool(on_grid.all()):
            warnings.warn(OFF_GRID.format(levels), DdsmoothingWarning, stacklevel=2)
        grid = torch.where(on_grid[:, None], near, 0.0).to(integer)
    sha256 = tuple(_digest(g, v, bool(on)) for g, v, on in zip(grid.numpy(), flat, on_grid, strict=True))
    return Batch(
        levels=levels,
        grid=grid.numpy(),
        values=flat,
        on_grid=on_grid.numpy(),
        ids=_ids(ids, sha256),
        sha256=sha256,
        moved=moved,
        shape=tuple(x.shape[1:]),
        device=device,
        dtype=flat.dtype,
        any_range=any_range,
    )


def _check_range(low: float, high: float) -> None:
    """Refuse what are no pixels in [0, 1]: noise and radii in other units are easily taken for these."""
    if low < -ROUNDING or high > 1.0 + ROUNDING:
        raise InputError(
            f"the inputs lie in [{low:g}, {high:g}], expected [0, 1]: divide pixels in 0..255 by 255, and put the "
            "normalisation into the model. For columns of a table state levels=, their steps to the unit, or "
            "any_range=True."
        )


def _range(levels: int) -> tuple[float, float]:
    """Smallest and largest integer of an input: a pixel's, and elsewhere what fits 32 bits and float32 exactly."""
    return (0.0, 255.0) if levels == LEVELS else (-(2.0**23), 2.0**23)


def _snapped(x: torch.Tensor, norm: str, levels: int) -> tuple[torch.Tensor, NDArray[np.float64]]:
    """Inputs ``(B, d)`` at their nearest grid points, and bounds ``(B,)`` on the distances."""
    values = x.double().numpy()
    nearest, moved = snap_to_grid(values, norm, levels)
    low, high = _range(levels)
    if (
        nearest.min() < low
        or nearest.max() > high
        or (levels == LEVELS and not (0 <= values.min() <= values.max() <= 1))
    ):
        place = "[0, 1]" if levels == LEVELS else f"[{low / levels:g}, {high / levels:g}]"
        raise InputError(f"only inputs in {place} can be moved to the grid; scale them, or do without snap.")
    points = on_grid_values(torch.from_numpy(nearest), levels, x.dtype)
    return points, np.where((points == x).all(1).numpy(), 0.0, moved)


def _digest(grid: NDArray[np.int16], value: torch.Tensor, on_grid: bool) -> str:
    """SHA-256 of an input's integers, or of its float64 numbers if it is off the grid; little-endian."""
    if on_grid:
        data = grid.astype(np.uint8 if grid.dtype == np.int16 else "<i4").tobytes()
    else:
        data = value.double().numpy().astype("<f8").tobytes()
    return hashlib.sha256(data).hexdigest()


def _key(digest: str, before: int) -> int:
    """The noise key of an input: of its bytes, and of how many equal ones stand before it, so that none share noise."""
    text = digest if not before else hashlib.sha256(f"{digest} {before}".encode()).hexdigest()
    return int(text[:16], 16)


def _ids(ids: Sequence[int] | None, sha256: tuple[str, ...]) -> tuple[int, ...]:
    if ids is None:
        return tuple(_key(digest, sha256[:i].count(digest)) for i, digest in enumerate(sha256))
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
