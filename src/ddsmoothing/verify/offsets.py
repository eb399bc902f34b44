"""Class offsets: the class that a pilot chooses, and whether counts bear out a radius above thresholds; see ``verify``.

The atom "A beats b" has the threshold ``beta_b - beta_A``; a radius is the least phi less its threshold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any, Final, NamedTuple

import numpy as np
from scipy.special import ndtr, ndtri

from ddsmoothing.verify.arithmetic import normal_quantile

Row = dict[str, Any]
CLOSE: Final = Fraction(1, 10**12)
TOLERANCE: Final = Fraction(1, 10**9)
EDGE: Final = Fraction(1, 10**20)
FAR: Final = Fraction(10**9)


class Atom(NamedTuple):
    """An event whose phi has to exceed a threshold.

    Attributes:
        name: of it.   at: a row with the sigma and lambda of its noise.   tv: budget of that noise.
        holds: whether a number is a lower bound for the event's probability.
    """

    name: str
    threshold: Fraction
    at: Row
    tv: Fraction
    holds: Callable[[Fraction], bool]


def offsets_of(header: Row) -> list[float] | None:
    """The offsets of a header, None where it has none."""
    found: list[float] | None = header["rule"].get("offsets")
    return found


def wrong_offsets(header: Row) -> Iterator[str]:
    """What is wrong with the offsets that a header states."""
    offsets, note = offsets_of(header), header.get("offsets")
    none = offsets is None and (header["rule"].get("stateless") or {}).get("kind") != "pairs"
    if note is not None and (none or set(note) != {"sha256", "seen"}):
        yield "the header says where offsets or a table come from, and has none"
    if offsets is None:
        return
    if header["rule"]["vote"] != "pairwise" or header["level"] == "memory":
        yield "class offsets belong to a pairwise vote, and to no memory"
    if len(offsets) != header["num_classes"] or any(type(b) is not float or not abs(b) <= 1e3 for b in offsets):
        yield f"offsets are not {header['num_classes']} finite numbers"


def bindings(pilot: Row, offsets: list[float]) -> list[tuple[int, int]]:
    """Of each class the count of its binding event and the rival that it is held against."""
    if "rivals" in pilot:
        return list(zip(pilot["least"], pilot["rivals"], strict=True))
    order = sorted(range(len(offsets)), key=lambda c: -offsets[c])
    return [(k, order[1] if c == order[0] else order[0]) for c, k in enumerate(pilot["votes"])]


def chosen(pilot: Row, header: Row, offsets: list[float]) -> int:
    """The class that the pilot chooses: the largest estimated margin, then the most votes, then the first."""
    margins = []
    for c, (k, rival) in enumerate(bindings(pilot, offsets)):
        share = (k + 0.5) / (pilot["n"] + 1.0)
        if header["norm"] == "l2":
            phi = pilot["sigma"] * float(ndtri(share))
        else:
            phi = 2.0 * math.sqrt(3.0) * pilot["sigma"] * (share - 0.5)
        margins.append((phi - (offsets[rival] - offsets[c]), pilot["votes"][c], -c))
    return margins.index(max(margins))


def needed_by_plan(pilot: Row, header: Row, top: int, offsets: list[float]) -> float:
    """The probability of the binding event at which the radius is 0."""
    rival = bindings(pilot, offsets)[top][1]
    threshold, sigma = offsets[rival] - offsets[top], pilot["sigma"]
    if header["norm"] == "l2":
        found = float(ndtr(threshold / sigma))
    else:
        found = 0.5 + threshold / (2.0 * float(np.sqrt(3.0)) * sigma)
    return min(max(found, 1e-9), 1.0 - 1e-9)


def phi(p: Fraction, row: Row, header: Row) -> tuple[Fraction, Fraction]:
    """Lower and upper bound on the phi of an event of this probability."""
    if header["norm"] == "l1":
        found = 2 * Fraction(row["lambda"]) * (p - Fraction(1, 2))
        return found, found
    if p <= 0:
        return -FAR, -FAR
    if not EDGE < p < 1 - EDGE:
        end = 9 * Fraction(row["sigma"])  # Phi(-9) is above 1e-20
        return (-FAR, -end) if p <= EDGE else (end, FAR)
    low, high = normal_quantile(p)
    return Fraction(row["sigma"]) * low, Fraction(row["sigma"]) * high


def probability(level: Fraction, row: Row, header: Row) -> Fraction:
    """A p from which on phi reaches this level; errs low by some 1e-12, which is proved."""
    if header["norm"] == "l1":
        return Fraction(1, 2) + level / (2 * Fraction(row["lambda"]))
    p = Fraction(float(ndtr(float(level / Fraction(row["sigma"])))))
    if EDGE < p + CLOSE < 1 - EDGE and phi(p + CLOSE, row, header)[0] < level:
        raise ValueError("the normal law is off")
    return p - CLOSE


def judged_margin(
    row: Row, header: Row, atoms: Sequence[Atom], lower: Fraction
) -> tuple[tuple[Fraction, Fraction], list[str]]:
    """Bounds on the margin that the counts give, and what is wrong with the p_lower and the radius that a row states.

    Args:
        atoms: all that have to hold together.
        lower: the p_lower that the row states, the bound of the atom with the least margin, at the row's sigma.
    """
    fitting = [
        atom
        for atom in atoms
        if atom.at["sigma"] == row["sigma"]
        and (lower <= 0 or atom.holds(lower + atom.tv))
        and (lower + atom.tv + TOLERANCE >= 1 or not atom.holds(lower + atom.tv + TOLERANCE))
    ]
    if not fitting:
        return (Fraction(0), Fraction(0)), [f"p_lower is {float(lower)}, the bound of no event that has to hold"]
    threshold = max(atom.threshold for atom in fitting)
    low, high = (value - threshold for value in phi(lower, row, header))
    stated = Fraction(row["radius"]) + Fraction(row.get("moved") or 0)
    wrong = []
    for atom in atoms:
        if Fraction(row["radius"]) > 0 and not atom.holds(
            probability(stated + atom.threshold, atom.at, header) + atom.tv
        ):
            wrong.append(f"radius is {row['radius']}, more than {atom.name} allow")
        least = probability(low - TOLERANCE + atom.threshold, atom.at, header) + atom.tv - TOLERANCE
        if 0 < least < 1 and not atom.holds(least):
            wrong.append(f"p_lower is that of another event than the one that binds: {atom.name} give less")
    return (low, high), wrong
