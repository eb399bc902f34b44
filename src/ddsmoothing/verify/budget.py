"""Scale of a row's noise and its total-variation budget, recomputed from the law on the grid; see ``verify``."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Final

from ddsmoothing.verify.arithmetic import LEVELS, grid_distance
from ddsmoothing.verify.counts import Row, fresh_of

LARGEST_SIGMA: Final = 12.5
LARGEST_LEVELS: Final = 2**20
LARGEST_STEPS: Final = 70_000  # of the grid, in the noise's scale
MOST_STEPS: Final = 12_000.0  # of the grid, in all laws that are worked out together: some ten seconds
CLOSE: Final = Fraction(1, 10**6)  # of a budget, which two series give alike to one part in ten million
TINY: Final = Fraction(1, 2**84)  # of one number: what does not matter at all
NOTHING: Final = Fraction(1, 2**80)  # a budget of one number that says nothing of how many there are


def levels_of(header: Row) -> int:
    """Steps to the unit of the run's grid."""
    levels = header.get("levels", LEVELS)
    if type(levels) is not int or not 1 <= levels <= LARGEST_LEVELS:
        raise ValueError(f"levels is {levels!r}")
    return levels


class Tables:
    """Which noise laws are worked out: a fine grid takes seconds for each sigma, so that their number is bounded.

    Attributes:
        left_out: rows whose ``tv`` was not recomputed.
    """

    def __init__(self) -> None:
        self._taken: set[tuple[float, int]] = set()
        self._steps = 0.0
        self.left_out = 0

    def take(self, row: Row, header: Row) -> bool:
        """Whether a row's law may be worked out; one is always, and all of the 8-bit grid."""
        sigma, levels = float(row["sigma"]), levels_of(header)
        if self.has(row, header):
            return True
        if self._taken and self._steps + sigma * levels > MOST_STEPS:
            self.left_out += 1
            return False
        self._taken.add((sigma, levels))
        self._steps += sigma * levels
        return True

    def has(self, row: Row, header: Row) -> bool:
        """Whether a row's law was taken."""
        levels = levels_of(header)
        return levels <= LEVELS or (float(row["sigma"]), levels) in self._taken


def implied_size(row: Row, header: Row, tables: Tables) -> int | None:
    """The number d of an input's numbers that its total-variation budget implies; None where that is not worked out."""
    fresh = fresh_of(row)
    if row["noise"] != "grid" or fresh is None or not tables.has(row, header):
        return None
    one = one_number(row, header)
    return round(Fraction(fresh.get("tv", 0)) / one) if one > NOTHING else None


def one_number(row: Row, header: Row) -> Fraction:
    """The total-variation budget of one number of an input, at a row's scale."""
    levels = levels_of(header)
    name, scale = ("gaussian", row["sigma"]) if header["norm"] == "l2" else ("uniform", row["lambda"])
    if not 0 < row["sigma"] <= LARGEST_SIGMA:
        raise ValueError(f"sigma is {row['sigma']}")
    if scale * levels > LARGEST_STEPS:
        raise ValueError(f"noise of scale {scale} spans more than {LARGEST_STEPS} steps of the grid")
    return grid_distance(name, float(scale), levels)


def too_small(part: Row, row: Row, header: Row, d: int) -> Iterator[str]:
    """Whether samples on the grid state less than the budget of d numbers at this row's scale."""
    least = d * one_number(row, header)
    if Fraction(part.get("tv", 0)) < least * (1 - CLOSE) - d * TINY:
        yield f"tv is {part.get('tv', 0)}, {d} numbers at sigma {row['sigma']} have {float(least):.6g}"


def check_noise(row: Row, header: Row, tables: Tables) -> Iterator[str]:
    """Scale of the noise and its total-variation budget."""
    sigma, half_width, tvs = row["sigma"], row["lambda"], [part.get("tv", 0) for part in row["measurements"]]
    if not 0 < sigma <= LARGEST_SIGMA:
        raise ValueError(f"sigma is {sigma}")
    if header["norm"] == "l2" and half_width is not None:
        yield "lambda belongs to uniform noise"
    if header["norm"] == "l1" and not math.isclose(half_width, math.sqrt(3) * sigma, rel_tol=1e-15):
        yield f"lambda is {half_width}, sqrt(3) sigma is {math.sqrt(3) * sigma}"
        return
    if len(set(tvs)) != 1:
        yield "pilot and certification have different tv, though their noise is of one scale"
    if row["noise"] not in ("grid", "float"):
        yield f"noise is {row['noise']!r}, expected grid or float"
    elif row["noise"] == "float":
        if any(tvs):
            yield f"tv is {max(tvs)}, expected 0 for float noise, where it is not known"
    elif tables.take(row, header):
        tv, one = Fraction(tvs[-1]), one_number(row, header)
        d = round(tv / one) if one > NOTHING else 0
        off = abs(tv - d * one) if d else max(Fraction(0), tv - Fraction(1, 2**50))
        if off > tv * CLOSE + d * TINY or (one > NOTHING and not d):
            yield f"tv is {tvs[-1]}, expected a multiple of {float(one):.6g}, that of one number at this scale"
