"""Runs in detail: class by class, against a baseline, row by row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ddsmoothing.analysis import RADII, acr, certified_accuracy, certified_wrong
from ddsmoothing.bounds import floor_text
from ddsmoothing.runs import Results, Run
from ddsmoothing.tables.comparable import paired
from ddsmoothing.tables.facts import abstained, class_names, class_text, evidence_of, units_of, vote_of
from ddsmoothing.tables.labels import called, made_on, provenance, side_by_side
from ddsmoothing.tables.numbers import percent, percent_up
from ddsmoothing.tables.summary import Record
from ddsmoothing.tables.table import Table

WORST: Final = 10
LOST: Final = ("abstained %", "wrong %")
KEYS: Final = ("id", "label", "prediction", "correct", "reason", "radius", "p_lower", "p_upper", "sigma", "lambda_")


@dataclass(frozen=True, eq=False)
class _Part:
    """The results of some inputs."""

    correct: NDArray[np.bool_]
    radius: NDArray[np.float64]


def class_records(run: Results, radii: Sequence[float] = RADII) -> list[Record]:
    """One record a class of the labels: inputs, certified accuracy, ACR, abstentions, certificates of a wrong class."""
    records = []
    names = class_names(run)
    for label in np.unique(run.label).tolist():
        mine = run.label == label
        part = _Part(run.correct[mine], run.radius[mine])
        accuracy = certified_accuracy(part, radii).tolist()
        records.append(
            {"run": str(run.path), "level": run.level, "norm": run.header.norm, "vote": vote_of(run), "class": label}
            | {"class_name": names[label] if names and label < len(names) else None}
            | {"inputs": int(mine.sum()), "partial": run.partial, "rounded": run.rounded, "made_on": provenance(run)}
            | {f"certified_accuracy_{r:g}": share for r, share in zip(radii, accuracy, strict=True)}
            | {"acr": None if run.stops_at_radius else acr(part)}
            | {"abstained": float(abstained(run)[mine].mean()), "certified_wrong": certified_wrong(part)}
        )
    return records


def class_tables(runs: Sequence[Results], radii: Sequence[float] = RADII, names: Sequence[str] = ()) -> list[Table]:
    """Certified accuracy (%) and ACR of each class, one table a run."""
    tables = []
    for run, name in zip(runs, called(runs, runs, names), strict=True):
        rows = []
        for record in class_records(run, radii):
            total = record["inputs"]
            shares = [percent(round(record[f"certified_accuracy_{r:g}"] * total), total) for r in radii]
            mean = "-" if record["acr"] is None else floor_text(record["acr"], 3)
            lost = [percent_up(round(record[key] * total), total) for key in ("abstained", "certified_wrong")]
            rows.append((class_text(run, record["class"]), f"{total:,}", *shares, mean, *lost))
        tables.append(
            Table(
                title=f"{name}: certified accuracy (%) of each class at {run.header.norm.upper()} radius, and ACR",
                columns=("class", "inputs", *(f"{radius:g}" for radius in radii), "ACR", *LOST),
                rows=tuple(rows),
                notes=(f"{provenance(run)}; level {run.level}. Radii in {units_of(run)}.",),
            )
        )
    return tables


def pair_records(run: Results, baseline: Results) -> list[Record]:
    """One record an input that both runs have: both radii (0 where the class is not the right one) and the change.

    Raises: RunError where the runs may not be compared.
    """
    both = paired(run, baseline)
    columns = zip(both.ids.tolist(), both.ours.tolist(), both.theirs.tolist(), strict=True)
    labels = {row.id: row.label for row in run.rows}
    made_on = {"made_on": provenance(run), "baseline_made_on": provenance(baseline)}
    return [
        {"run": str(run.path), "against": str(baseline.path), "level": run.level, "norm": run.header.norm}
        | {"vote": vote_of(run), "baseline_vote": vote_of(baseline)}
        | {"partial": run.partial or baseline.partial, "rounded": run.rounded or baseline.rounded}
        | made_on
        | {"id": i, "label": labels[i], "radius": ours, "baseline_radius": theirs, "change": ours - theirs}
        for i, ours, theirs in columns
    ]


def pair_summary(run: Results, baseline: Results) -> Record:
    """Inputs won, lost and equal, and the worst losers, the largest loss first."""
    records = pair_records(run, baseline)
    change = np.array([record["change"] for record in records])
    losers = sorted((r for r in records if r["change"] < 0.0), key=lambda r: (r["change"], r["id"]))[:WORST]
    return {
        "run": str(run.path),
        "against": str(baseline.path),
        "level": run.level,
        "norm": run.header.norm,
        "made_on": [provenance(run), provenance(baseline)],
        "inputs": len(records),
        "won": int((change > 0.0).sum()),
        "lost": int((change < 0.0).sum()),
        "equal": int((change == 0.0).sum()),
        "mean_change": float(change.mean()),
        "worst": [{key: r[key] for key in ("id", "label", "radius", "baseline_radius", "change")} for r in losers],
    }


def pair_tables(runs: Sequence[Results], baseline: Results, names: Sequence[str] = ()) -> list[Table]:
    """Who won and who lost radius against a baseline, and the worst losers of each run.

    Args:
        runs: Of the baseline's norm, units, level and data.
        baseline: What they are held against.
        names: What to call the runs and, after them, the baseline.
    """
    everyone = [*runs, baseline]
    labels = called(everyone, everyone, names)
    found = [pair_summary(run, baseline) for run in runs]
    counts = tuple(
        (label, *(str(one[key]) for key in ("inputs", "won", "lost", "equal")), floor_text(one["mean_change"], 3))
        for label, one in zip(labels, found, strict=False)
    )
    notes = (
        *made_on(everyone, labels),
        *side_by_side(everyone),
        f"A radius counts where it is of the right class, else as 0; in {units_of(baseline)}.",
    )
    tables = [
        Table(
            title=f"Radius won and lost against {labels[-1]}, input by input",
            columns=("sigma (level)", "inputs", "won", "lost", "equal", "mean change"),
            rows=counts,
            notes=notes,
        )
    ]
    worst = zip(labels, runs, found, strict=False)
    return [*tables, *(_worst(label, run, one) for label, run, one in worst if one["worst"])]


def _worst(label: str, run: Results, found: Record) -> Table:
    floored = ("radius", "baseline_radius", "change")
    return Table(
        title=f"{label}: the largest losses",
        columns=("id", "label", "radius", "baseline", "change"),
        rows=tuple(
            (str(one["id"]), class_text(run, one["label"]), *(floor_text(one[key], 3) for key in floored))
            for one in found["worst"]
        ),
    )


def row_records(run: Run) -> list[dict[str, Any]]:
    """One flat record a row, with its counts; numbers as they are in the run folder."""
    marks = {"partial": run.partial, "made_on": provenance(run)}
    return [
        {key.removesuffix("_"): getattr(row, key) for key in KEYS} | evidence_of(run, row) | marks for row in run.rows
    ]
