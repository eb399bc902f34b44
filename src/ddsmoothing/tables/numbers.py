"""Numbers as people read them, each rounded to the side that claims less. It knows no runs."""

from __future__ import annotations

from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from typing import Final

from ddsmoothing.bounds import floor_text

SMALLEST_PLAIN: Final = Decimal("1e-4")  # smaller numbers are written with an exponent


def percent(hits: int, total: int) -> str:
    """A share in per cent with one decimal, rounded down, in whole numbers so that 29 of 100 stays 29.0."""
    permille = hits * 1000 // total
    return f"{permille // 10}.{permille % 10}"


def percent_up(hits: int, total: int) -> str:
    """A share in per cent with one decimal, rounded UP: for shares that should look no better than they are."""
    permille = -(-hits * 1000 // total)
    return f"{permille // 10}.{permille % 10}"


def share_text(value: float, digits: int, *, up: bool = False) -> str:
    """A ratio of two counts, rounded down, or up; what the last bits say of 0.7 is no reason to say 0.699."""
    return ceil_text(max(0.0, value - 1e-9), digits) if up else floor_text(value + 1e-9, digits)


def ceil_text(value: float, digits: int) -> str:
    """A number in decimal, rounded UP: for upper ends of intervals and for what should look no better than it is."""
    text = floor_text(-float(value), digits)
    return text[1:] if text.startswith("-") else f"-{text}"


def significant(value: float | Decimal, digits: int = 2, *, up: bool = False) -> str:
    """A number with so many significant digits, rounded down, or up.

    A float counts as the shortest decimal that reads back as it: 0.03 stays 0.03 although its bits say a little less.
    For what a product would blur, give the product of decimals: ``Decimal(repr(alpha)) * n``.

    Args:
        value: Finite.
        digits: Significant digits, at least 1.
        up: Round up, for what should look no better than it is.
    """
    exact = value if isinstance(value, Decimal) else Decimal(repr(float(value)))
    rounded = Context(prec=digits, rounding=ROUND_CEILING if up else ROUND_FLOOR).plus(exact)
    if rounded == 0:
        return "0"
    if abs(rounded) < SMALLEST_PLAIN:
        return f"{rounded.normalize():e}"
    text = f"{rounded:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def interval_text(low: float, high: float, digits: int) -> str:
    """``89-97``: the lower end rounded down, the upper one up."""
    return f"{floor_text(low, digits)}-{ceil_text(high, digits)}"
