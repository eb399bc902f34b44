"""Confidence bounds on probabilities and the normal quantile, each proved to err on the safe side.

It knows neither torch nor files. SciPy proposes every number; a second computation whose own error is bounded then
proves the inequality the number stands for, and the number is moved to the safe side until the proof goes through.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from functools import lru_cache
from numbers import Integral, Real

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import betainc, betaincinv, ndtri

from ddsmoothing.errors import InfeasibleError, InputError

BOUNDS = ("one-class", "two-class")
LARGEST_COUNT = 2**40
TWO_CLASS_SPLIT = 0.9  # share of alpha spent on the top class by the two-class bound, fixed before any count is seen

_UNIT = 2.0**-53
_DOWN, _UP = (Context(prec=45, rounding=side) for side in (ROUND_FLOOR, ROUND_CEILING))
_TWO_PI = Decimal("6.28318530717958647692528676655900576839433879875021")
_HALF, _SMALL, _MARGIN = Decimal("0.5"), Decimal("1e-43"), Decimal("1e-40")


def check_alpha(alpha: float) -> float:
    """Return alpha if it lies in (0, 1), else raise InputError."""
    if not isinstance(alpha, Real) or not 0.0 < alpha < 1.0:  # also rejects NaN
        raise InputError(f"alpha is {alpha!r}, expected a failure probability between 0 and 1, such as 0.001.")
    return float(alpha)


def check_count(n: int, name: str) -> int:
    """Return n if it is a whole number of at least 1, else raise InputError."""
    if isinstance(n, bool) or not isinstance(n, Integral) or n < 1:
        raise InputError(f"{name} is {n!r}, expected a whole number of samples, at least 1.")
    if n > LARGEST_COUNT:
        raise InputError(f"{name} is above {LARGEST_COUNT:,}, the largest number that is counted to.")
    return int(n)


def check_bound(bound: str) -> str:
    """Return the name of a bound if it is known, else raise InputError."""
    if not isinstance(bound, str) or bound not in BOUNDS:
        raise InputError(f"bound is {bound!r}, expected one of {', '.join(BOUNDS)}.")
    return bound


def alpha_of_top(alpha: float, bound: str) -> float:
    """The part of alpha that the lower bound on the top class really gets."""
    return alpha if bound == "one-class" else TWO_CLASS_SPLIT * alpha


def binomial_tail_at_most(k: int, n: int, p: float) -> float:
    """An upper bound on ``P[Bin(n, p) >= k]`` for ``0 < k <= n``, ``0 < p < 1``.

    Terms relative to ``P[X = k]`` are multiplied out from k upwards (the rest is below a geometric series) and down
    (leaving some out only makes the ratio larger). Every operation on these positive float64 numbers has a relative
    error of at most 2^-53 and each term takes at most six, so the whole is inflated by the number of operations, for
    any order of summation (Higham, Accuracy and Stability of Numerical Algorithms, 2002, sections 3.1 and 4.2). What
    underflows is below 2^-1074 beside a sum of at least 1; what overflows is replaced by a bound on the safe side.
    """
    odds = p / (1.0 - p)
    # P[X = i+1] / P[X = i] = (n-i)/(i+1) * odds at i = k + j;  P[X = i-1] / P[X = i] = i/(n-i+1) / odds at i = k - j
    above, rest, up = _sum_of_products(lambda j: (n - k - j) / (k + j + 1.0) * odds, n - k)
    below, _, down = _sum_of_products(lambda j: (k - j) / (n - k + j + 1.0) / odds, k)
    if not math.isfinite(above):
        return 1.0
    if not math.isfinite(below):
        below = 1e300  # the true sum has passed 1e307
    upper = 1.0 + above + 2.0 * rest
    slack = (6 * (up + down) + 16) * _UNIT
    return min(1.0, upper * (1.0 + slack) / (upper + below) * (1.0 + 3.0 * slack))


def _sum_of_products(
    ratio: Callable[[NDArray[np.float64]], NDArray[np.float64]], length: int
) -> tuple[float, float, int]:
    """``sum over m < length of ratio(0) * .. * ratio(m)`` for decreasing positive ratios, cut where no more matters.

    Returns: the sum of the first terms; a bound on the rest (0 where nothing is left out); the number of terms.
    """
    total, term, done, size = 0.0, 1.0, 0, 64
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        while done < length:
            ratios = ratio(np.arange(done, min(done + size, length), dtype=np.float64))
            last = float(ratios[-1])
            ratios[0] *= term
            terms = np.cumprod(ratios)
            total, term = total + float(terms.sum()), float(terms[-1])
            done, size = done + len(ratios), min(2 * size, 4096)
            if last < 1.0 - 1e-6 and term <= 1e-20 * (1.0 - last) * total:
                return total, (term * last / (1.0 - last) if done < length else 0.0), done
    return total, 0.0, done


@lru_cache(maxsize=65536)
def clopper_pearson_lower(k: int, n: int, alpha: float) -> float:
    """Lower confidence bound on p after k of n successes: ``P[bound > p] <= alpha``.

    Errs low: the value returned is never above the exact Clopper-Pearson bound.

    Args:
        k: successes, ``0 <= k <= n``.   n: trials.   alpha: failure probability.
    References: Clopper and Pearson 1934; the alpha-quantile of Beta(k, n-k+1).
    """
    check_alpha(alpha)
    if not 0 <= k <= n or n < 1:
        raise InputError(f"got k={k} of n={n}, expected 0 <= k <= n and n >= 1.")
    if k == 0:
        return 0.0
    p = min(float(betaincinv(k, n - k + 1, alpha)), 1.0 - _UNIT)
    step = 1e-13
    while p > 0.0 and not binomial_tail_at_most(k, n, p) <= alpha:
        p *= 1.0 - min(step, 0.5)
        step *= 2.0
    return p if p > 0.0 else 0.0  # 0 also where SciPy proposed NaN


def clopper_pearson_upper(k: int, n: int, alpha: float) -> float:
    """Upper confidence bound on p after k of n successes; errs high."""
    if k == n:
        return 1.0
    return min(1.0, math.nextafter(1.0 - clopper_pearson_lower(n - k, n, alpha), 2.0))


@lru_cache(maxsize=65536)
def randomized_lower(k: int, n: int, alpha: float, coin: float) -> float:
    """Randomised Clopper-Pearson: fails with probability exactly alpha before rounding; errs low.

    Solves ``P_p[X > k] + coin * P_p[X = k] = alpha`` for p, coin uniform on (0, 1]. It is never below the plain bound
    and depends on the coin, so the coin must be drawn once, before the counts are seen, and kept.
    At k = n the bound is ``min(alpha / coin, 1/2)**(1/n)``; the cap keeps it below 1.
    References: Voracek 2024, arXiv:2406.17830.
    """
    if not 0.0 < coin <= 1.0:
        raise InputError(f"the coin is {coin}, expected a number in (0, 1].")
    plain = clopper_pearson_lower(k, n, alpha)
    if k == n:
        return max(plain, _lower_if_all(n, min(alpha / coin, 0.5)))
    if k == 0:
        return plain
    high = float(betaincinv(k + 1, n - k, alpha))
    p = max(plain, high)
    if _tail_mix(k, n, p, coin) > alpha:  # else the coin is so small that p is high
        below = _tail_mix(k, n, plain, coin) < alpha
        p = float(brentq(lambda q: _tail_mix(k, n, q, coin) - alpha, plain, high, xtol=1e-15)) if below else plain
    step = 1e-13
    while p > plain and _proved_tail_mix(k, n, p, coin) > alpha:
        p *= 1.0 - step
        step *= 2.0
    return max(p, plain)


def _lower_if_all(n: int, alpha: float) -> float:
    """A p with ``p**n <= alpha``: the lower bound after n of n, whose tail is that power."""
    return clopper_pearson_lower(n, n, math.nextafter(alpha, 0.0))


def _tail_mix(k: int, n: int, p: float, coin: float) -> float:
    """``P_p[X > k] + coin * P_p[X = k]``, float64: SciPy's proposal."""
    return float((1.0 - coin) * betainc(k + 1, n - k, p) + coin * betainc(k, n - k + 1, p))


def _proved_tail_mix(k: int, n: int, p: float, coin: float) -> float:
    """An upper bound on the same, a convex combination of two tails."""
    mixed = (1.0 - coin) * binomial_tail_at_most(k + 1, n, p) + coin * binomial_tail_at_most(k, n, p)
    return mixed * (1.0 + 8.0 * _UNIT)


def lower_of_looks(looks: Sequence[tuple[int, int, float]], coin: float | None = None) -> float:
    """The largest lower bound over looks ``(n, k, alpha)``; all hold at once with probability 1 - sum of the alphas."""
    if coin is not None:
        return max((randomized_lower(k, n, alpha, coin) for n, k, alpha in looks), default=0.0)
    return max((clopper_pearson_lower(k, n, alpha) for n, k, alpha in looks), default=0.0)


def top_two_bounds(lower: float, runner_up: int, n: int, alpha: float, bound: str, tv: float) -> tuple[float, float]:
    """Bounds ``(pA, pB)`` for the noise of the theorem: pA errs low, pB errs high; both hold w.p. >= 1 - alpha.

    Args:
        lower: bound on the class chosen on OTHER samples, at ``alpha_of_top(alpha, bound)``.
        runner_up: the largest other count of the same n samples.
        bound: ``one-class`` gives ``pB = 1 - pA``; ``two-class`` splits alpha .9/.1 (no union over classes is needed:
            the largest other count is at least the count of the truly largest other class).
        tv: total-variation distance between the sampled noise and the noise of the theorem, for all coordinates.
    """
    if tv > 0.0:
        lower = max(0.0, math.nextafter(lower - tv, 0.0))
    other = math.nextafter(1.0 - lower, 2.0)
    if bound == "two-class" and n > 0:
        rest = min((1.0 - TWO_CLASS_SPLIT) * alpha, alpha - alpha_of_top(alpha, bound))  # the two add up to <= alpha
        upper = clopper_pearson_upper(runner_up, n, rest) + tv
        other = min(other, math.nextafter(upper, 2.0))
    return lower, min(1.0, other)


def largest_lower_bound(n: int, alpha: float) -> float:
    """``alpha**(1/n)``: the lower bound when all n samples agree (float64, not proved)."""
    return float(alpha ** (1.0 / n))


def check_feasible(n: int, alpha: float, bound: str = "one-class", tv: float = 0.0) -> None:
    """Raise InfeasibleError, naming the smallest n that works, if even n of n agreeing samples certify nothing."""
    check_alpha(alpha)
    check_count(n, "n")
    share = alpha_of_top(alpha, check_bound(bound))
    if largest_lower_bound(n, share) - tv <= 0.5:
        smallest = math.floor(math.log(share) / math.log(0.5 + tv)) + 1
        raise InfeasibleError(
            f"n={n} samples at alpha={alpha} can never certify: all agreeing gives a lower bound of "
            f"{largest_lower_bound(n, share):.4f} <= 0.5. Use n >= {smallest} or a larger alpha."
        )


def _normal_cdf(z: Decimal, side: Context, other: Context) -> Decimal:
    """Phi(z) for ``z >= 0``, every operation rounded to one side (``other`` is the context of the opposite side).

    ``Phi(z) = 1/2 + phi(z) * sum_k z^(2k+1) / (1*3*..*(2k+1))``; all terms are positive, and the rest of the sum is
    below the last term once the ratio of terms is under one half.
    """
    square = side.multiply(z, z)
    term = total = z
    k, ratio = 1, Decimal(1)
    while ratio >= _HALF or term >= _SMALL:
        ratio = side.divide(square, Decimal(2 * k + 1))
        term = side.multiply(term, ratio)
        total = side.add(total, term)
        k += 1
    if side is _UP:
        total = side.add(total, term)
    exponent = other.multiply(other.multiply(z, z), _HALF).copy_negate()
    density = side.divide(side.exp(exponent), other.sqrt(_TWO_PI))
    return side.add(_HALF, side.multiply(density, total))


def normal_cdf_bounds(z: float) -> tuple[Decimal, Decimal]:
    """A lower and an upper bound on Phi(z), z finite, some 1e-40 apart.

    The margin of 1e-40 covers ``exp``, ``sqrt`` and the constant, which decimal rounds to nearest at 45 digits.
    """
    size = Decimal(abs(z))
    low = _DOWN.subtract(_normal_cdf(size, _DOWN, _UP), _MARGIN)
    high = _UP.add(_normal_cdf(size, _UP, _DOWN), _MARGIN)
    return (low, high) if z >= 0 else (_DOWN.subtract(Decimal(1), high), _UP.subtract(Decimal(1), low))


@lru_cache(maxsize=65536)
def normal_quantile_below(p: float) -> float:
    """A z with ``Phi(z) <= p``, proved; ``-inf`` at ``p <= 0``. Errs low."""
    if p <= 0.0:
        return -math.inf
    z = min(float(ndtri(min(p, 1.0 - _UNIT))), 38.0)
    step = _UNIT
    while z > -38.0 and normal_cdf_bounds(z)[1] > Decimal(p):
        z -= step * max(1.0, abs(z))
        step *= 2.0
    return z if z > -38.0 else -math.inf


def normal_quantile_above(p: float) -> float:
    """A z with ``Phi(z) >= p``, proved; errs high.

    ``1 - p`` is exact in float64 for ``p >= 0.5``; below that it is rounded, so it is first moved down.
    """
    complement = 1.0 - p
    if p < 0.5:
        complement = math.nextafter(complement, 0.0)
    return -normal_quantile_below(complement)


def floor_text(value: float, digits: int = 6) -> str:
    """A number in decimal, rounded DOWN (towards minus infinity) to ``digits`` places: never says too much."""
    quantum = Decimal(1).scaleb(-digits)
    return f"{Decimal(value).quantize(quantum, rounding=ROUND_FLOOR, context=Context(prec=60)):f}"
