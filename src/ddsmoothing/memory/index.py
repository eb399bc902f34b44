"""Which stored balls a point can possibly meet: a filter in main memory that never leaves one out.

It knows no files. Each point has a sketch: m coordinates of an orthonormal projection P and the norm of what P leaves
out. ``norm2(x - y)^2 >= norm2(Px - Py)^2 + (norm(x_perp) - norm(y_perp))^2``, and ``norm1 >= norm2``, so a ball farther
off than that is not met. The distances themselves decide, see rules.py.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ddsmoothing.errors import DdsmoothingError, InputError, ShapeError
from ddsmoothing.memory.rules import as_float

ROWS: Final = 64  # coordinates of a sketch, at most; a property of stored files
LOW: Final = 16  # of them that every look-up reads
CHUNK: Final = 2**15  # regions in one array: growing copies nothing, and its float64 columns stay in the cache
LARGEST: Final = 1e9  # of a coordinate
_LARGEST_CHANNELS, _SMALLEST_SIDE = 4, 8


class Sketch(ABC):
    """An orthonormal projection from d coordinates to ``terms - 1``, and the norm of the residual vector."""

    def __init__(self, d: int) -> None:
        self.d = d

    @property
    @abstractmethod
    def terms(self) -> int:
        """Numbers in one sketch."""

    @abstractmethod
    def _forth(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """``P x`` of points ``(B, d)``."""

    @abstractmethod
    def _back(self, p: NDArray[np.float64]) -> NDArray[np.float64]:
        """``P^T p`` of coordinates ``(B, m)``."""

    def of(self, points: NDArray[Any]) -> NDArray[np.float32]:
        """Sketches ``(B, terms)`` of points ``(B, d)``, uint8 or float64; float64 inside, rounded once."""
        if points.ndim != 2 or points.shape[1] != self.d:
            raise ShapeError(f"got points of shape {points.shape}, expected (B, {self.d}).")
        x = as_float(points) - 0.5  # a shift moves no distance and makes the norms, and so the slack, smaller
        if not bool((np.abs(x) <= LARGEST).all()):  # also NaN; float32 products of more would overflow
            raise InputError(f"a point has a coordinate beyond {LARGEST:g}, expected inputs of about unit size.")
        p = self._forth(x)
        rest = x - self._back(p)
        return np.concatenate([p, np.sqrt(np.sum(rest * rest, axis=1, keepdims=True))], axis=1).astype(np.float32)


class IdentitySketch(Sketch):
    """All coordinates, where there are at most 64."""

    @property
    def terms(self) -> int:
        return self.d + 1

    def _forth(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        return x

    def _back(self, p: NDArray[np.float64]) -> NDArray[np.float64]:
        return p


class DctSketch(Sketch):
    """The 64 lowest frequencies of the cosine transform of images ``(C, H, W)``: most of a natural image's energy."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__(math.prod(shape))
        self._shape = shape
        where = np.indices(shape).reshape(3, -1).T
        weight = (8 * where[:, 0]) ** 2 + where[:, 1] ** 2 + where[:, 2] ** 2  # differences of colour come late
        self._chosen = where[np.argsort(weight, kind="stable")[:ROWS]]
        sizes = self._chosen.max(0) + 1
        self._bases = [_cosines(n, k) for n, k in zip(shape, sizes.tolist(), strict=True)]

    @property
    def terms(self) -> int:
        return len(self._chosen) + 1

    def _forth(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        c, h, w = self._bases
        p = x.reshape(-1, *self._shape) @ w.T  # (B, C, H, kw), narrow from the first step on
        p = np.moveaxis(p, 1, 3) @ c.T  # (B, H, kw, kc)
        p = np.tensordot(h, p, axes=(1, 1))  # (kh, B, kw, kc)
        i, j, k = self._chosen.T
        return np.ascontiguousarray(p[j, :, k, i].T)

    def _back(self, p: NDArray[np.float64]) -> NDArray[np.float64]:
        c, h, w = self._bases
        i, j, k = self._chosen.T
        full = np.zeros((len(p), len(c), len(h), len(w)))
        full[:, i, j, k] = p
        full = np.tensordot(full, c, axes=(1, 0))  # (B, kh, kw, C)
        full = np.tensordot(full, h, axes=(1, 0))  # (B, kw, C, H)
        return np.tensordot(full, w, axes=(1, 0)).reshape(len(p), self.d)


class RandomSketch(Sketch):
    """64 random orthonormal directions, the same ones always."""

    @property
    def terms(self) -> int:
        return ROWS + 1

    @cached_property
    def _rows(self) -> NDArray[np.float64]:
        """Gram-Schmidt, done twice: orthonormal to float64 accuracy, and no library chooses the signs."""
        rows = np.random.Generator(np.random.Philox(key=self.d)).standard_normal((ROWS, self.d))
        for _ in range(2):
            for i, row in enumerate(rows):
                row -= rows[:i].T @ (rows[:i] @ row)
                row /= np.sqrt(np.sum(row * row))
        return rows

    def _forth(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(x @ self._rows.T)

    def _back(self, p: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(p @ self._rows)


def _cosines(n: int, k: int) -> NDArray[np.float64]:
    """The first k rows of the orthonormal cosine transform (type 2) of length n, ``(k, n)``."""
    u, t = np.arange(k)[:, None], np.arange(n)[None, :]
    rows = np.sqrt(2.0 / n) * np.cos(np.pi * u * (2 * t + 1) / (2 * n))
    rows[0] = math.sqrt(1.0 / n)
    return np.asarray(rows)


def sketch_for(shape: tuple[int, ...]) -> Sketch:
    """The sketch of inputs of one shape: cosine for images, random directions for anything else."""
    d = math.prod(shape)
    if d <= ROWS:
        return IdentitySketch(d)
    image = shape if len(shape) == 3 else (1, *shape)
    if len(image) == 3 and image[0] <= _LARGEST_CHANNELS and min(image[1:]) >= _SMALLEST_SIDE:
        return DctSketch((image[0], image[1], image[2]))
    return RandomSketch(d)


class _Chunk:
    """Up to CHUNK regions; ``size`` of them are in use."""

    def __init__(self, terms: int) -> None:
        self.size = 0
        low = min(LOW, terms - 1)
        self.low = np.zeros((low + 1, CHUNK), dtype=np.float32)  # first coordinates, and the norm of all others
        self.rest = np.zeros((CHUNK, terms - low), dtype=np.float32)
        self.reach = np.zeros(CHUNK)  # radius, a little enlarged
        self.head = np.zeros(CHUNK)  # reach^2 - (1 - slack) norm(low)^2
        self.label = np.zeros(CHUNK, dtype=np.int32)

    def sketches(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Whole sketches ``(R, terms)`` of some rows."""
        return np.concatenate([self.low[:-1, rows].T, self.rest[rows]], axis=1).astype(np.float64)


class Index:
    """Sketches, classes and radii of all regions, in their order; position p is the region number p + 1.

    A look-up reads the first 16 coordinates of all sketches, and all of the few that these do not rule out.
    """

    def __init__(self, terms: int, d: int) -> None:
        check_float32()
        self._terms, self._d, self._chunks = terms, d, list[_Chunk]()
        self._slack = (terms + 8) * 2.0**-23

    def __len__(self) -> int:
        return sum(chunk.size for chunk in self._chunks)

    def extend(self, labels: NDArray[np.int64], radii: NDArray[np.float64], sketches: NDArray[np.float32]) -> None:
        """Add regions: ``(B,)``, ``(B,)`` and ``(B, terms)``."""
        start = 0
        while start < len(labels):
            if not self._chunks or self._chunks[-1].size == CHUNK:
                self._chunks.append(_Chunk(self._terms))
            chunk = self._chunks[-1]
            rows = slice(start, min(len(labels), start + CHUNK - chunk.size))
            at = slice(chunk.size, chunk.size + rows.stop - rows.start)
            low = _low(sketches[rows])
            chunk.low[:, at], chunk.rest[at] = low.T, sketches[rows, low.shape[1] - 1 :]
            chunk.label[at], chunk.reach[at] = labels[rows], self._enlarged(radii[rows])
            chunk.head[at] = chunk.reach[at] ** 2 - (1.0 - self._slack) * _squares(low)
            chunk.size, start = at.stop, rows.stop

    def near(self, sketch: NDArray[np.float32], radius: float = 0.0, *, not_of: int | None = None) -> NDArray[np.int64]:
        """Positions of all regions that a ball of this radius round a point can meet, ascending, and of some more.

        ``LB^2 <= (r + r_j)^2 + (m + 8) 2^-23 (norm(a)^2 + norm(b)^2)``: the products are float32, whose error and that
        of the rounded sketches the slack covers; the thresholds are float64.

        Args:
            sketch: ``(terms,)`` of the point.   not_of: leave out regions of this class.
        """
        reach = float(self._enlarged(np.array([radius]))[0]) if radius > 0.0 else 0.0
        low, whole = _low(sketch[None])[0], sketch.astype(np.float64)
        least = (1.0 - self._slack) * float(_squares(low[None])[0]) - reach * reach
        found = []
        for start, chunk in enumerate(self._chunks):
            used = slice(0, chunk.size)
            score = (2.0 * low) @ chunk.low[:, used] + chunk.head[used]
            if reach > 0.0:
                score += 2.0 * reach * chunk.reach[used]
            keep = np.flatnonzero(score >= least)
            if not_of is not None:
                keep = keep[chunk.label[keep] != not_of]
            if len(keep):
                others = chunk.sketches(keep)
                slack = self._slack * (_squares(others) + float(whole @ whole))
                keep = keep[_squares(others - whole) <= (reach + chunk.reach[keep]) ** 2 + slack]
            found.append(keep + start * CHUNK)
        return np.concatenate(found) if found else np.zeros(0, dtype=np.int64)

    def _enlarged(self, radii: NDArray[np.float64]) -> NDArray[np.float64]:
        """Radii with more than three guards of room: a filter may let too much through."""
        return np.asarray(radii * (1.0 + 2.0**-20) + self._d * 2.0**-50)


def _low(sketches: NDArray[np.float32]) -> NDArray[np.float32]:
    """The first coordinates of sketches ``(B, terms)`` and the norm of all others: a coarser sketch."""
    low = min(LOW, sketches.shape[1] - 1)
    rest = np.sqrt(_squares(sketches[:, low:]))
    return np.concatenate([sketches[:, :low], rest[:, None]], axis=1).astype(np.float32)


def _squares(rows: NDArray[np.float32] | NDArray[np.float64]) -> NDArray[np.float64]:
    wide = rows.astype(np.float64)
    return np.asarray(np.einsum("ij,ij->i", wide, wide))


def check_float32() -> None:
    """Raise unless products of float32 arrays are true float32 (no bfloat16, no TF32)."""
    a = np.full((8, ROWS), 1.0 + 2.0**-12, dtype=np.float32)  # 2^-12 is lost in either of the shorter types
    exact = ROWS * (1.0 + 2.0**-12) ** 2
    if float(np.abs((a @ a[0]).astype(np.float64) - exact).max()) > 2 * ROWS * ROWS * 2.0**-24:
        raise DdsmoothingError("this build of numpy multiplies float32 at less than float32 precision; use another.")
