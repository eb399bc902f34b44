"""Reading and writing run folders. Rows are appended and made durable one batch at a time; nothing is rewritten."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from ddsmoothing.errors import RunError
from ddsmoothing.models import first_error
from ddsmoothing.plan import SAMPLERS
from ddsmoothing.runs.schema import Header, ResultRow

HEADER, RESULTS, LOCK = "header.json", "results.jsonl", "lock"


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """A finished or partial run, read back.

    Attributes:
        path: its folder.   header: what was asked.   rows: what was found, by id.
    """

    path: Path
    header: Header
    rows: tuple[ResultRow, ...]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def level(self) -> str:
        """What the certificates hold for."""
        return self.header.level

    @property
    def partial(self) -> bool:
        """True where inputs of the subset are still missing."""
        return len(self.rows) < self.header.subset.size

    @property
    def stops_at_radius(self) -> bool:
        """True where sampling stopped at a wanted radius: larger radii were not looked for, and ACR means nothing."""
        return SAMPLERS[self.header.sampler].adaptive_radius if self.header.sampler in SAMPLERS else False

    def _column(self, name: str, dtype: Any) -> NDArray[Any]:
        return np.array([getattr(row, name) for row in self.rows], dtype=dtype)

    @cached_property
    def ids(self) -> NDArray[np.uint64]:
        """``(B,)``."""
        return self._column("id", np.uint64)

    @cached_property
    def prediction(self) -> NDArray[np.int64]:
        """``(B,)``, -1 where abstained."""
        return self._column("prediction", np.int64)

    @cached_property
    def radius(self) -> NDArray[np.float64]:
        """``(B,)`` certified radius, 0 where abstained."""
        return self._column("radius", np.float64)

    @cached_property
    def sigma(self) -> NDArray[np.float64]:
        """``(B,)`` standard deviation of the noise."""
        return self._column("sigma", np.float64)

    @cached_property
    def p_lower(self) -> NDArray[np.float64]:
        """``(B,)`` lower bound on the top class's probability."""
        return self._column("p_lower", np.float64)

    @cached_property
    def label(self) -> NDArray[np.int64]:
        """``(B,)``; RunError where the run had no labels."""
        self.need_labels()
        return self._column("label", np.int64)

    @cached_property
    def correct(self) -> NDArray[np.bool_]:
        """``(B,)`` True where a certificate names the right class; RunError where the run had no labels."""
        self.need_labels()
        return self._column("correct", np.bool_)

    def need_labels(self) -> None:
        """Raise RunError if the run had no labels."""
        if any(row.label is None for row in self.rows):
            raise RunError(f"{self.path} was made without labels, so nothing can be said about its accuracy.")


class RunWriter:
    """Appends rows to a run folder, new or interrupted; a folder that got no row is taken away again at the end.

    Attributes:
        done: ids of the rows that are there already.
    """

    def __init__(self, path: Path, header: Header) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            if not (path / HEADER).exists():
                if any(path.iterdir()):
                    raise RunError(f"{path} exists and is not a run folder; give another --out, or empty it.")
                write_durably(path / HEADER, header.model_dump_json(indent=2) + "\n")
            with ExitStack() as undo:
                self._lock = undo.enter_context((path / LOCK).open("a"))
                _take(self._lock, path)
                undo.callback((path / LOCK).unlink)
                _drop_torn_line(path / RESULTS)
                self.done = {row.id for row in _read_rows(path, header)} if (path / RESULTS).exists() else set()
                self._file = (path / RESULTS).open("a", encoding="utf-8")
                undo.pop_all()
        except OSError as error:
            raise RunError(f"cannot write the run folder {path}: {error.strerror}. Choose another --out.") from error

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(self, kind: object, error: object, at: object) -> None:
        self._file.close()
        if (self.path / RESULTS).stat().st_size == 0:
            (self.path / RESULTS).unlink()
            (self.path / HEADER).unlink()
        (self.path / LOCK).unlink()
        self._lock.close()
        if not any(self.path.iterdir()):
            self.path.rmdir()

    def append(self, rows: Iterable[ResultRow]) -> None:
        """Write rows and wait until they are on disk."""
        try:
            self._file.writelines(row.model_dump_json(by_alias=True) + "\n" for row in rows)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise RunError(f"cannot append to {self.path / RESULTS}: {error.strerror}.") from error


def _take(lock: IO[str], path: Path) -> None:
    """Hold the folder for this process; the system frees it when the process ends, however it ends."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RunError(f"another process is writing to {path}; wait for it, or give another --out.") from None


def _drop_torn_line(path: Path) -> None:
    """Cut off what a crash left of a last line without its end."""
    if not path.exists():
        return
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(data.rfind(b"\n") + 1)


def write_durably(path: Path, text: str) -> None:
    """Write a whole file so that either the old or the new text is there after a crash."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def load_header(folder: Path) -> Header:
    """Read ``header.json``; RunError where it is missing or of another schema."""
    try:
        return Header.model_validate_json((folder / HEADER).read_bytes())
    except OSError as error:
        raise RunError(f"{folder} is not a run folder: {HEADER}: {error.strerror}.") from error
    except ValidationError as error:
        raise RunError(f"{folder / HEADER} is not a header this version reads: {first_error(error)}.") from error


def load_run(path: str | Path) -> Run:
    """Read a run folder.

    Raises: RunError where it is missing, of another schema, or damaged, naming file and line.
    """
    folder = Path(path)
    header = load_header(folder)
    rows = _read_rows(folder, header)
    if not rows:
        raise RunError(f"{folder} has no results yet.")
    return Run(path=folder, header=header, rows=tuple(sorted(rows, key=lambda row: row.id)))


def _read_rows(folder: Path, header: Header) -> list[ResultRow]:
    try:
        lines = (folder / RESULTS).read_bytes().splitlines()
    except OSError as error:
        raise RunError(f"{folder} is not a run folder: {RESULTS}: {error.strerror}.") from error
    rows: dict[int, ResultRow] = {}
    for number, line in enumerate(lines, start=1):
        try:
            row = ResultRow.model_validate_json(line)
        except ValidationError as error:
            raise RunError(f"{folder / RESULTS}, line {number} is not a result: {first_error(error)}.") from error
        if row.id in rows:
            raise RunError(f"{folder / RESULTS}, line {number}: input {row.id} is there twice.")
        if row.level != header.level or row.norm != header.norm:
            raise RunError(f"{folder / RESULTS}, line {number}: its level or norm is not the header's.")
        rows[row.id] = row
    return list(rows.values())
