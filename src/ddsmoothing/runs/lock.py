"""One writer a run folder: a lock that names its owner. It knows nothing of what is written."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shlex
import sys
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from ddsmoothing.errors import RunError

try:
    import fcntl
except ImportError:  # Windows, where runs are read but not written
    fcntl = None  # type: ignore[assignment]

LOCK: Final = "lock"
STAMP_SECONDS: Final = 5.0  # between two signs of life
SILENT_SECONDS: Final = 300.0  # an owner that another machine has not heard of for so long has ended
_BOOT, _PIDS = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
_LONGEST = 300  # characters of a command


@dataclass(frozen=True, kw_only=True)
class Owner:
    """Who writes to a folder.

    Attributes:
        boot: of the machine's kernel, which tells two machines of one name apart.   pids: the container, or whatever
            gave the process its number.   since: UTC, ISO 8601.
    """

    host: str
    boot: str
    pids: str
    pid: int
    since: str
    command: str

    def __str__(self) -> str:
        return f"{self.command!r}, process {self.pid} on {self.host} since {self.since}"

    @classmethod
    def here(cls) -> Owner:
        """This process."""
        return cls(
            host=platform.node(),
            boot=_boot(),
            pids=_pids(),
            pid=os.getpid(),
            since=datetime.now(UTC).isoformat(timespec="seconds"),
            command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])[:_LONGEST],
        )

    def alive(self, age: float) -> bool:
        """Whether it still writes, as far as can be seen, its last sign of life being ``age`` seconds old."""
        if age > SILENT_SECONDS:
            return False
        return (self.boot, self.pids) != (_boot(), _pids()) or _exists(self.pid)


def owner_of(folder: Path) -> tuple[Owner | None, float] | None:
    """Who the lock in a folder names (None where that cannot be read) and the age of its last sign; None unlocked."""
    try:
        age = time.time() - (folder / LOCK).stat().st_mtime
        text = (folder / LOCK).read_bytes()
    except OSError:
        return None
    try:
        fields = json.loads(text)
        owner = Owner(**{key: type_(fields[key]) for key, type_ in _FIELDS.items()})
    except (ValueError, TypeError, KeyError, RecursionError):
        return None, age
    return owner, age


class Lock:
    """Holds a folder for this process; the system frees it when the process ends, however it ends.

    Raises: RunError naming the owner, where there is one, or where the system has no such locks; OSError where the
        folder cannot be written to.
    """

    def __init__(self, folder: Path) -> None:
        if fcntl is None:
            raise RunError(
                f"{folder} cannot be written to: runs need the locks of POSIX, which this system lacks. Use Linux, "
                "macOS or WSL; runs are read here, and SmoothedClassifier.certify works, which writes no file."
            )
        self._path = folder / LOCK
        self._file = self._path.open("a", encoding="utf-8")
        try:
            self._take(folder)
        except BaseException:
            self._file.close()
            raise
        self._stamped = time.monotonic()

    def _take(self, folder: Path) -> None:
        before = owner_of(folder)
        owner, age = (None, 0.0) if before is None else before
        who = "" if owner is None else f" ({owner})"
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(
                f"another process{who} is writing to {folder}; wait for it, or give another --out."
            ) from None
        if not _same(self._file.fileno(), self._path):
            raise RunError(f"another process{who} has just left {folder}; repeat the command.")
        if owner is not None and owner.boot != _boot() and owner.alive(age):  # its lock may not be seen from here
            raise RunError(
                f"another process ({owner}) wrote to {folder} {max(age, 0.0):.0f} s ago, and this machine cannot see "
                f"whether it still runs. Delete {self._path} if it has ended, or wait {SILENT_SECONDS:.0f} s."
            )
        self._file.truncate(0)
        self._file.write(json.dumps(asdict(Owner.here())) + "\n")
        self._file.flush()

    def stamp(self) -> None:
        """Give a sign of life, if the last one was some seconds ago."""
        if time.monotonic() - self._stamped > STAMP_SECONDS:
            self._stamped = time.monotonic()
            with contextlib.suppress(OSError):
                os.utime(self._file.fileno())

    def release(self) -> None:
        """Free the folder and leave no trace."""
        self._path.unlink(missing_ok=True)
        self._file.close()


def _boot() -> str:
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return platform.node()


def _pids() -> str:
    try:
        return str(_PIDS.readlink())
    except OSError:
        return ""


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _same(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


_FIELDS: Final = {"host": str, "boot": str, "pids": str, "pid": int, "since": str, "command": str}
