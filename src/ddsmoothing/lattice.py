"""The law of noise rounded to a grid, in 160-bit fixed point. It knows no samples and no streams.

All functions give ``P[K <= k]`` for k = 0, 1, .. in units of 2^-160, right to 2^-100 and until it is 1 to within 2^-90,
where K is the nearest integer to noise measured in grid steps. The laws are symmetric.
"""

from __future__ import annotations

import math
from decimal import Context, Decimal, localcontext
from fractions import Fraction
from typing import Final

FIXED: Final = 160  # fraction bits
_SMALLEST_SERIES: Final = 2.55  # grid steps: at a smaller sigma the series loses its digits (below .8 too many)
_PI: Final = Decimal("3.14159265358979323846264338327950288419716939937510582097494459230781640628620899")


def gaussian_cdf(steps: Fraction) -> list[int]:
    """``P[K = k] = Phi((k+.5)h) - Phi((k-.5)h)``, ``h = 1/steps``, by a Taylor series round ``c = k h``; steps: sigma.

    ``= phi(c) * sum over even m of He_m(c) * 2 (h/2)^(m+1) / (m+1)!``, He the probabilists' Hermite polynomials.
    ``|He_m(c)| <= 1.09 sqrt(m!) e^(c^2/4)`` bounds the rest of the series below 2^-110.
    """
    if steps < _SMALLEST_SERIES:
        return _coarse_cdf(steps)
    one = 1 << FIXED
    h = (one * steps.denominator) // steps.numerator
    half = h // 2
    weights = [h]  # 2 (h/2)^(m+1) / (m+1)! for m = 0, 2, 4, ..
    bound = half / one
    m = 0
    while bound > 2.0**-110 or m < 4:
        m += 2
        weights.append((((weights[-1] * half) >> FIXED) * half >> FIXED) // (m * (m + 1)))
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
        total += (density * _hermite_sum(c, weights)) >> FIXED
        if not cdf:
            total = (one + total) >> 1  # P[K <= 0] = (1 + P[K = 0]) / 2
        cdf.append(min(total, one))
        if one - total < one >> 90:
            return cdf
        density = (density * ratio) >> FIXED
        ratio = (ratio * shrink) >> FIXED
        c += h


def uniform_cdf(steps: Fraction) -> list[int]:
    """Noise uniform on ``[-steps, steps]``: exact, rounded down."""
    cdf: list[int] = []
    while not cdf or cdf[-1] < 1 << FIXED:
        share = (Fraction(2 * len(cdf) + 1, 2) + steps) / (2 * steps)
        cdf.append(math.floor(min(share, Fraction(1)) * (1 << FIXED)))
    return cdf


def _fixed(value: Decimal) -> int:
    return int(Fraction(value) * (1 << FIXED))


def _coarse_cdf(sigma: Fraction) -> list[int]:
    """The Gaussian's table for a sigma of few grid steps, by Phi itself at each of the few edges.

    ``Phi(z) = 1/2 + phi(z) * sum_j z^(2j+1) / (1*3*..*(2j+1))``: all terms are positive, so no digits cancel.
    """
    cdf: list[int] = []
    with localcontext(Context(prec=60)):
        while not cdf or (1 << FIXED) - cdf[-1] >= 1 << (FIXED - 90):
            z = (len(cdf) + Decimal("0.5")) * sigma.denominator / sigma.numerator
            if z > 12:  # 1 - Phi(12) < 2^-108
                return [*cdf, 1 << FIXED]
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
    previous, current = 0, 1 << FIXED  # He_{m-1}, He_m
    total = weights[0]
    for j in range(1, len(weights)):
        for m in (2 * j - 2, 2 * j - 1):
            previous, current = current, ((c * current) >> FIXED) - m * previous
        total += (current * weights[j]) >> FIXED
    return total
