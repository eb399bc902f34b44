"""What can be said of runs in numbers: records for machines, tables of finished text for people.

Levels, norms and units never share a table. Accuracies and radii are rounded down; upper ends of intervals, shares of
abstentions and of wrong certificates up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, isnan
from typing import Any, Final

import numpy as np

from ddsmoothing.analysis import (
    RADII,
    acr,
    acr_interval,
    certified_accuracy,
    certified_accuracy_interval,
    certified_wrong,
    envelope,
)
from ddsmoothing.bounds import floor_text
from ddsmoothing.claims.levels import rank
from ddsmoothing.errors import InputError
from ddsmoothing.runs import Results, Run
from ddsmoothing.runs.columns import Columns
from ddsmoothing.tables.comparable import alike, fixed_group, labelled
from ddsmoothing.tables.facts import abstained, levels_of, units_of, vote_of, votes_text
from ddsmoothing.tables.labels import called, made_on, provenance, side_by_side
from ddsmoothing.tables.numbers import interval_text, percent, percent_up, significant
from ddsmoothing.tables.table import Table

ENVELOPE: Final = "envelope of the fixed sigmas"
NOISE: Final = (
    *("abstained %", "wrong %", "mean", "5 %", "median", "95 %"),
    *("samples/input", "s/input"),
)
QUANTILES: Final = {"q05": 0.05, "median": 0.5, "q95": 0.95}

Record = dict[str, Any]


def summary(run: Results, radii: Sequence[float] = RADII) -> Record:
    """One run in numbers; None for what is not known or means nothing."""
    names = [f"{radius:g}" for radius in radii]
    accuracy = certified_accuracy(run, radii).tolist()
    interval = certified_accuracy_interval(run, radii).tolist()
    ours, sigma = isinstance(run, Run), _sigma(run)
    seconds = float(np.mean([row.seconds for row in run.rows]))
    return {
        "run": str(run.path),
        "level": run.level,
        "norm": run.header.norm,
        "vote": vote_of(run),
        "units": units_of(run),
        "sigma_policy": run.header.sigma_policy,
        "inputs": len(run),
        "partial": run.partial,
        "rounded": run.rounded,
        "made_on": provenance(run),
        "subset": run.header.subset.model_dump() if isinstance(run, Run) else None,
        "sampler": run.header.sampler if isinstance(run, Run) else None,
        "acr": None if run.stops_at_radius else acr(run),
        "acr_interval": None if run.stops_at_radius else acr_interval(run),
        "certified_accuracy": dict(zip(names, accuracy, strict=True)),
        "certified_accuracy_interval": dict(zip(names, interval, strict=True)),
        "abstained": float(abstained(run).mean()),
        "certified_wrong": certified_wrong(run),
        "sigma": sigma,
        "samples_per_input": _samples(run) if ours else None,
        "seconds_per_input": None if isnan(seconds) else seconds,
    }


def _sigma(run: Results) -> dict[str, float] | None:
    if not np.isfinite(run.sigma).all():
        return None
    ends = {"mean": run.sigma.mean(), "min": run.sigma.min(), "max": run.sigma.max()}
    return {name: float(value) for name, value in ends.items()} | {
        name: float(np.quantile(run.sigma, share)) for name, share in QUANTILES.items()
    }


def _samples(run: Results) -> float | None:
    return sum(row.samples for row in run.rows) / len(run) if isinstance(run, Run) else None


def groups(runs: Sequence[Results]) -> Iterator[tuple[str, str, list[Results]]]:
    """Norm, level and the runs that hold at it, in the same units; those of different levels never share a table.

    Runs of one sigma stand beside both kinds, but for a group of their own where they stand beside others already.
    Raises: InputError for one run, whose inputs are runs as well.
    """
    if isinstance(runs, Columns):
        raise InputError("got one run, expected a list of runs, such as [run].")
    for same in alike(runs):
        levels = sorted({run.level for run in same}, key=rank)
        held = {level: [run for run in same if level in levels_of(run)] for level in levels}
        for level, members in held.items():
            if not any(len(members) < len(other) and all(run in other for run in members) for other in held.values()):
                yield same[0].header.norm, level, members


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What a table of accuracies shows.

    Attributes:
        names: What to call the runs, one name for each; empty: what tells them apart.
        only: ``accuracy`` or ``acr``: these columns alone.
        intervals: Whether a second line of each cell holds them.
        bold: Mark the largest figure of each column, as it is shown; the envelope does not compete.
    """

    names: tuple[str, ...] = ()
    only: str | None = None
    intervals: bool = True
    bold: bool = False

    def part(self, cells: Sequence[str]) -> tuple[str, ...]:
        """Of cells at each radius, and of ACR after them, those that are shown, with or without second lines."""
        chosen = {"accuracy": cells[:-1], "acr": cells[-1:]}.get(self.only or "", cells)
        return tuple(cell if self.intervals else cell.partition("\n")[0] for cell in chosen)


EVERYTHING: Final = Shown()
WHAT: Final = {None: "Certified accuracy (%) at {} radius, and ACR", "acr": "ACR, {} radius"} | {
    "accuracy": "Certified accuracy (%) at {} radius"
}


def accuracy_tables(runs: Sequence[Results], radii: Sequence[float] = RADII, shown: Shown = EVERYTHING) -> list[Table]:
    """Certified accuracy (%) by radius and ACR with 95 % intervals, one table a norm and level.

    Args:
        runs: With labels.
        radii: In the units of the inputs.
        shown: Which columns, and how.
    """
    return [
        _accuracy_table(level, same, called(same, runs, shown.names), radii, shown) for _, level, same in groups(runs)
    ]


def _accuracy_table(
    level: str, runs: Sequence[Results], labels: Sequence[str], radii: Sequence[float], shown: Shown
) -> Table:
    rows = [
        (label, f"{len(run):,}", *shown.part(accuracy_cells(run, radii)))
        for label, run in zip(labels, runs, strict=True)
    ]
    bold = _best(rows) if shown.bold else frozenset()
    notes = made_on(runs, labels) + side_by_side(runs)
    if (fixed := fixed_group(runs)) and shown.only != "acr":
        total = len(fixed[0])
        best = [percent(round(share * total), total) for share in envelope(fixed, radii).tolist()]
        rows.append((ENVELOPE, f"{total:,}", *shown.part([*best, "-"])))
        notes += ("The envelope is the best fixed sigma at each radius; no single classifier attains it.",)
    second = ", each with its 95 % interval over inputs" if shown.intervals else ""
    what = WHAT[shown.only].format(runs[0].header.norm.upper())
    return Table(
        title=f"{what}; level {level}, {votes_text(runs)}",
        columns=(_first(shown.names), "inputs", *shown.part([*(f"{radius:g}" for radius in radii), "ACR"])),
        rows=tuple(rows),
        notes=(*notes, f"Radii in {units_of(runs[0])}. Figures are rounded down{second}."),
        bold=bold,
    )


def _first(names: Sequence[str]) -> str:
    return "run" if names else "sigma (level)"


def _best(rows: Sequence[Sequence[str]]) -> frozenset[tuple[int, int]]:
    """The cells with the largest figure of their column, all that look alike; none where there is one row."""
    found = set()
    for column in range(2, len(rows[0])):
        values = [row[column].partition("\n")[0] for row in rows]
        known = [float(value) for value in values if value != "-"]
        if len(known) > 1:
            found |= {(i, column) for i, value in enumerate(values) if value != "-" and float(value) == max(known)}
    return frozenset(found)


def accuracy_cells(run: Results, radii: Sequence[float]) -> list[str]:
    """Accuracy at each radius and ACR, each above its interval; ACR is "-" where sampling stopped at a radius."""
    total, cells = len(run), []
    accuracy, interval = certified_accuracy(run, radii).tolist(), certified_accuracy_interval(run, radii).tolist()
    for share, (low, high) in zip(accuracy, interval, strict=True):
        cells.append(f"{percent(round(share * total), total)}\n{interval_text(100 * low, 100 * high, 0)}")
    if run.stops_at_radius:
        return [*cells, "-"]
    return [*cells, f"{floor_text(acr(run), 3)}\n{interval_text(*acr_interval(run), 3)}"]


def noise_tables(runs: Sequence[Results], names: Sequence[str] = ()) -> list[Table]:
    """Abstentions, certificates of a wrong class, the spread of sigma, and the cost; one table a norm and level.

    Args:
        runs: With labels or without.
        names: What to call the runs, one name each.
    """
    tables = []
    for norm, level, same in groups(runs):
        labels = called(same, runs, names)
        tables.append(
            Table(
                title=f"Abstentions, sigma and cost; {norm.upper()}, level {level}, {votes_text(same)}",
                columns=(_first(names), *NOISE),
                rows=tuple((label, *_noise_cells(run)) for label, run in zip(labels, same, strict=True)),
                notes=(
                    "Wrong: a certificate, of a radius above 0, of a wrong class. Mean and quantiles are of "
                    f"sigma, in {units_of(same[0])}. Samples and seconds of certification, an input.",
                ),
            )
        )
    return tables


def _noise_cells(run: Results) -> list[str]:
    spread, samples, total = _sigma(run), _samples(run), len(run)
    seconds = float(np.mean([row.seconds for row in run.rows]))
    return [
        percent_up(int(abstained(run).sum()), total),
        percent_up(round(certified_wrong(run) * total), total) if labelled([run]) else "-",
        *(f"{spread[name]:.3g}" if spread else "-" for name in ("mean", *QUANTILES)),
        "-" if samples is None else f"{ceil(samples):,}",
        "-" if isnan(seconds) else significant(seconds, up=True),
    ]


def flat(record: Record, label: str) -> Record:
    """A summary as one line of a CSV or Parquet table."""
    first = ("level", "norm", "vote", "units", "sigma_policy", "inputs", "partial", "rounded", "made_on")
    found = {"run": record["run"], "label": label} | {key: record[key] for key in first}
    subset = record["subset"] or {}
    found |= {"subset_skip": subset.get("skip"), "subset_max": subset.get("max"), "sampler": record["sampler"]}
    for name, value in record["certified_accuracy"].items():
        low, high = record["certified_accuracy_interval"][name]
        key = f"certified_accuracy_{name}"
        found |= {key: value, f"{key}_low": low, f"{key}_high": high}
    low, high = record["acr_interval"] or (None, None)
    found |= {"acr": record["acr"], "acr_low": low, "acr_high": high}
    found |= {key: record[key] for key in ("abstained", "certified_wrong")}
    spread = record["sigma"] or {}
    found |= {f"sigma_{name}": spread.get(name) for name in ("mean", "min", "max", *QUANTILES)}
    return found | {key: record[key] for key in ("samples_per_input", "seconds_per_input")}


def summary_records(runs: Sequence[Results], radii: Sequence[float] = RADII, names: Sequence[str] = ()) -> list[Record]:
    """One flat record a run, and one for each envelope of fixed sigmas."""
    records = [flat(summary(run, radii), label) for run, label in zip(runs, called(runs, runs, names), strict=True)]
    for same in alike(runs):
        if fixed := fixed_group(same):
            best = dict(zip((f"{radius:g}" for radius in radii), envelope(fixed, radii).tolist(), strict=True))
            empty = dict.fromkeys(records[0]) | {
                "label": ENVELOPE,
                "level": fixed[0].level,
                "norm": fixed[0].header.norm,
            }
            empty |= {"vote": vote_of(fixed[0]), "units": units_of(fixed[0])}
            empty |= {"inputs": len(fixed[0]), "partial": any(run.partial for run in fixed)}
            empty |= {"rounded": any(run.rounded for run in fixed)}
            records.append(empty | {f"certified_accuracy_{name}": share for name, share in best.items()})
    return records
