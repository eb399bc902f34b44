"""Attempts and regions as rows of a memory's file: written, and read back in the order in which they came.

It knows no index and no rules. Whether records follow on each other is for those who read them.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from ddsmoothing.errors import InputError
from ddsmoothing.memory.database import Database
from ddsmoothing.memory.records import NONCE, Attempt, Head, Region
from ddsmoothing.memory.rules import Point

LOADED: Final = 4096  # rows read at once
_ATTEMPT: Final = {"number": int, "nonce": bytes, "started": str, "hash": bytes}
_REGION: Final = {
    **{"number": int, "class": int, "radius": float, "certified": float, "sigma": float, "attempt": int, "after": int},
    **{"grid": int, "evidence": str, "sha256": bytes, "sketch": bytes, "hash": bytes},
}
_COLUMNS: Final = {"attempts": _ATTEMPT, "regions": _REGION}
_COUNTS: Final = """SELECT
  coalesce((SELECT max(number) FROM attempts), 0), coalesce((SELECT max(number) FROM regions), 0),
  coalesce((SELECT seq FROM sqlite_sequence WHERE name='attempts'), 0),
  coalesce((SELECT seq FROM sqlite_sequence WHERE name='regions'), 0)"""


class Rows:
    """The rows of a file whose sketches have so many terms and whose points so many numbers."""

    def __init__(self, database: Database, terms: int, d: int) -> None:
        self._database, self._terms, self._d = database, terms, d

    def counts(self) -> tuple[int, int]:
        """Attempts and regions in the file; StoreError where SQLite's own counters say otherwise."""
        attempts, regions, *counters = self._database.execute(_COUNTS)[0]
        if counters != [attempts, regions]:
            why = f"{attempts} attempts and {regions} regions are there, but {counters} were counted"
            raise self._database.damaged("its end", why)
        return attempts, regions

    def records(self, head: Head, end: tuple[int, int]) -> Iterator[Attempt | Region]:
        """Attempts and regions after a head, up to so many of each, in the order in which they came."""
        both: list[Iterator[Attempt | Region]] = [
            self.attempts(head.attempts, end[0]),
            self.regions(head.regions, end[1]),
        ]
        yield from heapq.merge(*both, key=lambda record: record.place)

    def attempts(self, after: int, last: int) -> Iterator[Attempt]:
        """Attempts number ``after + 1`` to ``last``."""
        for number, nonce, started, hashed in self._rows("attempts", after, last):
            if len(nonce) != NONCE:
                raise self._database.damaged(f"attempt {number}", "it cannot be read")
            yield Attempt(number=number, nonce=nonce, started=started, hash=hashed)

    def regions(self, after: int, last: int) -> Iterator[Region]:
        """Regions number ``after + 1`` to ``last``, without their points."""
        for row in self._rows("regions", after, last):
            number, label, radius, certified, sigma, attempt, known, grid, evidence, sha256, sketch, hashed = row
            if len(sketch) != 4 * self._terms or grid not in (0, 1):
                raise self._database.damaged(f"region {number}", "it cannot be read")
            yield Region(
                number=number,
                label=label,
                radius=radius,
                certified=certified,
                sigma=sigma,
                attempt=attempt,
                after=known,
                grid=bool(grid),
                evidence=evidence,
                sha256=sha256,
                sketch=np.frombuffer(sketch, dtype="<f4"),
                hash=hashed,
            )

    def ball(self, number: int) -> tuple[int, float, Point]:
        """Class, radius and centre of a region; StoreError where the centre's bytes are not those that were stored."""
        sql = "SELECT class, radius, grid, sha256, point FROM regions JOIN points USING (number) WHERE number=?"
        rows = self._database.execute(sql, (number,))
        label, radius, grid, sha256, data = rows[0] if rows else (0, 0.0, 0, b"", b"")
        size = self._d if grid else 8 * self._d
        if not isinstance(data, bytes) or len(data) != size or hashlib.sha256(data).digest() != sha256:
            raise self._database.damaged(f"region {number}", "its point is not the one that was stored")
        return label, radius, np.frombuffer(data, dtype=np.uint8 if grid else "<f8")

    def attempt(self, number: int) -> Attempt:
        """One attempt."""
        for found in self.attempts(number - 1, number):
            return found
        raise InputError(f"{self._database.name} has no attempt {number}.")

    def add_attempt(self, one: Attempt) -> None:
        """Write an attempt, inside a transaction."""
        self._insert("attempts", (one.number, one.nonce, one.started, one.hash))

    def add_region(self, one: Region, point: bytes) -> None:
        """Write a region and its point, inside a transaction."""
        head = (one.number, one.label, one.radius, one.certified, one.sigma, one.attempt, one.after, one.grid)
        tail = (one.evidence, one.sha256, one.sketch.astype("<f4").tobytes(), one.hash)
        self._insert("regions", head + tail)
        self._database.execute("INSERT INTO points VALUES (?, ?)", (one.number, point))

    def strays(self) -> list[str]:
        """What is in the file and belongs to no region."""
        found = self._database.execute("SELECT number FROM points WHERE number NOT IN (SELECT number FROM regions)")
        return [f"point {number}: there is no such region" for (number,) in found]

    def _rows(self, table: str, after: int, last: int) -> Iterator[tuple[Any, ...]]:
        """Rows by number, of the right types; some at a time, so that no writer waits for the reader."""
        columns = _COLUMNS[table]
        sql = (
            f"SELECT {', '.join(columns)} FROM {table} WHERE number > ? AND number <= ? ORDER BY number LIMIT {LOADED}"  # noqa: S608
        )
        while rows := self._database.execute(sql, (after, last)):
            for row in rows:
                if not all(isinstance(value, kind) for value, kind in zip(row, columns.values(), strict=True)):
                    raise self._database.damaged(f"{table.removesuffix('s')} {row[0]}", "it cannot be read")
                yield row
            after = rows[-1][0]

    def _insert(self, table: str, values: tuple[Any, ...]) -> None:
        columns = ", ".join(_COLUMNS[table])
        marks = ", ".join("?" * len(values))
        self._database.execute(f"INSERT INTO {table} ({columns}) VALUES ({marks})", values)  # noqa: S608
