"""Noise: Gaussian and uniform, keyed by (seed, input id, stream, block), exact on the 8-bit grid.

It knows no model and no certificate. Inputs on the grid ``X/255`` (X an integer) get integer noise ``K`` with
``P[K = k] = P[k - 1/2 < 255 e <= k + 1/2]``, e the real noise, so that ``(X + K)/255`` has exactly the law of the real
noisy input rounded to the grid: nothing of x leaks through low-order bits. All other inputs get float noise.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Context, Decimal, localcontext
from enum import IntEnum
from fractions import Fraction
from functools import cached_property, lru_cache
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from ddsmoothing.errors import InputError, SigmaError, unknown

LEVELS: Final = 255  # the grid is X / LEVELS
LARGEST_SIGMA: Final = 12.0  # its integer noise still fits 16 bits, as that of lambda = sqrt(3) sigma does
BLOCK_CELLS: Final = 2**17  # coordinates in one noise block: a constant, since blocks define the noise

_FIXED = 160  # fraction bits of the fixed-point arithmetic that builds tables
_DRAWN = 63  # bits that decide one integer
_FIRST = 16  # bits of them looked up in a table
_UNDECIDED = np.int16(-32768)
_SMALLEST_SERIES = 0.01  # a sigma of few grid steps: below it the series loses its digits (below .003 too many)
_WORD = 2**64


class Stream(IntEnum):
    """What noise is drawn for. No two of these ever share a random number."""

    PILOT = 0
    CERTIFY = 1
    SEARCH = 2
    COIN = 3
    PREDICT = 4


def check_word(value: int, name: str) -> int:
    """Return value if it is an integer in [0, 2^64), else raise InputError."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not 0 <= int(value) < _WORD:
        raise InputError(f"{name} is {value!r}, expected an integer from 0 to 2^64 - 1.")
    return int(value)


def philox(seed: int, input_id: int, stream: int, block: int, part: int = 0) -> np.random.Philox:
    """The generator of one noise block: counter-based, so any block can be drawn on its own.

    Args:
        seed, input_id: the key.   stream, block: words 2 and 1 of the counter.   part: word 3, 1 for refinement bits.
    References: Salmon et al. 2011, Parallel random numbers: as easy as 1, 2, 3.
    """
    key = np.array([check_word(seed, "seed"), check_word(input_id, "input id")], dtype=np.uint64)
    counter = np.array([0, check_word(block, "block"), check_word(stream, "stream"), part], dtype=np.uint64)
    return np.random.Philox(key=key, counter=counter)


def coin(seed: int, input_id: int) -> float:
    """The one coin of an input, uniform on (0, 1] in steps of 2^-53."""
    return (int(philox(seed, input_id, Stream.COIN, 0).random_raw() >> 11) + 1) * 2.0**-53


def rows_per_block(d: int) -> int:
    """Samples in one noise block of a d-dimensional input."""
    return max(1, BLOCK_CELLS // d)


@dataclass(frozen=True, kw_only=True, eq=False)
class GridTable:
    """An exact sampler of integer noise.

    Attributes:
        first: ``(65536,)`` int16: the integer that 16 bits decide, or a mark that they do not.
        thresholds: uint64, ascending: 63 bits ``u`` give the integer ``start + #{thresholds <= u}``.
        tau: upper bound on the total-variation distance of one coordinate to the exact law.
    """

    first: NDArray[np.int16]
    thresholds: NDArray[np.uint64]
    start: int
    tau: float


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
    def _grid_cdf(self, scale: float) -> list[int]:
        """``P[K <= k]`` for k = 0, 1, .. in units of 2^-160, until it is 1 to within 2^-90. The law is symmetric."""


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

    def _grid_cdf(self, scale: float) -> list[int]:
        """``P[K = k] = Phi((k+.5)h) - Phi((k-.5)h)``, ``h = 1/(255 sigma)``, by a Taylor series round ``c = k h``.

        ``= phi(c) * sum over even m of He_m(c) * 2 (h/2)^(m+1) / (m+1)!``, He the probabilists' Hermite polynomials.
        ``|He_m(c)| <= 1.09 sqrt(m!) e^(c^2/4)`` bounds the rest of the series below 2^-110.
        """
        if scale < _SMALLEST_SERIES:
            return _coarse_cdf(scale)
        one = 1 << _FIXED
        numerator, denominator = Fraction(scale).as_integer_ratio()
        h = (one * denominator) // (LEVELS * numerator)
        half = h // 2
        weights = [h]  # 2 (h/2)^(m+1) / (m+1)! for m = 0, 2, 4, ..
        bound = half / one
        m = 0
        while bound > 2.0**-110 or m < 4:
            m += 2
            weights.append((((weights[-1] * half) >> _FIXED) * half >> _FIXED) // (m * (m + 1)))
            bound = (half / one) ** (m + 1) / math.sqrt(math.factorial(m))
        context = Context(prec=60)
        step = context.divide(Decimal(h), Decimal(one))
        square = context.multiply(step, step)
        density = _fixed(context.divide(Decimal(1), context.sqrt(context.multiply(Decimal(2), _PI))))
        ratio = _fixed(context.exp(context.multiply(square, Decimal("-0.5"))))  # phi(h) / phi(0)
        shrink = _fixed(context.exp(square.copy_negate()))  # ratio of consecutive ratios
        cdf: list[int] = []
        total = c = 0
        while True:
            total += (density * _hermite_sum(c, weights)) >> _FIXED
            if not cdf:
                total = (one + total) >> 1  # P[K <= 0] = (1 + P[K = 0]) / 2
            cdf.append(min(total, one))
            if one - total < one >> 90:
                return cdf
            density = (density * ratio) >> _FIXED
            ratio = (ratio * shrink) >> _FIXED
            c += h


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

    def _grid_cdf(self, scale: float) -> list[int]:
        width = Fraction(scale)
        cdf: list[int] = []
        while not cdf or cdf[-1] < 1 << _FIXED:
            share = ((Fraction(2 * len(cdf) + 1, 2 * LEVELS)) + width) / (2 * width)
            cdf.append(math.floor(min(share, Fraction(1)) * (1 << _FIXED)))
        return cdf


_PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459230781640628620899")
NOISES: Final[dict[str, Noise]] = {noise.name: noise for noise in (Gaussian(), Uniform())}


def _fixed(value: Decimal) -> int:
    return int(Fraction(value) * (1 << _FIXED))


def _coarse_cdf(sigma: float) -> list[int]:
    """The Gaussian's table for a small sigma, by Phi itself at each of the few edges.

    ``Phi(z) = 1/2 + phi(z) * sum_j z^(2j+1) / (1*3*..*(2j+1))``: all terms are positive, so no digits cancel.
    """
    cdf: list[int] = []
    with localcontext(Context(prec=60)):
        while not cdf or (1 << _FIXED) - cdf[-1] >= 1 << (_FIXED - 90):
            z = (len(cdf) + Decimal("0.5")) / (LEVELS * Decimal(sigma))
            if z > 12:  # 1 - Phi(12) < 2^-108
                return [*cdf, 1 << _FIXED]
            term = total = z
            j = 1
            while term > total * Decimal("1e-55"):
                term *= z * z / (2 * j + 1)
                total += term
                j += 1
            cdf.append(_fixed(Decimal("0.5") + total * (-z * z / 2).exp() / (2 * _PI).sqrt()))
    return cdf


def _hermite_sum(c: int, weights: list[int]) -> int:
    """``sum_j He_2j(c) weights[j]`` in fixed point."""
    previous, current = 0, 1 << _FIXED  # He_{m-1}, He_m
    total = weights[0]
    for j in range(1, len(weights)):
        for m in (2 * j - 2, 2 * j - 1):
            previous, current = current, ((c * current) >> _FIXED) - m * previous
        total += (current * weights[j]) >> _FIXED
    return total


def check_scale(scale: float) -> float:
    """Return a usable noise scale, sigma or lambda, else raise SigmaError."""
    if not (math.isfinite(scale) and 0.0 < scale <= 2 * LARGEST_SIGMA):
        raise SigmaError(f"the noise has scale {scale}, expected a positive number of at most {2 * LARGEST_SIGMA:g}.")
    return scale


@lru_cache(maxsize=256)
def grid_table(name: str, scale: float) -> GridTable:
    """The integer sampler of one law and scale: thresholds of 63 bits from 160-bit fixed-point arithmetic.

    ``tau <= sum_k |threshold_k / 2^63 - CDF(k)|`` over all k, since a probability is a difference of two of them. The
    fixed-point values are right to 2^-100 and the tail left out is below 2^-88; both are added.
    """
    if name not in NOISES:
        raise InputError(unknown("noise", name, NOISES))
    upper = NOISES[name]._grid_cdf(check_scale(scale))
    shift = _FIXED - _DRAWN
    rounded = [(value + (1 << (shift - 1))) >> shift for value in upper]
    error = sum(abs((t << shift) - value) for t, value in zip(rounded, upper, strict=True))
    tau = 2.0 * (error / (1 << _FIXED)) * (1 + 1e-12) + 2.0**-87
    top = 1 << _DRAWN
    values = [top - t for t in reversed(rounded)] + rounded  # P[K <= -k-1] = 1 - P[K <= k]
    thresholds = np.array(values, dtype=np.uint64)
    start = -len(rounded)
    cells = np.arange(1 << _FIRST, dtype=np.uint64) << np.uint64(_DRAWN - _FIRST)
    low = np.searchsorted(thresholds, cells, side="right")
    high = np.searchsorted(thresholds, cells + np.uint64((1 << (_DRAWN - _FIRST)) - 1), side="right")
    first = np.where(low == high, low + start, int(_UNDECIDED)).astype(np.int16)
    return GridTable(first=first, thresholds=thresholds, start=start, tau=tau)


def noise_blocks(d: int, first_block: int, n: int) -> Iterator[tuple[int, int]]:
    """Cut n samples into noise blocks from ``first_block`` on: pairs (block, rows wanted of it)."""
    size = rows_per_block(d)
    for index in range(-(-n // size)):
        yield first_block + index, min(size, n - index * size)


class GridBlock:
    """One noise block of integers for one input, drawn row after row.

    Rows are a function of (seed, input id, stream, block) alone: they do not depend on how many are asked for at once.
    """

    def __init__(self, table: GridTable, key: tuple[int, int, int, int], d: int) -> None:
        self._table, self._key, self._d = table, key, d
        self._words = -(-d // 4)  # 64-bit words a row: four coordinates each

    @cached_property
    def _bits(self) -> np.random.Philox:
        return philox(*self._key)

    @cached_property
    def _more_bits(self) -> np.random.Philox:
        return philox(*self._key, part=1)

    def fill(self, out: NDArray[np.int16]) -> None:
        """Write the next ``len(out)`` rows ``(rows, d)`` into a contiguous array."""
        bits = self._bits.random_raw(len(out) * self._words).view(np.uint16)
        bits = bits.reshape(len(out), -1)[:, : self._d]
        self._table.first.take(bits, out=out, mode="clip")  # 16 bits never leave the table; "raise" would copy first
        where = np.flatnonzero(out == _UNDECIDED)
        if where.size:
            rest = _DRAWN - _FIRST
            low = self._more_bits.random_raw(where.size) >> np.uint64(64 - rest)
            u = (bits.reshape(-1)[where].astype(np.uint64) << np.uint64(rest)) | low
            out.reshape(-1)[where] = np.searchsorted(self._table.thresholds, u, side="right") + self._table.start


class FloatBlock:
    """One noise block of float64 numbers; the same contract as GridBlock."""

    def __init__(self, noise: Noise, scale: float, key: tuple[int, int, int, int]) -> None:
        self._noise, self._scale, self._key = noise, scale, key

    @cached_property
    def _generator(self) -> np.random.Generator:
        return np.random.Generator(philox(*self._key))

    def fill(self, out: NDArray[np.float64]) -> None:
        """Write the next ``len(out)`` rows ``(rows, d)``."""
        out[...] = self._noise.draw(self._generator, self._scale, out.shape)
