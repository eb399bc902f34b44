"""Others' results: tab-separated files of the field beside our runs. Their radii are rounded and prove nothing.

An import is a folder with ``imported.json`` (where it came from) and ``imported.tsv`` (the file as it was). It is no
run folder: what needs counts refuses it.
"""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ddsmoothing.claims import ABSTAIN
from ddsmoothing.errors import InputError, RunError, first_error, printable
from ddsmoothing.files import file_name, write_durably
from ddsmoothing.runs.columns import Columns
from ddsmoothing.runs.schema import Digest, Length
from ddsmoothing.runs.store import IMPORTED, Run, load_run

TABLE: Final = "imported.tsv"
NEEDED: Final = ("idx", "label", "predict", "radius", "correct")
LARGEST_LENGTH: Final = 1e6
CORRECT: Final = {"1": True, "true": True, "1.0": True, "0": False, "false": False, "0.0": False}


@dataclass(frozen=True, kw_only=True)
class ImportedRow:
    """One line of the file; ``sigma`` and ``seconds`` are NaN where it does not say them."""

    id: int
    label: int
    prediction: int
    radius: float
    correct: bool
    sigma: float
    seconds: float

    @property
    def reason(self) -> str:
        """``certified`` or ``abstained``."""
        return "abstained" if self.prediction == ABSTAIN else "certified"


class ImportHeader(BaseModel):
    """``imported.json``: where a file came from and what whoever imported it said of it.

    Attributes:
        source: the file's name.   sha256: of its bytes.   norm: of its radii.   sigma: the one sigma of all rows, None
            where rows differ or nobody said.   vote: how noisy answers became one, as whoever imported it said.
        rounded: always; such radii are never proof.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    schema_version: Literal[1] = 1
    created: str
    source: str
    sha256: Digest
    norm: Literal["l1", "l2"]
    sigma: Annotated[Length, Field(gt=0.0)] | None
    sigma_policy: Literal["fixed", "file", "unknown"]
    level: Literal["pointwise"] = "pointwise"
    vote: Literal["pairwise", "plurality"] = "plurality"
    rounded: Literal[True] = True


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Imported(Columns):
    """Others' results, with the arrays of a ``Run`` that analysis needs; there are no counts and no bounds.

    Attributes:
        path: its folder.
        header: where it came from.
        rows: by id.
    """

    path: Path
    header: ImportHeader
    rows: tuple[ImportedRow, ...]

    def _about(self) -> list[str]:
        return [f"from {self.header.source}", "radii as rounded there"]

    rounded = True


Results = Run | Imported


def import_file(
    file: Path, out: Path, *, sigma: float | None = None, norm: str = "l2", vote: str = "plurality"
) -> Imported:
    """Take a tab-separated file of the field into a new folder.

    Columns are found by the names in the first line: ``idx label predict radius correct``, and ``sigma`` and ``time``
    where they are there; others are left alone. -1 abstains.

    Args:
        out: a folder that does not exist or is empty.   sigma: of all rows, for a file without that column.
        norm: of the radii, ``l2`` or ``l1``; the file does not say.
        vote: ``plurality``, as in papers' tables, or ``pairwise``; the file does not say that either.
    Raises: RunError for an unreadable file, naming the line; InputError for a sigma that the file says itself.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise RunError(f"cannot read {file}: {error.strerror}.") from error
    if sigma is not None and not 0.0 < sigma <= LARGEST_LENGTH:
        raise InputError(f"sigma is {sigma}, expected a positive number, in the units of the input.")
    rows = parse(data, str(file))
    found = {row.sigma for row in rows}
    if sigma is not None and not math.isnan(rows[0].sigma):
        raise InputError(f"{file} has a column sigma; leave --sigma out.")
    one = sigma if sigma is not None else found.pop() if len(found) == 1 and not math.isnan(rows[0].sigma) else None
    policy = "fixed" if one is not None else "unknown" if math.isnan(rows[0].sigma) else "file"
    try:
        header = ImportHeader(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            source=file_name(file.name),
            sha256=hashlib.sha256(data).hexdigest(),
            norm=norm,
            vote=vote,
            sigma=one,
            sigma_policy=policy,
        )
    except ValidationError as error:
        raise InputError(f"{first_error(error)}; got norm {norm!r}, vote {vote!r}, sigma {sigma}.") from error
    try:
        if out.exists() and any(out.iterdir()):
            raise RunError(f"{out} exists and is not empty; give another --out, or remove it.")
        out.mkdir(parents=True, exist_ok=True)
        write_durably(out / TABLE, data)
        write_durably(out / IMPORTED, header.model_dump_json(indent=2) + "\n")
    except OSError as error:
        raise RunError(f"cannot write {out}: {error.strerror}. Choose another --out.") from error
    return load_import(out)


def load_results(path: str | Path) -> Results:
    """A run folder or an import, whichever it is; RunError where it is neither."""
    folder = Path(path)
    return load_import(folder) if (folder / IMPORTED).exists() else load_run(folder)


def load_import(folder: Path) -> Imported:
    """Read what ``import_file`` wrote; RunError where it is damaged."""
    try:
        header = ImportHeader.model_validate_json((folder / IMPORTED).read_bytes())
        data = (folder / TABLE).read_bytes()
    except OSError as error:
        raise RunError(f"{folder} is not an import: {Path(error.filename).name}: {error.strerror}.") from error
    except ValidationError as error:
        raise RunError(f"{folder / IMPORTED} is not a header this version reads: {first_error(error)}.") from error
    if hashlib.sha256(data).hexdigest() != header.sha256:
        raise RunError(f"{folder / TABLE} is not the file that was imported; import it again.")
    rows = parse(data, str(folder / TABLE), header.sigma)
    return Imported(path=folder, header=header, rows=tuple(sorted(rows, key=lambda row: row.id)))


def parse(data: bytes, name: str, sigma: float | None = None) -> list[ImportedRow]:
    """The rows of a file.

    Args:
        name: of the file, for messages.   sigma: of rows that say none.
    Raises: RunError, naming the first line that is not as it should be.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        bad = data.count(b"\n", 0, error.start) + 1
        raise RunError(f"{name}, line {bad}: not text in UTF-8; expected a tab-separated file.") from error
    first, *lines = text.split("\n")
    columns = first.rstrip("\r").split("\t")
    missing = [column for column in NEEDED if column not in columns]
    if missing or len(set(columns)) < len(columns):
        raise RunError(
            f"{name}, line 1: got {printable(first[:100])!r}, expected tab-separated names, each once, with "
            f"{' '.join(NEEDED)} among them (time and sigma are read too)."
        )
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise RunError(f"{name} has no results.")
    rows: dict[int, ImportedRow] = {}
    for number, text in enumerate(lines, start=2):
        try:
            row = _row(columns, text.rstrip("\r").split("\t"), sigma)
        except ValueError as error:
            raise RunError(f"{name}, line {number}: {error}.") from error
        if row.id in rows:
            raise RunError(f"{name}, line {number}: input {row.id} is there twice.")
        rows[row.id] = row
    return list(rows.values())


def _row(columns: list[str], cells: list[str], sigma: float | None) -> ImportedRow:
    """One line as a row; ValueError says what is wrong with it."""
    if len(cells) != len(columns):
        raise ValueError(f"got {len(cells)} cells, expected {len(columns)}; the line may be torn")
    found = dict(zip(columns, cells, strict=True))
    label, prediction = (_whole(found, name, ABSTAIN) for name in ("label", "predict"))
    row = ImportedRow(
        id=_whole(found, "idx", 0),
        label=label,
        prediction=prediction,
        radius=_length(found, "radius"),
        correct=prediction == label != ABSTAIN,
        sigma=_length(found, "sigma") if "sigma" in found else math.nan if sigma is None else sigma,
        seconds=_seconds(found["time"]) if "time" in found else math.nan,
    )
    if CORRECT.get(found["correct"].lower()) is not row.correct:
        got = printable(found["correct"][:40])
        raise ValueError(
            f"correct is {got!r}, expected {int(row.correct)} or {row.correct}: predict is {prediction}, label {label}"
        )
    if prediction == ABSTAIN and row.radius > 0.0:
        raise ValueError(f"predict is -1 (abstained), but radius is {printable(found['radius'])}")
    if row.sigma <= 0.0:
        raise ValueError(f"sigma is {row.sigma}, expected a positive number")
    return row


def _whole(found: dict[str, str], name: str, least: int) -> int:
    text = found[name]
    if not re.fullmatch(r"-?[0-9]{1,18}", text) or int(text) < least:
        raise ValueError(f"{name} is {printable(text[:40])!r}, expected a whole number of at least {least}")
    return int(text)


def _length(found: dict[str, str], name: str) -> float:
    text = found[name]
    if re.fullmatch(r"-0{1,30}\.?0{0,30}", text):  # as some formats write 0
        return 0.0
    number = re.fullmatch(r"([0-9]{1,30}\.?[0-9]{0,30}|\.[0-9]{1,30})([eE][-+]?[0-9]{1,4})?", text)
    if number is None or float(text) > LARGEST_LENGTH:
        raise ValueError(f"{name} is {printable(text[:40])!r}, expected a number from 0 to {LARGEST_LENGTH:g}")
    return float(text)


def _seconds(text: str) -> float:
    """``H:MM:SS.ffffff`` as ``str(timedelta)`` writes it, or a plain number of seconds."""
    time = re.fullmatch(r"(?:([0-9]{1,6}) days?, )?([0-9]{1,6}):([0-5][0-9]):([0-5][0-9](?:\.[0-9]{1,9})?)", text)
    if time is None:
        return _length({"time": text}, "time")
    days, hours, minutes, seconds = time.groups()
    return float(days or 0) * 86400 + float(hours) * 3600 + float(minutes) * 60 + float(seconds)
