"""Were a run's counts really drawn? Some inputs are drawn again from their streams and the counts compared."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

import numpy as np

from ddsmoothing.certificate import certificate_for
from ddsmoothing.classifier import SmoothedClassifier
from ddsmoothing.counting.contract import Progress, Request
from ddsmoothing.data import Dataset
from ddsmoothing.errors import InputError
from ddsmoothing.evidence import total_variation
from ddsmoothing.inputs import Batch
from ddsmoothing.models import model_identity
from ddsmoothing.runs.schema import ResultRow
from ddsmoothing.runs.store import Run
from ddsmoothing.streams import Stream, rows_per_block


@dataclass(frozen=True, kw_only=True)
class Redrawn:
    """One input drawn again.

    Attributes:
        moved: samples whose class is another one now (half the L1 distance of the counts); 0 where all agree.
        message: what differs, in the counts or in what was subtracted for noise and grid; None where nothing does.
    """

    id: int
    moved: int
    message: str | None


def resample_run(
    run: Run, smoothed: SmoothedClassifier, data: Dataset, k: int, *, progress: Progress | None = None
) -> list[Redrawn]:
    """Draw k rows of a run again and compare class counts; which ones is left to the operating system's randomness.

    The same seed, ids, sigmas, model and number of rows in a forward pass give the same counts. On another device or
    precision a logit may round differently and move a few samples.

    Raises: InputError where the model or the data set is not the run's.
    """
    check_same(run, smoothed, data)
    chosen = secrets.SystemRandom().sample(run.rows, min(k, len(run)))
    found = []
    for row in sorted(chosen, key=lambda row: row.id):
        batch = smoothed.prepare(data[[row.id]][0], [row.id])
        if batch.sha256[0] != row.input_sha256:
            found.append(Redrawn(id=row.id, moved=row.samples, message="the input is another one: its SHA-256 differs"))
            continue
        requests = requests_of(row, batch)
        counts = smoothed.count(batch, requests, run.header.seed, progress)
        wanted = [np.array(row.n0_counts), np.array(row.n_counts)]
        drawn = [counts[0], counts[1:].sum(0)]
        moved = sum(int(np.abs(a - b).sum()) for a, b in zip(wanted, drawn, strict=True)) // 2
        text = (
            f"{moved} of {row.samples} samples have another class than the run says" if moved else _claimed(row, batch)
        )
        found.append(Redrawn(id=row.id, moved=moved, message=text if moved else _claimed(row, batch)))
    return found


def _claimed(row: ResultRow, batch: Batch) -> str | None:
    """What a row says of its noise and its input that they do not bear out; a row alone cannot show these."""
    kind = "grid" if batch.on_grid[0] else "float"
    tv = total_variation(certificate_for(row.norm), row.sigma, batch.d, batch.levels) if kind == "grid" else 0.0
    if row.noise != kind:
        return f"its noise is {kind}, the run says {row.noise}"
    if row.tv < tv * (1.0 - 1e-6):
        return f"tv is {tv:.6g} for {batch.d} numbers, the run says {row.tv:.6g}"
    if row.moved < float(batch.moved[0]) * (1.0 - 1e-12):
        return f"the input was moved by {batch.moved[0]:.6g}, the run says {row.moved:.6g}"
    return None


def requests_of(row: ResultRow, batch: Batch) -> list[Request]:
    """The samples of a row: the pilot, then what each look added, every wish in noise blocks of its own."""
    requests = [Request(row=0, sigma=row.sigma, stream=Stream.PILOT, n=sum(row.n0_counts))]
    block = before = 0
    for n, _, _ in row.looks:
        new = n - before
        requests.append(Request(row=0, sigma=row.sigma, stream=Stream.CERTIFY, n=new, first_block=block))
        block, before = block + -(-new // rows_per_block(batch.d)), n
    return requests


def check_same(run: Run, smoothed: SmoothedClassifier, data: Dataset) -> None:
    """Raise InputError unless model and data are those the run was made with."""
    header = run.header
    if data.fingerprint() != header.data.model_dump():
        raise InputError(f"the run was made with another data set: {header.data.name}, {header.data.length} inputs.")
    if header.model.sha256 is not None and model_identity(smoothed.model, "-") != f"sha256:{header.model.sha256}":
        raise InputError(f"the run was made with another model: {header.model.name}; its hash differs.")
    if smoothed.certificate.norm != header.norm or smoothed.num_classes != header.num_classes:
        raise InputError(f"the run was made for {header.norm} and {header.num_classes} classes.")
