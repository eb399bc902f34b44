"""A durable SQLite connection whose failures are one clear StoreError each. It knows nothing of what it keeps."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from ddsmoothing.errors import StoreError

BUSY_SECONDS: Final = 60.0
PAGE: Final = 32768  # bytes: small rows of one table lie together, so that a large file opens fast
NETWORK: Final = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ceph", "lustre", "beegfs", "gpfs", "glusterfs"}
    | {"fuse.sshfs", "fuse.glusterfs", "fuse.s3fs", "fuse.rclone", "fuse.juicefs"}
)
MOUNTS: Final = Path("/proc/self/mountinfo")

_SAYS: Final = {
    sqlite3.SQLITE_FULL: "the disk is full; nothing of this write was kept. Free some space and repeat",
    sqlite3.SQLITE_READONLY: "it cannot be written (read-only file, folder or file system)",
    sqlite3.SQLITE_CORRUPT: "it is damaged; restore a copy (`ddsmoothing memory verify` tells more)",
    sqlite3.SQLITE_NOTADB: "it is not a certified memory",
    sqlite3.SQLITE_BUSY: f"another process has kept it locked for {BUSY_SECONDS:.0f} s; try again",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened; does its folder exist, and may you write there?",
    sqlite3.SQLITE_IOERR: "the disk failed or is full; nothing of this write was kept",
}


class Database:
    """One connection, in autocommit mode; ``writing`` groups statements into one durable transaction.

    The journal is SQLite's rollback journal with ``synchronous=EXTRA``: all that FULL does, and the folder is synced
    too, so that a commit that returned is not undone by a power failure. The database is one file.
    """

    def __init__(self, path: Path | None, *, create: bool = False, read_only: bool = False) -> None:
        self.path = path
        self.name = "the memory" if path is None else str(path)
        if path is None:
            target = ":memory:"
        else:
            if not create and not path.is_file():
                raise StoreError(f"no certified memory at {path}.")
            check_local(path)
            mode = "ro" if read_only else "rwc" if create else "rw"
            target = f"{path.resolve().as_uri()}?mode={mode}"
        with self._translated():
            self._connection = sqlite3.connect(
                target, uri=path is not None, isolation_level=None, timeout=BUSY_SECONDS, check_same_thread=False
            )
            self._connection.execute(f"PRAGMA page_size={PAGE}")  # of a new file only
            self._connection.execute("PRAGMA synchronous=EXTRA")

    def execute(self, sql: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        """Run one statement; StoreError says why it failed."""
        with self._translated():
            return self._connection.execute(sql, values)

    def rows(self, sql: str, values: Sequence[Any] = ()) -> Iterator[tuple[Any, ...]]:
        """The rows of a query, one by one."""
        with self._translated():
            yield from self._connection.execute(sql, values)

    def one(self, sql: str, values: Sequence[Any] = ()) -> Any:
        """The first column of the first row, None without rows."""
        with self._translated():
            row = self._connection.execute(sql, values).fetchone()
        return None if row is None else row[0]

    @contextmanager
    def writing(self) -> Iterator[None]:
        """One transaction: all of it is durable when this returns, or none of it is kept."""
        self.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    @property
    def in_transaction(self) -> bool:
        """True inside ``writing``."""
        return self._connection.in_transaction

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code == sqlite3.SQLITE_CONSTRAINT:
                raise StoreError(f"{self.name}: {error}.") from error
            raise StoreError(f"{self.name}: {_SAYS.get(code, 'SQLite failed')} ({error}).") from error


def check_local(path: Path) -> None:
    """Raise StoreError if a file lies on a network file system, where locks may not hold."""
    kind = filesystem(path.resolve())
    if kind in NETWORK:
        raise StoreError(
            f"{path} lies on a network file system ({kind}), where two processes could write at once. Keep the memory "
            "on a local disk."
        )


def filesystem(path: Path) -> str:
    """The type of the file system a path lies on, such as ``ext4``; empty where the system does not tell."""
    try:
        lines = MOUNTS.read_text().splitlines()
    except OSError:
        return ""
    best, kind = "", ""
    for line in lines:
        left, _, right = line.partition(" - ")
        point = left.split()[4].replace("\\040", " ")
        if os.path.commonpath([point, path]) == point and len(point) >= len(best):
            best, kind = point, right.split()[0]
    return kind
