"""The rules of a certified memory: pure geometry of open balls, ellipsoids and cross-polytopes.

It knows no files, no models and no torch. Points are flat arrays: uint8 for images on the 8-bit grid (X stands for
``X/255``), float64 for all others. Every radius it returns errs low.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ddsmoothing.errors import InputError, ShapeError, unknown
from ddsmoothing.noise import LEVELS

NORMS: Final = ("l1", "l2")
Point = NDArray[Any]


def distance(norm: str, x: Point, y: Point) -> float:
    """Distance of two points, right to within ``guard``; exact integers decide where both are uint8.

    L2: ``sqrt(sum (X - Y)^2) / 255`` with the sum in int64; L1: ``sum |X - Y| / 255``. Anything else: float64 direct
    differences, never an expansion of the square.
    """
    if norm not in NORMS:
        raise InputError(unknown("norm", norm, NORMS))
    if x.shape != y.shape or x.ndim != 1:
        raise ShapeError(f"got points of shapes {x.shape} and {y.shape}, expected two flat ones of the same length.")
    if x.dtype == np.uint8 and y.dtype == np.uint8:
        whole = x.astype(np.int64) - y
        if norm == "l2":
            return math.sqrt(int(np.dot(whole, whole))) / LEVELS
        return int(np.abs(whole).sum()) / LEVELS
    difference = as_float(x) - as_float(y)
    return float(np.sqrt(np.sum(difference * difference)) if norm == "l2" else np.sum(np.abs(difference)))


def as_float(x: Point) -> NDArray[np.float64]:
    """A point in the units of the input, float64."""
    return x.astype(np.float64) / LEVELS if x.dtype == np.uint8 else x.astype(np.float64, copy=False)


def guard(norm: str, d: int, size: float) -> float:
    """eta: more than the error of any computed distance of true or computed value at most ``size``.

    Differences, squares, a sum in any order and the root err by at most ``(d + 4) 2^-53`` relatively (Higham 2002,
    section 3.1), and ``X/255`` in float64 by 2^-54 in each coordinate. Both are taken twice, which also covers the few
    roundings of sums of radii and guards.
    """
    conversion = math.sqrt(d) if norm == "l2" else d
    return 2.0**-52 * ((d + 8) * size + conversion)


@dataclass(frozen=True, kw_only=True)
class Cut:
    """What is left of a ball beside others.

    Attributes:
        radius: of the ball that may be stored, 0 for none.   by: position of the ball that cut it, None where nothing
            did.
    """

    radius: float
    by: int | None


def inside(distances: NDArray[np.float64], radii: NDArray[np.float64]) -> NDArray[np.bool_]:
    """``(J,)`` True where a point at these computed distances belongs to the ball: ``d^_j < r_j``."""
    return np.asarray(distances < radii)


def reconciled(norm: str, d: int, certified: float, distances: NDArray[np.float64], radii: NDArray[np.float64]) -> Cut:
    """The online rule: ``r = floor(max(0, min(r_cert, min_j (d^_j - r_j - 3 eta))))`` over balls of OTHER classes.

    Args:
        d: coordinates of a point.   certified: radius of the new certificate.   distances, radii: ``(J,)`` to the
            centres of the stored balls of other classes, and their radii.
    """
    radius, by = certified, None
    for j, (far, held) in enumerate(zip(distances.tolist(), radii.tolist(), strict=True)):
        room = math.nextafter(far - held - 3.0 * guard(norm, d, far), -math.inf)
        if room < radius:
            radius, by = room, j
    return Cut(radius=max(0.0, radius), by=by)


def at_centre(norm: str, d: int, radius: float) -> float:
    """What may be advertised for the centre of a stored ball: ``r - eta``."""
    return max(0.0, math.nextafter(radius - guard(norm, d, radius), -math.inf)) if radius > 0.0 else 0.0


def within(norm: str, d: int, radius: float, far: float) -> float:
    """What may be advertised for a point inside a stored ball: ``max(0, r_j - d^_j - 2 eta)``."""
    return max(0.0, math.nextafter(radius - far - 2.0 * guard(norm, d, radius), -math.inf))


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two balls that touch or overlap.

    Attributes:
        i, j: positions, ``i < j``.   far: computed distance of the centres.
    """

    i: int
    j: int
    far: float


def order_free(
    norm: str, d: int, classes: NDArray[np.int64], radii: NDArray[np.float64], pairs: Sequence[Pair]
) -> list[Cut]:
    """The offline rule for a fixed list: ``r_i' = r_i min_j s_ij``, ``s_ij = min(1, (d^_ij - 3 eta) / (r_i + r_j))``.

    No class changes and the order of the list does not matter.

    Args:
        classes, radii: ``(B,)``; a radius of 0 is no ball.   pairs: every pair with ``d_ij < r_i + r_j + 3 eta``, at
            least; those of equal class are passed over.
    """
    share = np.ones(len(radii))
    by: list[int | None] = [None] * len(radii)
    for pair in pairs:
        together = radii[pair.i] + radii[pair.j]
        if classes[pair.i] == classes[pair.j] or radii[pair.i] <= 0.0 or radii[pair.j] <= 0.0:
            continue
        s = max(0.0, float((pair.far - 3.0 * guard(norm, d, pair.far)) / together) * (1.0 - 2.0**-50))
        for one, other in ((pair.i, pair.j), (pair.j, pair.i)):
            if s < share[one]:
                share[one], by[one] = s, other
    return [Cut(radius=float(r * s), by=j) for r, s, j in zip(radii, share, by, strict=True)]


def ellipsoid_factor(
    x1: NDArray[np.float64], a1: NDArray[np.float64], x2: NDArray[np.float64], a2: NDArray[np.float64]
) -> float:
    """A t in [0, 1] for which ``{norm2((z - x1)/a1) < t}`` and ``{norm2((z - x2)/a2) < 1}`` are disjoint; errs low.

    With ``w = (x2 - x1)/a1`` and ``b = a2/a1``, ``t^2 >= D(mu) = sum w^2 mu/(b^2 + mu) - mu`` for ANY mu >= 0 (Lagrange
    dual), so that an inexact maximum stays sound; 0 where x1 lies inside the second.

    Args:
        x1, x2: centres ``(d,)``.   a1, a2: half-axes ``(d,)``, radius times theta, positive.
    References: regions of Eiras et al. 2022 (ANCER), arXiv:2107.04570.
    """
    w, b = _relative(x1, a1, x2, a2)
    square, held = w * w, b * b
    if float(np.sum(square / held)) <= 1.0:
        return 0.0
    low, high = 0.0, math.sqrt(float(np.sum(square * held)))
    for _ in range(80):  # sum w^2 b^2/(b^2 + mu)^2 decreases in mu and is 1 at the maximum of D
        middle = 0.5 * (low + high)
        if float(np.sum(square * held / (held + middle) ** 2)) > 1.0:
            low = middle
        else:
            high = middle
    mu = 0.5 * (low + high)
    total = float(np.sum(square * (mu / (held + mu))))
    sure = total - mu - 8 * (len(w) + 4) * 2.0**-53 * (total + mu)
    return min(1.0, math.nextafter(math.sqrt(max(0.0, sure)), 0.0))


def cross_polytope_factor(
    x1: NDArray[np.float64], a1: NDArray[np.float64], x2: NDArray[np.float64], a2: NDArray[np.float64]
) -> float:
    """The same for ``{norm1((z - x1)/a1) < t}`` and ``{norm1((z - x2)/a2) < 1}``: ``norm1(w) - max b``; errs low."""
    w, b = _relative(x1, a1, x2, a2)
    size, largest = float(np.sum(np.abs(w))), float(b.max())
    return min(1.0, max(0.0, size - largest - 8 * (len(w) + 4) * 2.0**-53 * (size + largest)))


def region_left(
    norm: str, x: NDArray[np.float64], centre: NDArray[np.float64], axes: NDArray[np.float64]
) -> tuple[float, float]:
    """What a stored ellipsoid (l2) or cross-polytope (l1) leaves round a point x inside it; errs low.

    Returns: ``(1 - m, (1 - m) min a)``, ``m = norm((x - centre)/axes)``: the factor of the same shape round x, and the
        radius of the largest ball; ``(0, 0)`` outside.
    """
    _check_axes(x, axes)
    w = (x - centre) / axes
    m = float(np.sqrt(np.sum(w * w)) if norm == "l2" else np.sum(np.abs(w)))
    left = max(0.0, 1.0 - m - 8 * (len(w) + 4) * 2.0**-53 * (1.0 + m))
    return left, math.nextafter(left * float(axes.min()), 0.0)


def _relative(
    x1: NDArray[np.float64], a1: NDArray[np.float64], x2: NDArray[np.float64], a2: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    _check_axes(x1, a1)
    _check_axes(x2, a2)
    return (x2 - x1) / a1, a2 / a1


def _check_axes(x: NDArray[np.float64], axes: NDArray[np.float64]) -> None:
    if x.shape != axes.shape or x.ndim != 1:
        raise ShapeError(f"got a centre of shape {x.shape} and half-axes {axes.shape}, expected two of the same (d,).")
    if not (np.isfinite(axes).all() and (axes > 0.0).all()):
        raise InputError("half-axes contain a number that is not positive and finite, expected radius times theta.")
