"""Were a run's counts really drawn? Some inputs are drawn again from their streams and the counts compared."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ddsmoothing.certificate import certificate_for
from ddsmoothing.claims import Measurement, Rule, Tally, measured, total_variation
from ddsmoothing.claims.measurement import VOTES, WINS
from ddsmoothing.classifier import SmoothedClassifier
from ddsmoothing.counting.contract import Progress, Request
from ddsmoothing.data import Dataset
from ddsmoothing.errors import InputError
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
        requests = requests_of(row, batch, smoothed.num_classes, run.header.judge)
        drawn = smoothed.count(batch, requests, run.header.seed, progress)
        moved = _moved(row, drawn, _pilot_tally(row, smoothed.num_classes, run.header.judge))
        text = f"{moved} of {row.samples} samples give other answers than the run says" if moved else None
        found.append(Redrawn(id=row.id, moved=moved, message=text or _claimed(run.header.norm, row, batch)))
    return found


def _moved(row: ResultRow, drawn: list[NDArray[np.int64]], tally: Tally) -> int:
    """Samples that give another answer now, at least: in votes half the L1 distance, in wins the largest difference."""
    first = measured("pilot", row.sigma, tally, drawn[0])
    moved = _differ(row.pilot, first)
    if row.fresh is not None:
        tally = Tally(VOTES) if row.fresh.anchor is None else Tally(WINS, row.fresh.anchor)
        moved += _differ(row.fresh, measured("certify", row.sigma, tally, np.sum(drawn[1:], axis=0)))
    return moved


def _differ(told: Measurement, drawn: Measurement) -> int:
    votes = int(np.abs(np.subtract(told.votes, drawn.votes)).sum()) // 2
    pairs = ((told.wins, drawn.wins), (told.least, drawn.least))
    return max(votes, *(int(np.abs(np.subtract(a, b)).max()) for a, b in pairs if a is not None and b is not None), 0)


def _claimed(norm: str, row: ResultRow, batch: Batch) -> str | None:
    """What a row says of its noise and its input that they do not bear out; a row alone cannot show these."""
    kind = "grid" if batch.on_grid[0] else "float"
    tv = total_variation(certificate_for(norm), row.sigma, batch.d, batch.levels) if kind == "grid" else 0.0
    if row.noise != kind:
        return f"its noise is {kind}, the run says {row.noise}"
    if row.tv < tv * (1.0 - 1e-6):
        return f"tv is {tv:.6g} for {batch.d} numbers, the run says {row.tv:.6g}"
    if row.moved < float(batch.moved[0]) * (1.0 - 1e-12):
        return f"the input was moved by {batch.moved[0]:.6g}, the run says {row.moved:.6g}"
    return None


def requests_of(row: ResultRow, batch: Batch, num_classes: int, rule: Rule) -> list[Request]:
    """The samples of a row: the pilot, then what each look added, every wish in noise blocks of its own."""
    kind = _pilot_tally(row, num_classes, rule).kind
    requests = [Request(row=0, sigma=row.sigma, stream=Stream.PILOT, n=row.pilot.n, tally=kind)]
    block = before = 0
    if row.fresh is None:
        return requests
    kind = VOTES if row.fresh.anchor is None else WINS
    for look in row.fresh.looks:
        new = look.n - before
        wish = Request(row=0, sigma=row.sigma, stream=Stream.CERTIFY, n=new, first_block=block)
        requests.append(replace(wish, tally=kind, anchor=row.fresh.anchor))
        block, before = block + -(-new // rows_per_block(batch.d)), look.n
    return requests


def _pilot_tally(row: ResultRow, num_classes: int, rule: Rule) -> Tally:
    """What the row's pilot counted."""
    return Tally(VOTES) if row.pilot.least is None else rule.pilot_tally(num_classes)


def check_same(run: Run, smoothed: SmoothedClassifier, data: Dataset) -> None:
    """Raise InputError unless model and data are those the run was made with."""
    header = run.header
    if data.fingerprint() != header.data.model_dump():
        raise InputError(f"the run was made with another data set: {header.data.name}, {header.data.length} inputs.")
    if header.model.sha256 is not None and model_identity(smoothed.model, "-") != f"sha256:{header.model.sha256}":
        raise InputError(f"the run was made with another model: {header.model.name}; its hash differs.")
    made = (smoothed.certificate.norm, smoothed.num_classes, smoothed.vote)
    if made == (header.norm, header.num_classes, header.vote) and smoothed.offsets != header.rule.offsets:
        raise InputError("the run was made with other class offsets, or one of both has none; give those of the run.")
    if made != (header.norm, header.num_classes, header.vote):
        raise InputError(f"the run was made for {header.norm}, {header.num_classes} classes and a {header.vote} vote.")
