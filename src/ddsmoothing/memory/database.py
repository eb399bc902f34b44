"""A durable SQLite connection, shared by the threads of one process one at a time; each failure is one StoreError.

It knows nothing of what it keeps.
"""

from __future__ import annotations

import os
import sqlite3
import threading
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
    sqlite3.SQLITE_CORRUPT: "it is damaged (`ddsmoothing memory verify` tells more); start another memory",
    sqlite3.SQLITE_NOTADB: "it is not a certified memory",
    sqlite3.SQLITE_BUSY: f"another process has kept it locked for {BUSY_SECONDS:.0f} s; try again",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened; does its folder exist, and may you write there?",
    sqlite3.SQLITE_IOERR: "the disk failed or is full; nothing of this write was kept",
}


class Database:
    """One connection, in autocommit mode; ``writing`` groups statements into one durable transaction.

    The journal is SQLite's rollback journal with ``synchronous=EXTRA``: all that FULL does, and the folder is synced
    too, so that a commit that returned is not undone by a power failure. The database is one file.

    Attributes:
        path, name: the file, None for one in this process only; what messages call it.   connection: SQLite's own.
        lock: held for each statement and for a whole transaction, so that no other thread adds to a transaction, rolls
            it back, or reads what may yet be rolled back; whoever reads more than one statement's worth holds it too.
    """

    def __init__(self, path: Path | None, *, create: bool = False, read_only: bool = False) -> None:
        self.path, self.lock, self._process = path, threading.RLock(), os.getpid()
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
            self.connection = sqlite3.connect(
                target, uri=path is not None, isolation_level=None, timeout=BUSY_SECONDS, check_same_thread=False
            )
            self.connection.execute(f"PRAGMA page_size={PAGE}")  # of a new file only
            self.connection.execute("PRAGMA synchronous=EXTRA")
            self.connection.execute("PRAGMA trusted_schema=OFF")  # what a file says of itself may call no function

    def execute(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run one statement and return all its rows; StoreError says why it failed."""
        if os.getpid() != self._process:
            raise StoreError(f"{self.name} was opened before this process was forked; open it here again.")
        with self.lock, self._translated():
            return self.connection.execute(sql, values).fetchall()

    def one(self, sql: str, values: Sequence[Any] = ()) -> Any:
        """The first column of the first row, None without rows."""
        rows = self.execute(sql, values)
        return rows[0][0] if rows else None

    @contextmanager
    def writing(self) -> Iterator[None]:
        """One transaction: all of it is durable when this returns, or none of it is kept.

        Inside another one of the same thread it is part of that one; other threads wait.
        """
        with self.lock:
            if self.connection.in_transaction:
                yield
                return
            self.execute("BEGIN IMMEDIATE")
            try:
                yield
                self.execute("COMMIT")
            except BaseException:
                if self.connection.in_transaction:
                    self.connection.execute("ROLLBACK")
                raise

    def damaged(self, where: str, why: str) -> StoreError:
        """The error for a file that is not as it was written."""
        return StoreError(f"{self.name} is damaged at {where}: {why}. Start another memory.")

    def close(self) -> None:
        """Close the connection."""
        with self.lock:
            self.connection.close()

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
