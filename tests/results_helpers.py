"""Planted runs: rows of a real one with other radii, sigmas, labels and levels, written to a folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ddsmoothing as dds
from ddsmoothing.runs.schema import MemoryNote
from ddsmoothing.runs.store import RunWriter


def with_header(run: dds.Run, **fields: Any) -> dds.Run:
    """The run with other header fields; its files are not touched."""
    return dataclasses.replace(run, header=run.header.model_copy(update=fields))


def of_vote(run: dds.Run, vote: str) -> dds.Run:
    """The run as if its header said another vote."""
    return with_header(run, rule=run.header.rule.model_copy(update={"vote": vote}))


def planted(
    base: dds.Run,
    folder: Path,
    radii: Sequence[float],
    *,
    labels: Sequence[int] | None = None,
    predictions: Sequence[int] | None = None,
    sigmas: Sequence[float] | None = None,
    sigma: float | None = None,
    level: str = "pointwise",
    notes: Sequence[tuple[str, float]] | None = None,
    size: int | None = None,
    **header: Any,
) -> dds.Run:
    """A run of one row for each radius, class 1 of label 1 unless said otherwise.

    Args:
        sigmas: of each input, or sigma for all (default .25).   notes: a memory's kind and radius before the rules.
    """
    n = len(radii)
    labels, predictions = labels or [1] * n, predictions or [1] * n
    row_sigmas = list(sigmas) if sigmas is not None else [sigma or 0.25] * n
    rows = []
    for i, radius in enumerate(radii):
        right = predictions[i] == labels[i]
        note = None if notes is None else MemoryNote(kind=notes[i][0], certified=notes[i][1], prediction=1)
        changed = {"id": 50 * i, "radius": radius, "label": labels[i], "prediction": predictions[i], "correct": right}
        row = base.rows[i % len(base.rows)]
        drawn = tuple(replace(one, sigma=row_sigmas[i]) for one in row.measurements)
        changed |= {"sigma": row_sigmas[i], "measurements": drawn, "memory": note}
        if row.lambda_ is not None:
            changed |= {"lambda_": 3**0.5 * row_sigmas[i]}
        rows.append(row.model_copy(update=changed))
    policy = {"sigma_policy": "search", "sigma": None} if sigmas is not None else {"sigma": row_sigmas[0]}
    subset = base.header.subset.model_copy(update={"size": size or n})
    update = policy | {"level": level, "subset": subset} | header
    with RunWriter(folder, base.header.model_copy(update=update)) as writer:
        writer.append(rows)
    return dds.load_run(folder)
