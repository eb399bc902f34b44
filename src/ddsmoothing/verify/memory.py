"""Rows of level memory held against the memory's file, and regions against the counts they keep; see ``verify``.

It reads the file by itself. That the file hangs together (its chain, its points, regions that do not meet) is what
``ddsmoothing memory verify`` checks.
"""

from __future__ import annotations

import hashlib
import json
import math
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ddsmoothing.errors import StoreError
from ddsmoothing.verify.arithmetic import LEVELS
from ddsmoothing.verify.budget import too_small
from ddsmoothing.verify.counts import Row, drawn, top_of
from ddsmoothing.verify.notes import EQUAL
from ddsmoothing.verify.shares import SHORT, certified_at

PI_SQUARED: Final = Fraction(math.pi) ** 2
RULES: Final = (("pairwise", "one-class"), ("plurality", "one-class"), ("plurality", "two-class"))
READ: Final = ("binding", "risk")
NAMES: Final = ("number", "class", "radius", "certified", "sigma", "attempt", "evidence", "sha256", "grid", "point")
SQL: Final = f"SELECT {', '.join(NAMES)} FROM regions JOIN points USING (number) WHERE number = ?"  # noqa: S608
Points = Callable[[int], NDArray[Any]]


class Memory:
    """A memory's file, read only.

    Args:
        path: of the file.
    Attributes:
        binding: what it belongs to.   attempts: how many were begun.
        far_unknown, coin_unknown: answered rows whose distance to the region was not recomputed, for want of the data
            set, or whose region was bounded with a coin, which the seed of another run gave.
    Raises: StoreError where it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path, self.far_unknown, self.coin_unknown = path, 0, 0
        self._checked: dict[int, list[str]] = {}
        try:
            meta = {key: json.loads(value) for key, value in self._rows("SELECT key, value FROM meta") if key in READ}
            self.binding: Row = meta["binding"]
            self._risk: Row = meta["risk"]
        except (KeyError, ValueError, TypeError) as error:
            raise StoreError(f"{path} is not a readable memory: {type(error).__name__}: {error}.") from error
        self.attempts = int(self._rows("SELECT coalesce(max(number), 0) FROM attempts")[0][0])
        self._made = dict(self._rows("SELECT attempt, number FROM regions"))

    def _rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        try:
            with closing(sqlite3.connect(f"{self._path.absolute().as_uri()}?mode=ro", uri=True)) as db:
                return db.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise StoreError(f"{self._path} is not a readable memory: {type(error).__name__}: {error}.") from error

    def region(self, number: int) -> Row | None:
        """One region with its point, None where there is none of that number."""
        found = self._rows(SQL, number)
        return dict(zip(NAMES, found[0], strict=True)) if found else None

    def made_by(self, attempt: int) -> int | None:
        """The region that an attempt made, None where it made none."""
        return self._made.get(attempt)

    def alpha(self, attempt: int) -> Fraction:
        """The failure probability that an attempt may have; errs high by a rounding at most."""
        if self._risk["alpha"] is not None:
            return Fraction(self._risk["alpha"])
        return 6 * Fraction(self._risk["delta"]) / (PI_SQUARED * attempt * attempt) * (1 + Fraction(1, 2**48))

    def wrong(self, region: Row) -> list[str]:
        """What ``check_region`` finds; one region may serve many rows, and is proved once."""
        number = region["number"]
        if number not in self._checked:
            self._checked[number] = list(check_region(region, self))
        return self._checked[number]


def check_binding(header: Row, memory: Memory) -> Iterator[str]:
    """Whether a run belongs to a memory."""
    mine = header["model"]["sha256"]
    model = f"id:{header['model']['model_id']}" if mine is None else f"sha256:{mine}"
    forms = [name for name in ("channels_last", "compiled") if header[name]]
    wanted = {
        "model": model,
        "norm": header["norm"],
        "vote": header["rule"]["vote"],
        "num_classes": header["num_classes"],
        "transform": header["data"]["transform"],
        "dtype": header["dtype"],
        "precision": "+".join([header["precision"], *forms]),
        "shape": header.get("shape") or memory.binding["shape"],
    }
    for name, value in wanted.items():
        if memory.binding[name] != value:
            yield f"the memory's {name} is {memory.binding[name]!r}, the run's {value!r}"


def check_remembered(row: Row, header: Row, memory: Memory, point: Points | None = None) -> Iterator[str]:
    """What is wrong with a row of level memory beside its memory.

    Args:
        point: gives an input of the data set as flat stored numbers, so that distances to centres can be recomputed.
    """
    note = row["memory"]
    answered = note["kind"] == "answered"
    if not answered:
        yield from _attempt(note, memory)
    number = note["by"] if answered else note["region"]
    if number is None:
        return
    region = memory.region(number)
    if region is None:
        yield f"region {number} is not in the memory"
        return
    if region["class"] != row["prediction"]:
        yield f"its class is {row['prediction']}, that of region {number} {region['class']}"
    yield from memory.wrong(region)
    yield from _inside(row, region, memory, point) if answered else _made(row, region)


def _attempt(note: Row, memory: Memory) -> Iterator[str]:
    """The attempt that a row says it was, and its share of the memory's risk."""
    attempt, share = note["attempt"], float(memory.alpha(note["attempt"]))
    if attempt > memory.attempts:
        yield f"attempt is {attempt}, the memory has had {memory.attempts}"
    if memory.made_by(attempt) != note["region"]:
        yield f"attempt {attempt} made region {memory.made_by(attempt)}, the row names {note['region']}"
    if not math.isclose(note["alpha"], share, rel_tol=EQUAL):
        yield f"alpha is {note['alpha']}, the memory gives {share} to attempt {attempt}"
    if note["by"] is not None and memory.region(note["by"]) is None:
        yield f"region {note['by']}, which cut it, is not in the memory"


def _made(row: Row, region: Row) -> Iterator[str]:
    """Whether a row's own region is what the row says."""
    note, number = row["memory"], region["number"]
    if (region["attempt"], region["certified"], region["sigma"]) != (note["attempt"], note["certified"], row["sigma"]):
        yield f"region {number} was made by another certification than this row"
    if bool(region["grid"]) != (row["noise"] == "grid") or (
        region["grid"] and region["sha256"].hex() != row["input_sha256"]
    ):
        yield f"region {number} is round another input"
    evidence = json.loads(region["evidence"] or "{}").get("measurements")
    if evidence is not None and _plain(evidence) != _plain(row["measurements"]):
        yield f"region {number} was made of other counts than this row's"
    if not SHORT * Fraction(1 + region["radius"]) > Fraction(region["radius"]) - Fraction(row["radius"]) >= 0:
        yield f"radius is {row['radius']}, that of region {number} is {region['radius']}"


def _plain(measurements: list[Row]) -> Any:
    """Measurements as JSON gives them back, whoever wrote them."""
    return json.loads(json.dumps([{k: v for k, v in part.items() if k != "slot"} for part in measurements]))


def _inside(row: Row, region: Row, memory: Memory, point: Points | None) -> Iterator[str]:
    """Whether an answered row lies in its region, and so far from the border as it says."""
    left, number = Fraction(region["radius"]), region["number"]
    parts = json.loads(region["evidence"] or "{}").get("measurements", ())
    memory.coin_unknown += any(part.get("coin") is not None for part in parts)
    memory.far_unknown += point is None
    if point is not None:
        left -= _distance(point(row["id"]), row["noise"] == "grid", region, memory.binding["norm"])
        if left <= -SHORT:
            yield f"region {number} does not hold this input"
        elif Fraction(row["radius"]) < left - SHORT * (1 + left):
            yield f"radius is {row['radius']}, less than the {float(left):.9f} that region {number} leaves"
    if Fraction(row["radius"]) > max(Fraction(0), left):
        yield f"radius is {row['radius']}, more than the {float(left):.9f} that region {number} leaves"


def check_region(region: Row, memory: Memory) -> Iterator[str]:
    """Whether a region is what its own counts give at its attempt's share of the risk."""
    name, binding = f"region {region['number']}", memory.binding
    d, grid = math.prod(binding["shape"]), bool(region["grid"])
    if len(region["point"]) != d * (1 if grid else 8):
        yield f"the point of {name} has {len(region['point'])} bytes, not {d} numbers"
        return
    if not region["evidence"]:
        yield f"{name} keeps no counts, so that its radius cannot be recomputed"
        return
    found = json.loads(region["evidence"])
    alpha, rule = Fraction(found["alpha"]), found["rule"]
    if (rule["vote"], rule["bound"]) not in RULES or rule.keys() != {"vote", "bound"} or not 0 < alpha < 1:
        yield f"the rule of {name} is {rule} at alpha {found['alpha']}, which no memory has"
        return
    header = {"norm": binding["norm"], "num_classes": binding["num_classes"], "alpha": alpha, "rule": rule}
    row = {"sigma": region["sigma"], "lambda": math.sqrt(3) * region["sigma"]}
    row |= {"moved": found["moved"], "measurements": found["measurements"]}
    if rule["vote"] != binding["vote"] or len(row["measurements"]) != 2:
        yield f"the counts of {name} are not of its vote, or none"
        return
    wrong = list(drawn(row, header))
    yield from (f"{name}: {text}" for text in wrong)
    if wrong:
        return
    pilot, fresh = row["measurements"]
    if top_of(pilot, header) != region["class"]:
        yield f"the counts of {name} are not of its class"
        return
    if not 0 < region["radius"] <= region["certified"]:
        yield f"{name} has radius {region['radius']}, of {region['certified']} certified"
    if grid:
        texts = too_small(fresh, row, header | {"levels": LEVELS}, d)
        yield from (f"{name}: {text}" for text in texts)
    share = min(memory.alpha(region["attempt"]), alpha)
    yield from (f"{name}: {text}" for text in certified_at(row, header, fresh, region["certified"], share))


def _distance(x: NDArray[Any], on_grid: bool, region: Row, norm: str) -> Fraction:
    """A lower bound on the distance of an input to a region's centre.

    Args:
        on_grid: the input is an 8-bit image, of which floats are only the nearest ones.
    """
    data = region["point"]
    if hashlib.sha256(data).digest() != region["sha256"]:
        raise ValueError(f"the point of region {region['number']} is not the one that was stored")
    centre = np.frombuffer(data, dtype=np.uint8 if region["grid"] else "<f8")
    if on_grid and x.dtype != np.uint8:
        x = np.rint(x.astype(np.float64) * LEVELS).astype(np.uint8)
    if centre.dtype == np.uint8 and x.dtype == np.uint8:
        whole = np.abs(x.astype(np.int64) - centre)
        square = int((whole * whole).sum())
        return Fraction(math.isqrt(square << 80), LEVELS << 40) if norm == "l2" else Fraction(int(whole.sum()), LEVELS)
    ends = [v.astype(np.float64) / LEVELS if v.dtype == np.uint8 else v.astype(np.float64) for v in (x, centre)]
    gap = np.abs(ends[0] - ends[1])
    size = float(np.sqrt((gap * gap).sum()) if norm == "l2" else gap.sum())
    return Fraction(size) * (1 - Fraction(len(gap) + 8, 2**51)) - Fraction(len(gap), 2**51)
