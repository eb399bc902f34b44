"""What can be said of runs in numbers: records for machines, tables of finished text for people.

Levels and norms never share a table. Accuracies and radii are rounded down, upper ends of intervals and shares of
abstentions up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import isnan
from typing import Any, Final

import numpy as np

from ddsmoothing.analysis import (
    RADII,
    acr,
    acr_interval,
    certified_accuracy,
    certified_accuracy_interval,
    envelope,
)
from ddsmoothing.bounds import floor_text
from ddsmoothing.claims import ABSTAIN
from ddsmoothing.runs import Results, Run
from ddsmoothing.tables.labels import ceil_text, fixed_group, labels_of, percent, provenance
from ddsmoothing.tables.table import Table

ENVELOPE: Final = "envelope of the fixed sigmas"
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
        "abstained": float((run.prediction == ABSTAIN).mean()),
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
    """Norm, level and the runs of both; runs of different groups never share a table."""
    for norm, level in sorted({(run.header.norm, run.level) for run in runs}, key=lambda key: (key[0], _rank(key[1]))):
        yield norm, level, [run for run in runs if (run.header.norm, run.level) == (norm, level)]


def _rank(level: str) -> int:
    return ("pointwise", "memory", "stateless").index(level)


def accuracy_tables(runs: Sequence[Results], radii: Sequence[float] = RADII) -> list[Table]:
    """Certified accuracy (%) by radius and ACR with 95 % intervals, one table a norm and level."""
    tables = []
    for norm, level, same in groups(runs):
        labels = labels_of(same)
        rows = [(label, str(len(run)), *accuracy_cells(run, radii)) for label, run in zip(labels, same, strict=True)]
        fixed = fixed_group(same)
        notes = _made_on(same, labels)
        if fixed:
            total = len(fixed[0])
            best = [percent(round(share * total), total) for share in envelope(fixed, radii).tolist()]
            rows.append((ENVELOPE, str(total), *best, "-"))
            notes += ("The envelope is the best fixed sigma at each radius; no single classifier attains it.",)
        tables.append(
            Table(
                title=f"Certified accuracy (%) at {norm.upper()} radius, and ACR; level {level}",
                columns=("sigma (level)", "inputs", *(f"{radius:g}" for radius in radii), "ACR"),
                rows=tuple(rows),
                notes=notes,
            )
        )
    return tables


def accuracy_cells(run: Results, radii: Sequence[float]) -> list[str]:
    """Accuracy at each radius and ACR, each above its interval; ACR is "-" where sampling stopped at a radius."""
    total, cells = len(run), []
    accuracy, interval = certified_accuracy(run, radii).tolist(), certified_accuracy_interval(run, radii).tolist()
    for share, (low, high) in zip(accuracy, interval, strict=True):
        cells.append(f"{percent(round(share * total), total)}\n{floor_text(100 * low, 0)}-{ceil_text(100 * high, 0)}")
    if run.stops_at_radius:
        return [*cells, "-"]
    low, high = acr_interval(run)
    return [*cells, f"{floor_text(acr(run), 3)}\n{floor_text(low, 3)}-{ceil_text(high, 3)}"]


def _made_on(runs: Sequence[Results], labels: Sequence[str]) -> tuple[str, ...]:
    """Which inputs and samples the runs were made on, said once where it is the same for all."""
    texts = [provenance(run) for run in runs]
    if len(set(texts)) == 1:
        return (f"{texts[0]}.",)
    return tuple(f"{label}: {text}." for label, text in zip(labels, texts, strict=True))


def noise_tables(runs: Sequence[Results]) -> list[Table]:
    """Abstentions, the spread of sigma, and what an input cost; one table a norm and level."""
    tables = []
    for norm, level, same in groups(runs):
        rows = []
        for label, run in zip(labels_of(same), same, strict=True):
            none = int((run.prediction == ABSTAIN).sum())
            abstained = ceil_text(100 * none / len(run), 1) if none else "0.0"
            spread, samples = _sigma(run), _samples(run)
            seconds = float(np.mean([row.seconds for row in run.rows]))
            rows.append(
                (
                    label,
                    abstained,
                    *(f"{spread[name]:.3g}" if spread else "-" for name in ("mean", *QUANTILES)),
                    "-" if samples is None else ceil_text(samples, 0),
                    "-" if isnan(seconds) else f"{seconds:.3g}",
                )
            )
        tables.append(
            Table(
                title=f"Abstentions, sigma and cost; {norm.upper()}, level {level}",
                columns=("sigma (level)", "abstained %", "mean", "5 %", "median", "95 %", "samples/input", "s/input"),
                rows=tuple(rows),
                notes=("Mean and quantiles are of sigma. Samples and seconds of certification, an input.",),
            )
        )
    return tables


def flat(record: Record, label: str) -> Record:
    """A summary as one line of a CSV or Parquet table."""
    found = {key: record[key] for key in ("run", "level", "norm", "sigma_policy", "inputs", "partial", "rounded")}
    found = {"run": found.pop("run"), "label": label} | found | {"made_on": record["made_on"]}
    subset = record["subset"] or {}
    found |= {"subset_skip": subset.get("skip"), "subset_max": subset.get("max"), "sampler": record["sampler"]}
    for name, value in record["certified_accuracy"].items():
        low, high = record["certified_accuracy_interval"][name]
        key = f"certified_accuracy_{name}"
        found |= {key: value, f"{key}_low": low, f"{key}_high": high}
    low, high = record["acr_interval"] or (None, None)
    found |= {"acr": record["acr"], "acr_low": low, "acr_high": high, "abstained": record["abstained"]}
    spread = record["sigma"] or {}
    found |= {f"sigma_{name}": spread.get(name) for name in ("mean", "min", "max", *QUANTILES)}
    return found | {key: record[key] for key in ("samples_per_input", "seconds_per_input")}


def summary_records(runs: Sequence[Results], radii: Sequence[float] = RADII) -> list[Record]:
    """One flat record a run, and one for each envelope of fixed sigmas."""
    records = [flat(summary(run, radii), label) for run, label in zip(runs, labels_of(runs), strict=True)]
    for norm, level, same in groups(runs):
        if fixed := fixed_group(same):
            best = dict(zip((f"{radius:g}" for radius in radii), envelope(fixed, radii).tolist(), strict=True))
            empty = dict.fromkeys(records[0]) | {"label": ENVELOPE, "level": level, "norm": norm}
            empty |= {"inputs": len(fixed[0]), "partial": any(run.partial for run in fixed)}
            empty |= {"rounded": any(run.rounded for run in fixed)}
            records.append(empty | {f"certified_accuracy_{name}": share for name, share in best.items()})
    return records
