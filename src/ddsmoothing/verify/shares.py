"""The radius that counts give at a share of alpha: every look's part shrinks as alpha does; see ``verify``."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Final

from ddsmoothing.verify.counts import Row, lower_holds, radius_of, top_of, upper_holds

HALVINGS: Final = 60
SHORT: Final = Fraction(1, 10**6)  # so much less than the counts give may be claimed, relatively and absolutely


def certified_at(row: Row, header: Row, fresh: Row, certified: float, alpha: Fraction) -> Iterator[str]:
    """Whether ``certified`` is what these counts give at alpha: never more, and hardly less.

    Args:
        row: with sigma, lambda, moved and measurements.   header: with norm, rule and the alpha of the looks.
    """
    radius, top = Fraction(certified), top_of(row["measurements"][0], header)
    if radius < 0 or (radius and not _holds(row, header, fresh, top, radius, alpha)):
        yield f"certified is {certified}, more than the counts give at alpha {float(alpha):g}"
    elif _holds(row, header, fresh, top, radius + SHORT * (1 + radius), alpha):
        yield f"certified is {certified}, less than the counts give at alpha {float(alpha):g}"


def _holds(row: Row, header: Row, fresh: Row, top: int, radius: Fraction, alpha: Fraction) -> bool:
    """Do the counts give a class this radius?"""
    tv, part = Fraction(fresh.get("tv", 0)), alpha / Fraction(header["alpha"])
    if lower_holds(fresh, needed(row, header, radius) + tv, part):
        return True
    if header["rule"]["bound"] != "two-class":
        return False
    upper = _least_upper(fresh, top, alpha) + tv
    return upper < 1 and lower_holds(fresh, needed(row, header, radius, upper) + tv, part)


def needed(row: Row, header: Row, radius: Fraction, upper: Fraction | None = None) -> Fraction:
    """A p_lower from which on bounds certify a radius, found by bisection; errs low by 1e-18 at most.

    Args:
        upper: bound on every other class, None for ``1 - p_lower``.
    """
    low, high = Fraction(1, 2) if upper is None else upper, Fraction(1)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        enough = radius_of(row, header, middle, 1 - middle if upper is None else upper)[1] >= radius
        low, high = (low, middle) if enough else (middle, high)
    return low


def _least_upper(fresh: Row, top: int, alpha: Fraction) -> Fraction:
    """The two-class bound on the runner-up, of which the split of alpha leaves a tenth; errs low by 1e-18 at most."""
    runner_up = max((k for c, k in enumerate(fresh["votes"]) if c != top), default=0)
    low, high = Fraction(0), Fraction(1)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if upper_holds(runner_up, fresh["n"], middle, alpha) else (middle, high)
    return low
