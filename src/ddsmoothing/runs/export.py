"""Runs as the tab-separated files of the field. Radii are rounded down; a file made here is no proof."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Final

from ddsmoothing.bounds import floor_text
from ddsmoothing.errors import InputError, RunError, unknown
from ddsmoothing.files import write_durably
from ddsmoothing.runs.schema import ResultRow
from ddsmoothing.runs.store import Run

_COLUMNS: Final[dict[str, Callable[[ResultRow], str]]] = {
    "idx": lambda row: str(row.id),
    "label": lambda row: str(row.label),
    "predict": lambda row: str(row.prediction),
    "radius": lambda row: floor_text(row.radius),
    "correct": lambda row: str(int(bool(row.correct))),
    "sigma": lambda row: repr(row.sigma),
    "time": lambda row: str(timedelta(seconds=row.seconds)),
}
FORMATS: Final[dict[str, tuple[str, ...]]] = {
    "locuslab": ("idx", "label", "predict", "radius", "correct", "time"),
    "dds": ("idx", "label", "predict", "radius", "correct", "sigma", "time"),
}


def export_run(run: Run, format_name: str, path: str | Path) -> None:
    """Write a run as ``locuslab`` (Cohen et al., six columns) or ``dds`` (Alfarra et al., with sigma).

    Raises: InputError for an unknown format, RunError where the file cannot be written.
    """
    if format_name not in FORMATS:
        raise InputError(unknown("format", format_name, list(FORMATS)))
    run.need_labels()
    columns = FORMATS[format_name]
    lines = ["\t".join(columns), *("\t".join(_COLUMNS[name](row) for name in columns) for row in run.rows)]
    try:
        write_durably(Path(path), "\n".join(lines) + "\n")
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}.") from error
