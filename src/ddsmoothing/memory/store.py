"""The file of a certified memory: regions and attempts, append-only, bound to one smoothed classifier's identity.

It keeps and gives back; it decides nothing (rules.py) and certifies nothing (classifier.py). Every region carries a
hash over itself and the hash before it, so that a lost, changed or reordered one is found.
"""

from __future__ import annotations

import hashlib
import json
import math
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ddsmoothing.errors import InputError, StoreError
from ddsmoothing.memory.database import Database
from ddsmoothing.memory.index import Index, Sketch, sketch_for
from ddsmoothing.memory.records import Binding, Region, point_bytes
from ddsmoothing.memory.risk import Risk
from ddsmoothing.memory.rules import Point
from ddsmoothing.streams import check_word

SCHEMA: Final = 1
APPLICATION: Final = 0x44445343  # SQLite's application_id: "DDSC"
START: Final = bytes(32)  # what the first region's hash follows on
_LOADED: Final = 4096  # rows read at once

_TABLES: Final = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE attempts (number INTEGER PRIMARY KEY AUTOINCREMENT, started TEXT NOT NULL);
CREATE TABLE regions (
  number INTEGER PRIMARY KEY AUTOINCREMENT, class INTEGER NOT NULL, radius REAL NOT NULL CHECK (radius > 0),
  certified REAL NOT NULL CHECK (certified >= radius), sigma REAL NOT NULL, attempt INTEGER NOT NULL UNIQUE,
  grid INTEGER NOT NULL, sha256 BLOB NOT NULL, sketch BLOB NOT NULL, hash BLOB NOT NULL);
CREATE TABLE points (number INTEGER PRIMARY KEY, point BLOB NOT NULL);
"""
_COLUMNS: Final = "number, class, radius, certified, sigma, attempt, grid, sha256, sketch, hash"
_NAMES: Final = ("attempts", "regions", "points", "meta")
_TYPES: Final = (int, int, float, float, float, int, int, bytes, bytes, bytes)


class Store:
    """A memory's file, opened, and the index of its regions in main memory; ``create`` and ``open`` make one."""

    def __init__(self, database: Database, binding: Binding, risk: Risk, seed: int) -> None:
        self._db, self.binding, self.risk, self.seed = database, binding, risk, seed
        self.sketch: Sketch = sketch_for(binding.shape)
        self.index, self._last = Index(self.sketch.terms, binding.d), START
        self.refresh()

    @classmethod
    def create(cls, path: Path | None, binding: Binding, risk: Risk, *, seed: int | None = None) -> Store:
        """A new memory; path None keeps it in this process only. The seed, 64 random bits, keys all its noise."""
        if path is not None and path.exists() and path.stat().st_size:
            raise StoreError(f"{path} exists; give another file, or open it.")
        seed = secrets.randbits(64) if seed is None else check_word(seed, "seed")
        database = Database(path, create=True)
        with database.writing():
            if database.one("SELECT count(*) FROM sqlite_master"):
                raise StoreError(f"{path} was made by another process meanwhile; open it.")
            for statement in _TABLES.split(";\n"):
                database.execute(statement)
            for table in _NAMES:
                for event in ("UPDATE", "DELETE"):
                    _forbid(database, table, event, "append-only")
            written = {"binding": asdict(binding), "risk": asdict(risk), "seed": str(seed), "created": _now()}
            for key, value in written.items():
                database.execute("INSERT INTO meta VALUES (?, ?)", (key, json.dumps(value)))
            database.execute(f"PRAGMA application_id={APPLICATION}")
            database.execute(f"PRAGMA user_version={SCHEMA}")
        return cls(database, binding, risk, seed)

    @classmethod
    def open(cls, path: Path) -> Store:
        """An existing memory; a sealed one is opened read-only.

        Raises: StoreError where it is missing, damaged, of another kind or of a newer schema.
        """
        database = Database(path)
        application, version = database.one("PRAGMA application_id"), database.one("PRAGMA user_version")
        if application != APPLICATION:
            raise StoreError(f"{path} is not a certified memory.")
        if version != SCHEMA:
            raise StoreError(f"{path} has schema {version}, this version reads {SCHEMA}; install the one that made it.")
        try:
            meta = {key: json.loads(value) for key, value in database.rows("SELECT key, value FROM meta")}
            shape = tuple(meta["binding"].pop("shape"))
            binding, risk = Binding(**meta["binding"], shape=shape), Risk(**meta["risk"])
            seed = check_word(int(meta["seed"]), "seed")
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(f"{path} is damaged: what it belongs to cannot be read ({error}).") from error
        if "sealed" in meta:
            database.close()
            database = Database(path, read_only=True)
        return cls(database, binding, risk, seed)

    def check(self, other: Binding) -> None:
        """Raise StoreError, naming each difference, unless the memory belongs to this model, transform, norm, ..."""
        mine, theirs = asdict(self.binding), asdict(other)
        wrong = [f"{key} {mine[key]} (got {theirs[key]})" for key in mine if mine[key] != theirs[key]]
        if wrong:
            raise StoreError(
                f"{self.name} belongs to {', '.join(wrong)}; a memory never changes what it belongs to. Start another."
            )

    @property
    def name(self) -> str:
        """The file, for messages."""
        return self._db.name

    @property
    def path(self) -> Path | None:
        """The file, None for a memory in this process only."""
        return self._db.path

    def __len__(self) -> int:
        return len(self.index)

    @property
    def attempts(self) -> int:
        """Certifications started so far, by any process; those that abstained or crashed count."""
        return int(self._db.one("SELECT coalesce(max(number), 0) FROM attempts"))

    @property
    def sealed(self) -> str | None:
        """The hash it was sealed with, None while it is open."""
        value = self._db.one("SELECT value FROM meta WHERE key='sealed'")
        return None if value is None else str(json.loads(value)["hash"])

    def refresh(self) -> None:
        """Take in what other processes, or this one, have appended."""
        if int(self._db.one("SELECT coalesce(max(number), 0) FROM regions")) == len(self.index):
            return
        rows: list[Region] = []
        for region in self.regions(after=len(self.index)):
            if region.number != len(self.index) + len(rows) + 1 or region.hash != region.hash_after(self._last):
                raise StoreError(f"{self.name} is damaged at region {region.number}; restore a copy.")
            self._last = region.hash
            rows.append(region)
            if len(rows) == _LOADED:
                self._extend(rows)
                rows = []
        self._extend(rows)

    def regions(self, after: int = 0) -> Iterator[Region]:
        """Regions in their order, without their points; some at a time, so that no writer waits for the reader."""
        sql = f"SELECT {_COLUMNS} FROM regions WHERE number > ? ORDER BY number LIMIT {_LOADED}"  # noqa: S608
        while rows := list(self._db.rows(sql, (after,))):
            yield from map(self._region, rows)
            after = rows[-1][0]

    def _region(self, row: tuple[Any, ...]) -> Region:
        number, label, radius, certified, sigma, attempt, grid, sha256, sketch, hashed = row
        right = all(isinstance(value, kind) for value, kind in zip(row, _TYPES, strict=True))
        if not right or len(sketch) != 4 * self.sketch.terms:
            raise StoreError(f"{self.name} is damaged at region {number}; restore a copy.")
        return Region(
            number=number,
            label=label,
            radius=radius,
            certified=certified,
            sigma=sigma,
            attempt=attempt,
            grid=bool(grid),
            sha256=sha256,
            sketch=np.frombuffer(sketch, dtype="<f4"),
            hash=hashed,
        )

    def ball(self, number: int) -> tuple[int, float, Point]:
        """Class, radius and centre of a region; StoreError where the centre's bytes are not those that were stored."""
        sql = "SELECT class, radius, grid, sha256, point FROM regions JOIN points USING (number) WHERE number=?"
        label, radius, grid, sha256, data = next(self._db.rows(sql, (number,)), (0, 0.0, 0, b"", b""))
        if not isinstance(data, bytes) or hashlib.sha256(data).digest() != sha256:
            raise StoreError(f"{self.name} is damaged at region {number}; restore a copy.")
        return label, radius, np.frombuffer(data, dtype=np.uint8 if grid else "<f8")

    def reserve(self) -> int:
        """The number of a new attempt, durable before this returns (or with the transaction it is part of)."""
        return int(self._db.execute("INSERT INTO attempts (started) VALUES (?)", (_now(),)).lastrowid or 0)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """One transaction, exclusive among processes: all of it is durable when this returns, or nothing is kept."""
        try:
            with self._db.writing():
                self.refresh()
                yield
        except BaseException:
            self._forget()  # the index may hold rows that were not kept
            raise

    def append(
        self,
        point: Point,
        *,
        label: int,
        radius: float,
        certified: float,
        sigma: float,
        attempt: int,
        sketch: NDArray[np.float32] | None = None,
    ) -> int:
        """Add a region inside ``writing``; returns its number."""
        if not self._db.in_transaction:
            raise StoreError("regions are appended inside `writing` only.")
        if self.sealed is not None:
            raise StoreError(f"{self.name} is sealed; nothing can be added.")
        if not 0.0 < radius <= certified < math.inf:
            raise InputError(f"radius is {radius} of {certified} certified, expected 0 < radius <= certified.")
        data = point_bytes(point)
        region = Region(
            number=len(self.index) + 1,
            label=label,
            radius=radius,
            certified=certified,
            sigma=sigma,
            attempt=attempt,
            grid=point.dtype == np.uint8,
            sha256=hashlib.sha256(data).digest(),
            sketch=self.sketch.of(point[None])[0] if sketch is None else sketch,
            hash=b"",
        )
        region = replace(region, hash=region.hash_after(self._last))
        values = [
            getattr(region, name) for name in ("number", "label", "radius", "certified", "sigma", "attempt", "grid")
        ]
        values += [region.sha256, region.sketch.astype("<f4").tobytes(), region.hash]
        self._db.execute(f"INSERT INTO regions ({_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?)", values)  # noqa: S608
        self._db.execute("INSERT INTO points VALUES (?, ?)", (region.number, data))
        self._last = region.hash
        self._extend([region])
        return region.number

    @property
    def created(self) -> str:
        """When it was made, UTC."""
        return str(json.loads(self._db.one("SELECT value FROM meta WHERE key='created'")))

    def seal(self) -> str:
        """Freeze it for good: nothing can be added any more. Returns the hash over all that it holds."""
        with self.writing():
            if (before := self.sealed) is not None:
                return before
            hashed = self.content_hash()
            value = json.dumps({"hash": hashed, "regions": len(self), "attempts": self.attempts, "at": _now()})
            self._db.execute("INSERT INTO meta VALUES ('sealed', ?)", (value,))
            for table in _NAMES:
                _forbid(self._db, table, "INSERT", "sealed")
        if self.path is not None:
            self.path.chmod(0o444)
        return hashed

    def content_hash(self) -> str:
        """SHA-256 over binding, risk, seed, attempts and the last region's hash (which is over all before it)."""
        text = json.dumps([asdict(self.binding), asdict(self.risk), self.seed, self.attempts, len(self)])
        return hashlib.sha256(text.encode() + self._last).hexdigest()

    def integrity(self) -> list[str]:
        """What SQLite itself finds wrong with the file."""
        found = [str(row[0]) for row in self._db.rows("PRAGMA integrity_check")]
        return [] if found == ["ok"] else found

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _forget(self) -> None:
        self.index, self._last = Index(self.sketch.terms, self.binding.d), START

    def _extend(self, rows: Sequence[Region]) -> None:
        if rows:
            self.index.extend(
                np.array([row.label for row in rows], dtype=np.int64),
                np.array([row.radius for row in rows]),
                np.stack([row.sketch for row in rows]),
            )


def _forbid(database: Database, table: str, event: str, why: str) -> None:
    name = f"no_{event.lower()}_{table}"
    database.execute(f"CREATE TRIGGER {name} BEFORE {event} ON {table} BEGIN SELECT RAISE(ABORT, '{why}'); END")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
