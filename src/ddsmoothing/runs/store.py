"""Reading and writing run folders. Rows are appended and made durable one batch at a time."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from ddsmoothing.counting.kept import PARTIAL
from ddsmoothing.errors import InputError, RunError, first_error
from ddsmoothing.files import TEMPORARY, append_durably, drop_torn_line, open_to_append, whole_lines, write_durably
from ddsmoothing.plan import SAMPLERS
from ddsmoothing.runs import schema1
from ddsmoothing.runs.agreement import disagreements
from ddsmoothing.runs.columns import Columns
from ddsmoothing.runs.lock import LOCK, Lock
from ddsmoothing.runs.schema import SCHEMA_VERSION, Header, ResultRow
from ddsmoothing.shown import Form, checked_form, plain

HEADER, RESULTS, EVENTS = "header.json", "results.jsonl", "events.jsonl"
IMPORTED = "imported.json"  # marks a folder of others' results


class RunForm(Form):
    """What the JSON of a run holds."""

    path: str
    header: Header
    rows: tuple[ResultRow, ...]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Run(Columns):
    """A finished or partial run, read back.

    An index takes out some of the inputs, ``run[3]`` or ``run[run.radius > 0.5]``: a run that is partial.

    Attributes:
        path: its folder.
        header: what was asked.
        rows: what was found, by id.
    """

    path: Path
    header: Header
    rows: tuple[ResultRow, ...]

    @property
    def partial(self) -> bool:
        """True where inputs of the subset are still missing."""
        return len(self.rows) < self.header.subset.size

    @property
    def stops_at_radius(self) -> bool:
        """True where sampling stopped at a wanted radius: larger radii were not looked for, and ACR means nothing."""
        return SAMPLERS[self.header.sampler].adaptive_radius if self.header.sampler in SAMPLERS else False

    rounded = False  # imported results are

    def _about(self) -> list[str]:
        header = self.header
        sigma = f"fixed sigma {header.sigma:g}" if header.sigma is not None else f"sigma by {header.sigma_policy}"
        return [f"{header.model.name} on {header.data.name}", sigma, f"{header.vote} vote", f"alpha {header.alpha:g}"]

    def to_dict(self) -> dict[str, Any]:
        """Header and rows as the folder's files hold them; ``from_dict`` makes the same run of it."""
        rows = [json.loads(row.line()) for row in self.rows]
        return {
            "kind": "Run",
            "path": str(self.path),
            "header": plain(self.header.model_dump(mode="json")),
            "rows": rows,
        }

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Run:
        """The run that ``to_dict`` was asked of; nothing is read from its folder.

        Raises:
            InputError: It is no such dict, or its rows do not fit its header.
        """
        read = checked_form(RunForm, "Run", found)
        for row in read["rows"]:
            for text in disagreements(read["header"], row):
                raise InputError(f"this is no Run: input {row.id}: {text}.")
        if sorted({row.id for row in read["rows"]}) != [row.id for row in read["rows"]]:
            raise InputError("this is no Run: its rows are not in the order of their ids, each once.")
        return cls(path=Path(read["path"]), header=read["header"], rows=read["rows"])

    @cached_property
    def p_lower(self) -> NDArray[np.float64]:
        """``(B,)`` lower bound on the top class's probability."""
        return self.column("p_lower", np.float64)


class RunWriter:
    """Appends rows to a run folder, new or interrupted; a folder in which nothing is kept is taken away at the end.

    Attributes:
        done: ids of the rows that are there.   lock: held until the end.
    """

    def __init__(self, path: Path, header: Header) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            others = [entry.name for entry in path.iterdir() if entry.name != LOCK]
            if not (path / HEADER).exists() and not all(name.endswith(TEMPORARY) for name in others):
                raise RunError(f"{path} exists and is not a run folder; give another --out, or empty it.")
            with ExitStack() as undo:
                self.lock = Lock(path)
                undo.callback(self._leave)
                if not (path / HEADER).exists():
                    write_durably(path / HEADER, header.model_dump_json(indent=2) + "\n")
                elif load_header(path).model_dump_json() != header.model_dump_json():
                    raise RunError(f"another process has just started another run in {path}; give another --out.")
                self.done = {row.id for row in _read_rows(path, header)} if (path / RESULTS).exists() else set()
                drop_torn_line(path / RESULTS)
                self._file = open_to_append(path / RESULTS)
                undo.pop_all()
        except OSError as error:
            raise RunError(f"cannot write the run folder {path}: {error.strerror}. Choose another --out.") from error

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(self, kind: object, error: object, at: object) -> None:
        os.close(self._file)
        self._leave()

    def _leave(self) -> None:
        files = [self.path / name for name in (RESULTS, PARTIAL)]
        kept = any(file.exists() and file.stat().st_size for file in files)
        with contextlib.suppress(OSError):
            for name in (RESULTS, PARTIAL, EVENTS, HEADER) if not kept else ():
                (self.path / name).unlink(missing_ok=True)
            self.lock.release()
            if not any(self.path.iterdir()):
                self.path.rmdir()

    def append(self, rows: list[ResultRow]) -> None:
        """Write rows and wait until they are on disk; RunError leaves the file as it was."""
        append_durably(self._file, self.path / RESULTS, "".join(row.line() + "\n" for row in rows))
        self.done |= {row.id for row in rows}

    def sort(self) -> None:
        """Put the rows into the order of their ids, all at once."""
        lines = whole_lines(self.path / RESULTS)
        ordered = sorted(lines, key=lambda line: int(json.loads(line)["id"]))
        if ordered != lines:
            write_durably(self.path / RESULTS, b"".join(line + b"\n" for line in ordered))


def finished_rows(folder: Path) -> int:
    """How many inputs a folder holds results of; 0 where it holds none."""
    return len(whole_lines(folder / RESULTS)) if (folder / RESULTS).exists() else 0


def load_header(folder: Path) -> Header:
    """Read ``header.json``; RunError where it is missing or of another schema."""
    if (folder / IMPORTED).exists():
        raise RunError(
            f"{folder} holds imported results, and rounded radii are never proof; analyze, plot and report take them."
        )
    try:
        data = json.loads((folder / HEADER).read_bytes())
        return Header.model_validate(schema1.header_of(data) if _is_old(data) else data)
    except OSError as error:
        inner = runs_in(folder)
        if inner:
            found = f"{len(inner)} runs: {folder}/* ({inner[0]}, ..)" if len(inner) > 1 else f"1 run: {inner[0]}"
            raise RunError(f"{folder} is no run but holds {found}; give one or several of them.") from error
        raise RunError(f"{folder} is not a run folder: {HEADER}: {error.strerror}.") from error
    except (ValidationError, ValueError, KeyError, TypeError, RecursionError) as error:
        why = first_error(error) if isinstance(error, ValidationError) else f"{type(error).__name__}: {error}"
        raise RunError(
            f"{folder / HEADER} is not a header this version reads (schema {SCHEMA_VERSION}): {why}."
        ) from error


def runs_in(folder: Path) -> list[Path]:
    """The runs, and others' results, that lie in a folder, by name."""
    try:
        return sorted(one for one in folder.iterdir() if any((one / name).is_file() for name in (HEADER, IMPORTED)))
    except OSError:
        return []


def _is_old(data: object) -> bool:
    return isinstance(data, dict) and data.get("schema_version") == 1


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
        lines = whole_lines(folder / RESULTS)
    except OSError as error:
        raise RunError(f"{folder} is not a run folder: {RESULTS}: {error.strerror}.") from error
    rows: dict[int, ResultRow] = {}
    old = header.schema_version != SCHEMA_VERSION
    for number, line in enumerate(lines, start=1):
        try:
            row = ResultRow.model_validate(schema1.row_of(json.loads(line))) if old else _row(line)
        except (ValidationError, ValueError, KeyError, TypeError, RecursionError) as error:
            why = first_error(error) if isinstance(error, ValidationError) else f"{type(error).__name__}: {error}"
            raise RunError(f"{folder / RESULTS}, line {number} is not a result: {why}.") from error
        if row.id in rows:
            raise RunError(f"{folder / RESULTS}, line {number}: input {row.id} is there twice.")
        for text in disagreements(header, row):
            raise RunError(f"{folder / RESULTS}, line {number}: {text}.")
        rows[row.id] = _derived(header, row) if old else row
    return list(rows.values())


def _row(line: bytes) -> ResultRow:
    return ResultRow.model_validate_json(line)


def _derived(header: Header, row: ResultRow) -> ResultRow:
    """A row whose claims are those that its measurements make today; what a memory made of it stays."""
    if row.memory is not None:
        return row
    claim = header.claim(row)
    changed = {name: getattr(claim, name) for name in ("prediction", "radius", "p_lower", "p_upper")}
    return row.model_copy(update=changed | {"correct": None if row.label is None else claim.prediction == row.label})
