"""A gate without noise: which expert it picks, and how far the others are. It knows no rule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ddsmoothing.errors import InputError

LARGEST_CENTRE: Final = 2**24  # whose squares fit 64 bits
TINY: Final = 1e-290  # more than all that underflows in such a comparison
LEAST_APART: Final = 1e-6  # in some number, so that nothing underflows where centres are compared


class Seen(NamedTuple):
    """What a gate without noise says of one input.

    Attributes:
        chosen: the expert that it picks.
        away: of each expert the distance within which it is not picked, 0 for the chosen one; errs low.
    """

    chosen: int
    away: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Centres:
    """A gate without noise: of fixed centres the nearest in L2, of equal ones the first, picks its expert.

    The points nearer to ``m_i`` than to ``m_c`` lie behind a plane at the distance
    ``(|x - m_i|^2 - |x - m_c|^2) / (2 |m_c - m_i|)``; in L1 with the largest coordinate of ``m_c - m_i`` below.

    Attributes:
        points: ``(E, d)``: integers, which stand for ``X / levels``, or float64 in the units of the input.
        levels: of the grid of the inputs.
    """

    points: NDArray[np.int64] | NDArray[np.float64]
    levels: int = 255

    def __post_init__(self) -> None:
        try:
            points = np.asarray(self.points)
        except ValueError:
            points = np.empty(0)
        if points.dtype.kind not in "iuf" or points.ndim < 2 or not points.size:
            raise InputError("the centres of a gate are no array (E, ..) of numbers, expected one of each expert.")
        if type(self.levels) is not int or self.levels < 1:
            raise InputError(f"levels is {self.levels!r}, expected a whole number of at least 1.")
        if not (np.abs(points.astype(np.float64)) <= LARGEST_CENTRE).all():  # before integers can wrap
            raise InputError(f"the centres of a gate are numbers of at most {LARGEST_CENTRE:,}, expected no others.")
        points = points.astype(np.int64 if points.dtype.kind in "iu" else np.float64).reshape(len(points), -1)
        if any(np.abs(a - b).max() < LEAST_APART for a, b in combinations(points, 2)):
            raise InputError("two centres of a gate are the same, expected different ones.")
        points.setflags(write=False)
        object.__setattr__(self, "points", points)

    def seen(self, x: NDArray[Any], norm: str) -> Seen:
        """The expert picked at an input, and how far the others are; errs low.

        Args:
            x: ``(d,)``: the integers X of an input on the grid of these levels, or numbers in the units of the input.
            norm: of the distances.
        """
        if x.shape != self.points.shape[1:]:
            raise InputError(f"the centres have {self.points.shape[1]} numbers, the input {x.size}.")
        if x.dtype.kind in "iu" and self.points.dtype.kind == "i":
            return self._exactly(x.astype(np.int64), norm)
        return _in_floats(self._numbers(x), self._numbers(self.points), norm)

    def _numbers(self, v: NDArray[Any]) -> NDArray[np.float64]:
        return v.astype(np.float64) / (self.levels if v.dtype.kind in "iu" else 1)

    def _exactly(self, x: NDArray[np.int64], norm: str) -> Seen:
        """Squares are sums of integers; only the last division is rounded, downwards."""
        squares = [_square(x - point) for point in self.points]
        chosen = squares.index(min(squares))
        away = []
        for i, point in enumerate(self.points):
            apart = self.points[chosen] - point
            length = math.sqrt(_square(apart)) if norm == "l2" else float(np.abs(apart).max())
            away.append(0.0 if i == chosen else _down((squares[i] - squares[chosen]) / (2.0 * self.levels * length)))
        return Seen(chosen, tuple(away))


def _square(v: NDArray[np.int64]) -> int:
    """The sum of squares, whatever its size."""
    return sum((v * v).tolist())


def _down(value: float) -> float:
    """Below what at most 16 roundings to nearest can have made of a number that is not negative."""
    return value * (1.0 - 2.0**-48)


def _in_floats(x: NDArray[np.float64], points: NDArray[np.float64], norm: str) -> Seen:
    """The gap is ``(m_c - m_i) . (2 x - m_c - m_i)``; rounding is below ``(d + 16) 2^-53`` of the absolutes' sum."""
    chosen = int(np.square(x - points).sum(1).argmin())
    slack, away = (x.size + 16) * 2.0**-52, []
    for i, point in enumerate(points):
        apart = points[chosen] - point
        sizes = np.abs(points[chosen]) + np.abs(point)
        gap = float(apart @ (2.0 * x - points[chosen] - point) - slack * (sizes @ (2.0 * np.abs(x) + sizes)))
        length = float(np.linalg.norm(apart) if norm == "l2" else np.abs(apart).max())
        length = length * (1.0 + slack) + slack * float(sizes.max())
        away.append(0.0 if i == chosen else _down(max(0.0, gap - TINY) / (2.0 * length)))
    return Seen(chosen, tuple(away))
