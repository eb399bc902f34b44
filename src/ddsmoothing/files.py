"""Whole files, written so that after a crash the old or the new one is there. It knows nothing of what is in them."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

from ddsmoothing.errors import RunError

TEMPORARY: Final = ".tmp"  # ending of a file that is not whole yet


def write_durably(path: Path, data: str | bytes) -> None:
    """Replace a file by this text (UTF-8) or these bytes and wait until they are on disk; OSError where impossible."""
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        with temporary.open("wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_to_append(path: Path) -> int:
    """The descriptor of a file, made if it is not there."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    sync_folder(path.parent)
    return descriptor


def append_durably(descriptor: int, path: Path, text: str) -> None:
    """Append to an open file and wait until it is on disk; on failure cut off what was written, and raise RunError."""
    size = os.fstat(descriptor).st_size
    data = memoryview(text.encode())
    try:
        while data:
            data = data[os.write(descriptor, data) :]
        os.fsync(descriptor)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, size)
        raise RunError(
            f"cannot append to {path}: {error.strerror}. What was written before is safe; the same command continues."
        ) from error


def drop_torn_line(path: Path) -> None:
    """Cut off what a crash left of a last line without its end."""
    if not path.exists():
        return
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(data.rfind(b"\n") + 1)


def whole_lines(path: Path) -> list[bytes]:
    """The lines of a file that have an end; a last one without it is being written, or was torn by a crash."""
    data = path.read_bytes()
    return data[: data.rfind(b"\n") + 1].splitlines()
