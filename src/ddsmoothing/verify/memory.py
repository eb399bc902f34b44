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
from ddsmoothing.verify.counts import Row, lower_holds, needed

PI_SQUARED: Final = Fraction(math.pi) ** 2
NAMES: Final = ("number", "class", "radius", "certified", "sigma", "attempt", "evidence", "sha256", "grid", "point")
SQL: Final = f"SELECT {', '.join(NAMES)} FROM regions JOIN points USING (number) WHERE number = ?"  # noqa: S608
Points = Callable[[int], NDArray[Any]]


class Memory:
    """A memory's file, read only.

    Args:
        path: of the file.
    Raises: StoreError where it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db:
                meta = {
                    key: json.loads(value) for key, value in db.execute("SELECT key, value FROM meta") if key != "start"
                }
            self.binding: Row = meta["binding"]
            self._risk: Row = meta["risk"]
        except (sqlite3.Error, KeyError, ValueError, TypeError) as error:
            raise StoreError(f"{path} is not a readable memory: {type(error).__name__}: {error}.") from error

    def region(self, number: int) -> Row | None:
        """One region with its point, None where there is none of that number."""
        with closing(sqlite3.connect(f"{self._path.absolute().as_uri()}?mode=ro", uri=True)) as db:
            found = db.execute(SQL, (number,)).fetchone()
        return None if found is None else dict(zip(NAMES, found, strict=True))

    def alpha(self, attempt: int) -> Fraction:
        """The failure probability that an attempt may have; errs high by a rounding at most."""
        if self._risk["alpha"] is not None:
            return Fraction(self._risk["alpha"])
        return 6 * Fraction(self._risk["delta"]) / (PI_SQUARED * attempt * attempt) * (1 + Fraction(1, 2**48))


def check_binding(header: Row, memory: Memory) -> Iterator[str]:
    """Whether a run belongs to a memory."""
    mine = header["model"]["sha256"]
    model = f"id:{header['model']['model_id']}" if mine is None else f"sha256:{mine}"
    wanted = {"model": model, "norm": header["norm"], "vote": header["rule"]["vote"]}
    for name, value in wanted.items():
        if memory.binding[name] != value:
            yield f"the memory's {name} is {memory.binding[name]!r}, the run's {value!r}"


def check_remembered(row: Row, header: Row, memory: Memory, point: Points | None = None) -> Iterator[str]:
    """What is wrong with a row of level memory beside its memory.

    Args:
        point: gives an input of the data set as flat stored numbers, so that distances to centres can be recomputed.
    """
    note = row["memory"]
    number = note["by"] if note["kind"] == "answered" else note["region"]
    if number is None:
        if row["radius"] > 0:
            yield "it has a radius, and names no region of the memory"
        return
    region = memory.region(number)
    if region is None:
        yield f"region {number} is not in the memory"
        return
    if region["class"] != row["prediction"]:
        yield f"its class is {row['prediction']}, that of region {number} {region['class']}"
    yield from check_region(region, memory)
    if note["kind"] != "answered":
        if (region["attempt"], region["certified"], region["sigma"]) != (
            note["attempt"],
            note["certified"],
            row["sigma"],
        ):
            yield f"region {number} was made by another certification than this row"
        if region["grid"] and region["sha256"].hex() != row["input_sha256"]:
            yield f"region {number} is round another input"
        if Fraction(row["radius"]) > Fraction(region["radius"]):
            yield f"radius is {row['radius']}, more than the {region['radius']} of region {number}"
        return
    left = Fraction(region["radius"])
    if point is not None:
        left -= _distance(point(row["id"]), region, memory.binding["norm"])
    if Fraction(row["radius"]) > max(Fraction(0), left):
        yield f"radius is {row['radius']}, more than the {float(left):.9f} that region {number} leaves"


def check_region(region: Row, memory: Memory) -> Iterator[str]:
    """Whether a region is no larger than its own counts allow at its attempt's share of the risk."""
    name = f"region {region['number']}"
    if not region["evidence"]:
        yield f"{name} keeps no counts, so that its radius cannot be recomputed"
        return
    found = json.loads(region["evidence"])
    header = {"norm": memory.binding["norm"], "alpha": found["alpha"], "rule": found["rule"]}
    drawn = found["measurements"]
    row = {"sigma": region["sigma"], "lambda": math.sqrt(3) * region["sigma"], "moved": found["moved"]}
    if len(drawn) != 2 or drawn[1]["sigma"] != region["sigma"] or found["rule"]["vote"] != memory.binding["vote"]:
        yield f"the counts of {name} are not of its sigma and vote"
        return
    fresh = drawn[1]
    looked = fresh["looks"][-1][1]
    events = fresh["wins"] if "wins" in fresh else [fresh["votes"][region["class"]]]
    if looked != events or fresh.get("anchor", region["class"]) != region["class"] or sum(fresh["votes"]) != fresh["n"]:
        yield f"the counts of {name} are not of its class"
        return
    alpha = Fraction(found["alpha"])
    share = min(memory.alpha(region["attempt"]), alpha)
    spent = sum(Fraction(look[2]) for look in fresh["looks"])
    bound = needed(row, header, Fraction(region["certified"])) + Fraction(fresh.get("tv", 0))
    if found["rule"]["bound"] == "one-class" and (
        spent > alpha * (1 + Fraction(1, 2**50)) or not lower_holds(fresh, bound, share / alpha)
    ):
        says = f"{name} says that {region['certified']} was certified"
        yield f"{says}, more than its counts allow at alpha {float(share):g}"


def _distance(x: NDArray[Any], region: Row, norm: str) -> Fraction:
    """A lower bound on the distance of an input to a region's centre."""
    data = region["point"]
    if hashlib.sha256(data).digest() != region["sha256"]:
        raise ValueError(f"the point of region {region['number']} is not the one that was stored")
    centre = np.frombuffer(data, dtype=np.uint8 if region["grid"] else "<f8")
    if centre.dtype == np.uint8 and x.dtype == np.uint8:
        whole = np.abs(x.astype(np.int64) - centre)
        square = int((whole * whole).sum())
        return Fraction(math.isqrt(square << 80), 255 << 40) if norm == "l2" else Fraction(int(whole.sum()), 255)
    ends = [v.astype(np.float64) / 255 if v.dtype == np.uint8 else v.astype(np.float64) for v in (x, centre)]
    gap = np.abs(ends[0] - ends[1])
    size = float(np.sqrt((gap * gap).sum()) if norm == "l2" else gap.sum())
    return Fraction(size) * (1 - Fraction(len(gap) + 8, 2**51)) - Fraction(len(gap), 2**51)
