"""Binomial tails, the normal law and grid noise to some forty digits, in integers and decimals alone.

It exists to check the bounds of this package, so it shares no code, no library and no formula with them: Stirling's
series, exact rational odds and the alternating series of the error function, against SciPy and running products there.
"""

from __future__ import annotations

import math
from decimal import Context, Decimal
from fractions import Fraction
from functools import lru_cache
from itertools import count
from statistics import NormalDist
from typing import Final

LARGEST_N: Final = 10**9  # samples; beyond it nothing is recomputed
STEP_BITS: Final = 63  # random bits that decide one integer of grid noise
LEVELS: Final = 255  # of the 8-bit grid
FINE: Final = 3000  # steps of a standard deviation, from which on the law is integrated and not summed as a series

_DIGITS: Final = Context(prec=60)
_RELATIVE: Final = Decimal("1e-40")  # what the errors of one tail stay below
_BITS: Final = 200
_PI: Final = "3.14159265358979323846264338327950288419716939937510582097494459230781640628620899"
_BERNOULLI: Final = (
    *((1, 6), (-1, 30), (1, 42), (-1, 30), (5, 66), (-691, 2730), (7, 6), (-3617, 510), (43867, 798)),
    *((-174611, 330), (854513, 138), (-236364091, 2730), (8553103, 6), (-23749461029, 870)),
)


@lru_cache(maxsize=4096)
def log_factorial(n: int) -> Decimal:
    """``ln n!``; the error of Stirling's series is below the first term left out, here below 1e-47."""
    if n < 64:
        return _DIGITS.ln(Decimal(math.factorial(n)))
    x, add, mul, div = Decimal(n), _DIGITS.add, _DIGITS.multiply, _DIGITS.divide
    total = _DIGITS.subtract(mul(add(x, Decimal("0.5")), _DIGITS.ln(x)), x)
    total = add(total, div(_DIGITS.ln(mul(Decimal(2), Decimal(_PI))), Decimal(2)))
    for j, (top, bottom) in enumerate(_BERNOULLI, start=1):
        total = add(total, div(Decimal(top), mul(Decimal(bottom * 2 * j * (2 * j - 1)), _DIGITS.power(x, 2 * j - 1))))
    return total


def decimal(value: Fraction) -> Decimal:
    """A rational number to 60 digits."""
    return _DIGITS.divide(Decimal(value.numerator), Decimal(value.denominator))


def binomial_pmf(k: int, n: int, p: Fraction) -> Decimal:
    """``P[Bin(n, p) = k]`` for ``0 < p < 1``, relative error below 1e-40."""
    add, mul = _DIGITS.add, _DIGITS.multiply
    ways = _DIGITS.subtract(log_factorial(n), add(log_factorial(k), log_factorial(n - k)))
    hits, misses = mul(Decimal(k), _DIGITS.ln(decimal(p))), mul(Decimal(n - k), _DIGITS.ln(decimal(1 - p)))
    return _DIGITS.exp(add(ways, add(hits, misses)))


def binomial_tail(k: int, n: int, p: Fraction) -> tuple[Decimal, Decimal]:
    """Lower and upper bound on ``P[Bin(n, p) >= k]``.

    Terms relative to ``P[X = k]`` are summed upwards in fixed point, with the exact odds p / (1 - p). Where p n lies
    40 standard deviations above k, Chebyshev's inequality answers (0.999, 1).
    Raises: OverflowError for n above LARGEST_N.
    """
    if n > LARGEST_N:
        raise OverflowError(f"{n} samples are more than the {LARGEST_N} that are recomputed")
    if k <= 0 or p >= 1:
        return Decimal(1), Decimal(1)
    if p <= 0 or k > n:
        return Decimal(0), Decimal(0)
    above = p * n - k
    if above > 0 and above * above > 1600 * n * p * (1 - p):
        return Decimal("0.999"), Decimal(1)
    hit, miss = p.numerator, p.denominator - p.numerator
    term = total = 1 << _BITS
    for i in range(k, n):
        term = term * ((n - i) * hit) // ((i + 1) * miss)
        if not term:
            break
        total += term
    value = _DIGITS.multiply(binomial_pmf(k, n, p), decimal(Fraction(total, 1 << _BITS)))
    slack = _DIGITS.multiply(value, _RELATIVE)
    return _DIGITS.subtract(value, slack), min(Decimal(1), _DIGITS.add(value, slack))


def normal_cdf(z: Fraction, bits: int = _BITS) -> int:
    """``Phi(z)`` in units of ``2^-bits``, error below 2^16 units.

    ``1/2 + (1/sqrt(2 pi)) * sum_j (-1)^j z^(2j+1) / (2^j j! (2j+1))``; its terms reach ``e^(z^2/2)``, so that many more
    bits are carried.
    """
    if z < 0:
        return (1 << bits) - normal_cdf(-z, bits)
    if z * z > 2 * (bits + 8):
        return 1 << bits
    carried = bits + math.ceil(z * z) + 16
    x = (z.numerator << carried) // z.denominator
    square = (x * x) >> carried
    term = total = x
    for j in count(1):
        term = -(term * square >> carried) // (2 * j)
        if -1 <= term <= 1:
            break
        total += term // (2 * j + 1)
    root = Fraction(1) / Fraction(_DIGITS.sqrt(_DIGITS.multiply(Decimal(2), Decimal(_PI))))
    short = total >> (carried - bits)
    return (1 << (bits - 1)) + short * root.numerator // root.denominator


def normal_quantile(p: Fraction) -> tuple[Fraction, Fraction]:
    """Lower and upper bound on ``Phi^-1(p)``, 2e-25 apart, for ``1e-20 < p < 1 - 1e-20``.

    Raises: ArithmeticError where the bounds cannot be confirmed.
    """
    if p > Fraction(1, 2):
        low, high = normal_quantile(1 - p)
        return -high, -low
    z, one = Fraction(NormalDist().inv_cdf(float(p))), 1 << _BITS
    for _ in range(3):
        error = Fraction(normal_cdf(z), one) - p
        density = Fraction(math.exp(-0.5 * float(z) ** 2) / math.sqrt(2.0 * math.pi))
        z = Fraction(round((z - error / density) * 10**40), 10**40)
    margin = Fraction(1, 10**25)
    if not normal_cdf(z - margin) < p * one < normal_cdf(z + margin):
        raise ArithmeticError(f"the normal quantile of {float(p)} was not found")
    return z - margin, z + margin


@lru_cache(maxsize=512)
def grid_distance(noise: str, scale: float, levels: int = LEVELS) -> Fraction:
    """Total-variation budget of one coordinate of grid noise, to one part in ten million.

    The law of ``round(levels * e)`` sampled by STEP_BITS-bit integers has thresholds ``round(P[K <= k] 2^63)``; the
    distance is at most the sum over k of what they are off by. The law is symmetric: k and -k-1 are off by the same.
    """
    bits = 128
    total, width = 0, Fraction(scale)
    if noise == "gaussian" and width * levels > FINE:
        return _fine_distance(width * levels)
    for k in count():
        edge = Fraction(2 * k + 1, 2 * levels)
        if noise == "gaussian":
            value = normal_cdf(edge / width, bits)
        else:
            value = math.floor(min(Fraction(1), (edge + width) / (2 * width)) * (1 << bits))
        nearest = (value + (1 << (bits - STEP_BITS - 1))) >> (bits - STEP_BITS)
        total += abs((nearest << (bits - STEP_BITS)) - value)
        if (1 << bits) - value < 1 << (bits - 100):
            return Fraction(2 * total, 1 << bits)
    raise AssertionError


def _fine_distance(width: Fraction) -> Fraction:
    """``grid_distance`` of a Gaussian of so many steps: one Gauss-Legendre rule of three nodes a step.

    Its error is below ``15 h^7 / 2016000`` a step, ``h = 1 / width``, in all 1e-7 of the unit of a threshold. Densities
    follow from step to step by ``phi(z + h) = phi(z) e^(-zh - h^2/2)``.
    """
    bits, mul, exp = 192, _DIGITS.multiply, _DIGITS.exp
    h = _DIGITS.divide(Decimal(1), decimal(width))
    square, half, root = mul(h, h), Decimal("0.5"), _DIGITS.sqrt(Decimal("0.15"))
    scale = _DIGITS.divide(h, mul(Decimal(18), _DIGITS.sqrt(_DIGITS.multiply(Decimal(2), Decimal(_PI)))))
    densities, ratios = [], []
    for place, weight in ((-root, 5), (Decimal(0), 8), (root, 5)):
        z = _DIGITS.add(1, place)  # the first step goes from edge 1/2 to edge 3/2
        start = mul(mul(scale, Decimal(weight)), exp(-mul(mul(z, z), mul(square, half))))
        ratio = exp(-mul(_DIGITS.add(z, half), square))
        densities.append(_fixed(start, bits))
        ratios.append(_fixed(ratio, bits))
    shrink = _fixed(exp(-square), bits)
    value, total = normal_cdf(1 / (2 * width), bits), 0
    for _ in range(math.ceil(13 * width)):
        nearest = (value + (1 << (bits - STEP_BITS - 1))) >> (bits - STEP_BITS)
        total += abs((nearest << (bits - STEP_BITS)) - value)
        value += sum(densities)
        densities = [(density * ratio) >> bits for density, ratio in zip(densities, ratios, strict=True)]
        ratios = [(ratio * shrink) >> bits for ratio in ratios]
    return Fraction(2 * total, 1 << bits)


def _fixed(value: Decimal, bits: int) -> int:
    """A decimal in units of ``2^-bits``."""
    return math.floor(Fraction(value) * (1 << bits))
