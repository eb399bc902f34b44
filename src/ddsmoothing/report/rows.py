"""The table of inputs as the page's script reads it: columns of numbers, rounded down. It knows no templates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

from ddsmoothing.bounds import floor_text
from ddsmoothing.data import Dataset
from ddsmoothing.report.thumbnails import Pictures
from ddsmoothing.runs import Results
from ddsmoothing.tables import labels_of
from ddsmoothing.tables.facts import class_names

DIGITS: Final = 4  # of radii, rounded down, and sigmas, rounded
OUTCOMES: Final = ("correct", "wrong", "not certified", "certified, no label")
COLUMNS: Final = {
    "run": "Run",
    "id": "Input",
    "clean": "Clean",
    "noisy": "Noisy",
    "label": "Label",
    "prediction": "Prediction",
    "outcome": "Outcome",
    "sigma": "Sigma",
    "radius": "Radius",
    "reason": "Reason",
}
_EXACT: Final = 2**53  # larger integers are no numbers to a browser


def rows_data(runs: Sequence[Results], data: Sequence[Dataset | None], pictures: Pictures) -> dict[str, Any]:
    """Rows of all runs by input and run, as columns; texts that repeat are numbered in ``names``.

    ``classes`` has their names where all runs know the same ones, else it is empty.
    """
    known = {class_names(run, dataset) for run, dataset in zip(runs, data, strict=True)}
    classes = known.pop() if len(known) == 1 else None
    reasons = {text: i for i, text in enumerate(sorted({_reason(row) for run in runs for row in run.rows}))}
    columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    order = sorted((row.id, number, row) for number, run in enumerate(runs) for row in run.rows)
    for key, number, row in order:
        cells = {
            "run": number,
            "id": _whole(key),
            "clean": pictures.clean[number].get(key),
            "noisy": pictures.noisy[number].get(key),
            "label": _whole(row.label),
            "prediction": None if row.prediction < 0 else _whole(row.prediction),
            "outcome": _outcome(row.prediction >= 0 and row.radius > 0.0, row.correct),
            "sigma": None if math.isnan(row.sigma) else round(row.sigma, DIGITS),
            "radius": float(floor_text(row.radius, DIGITS)),
            "reason": reasons[_reason(row)],
        }
        for name, value in cells.items():
            columns[name].append(value)
    return {
        "rows": columns,
        "classes": list(classes or ()),
        "names": {"run": labels_of(runs), "outcome": OUTCOMES, "reason": list(reasons)},
        "pictures": pictures.png,
        "digits": DIGITS,
    }


def _reason(row: Any) -> str:
    """In words, with the region of a memory where one answered or cut."""
    note = getattr(row, "memory", None)
    return str(row.reason) if note is None or note.by is None else f"{row.reason} by region {note.by}"


def _outcome(certified: bool, correct: bool | None) -> int:
    if not certified:
        return 2
    return 3 if correct is None else 0 if correct else 1


def _whole(value: int | None) -> int | str | None:
    return value if value is None or value < _EXACT else str(value)
