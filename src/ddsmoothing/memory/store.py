"""The file of a certified memory: regions and attempts, append-only, bound to one smoothed classifier's identity.

It keeps and gives back; it decides nothing (rules.py) and certifies nothing (classifier.py). What it holds is one chain
of hashes (records.py), so that a lost, changed or reordered record is found. Threads may share a store.
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
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ddsmoothing.counting.fingerprint import check_behaviour
from ddsmoothing.errors import InputError, StoreError
from ddsmoothing.memory import schema
from ddsmoothing.memory.database import Database
from ddsmoothing.memory.index import Index, Sketch, sketch_for
from ddsmoothing.memory.records import NONCE, Attempt, Binding, Head, Region, point_bytes
from ddsmoothing.memory.risk import Risk
from ddsmoothing.memory.rows import LOADED, Rows
from ddsmoothing.memory.rules import Point
from ddsmoothing.streams import check_word

_BELONGS: Final = ("binding", "created", "risk", "seed")


class Store:
    """A memory's file, opened, and the index of its regions in main memory; ``create`` and ``open`` make one.

    Attributes:
        database, rows: the file, and what is in it.   name, path: of the file.
        binding, risk, seed, created: what it belongs to.   start: of its chain, which is over all of that.
        sketch, index: see index.py.
    """

    def __init__(self, database: Database) -> None:
        self.database, self.name, self.path = database, database.name, database.path
        meta = dict(database.execute("SELECT key, value FROM meta"))
        if differing := schema.differences(database, sealed="sealed" in meta):
            raise database.damaged("its tables", ", ".join(differing))
        if meta.keys() - {"sealed"} != {*_BELONGS, "start"}:
            raise database.damaged("what it belongs to", f"it holds {', '.join(sorted(map(str, meta)))}")
        try:
            start = chain_start(meta)
            if meta["start"] != start.hex():
                raise database.damaged("what it belongs to", "binding, risk, seed or date were changed")
            belongs = {key: json.loads(meta[key]) for key in _BELONGS}
            lists = {key: tuple(value) for key, value in belongs["binding"].items() if isinstance(value, list)}
            self.binding = Binding(**belongs["binding"] | lists)
            self.risk, self.seed = Risk(**belongs["risk"]), check_word(int(belongs["seed"]), "seed")
            self.created = str(belongs["created"])
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise database.damaged("what it belongs to", f"it cannot be read ({error})") from error
        self.start = Head(attempts=0, regions=0, hash=start, name="what it belongs to")
        self.sketch: Sketch = sketch_for(self.binding.shape)
        self.rows = Rows(database, self.sketch.terms, self.binding.d)
        self.index, self._head = Index(self.sketch.terms, self.binding.d), self.start
        self.refresh()

    @classmethod
    def create(cls, path: Path | None, binding: Binding, risk: Risk, *, seed: int | None = None) -> Store:
        """A new memory; path None keeps it in this process only.

        Args:
            seed: keys its noise, together with each attempt's number and nonce; default: 64 random bits.
        """
        if path is not None and path.exists() and path.stat().st_size:
            raise StoreError(f"{path} exists; give another file, or open it.")
        seed = secrets.randbits(64) if seed is None else check_word(seed, "seed")
        database = Database(path, create=True)
        with database.writing():
            if database.one("SELECT count(*) FROM sqlite_master"):
                raise StoreError(f"{path} was made by another process meanwhile; open it.")
            schema.create(database)
            values = {"binding": asdict(binding), "risk": asdict(risk), "seed": str(seed), "created": _now()}
            meta = {key: json.dumps(value) for key, value in values.items()}
            for item in (meta | {"start": chain_start(meta).hex()}).items():
                database.execute("INSERT INTO meta VALUES (?, ?)", item)
        return cls(database)

    @classmethod
    def open(cls, path: Path) -> Store:
        """An existing memory; a sealed one is opened read-only.

        Raises: StoreError where it is missing, damaged, of another kind or of another schema.
        """
        database = Database(path)
        schema.check(database)
        if database.one("SELECT count(*) FROM meta WHERE key='sealed'"):
            database.close()
            database = Database(path, read_only=True)
        return cls(database)

    def check(self, other: Binding) -> None:
        """Raise StoreError, naming each difference, unless the memory belongs to this model, transform, norm, ..."""
        mine, theirs = asdict(self.binding), asdict(other)
        before, now = mine.pop("behaviour"), theirs.pop("behaviour")
        wrong = [f"{key} {mine[key]} (got {theirs[key]})" for key in mine if mine[key] != theirs[key]]
        if wrong:
            raise StoreError(
                f"{self.name} belongs to {', '.join(wrong)}; a memory never changes what it belongs to. Start another."
            )

        if before is not None and now is not None:
            check_behaviour(before, now, self.name)

    def __len__(self) -> int:
        return self._head.regions

    @property
    def attempts(self) -> int:
        """Certifications started so far, by any process; those that abstained or crashed count."""
        with self.reading():
            return self._head.attempts

    @property
    def sealed(self) -> str | None:
        """The hash it was sealed with, None while it is open."""
        value = self.database.one("SELECT value FROM meta WHERE key='sealed'")
        return None if value is None else str(value).partition(" ")[0]

    @property
    def head(self) -> str:
        """The last hash of the chain, over all that was ever done; of a sealed memory, its seal's.

        Whoever keeps it elsewhere can tell later whether a file goes on from there, see ``verify_store``.
        """
        with self.reading():
            return self.sealed or self._head.hash.hex()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Up to date, and no other thread writes meanwhile: what is read was kept for good, or is this thread's own."""
        with self.database.lock:
            self.refresh()
            yield

    @contextmanager
    def writing(self) -> Iterator[None]:
        """One transaction, exclusive among threads and processes: durable when this returns, or nothing is kept."""
        with self.database.lock:
            before = self._head
            try:
                with self.database.writing():
                    self.refresh()
                    yield
            except BaseException:
                self._head = before
                if len(self.index) != before.regions:  # it may hold regions that were not kept
                    self.index, self._head = Index(self.sketch.terms, self.binding.d), self.start
                raise

    def refresh(self) -> None:
        """Take in what other processes have appended."""
        with self.database.lock:
            end, head, found = self.rows.counts(), self._head, list[Region]()
            if end == (head.attempts, head.regions):
                return
            for record in self.rows.records(head, end):
                if not record.follows(head):
                    raise self.database.damaged(record.name, head.broken)
                head = head.past(record)
                if isinstance(record, Region):
                    found.append(record)
                if len(found) == LOADED:
                    self._extend(found, head)
                    found = []
            self._extend(found, head)

    def regions(self) -> Iterator[Region]:
        """All regions in their order, without their points."""
        return self.rows.regions(0, self.rows.counts()[1])

    def ball(self, number: int) -> tuple[int, float, Point]:
        """Class, radius and centre of a region; StoreError where the centre's bytes are not those that were stored."""
        return self.rows.ball(number)

    def reserve(self) -> int:
        """The number of a new attempt, durable before this returns (or with the transaction it is part of)."""
        with self.writing():
            head = self._head
            made = Attempt(number=head.attempts + 1, nonce=secrets.token_bytes(NONCE), started=_now(), hash=b"")
            made = replace(made, hash=made.hash_after(head.hash))
            self.rows.add_attempt(made)
            self._head = head.past(made)
        return made.number

    def noise_id(self, attempt: int) -> int:
        """What keys the noise of an attempt beside the seed: 64 bits that no copy of the file gives out again."""
        return self.rows.attempt(attempt).noise_id(self.seed)

    def append(
        self,
        point: Point,
        *,
        label: int,
        radius: float,
        certified: float,
        sigma: float,
        attempt: int,
        evidence: str = "",
        sketch: NDArray[np.float32] | None = None,
    ) -> int:
        """Add a region inside ``writing``; returns its number.

        Args:
            evidence: JSON of the counts that made it, or empty.   sketch: of the point, if it is known.
        """
        with self.database.lock:
            head, data = self._head, point_bytes(point)
            if not self.database.connection.in_transaction:
                raise StoreError("regions are appended inside `writing` only.")
            if self.sealed is not None:
                raise StoreError(f"{self.name} is sealed; nothing can be added.")
            if not 0.0 < radius <= certified < math.inf:
                raise InputError(f"radius is {radius} of {certified} certified, expected 0 < radius <= certified.")
            if not 1 <= attempt <= head.attempts or not 0 <= label < self.binding.num_classes:
                raise InputError(f"attempt {attempt} was never reserved, or class {label} does not exist.")
            region = Region(
                number=head.regions + 1,
                label=label,
                radius=radius,
                certified=certified,
                sigma=sigma,
                attempt=attempt,
                after=head.attempts,
                grid=point.dtype == np.uint8,
                evidence=evidence,
                sha256=hashlib.sha256(data).digest(),
                sketch=self.sketch.of(point[None])[0] if sketch is None else sketch,
                hash=b"",
            )
            region = replace(region, hash=region.hash_after(head.hash))
            self.rows.add_region(region, data)
            self._extend([region], head.past(region))
            return region.number

    def seal(self) -> str:
        """Freeze it for good: nothing can be added any more. Returns the hash over all that it holds."""
        with self.writing():
            if (before := self.sealed) is not None:
                return before
            at = _now()
            sealed = _seal(self._head, at)
            self.database.execute("INSERT INTO meta VALUES ('sealed', ?)", (f"{sealed} {at}",))
            schema.seal(self.database)
        if self.path is not None:
            self.path.chmod(0o444)
        return sealed

    def integrity(self) -> list[str]:
        """What is wrong with the file beside its attempts and regions: pages, tables, stray points, the seal."""
        pages = [str(row[0]) for row in self.database.execute("PRAGMA integrity_check")]
        found = [] if pages == ["ok"] else pages
        with self.reading():
            value = self.database.one("SELECT value FROM meta WHERE key='sealed'")
            found += schema.differences(self.database, sealed=value is not None) + self.rows.strays()
            if value is not None:
                hashed, _, at = str(value).partition(" ")
                if hashed != _seal(self._head, at):
                    found.append("the seal does not match what is stored")
        return found

    def close(self) -> None:
        """Close the file."""
        self.database.close()

    def _extend(self, rows: Sequence[Region], head: Head) -> None:
        if rows:
            self.index.extend(
                np.array([row.label for row in rows], dtype=np.int64),
                np.array([row.radius for row in rows]),
                np.stack([row.sketch for row in rows]),
            )
        self._head = head


def chain_start(meta: dict[str, str]) -> bytes:
    """What the first record's hash follows on: SHA-256 over what a memory belongs to."""
    return hashlib.sha256(json.dumps([schema.SCHEMA, *(meta[key] for key in _BELONGS)]).encode()).digest()


def _seal(head: Head, at: str) -> str:
    return hashlib.sha256(head.hash + b"S" + at.encode()).hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
