"""Noise: Gaussian and uniform, keyed by (seed, input id, stream, block), exact on the 8-bit grid.

It knows no model and no certificate. Inputs on the grid ``X/255`` (X an integer) get integer noise ``K`` with
``P[K = k] = P[k - 1/2 < 255 e <= k + 1/2]``, e the real noise, so that ``(X + K)/255`` has exactly the law of the real
noisy input rounded to the grid: nothing of x leaks through low-order bits. All other inputs get float noise.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_left
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from ddsmoothing.errors import InputError, SigmaError, unknown
from ddsmoothing.lattice import FIXED, gaussian_cdf, uniform_cdf
from ddsmoothing.streams import Generators, philox

LEVELS: Final = 255  # the 8-bit grid is X / LEVELS; other grids have other levels, steps to the unit
LARGEST_LEVELS: Final = 2**20
LARGEST_STEPS: Final = 70_000  # scale of the noise in grid steps: more would take seconds and memory
LARGEST_SIGMA: Final = 12.0  # its integer noise still fits 16 bits, as that of lambda = sqrt(3) sigma does

_DRAWN = 63  # bits that decide one integer
_FIRST = 16  # bits of them looked up in a table
_REST = _DRAWN - _FIRST
_UNDECIDED = np.int16(-32768)


@dataclass(frozen=True, kw_only=True, eq=False)
class GridTable:
    """An exact sampler of integer noise.

    Attributes:
        first: ``(65536,)`` int16, int32 for wide noise and for grids other than the 8-bit one: the integer that 16
            bits decide, or a mark that they do not.
        thresholds: uint64, ascending: 63 bits ``u`` give the integer ``start + #{thresholds <= u}``.
        below: ``(65537,)`` int32: how many thresholds are at most the start of each cell of 16 bits.
        low: the last 47 bits of the thresholds, for cells that hold only one.
        tau: upper bound on the total-variation distance of one coordinate to the exact law.   undecided: the mark.
    """

    first: NDArray[np.int16] | NDArray[np.int32]
    thresholds: NDArray[np.uint64]
    below: NDArray[np.int32]
    low: NDArray[np.uint64]
    start: int
    tau: float
    undecided: int = int(_UNDECIDED)

    def refined(self, cells: NDArray[np.intp], words: NDArray[np.uint64]) -> NDArray[np.int32]:
        """The integers of undecided cells, by the first 47 bits of one more 64-bit word for each.

        Nearly every such cell holds one threshold, and one comparison decides; only the others are searched.
        """
        rest = words >> np.uint64(64 - _REST)
        found = self.below.take(cells)
        many = np.flatnonzero(self.below.take(cells + 1) - found > 1)
        found += rest >= self.low.take(found)
        if many.size:
            u = (cells[many].astype(np.uint64) << np.uint64(_REST)) | rest[many]
            found[many] = np.searchsorted(self.thresholds, u, side="right")
        found += np.int32(self.start)
        return found


class Noise(ABC):
    """Independent noise of one law on every coordinate, with one scale parameter.

    The scale is in the units of the input, pixels in [0, 1] for images.
    """

    name: ClassVar[str]

    @abstractmethod
    def scale(self, sigma: float) -> float:
        """The parameter of the law that has standard deviation sigma."""

    @abstractmethod
    def sigma(self, scale: float) -> float:
        """The standard deviation of the law with this parameter."""

    @abstractmethod
    def snap(self, sigma: NDArray[np.float64]) -> NDArray[np.float64]:
        """The nearest members, as standard deviations, of a fixed fine set, so that tables are few."""

    @abstractmethod
    def draw(self, generator: np.random.Generator, scale: float, shape: tuple[int, ...]) -> NDArray[np.float64]:
        """Float noise with this parameter."""

    @abstractmethod
    def _grid_cdf(self, steps: Fraction) -> list[int]:
        """``P[K <= k]`` for a scale of so many grid steps; see ``lattice``."""


class Gaussian(Noise):
    """``N(0, sigma^2)`` on every coordinate; the scale is sigma."""

    name = "gaussian"

    def scale(self, sigma: float) -> float:
        return sigma

    def sigma(self, scale: float) -> float:
        return scale

    def snap(self, sigma: NDArray[np.float64]) -> NDArray[np.float64]:
        """One hundred decimal sigmas to the factor ten, three significant digits each."""
        steps = np.round(np.log10(sigma) * 100)
        return np.array([float(f"{10 ** (step / 100):.2e}") for step in steps.ravel()]).reshape(sigma.shape)

    def draw(self, generator: np.random.Generator, scale: float, shape: tuple[int, ...]) -> NDArray[np.float64]:
        noise = generator.standard_normal(shape)
        noise *= scale
        return noise

    def _grid_cdf(self, steps: Fraction) -> list[int]:
        return gaussian_cdf(steps)


class Uniform(Noise):
    """Uniform on ``[-lambda, lambda]`` on every coordinate; the scale is lambda = sqrt(3) sigma."""

    name = "uniform"

    def scale(self, sigma: float) -> float:
        return math.sqrt(3.0) * sigma

    def sigma(self, scale: float) -> float:
        return scale / math.sqrt(3.0)

    def snap(self, sigma: NDArray[np.float64]) -> NDArray[np.float64]:
        """lambda = (m + 1/2)/255, for which the integer noise is exactly uniform on -m..m."""
        m = np.maximum(np.round(math.sqrt(3.0) * sigma * LEVELS - 0.5), 0)
        return np.asarray((m + 0.5) / LEVELS / math.sqrt(3.0))

    def draw(self, generator: np.random.Generator, scale: float, shape: tuple[int, ...]) -> NDArray[np.float64]:
        return generator.uniform(-scale, scale, shape)

    def _grid_cdf(self, steps: Fraction) -> list[int]:
        return uniform_cdf(steps)


NOISES: Final[dict[str, Noise]] = {noise.name: noise for noise in (Gaussian(), Uniform())}


def check_scale(scale: float) -> float:
    """Return a usable noise scale, sigma or lambda, else raise SigmaError."""
    if not (math.isfinite(scale) and 0.0 < scale <= 2 * LARGEST_SIGMA):
        raise SigmaError(f"the noise has scale {scale}, expected a positive number of at most {2 * LARGEST_SIGMA:g}.")
    return scale


def check_steps(scale: float, levels: int | Fraction) -> Fraction:
    """A noise scale in grid steps; SigmaError if a table of its integers would be too large."""
    steps = Fraction(levels) * Fraction(check_scale(scale))
    if not 0 < steps <= LARGEST_STEPS:
        raise SigmaError(
            f"noise of scale {scale:g} spans {float(steps):,.0f} grid steps, expected at most {LARGEST_STEPS:,}; use a "
            "smaller sigma, a coarser grid or float noise."
        )
    return steps


@lru_cache(maxsize=256)
def grid_table(name: str, scale: float, levels: int | Fraction = LEVELS) -> GridTable:
    """The integer sampler of one law and scale: thresholds of 63 bits from 160-bit fixed-point arithmetic.

    Args:
        levels: grid steps to the unit of the input: 255 for 8-bit images, 65535 for 16 bits, ``1/step`` for columns
            with a stated step.

    ``tau <= sum_k |threshold_k / 2^63 - CDF(k)|`` over all k, since a probability is a difference of two of them. The
    fixed-point values are right to 2^-100 and the tail left out is below 2^-88; both are added.
    """
    if name not in NOISES:
        raise InputError(unknown("noise", name, NOISES))
    steps = check_steps(scale, levels)
    upper = NOISES[name]._grid_cdf(steps)
    shift = FIXED - _DRAWN
    rounded = [(value + (1 << (shift - 1))) >> shift for value in upper]
    error = sum(abs((t << shift) - value) for t, value in zip(rounded, upper, strict=True))
    tau = 2.0 * (error / (1 << FIXED)) * (1 + 1e-12) + max(2.0**-87, 2.0**-88 + len(upper) * 2.0**-99)
    top = 1 << _DRAWN
    values = [top - t for t in reversed(rounded)] + rounded  # P[K <= -k-1] = 1 - P[K <= k]
    # 16 bits are enough for 8-bit images: no integer beyond is ever drawn, and X + K fits as well
    narrow = levels == LEVELS and bisect_left(rounded, top) + LEVELS < 2**15
    return table_of(np.array(values, dtype=np.uint64), -len(rounded), tau, narrow)


def table_of(thresholds: NDArray[np.uint64], start: int, tau: float, narrow: bool) -> GridTable:
    """The sampler of these thresholds; narrow: its integers and their sums with pixels fit 16 bits."""
    cells = np.arange((1 << _FIRST) + 1, dtype=np.uint64) << np.uint64(_REST)
    below = np.searchsorted(thresholds, cells, side="right").astype(np.int32)
    last = np.searchsorted(thresholds, cells[1:], side="left").astype(np.int32)  # at most the end of each cell
    mark = int(_UNDECIDED) if narrow else -(2**31)
    found = np.where(below[:-1] == last, below[:-1] + start, mark)
    return GridTable(
        first=found.astype(np.int16) if narrow else found.astype(np.int32),
        thresholds=thresholds,
        below=below,
        low=thresholds & np.uint64((1 << _REST) - 1),
        start=start,
        tau=tau,
        undecided=mark,
    )


def snap_to_grid(
    x: NDArray[np.float64], norm: str, levels: int | Fraction = LEVELS
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The nearest grid points of inputs ``(B, d)``, as integers, and bounds ``(B,)`` on how far they lie; err high.

    The certificate of a snapped input with radius R holds round the input itself with radius ``R - distance``.
    """
    steps = float(levels)
    nearest = np.rint(x * steps)
    moved = np.abs(x - nearest / steps)
    moved += 2.0**-50 * (np.abs(x) + 1.0)  # what three rounded operations are off by, and more
    size = moved.sum(1) if norm == "l1" else np.sqrt((moved**2).sum(1))
    return nearest.astype(np.int64), size * (1.0 + (x.shape[1] + 8) * 2.0**-52)


class GridBlock:
    """One noise block of integers for one input, drawn row after row.

    Rows are a function of (seed, input id, stream, block) alone: they do not depend on how many are asked for at once.
    Blocks that share a pair of generators are to be drawn one after another.
    """

    def __init__(
        self, table: GridTable, key: tuple[int, int, int, int], d: int, generators: Generators | None = None
    ) -> None:
        self._table, self._d = table, d
        self._words = -(-d // 4)  # 64-bit words a row: four coordinates each
        self._generators, self._key = generators or Generators(), key
        self._started = False

    def fill(self, out: NDArray[np.int16] | NDArray[np.int32]) -> None:
        """Write the next ``len(out)`` rows ``(rows, d)`` into a contiguous array of the table's type."""
        if out.dtype != self._table.first.dtype:  # take would cut integers, and the mark, to the type of out
            raise SigmaError(
                f"the noise takes {self._table.first.dtype} integers, more than the {out.dtype} of the inputs' grid; "
                f"expected a sigma of at most {LARGEST_SIGMA:g} on the 8-bit grid."
            )
        if not self._started:
            self._generators.seek(self._key)
            self._started = True
        bits = self._generators.bits.random_raw(len(out) * self._words).view(np.uint16)
        bits = bits.reshape(len(out), -1)[:, : self._d]
        self._table.first.take(bits, out=out, mode="clip")  # 16 bits never leave the table; "raise" would copy first
        where = np.flatnonzero(out == self._table.undecided)
        if where.size:
            cells = bits.reshape(-1)[where].astype(np.intp)
            out.reshape(-1)[where] = self._table.refined(cells, self._generators.more.random_raw(where.size))


class FloatBlock:
    """One noise block of float64 numbers; the same contract as GridBlock."""

    def __init__(self, noise: Noise, scale: float, key: tuple[int, int, int, int]) -> None:
        self._noise, self._scale = noise, scale
        self._generator = np.random.Generator(philox(*key))

    def fill(self, out: NDArray[np.float64]) -> None:
        """Write the next ``len(out)`` rows ``(rows, d)``."""
        out[...] = self._noise.draw(self._generator, self._scale, out.shape)
