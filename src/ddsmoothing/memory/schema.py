"""The tables and triggers of a memory's file: made, sealed, and compared with those a file has. It knows no rows."""

from __future__ import annotations

from typing import Final

from ddsmoothing.errors import StoreError
from ddsmoothing.memory.database import Database

SCHEMA: Final = 2
APPLICATION: Final = 0x44445343  # SQLite's application_id: "DDSC"
TABLES: Final = {
    "meta": "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    "attempts": "CREATE TABLE attempts (number INTEGER PRIMARY KEY AUTOINCREMENT, nonce BLOB NOT NULL, "
    "started TEXT NOT NULL, hash BLOB NOT NULL)",
    "regions": "CREATE TABLE regions (number INTEGER PRIMARY KEY AUTOINCREMENT, class INTEGER NOT NULL, "
    "radius REAL NOT NULL CHECK (radius > 0), certified REAL NOT NULL CHECK (certified >= radius), "
    "sigma REAL NOT NULL, attempt INTEGER NOT NULL UNIQUE, after INTEGER NOT NULL CHECK (after >= attempt), "
    "grid INTEGER NOT NULL, evidence TEXT NOT NULL, sha256 BLOB NOT NULL, sketch BLOB NOT NULL, hash BLOB NOT NULL)",
    "points": "CREATE TABLE points (number INTEGER PRIMARY KEY, point BLOB NOT NULL)",
}
_COUNTERS: Final = {"sqlite_sequence": "CREATE TABLE sqlite_sequence(name,seq)"}  # SQLite's, of AUTOINCREMENT


def create(database: Database) -> None:
    """Make the tables, append-only by triggers, inside a transaction."""
    for statement in (*TABLES.values(), *_guards("UPDATE", "DELETE").values()):
        database.execute(statement)
    database.execute(f"PRAGMA application_id={APPLICATION}")
    database.execute(f"PRAGMA user_version={SCHEMA}")


def seal(database: Database) -> None:
    """Forbid every insertion for good, inside a transaction."""
    for statement in _guards("INSERT").values():
        database.execute(statement)


def check(database: Database) -> None:
    """Raise StoreError unless a file is a memory of this schema."""
    if database.one("PRAGMA application_id") != APPLICATION:
        raise StoreError(f"{database.name} is not a certified memory.")
    if (version := database.one("PRAGMA user_version")) != SCHEMA:
        raise StoreError(
            f"{database.name} has schema {version}, this version reads {SCHEMA}; install the one that made it."
        )


def differences(database: Database, *, sealed: bool) -> list[str]:
    """Tables and triggers that a file lacks, or has changed or beyond its own, by name."""
    events = ("UPDATE", "DELETE", "INSERT") if sealed else ("UPDATE", "DELETE")
    wanted = TABLES | _COUNTERS | _guards(*events)
    found = dict(database.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL"))
    return [
        f"{name} is {'missing' if name not in found else 'changed' if name in wanted else 'not its own'}"
        for name in sorted(wanted.keys() | found.keys())
        if wanted.get(name) != found.get(name)
    ]


def _guards(*events: str) -> dict[str, str]:
    """Triggers, by name, that forbid these events on every table."""
    found = {}
    for event in events:
        why = "sealed" if event == "INSERT" else "append-only"
        for table in TABLES:
            name = f"no_{event.lower()}_{table}"
            found[name] = f"CREATE TRIGGER {name} BEFORE {event} ON {table} BEGIN SELECT RAISE(ABORT, '{why}'); END"
    return found
