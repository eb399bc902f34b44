"""Whole files, written so that after a crash the old or the new one is there. It knows nothing of what is in them."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from ddsmoothing.errors import RunError

TEMPORARY: Final = ".tmp"  # ending of a file that is not whole yet
LONGEST_NAME: Final = 40  # characters of a file's name that its temporary one begins with
MOST_LINKS: Final = 40  # followed one after another


def write_durably(path: Path, data: str | bytes) -> None:
    """Write a whole file and wait until it is on disk; OSError where impossible.

    A regular file is replaced at once and keeps its permissions. A symbolic link stays, and what it points to is
    replaced. What is no regular file, such as a pipe, a device or ``/dev/stdout``, is written into.

    Args:
        path: where to; its folder has to be there.
        data: text, written as UTF-8 (what cannot be, as escapes), or bytes.
    """
    content = data.encode("utf-8", "backslashreplace") if isinstance(data, str) else data
    descriptor = open_descriptor(path)
    mode = _mode(path) if descriptor is None else None
    if descriptor is not None or (mode is not None and not stat.S_ISREG(mode)):
        _write_into(path if descriptor is None else descriptor, content)
    else:
        _replace(Path(os.path.realpath(path)), content, mode)


def open_descriptor(path: Path) -> int | None:
    """The number of the open file of this process that a path such as ``/dev/stdout`` stands for, if it does.

    Such a file may be regular. It is written on from where it stands all the same: others write to it too.
    """
    for _ in range(MOST_LINKS):
        folder = os.path.realpath(path.parent)
        if folder in (f"/proc/{os.getpid()}/fd", "/dev/fd") and path.name.isdecimal():
            return int(path.name)
        if not path.is_symlink():
            return None
        path = Path(folder) / path.readlink()
    return None


def _mode(path: Path) -> int | None:
    try:
        return path.stat().st_mode
    except FileNotFoundError:  # also of a link that points to nothing yet
        return None


def _write_into(place: Path | int, content: bytes) -> None:
    """Write to what is there already."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()  # what was said before comes before
    with open(os.dup(place) if isinstance(place, int) else place, "wb") as file:  # noqa: PTH123 (or a number)
        file.write(content)
        file.flush()
        with contextlib.suppress(OSError):  # a pipe has no disk
            os.fsync(file.fileno())


def _replace(target: Path, content: bytes, mode: int | None) -> None:
    """Put a new file in the place of a regular one, or of none."""
    temporary = target.with_name(f"{target.name[:LONGEST_NAME]}.{secrets.token_hex(4)}{TEMPORARY}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            if mode is not None:
                with contextlib.suppress(OSError, AttributeError):  # not every system has permissions
                    os.fchmod(descriptor, stat.S_IMODE(mode))
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)


def file_name(path: str | Path) -> str:
    """A path as text that every file and terminal takes: UTF-8 as it is, other bytes as escapes such as ``\\xfc``.

    It is the same whatever the locale. The file is opened by its path, never by this text.
    """
    try:
        return os.fsencode(path).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # text that no file of this locale could be called
        return str(path).encode("utf-8", "backslashreplace").decode()


def file_names(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as a file can hold them: each text as ``file_name`` has it, others as they are."""
    return {key: file_name(value) if isinstance(value, (str, Path)) else value for key, value in options.items()}


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on disk; not on Windows, where no folder can be opened."""
    if os.name == "nt":
        return
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
