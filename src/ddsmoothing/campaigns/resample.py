"""Were a run's counts really drawn? Some inputs are drawn again from their streams and the counts compared."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ddsmoothing.campaigns.rows import choice_of
from ddsmoothing.certificate import certificate_for
from ddsmoothing.claims import POINTWISE, Measurement, Tally, measured, total_variation
from ddsmoothing.claims.measurement import VOTES, WINS
from ddsmoothing.classifier import SmoothedClassifier
from ddsmoothing.counting.contract import Progress, Request
from ddsmoothing.counting.fingerprint import INPUTS as BEHAVIOUR_INPUTS
from ddsmoothing.counting.fingerprint import behaviour, check_behaviour
from ddsmoothing.data import Dataset
from ddsmoothing.errors import InputError, RunError
from ddsmoothing.inputs import Batch
from ddsmoothing.models import model_hash
from ddsmoothing.plan import SAMPLERS
from ddsmoothing.runs.schema import Header, ResultRow
from ddsmoothing.runs.store import Run
from ddsmoothing.sigma.search import SigmaSearch, search_sigma
from ddsmoothing.streams import Blocks, Role


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
        x, y = data[[row.id]]
        batch = smoothed.prepare(x, [row.id])
        if batch.sha256[0] != row.input_sha256:
            found.append(Redrawn(id=row.id, moved=row.samples, message="the input is another one: its SHA-256 differs"))
            continue
        label = None if data.y is None else int(y[0])
        if row.label != label:
            said = f"its label is {label} in the data set, the run says {row.label}"
            found.append(Redrawn(id=row.id, moved=0, message=said))
            continue
        drawn = smoothed.count(batch, requests_of(run.header, row, batch), run.header.seed, progress)
        moved = _moved(run.header, row, drawn)
        text = f"{moved} of {row.samples} samples give other answers than the run says" if moved else None
        text = text or _claimed(run.header, row, batch) or _searched(run, smoothed, x, row)
        found.append(Redrawn(id=row.id, moved=moved, message=text))
    return found


def search_again(run: Run, smoothed: SmoothedClassifier, x: torch.Tensor, seed: int, ids: list[int]) -> SigmaSearch:
    """The run's search of sigma, at these inputs.

    Raises: RunError where the header's sampler is not known here.
    """
    try:
        largest = SAMPLERS[run.header.sampler](**run.header.sampler_options).largest()
    except (KeyError, TypeError, ValueError):
        raise RunError(f"{run.path}: sampler {run.header.sampler!r} with these options is not known here.") from None
    rule: dict[str, Any] = run.header.policy.model_dump(exclude={"sha256"})
    return search_sigma(smoothed, x, **rule, n=largest, alpha=run.header.alpha, seed=seed, ids=ids)


def _searched(run: Run, smoothed: SmoothedClassifier, x: torch.Tensor, row: ResultRow) -> str | None:
    """What the search would have chosen, where the run says something else."""
    if run.header.sigma_policy != "search" or run.level != POINTWISE.name or row.choice is None:
        return None
    found = search_again(run, smoothed, x, run.header.seed, [row.id])
    mine = choice_of(found, 0)
    if float(found.sigma[0]) != row.sigma:
        return f"the search chooses sigma {found.sigma[0]:g}, the run says {row.sigma:g}"
    if abs(mine.score - row.choice.score) > 1e-9 or mine.model_copy(update={"score": row.choice.score}) != row.choice:
        return f"the search reports {mine}, the run says {row.choice}"
    return None


def _moved(header: Header, row: ResultRow, drawn: list[NDArray[np.int64]]) -> int:
    """Samples that give another answer now, at least: in votes half the L1 distance, in wins the largest difference."""
    moved, left = 0, iter(drawn)
    for one in row.measurements:
        counts = np.sum([next(left) for _ in _sizes(one)], axis=0)
        moved += _differ(one, measured(one.role, one.sigma, _tally(header, one), counts, slot=one.slot))
    return moved


def _differ(told: Measurement, drawn: Measurement) -> int:
    votes = int(np.abs(np.subtract(told.votes, drawn.votes)).sum()) // 2
    pairs = ((told.wins, drawn.wins), (told.least, drawn.least))
    return max(votes, *(int(np.abs(np.subtract(a, b)).max()) for a, b in pairs if a is not None and b is not None), 0)


def _claimed(header: Header, row: ResultRow, batch: Batch) -> str | None:
    """What a row says of its noise and its input that they do not bear out; a row alone cannot show these."""
    kind = "grid" if batch.on_grid[0] else "float"
    if header.dtype != str(batch.dtype).removeprefix("torch."):
        return f"the inputs are {str(batch.dtype).removeprefix('torch.')}, the run says {header.dtype}"
    if row.noise != kind:
        return f"its noise is {kind}, the run says {row.noise}"
    for one in row.measurements:
        certificate = certificate_for(header.norm)
        tv = total_variation(certificate, one.sigma, batch.d, batch.levels) if kind == "grid" else 0.0
        if one.tv < tv * (1.0 - 1e-6):
            return f"tv is {tv:.6g} for {batch.d} numbers, the run says {one.tv:.6g}"
    if row.moved < float(batch.moved[0]) * (1.0 - 1e-12):
        return f"the input was moved by {batch.moved[0]:.6g}, the run says {row.moved:.6g}"
    return None


def requests_of(header: Header, row: ResultRow, batch: Batch) -> list[Request]:
    """The samples of a row: every measurement's, what each look added in noise blocks of its own."""
    requests, blocks = [], Blocks(batch.d)
    for one in row.measurements:
        stream, tally = Role[one.role.upper()], _tally(header, one)
        for n in _sizes(one):
            first = blocks.take(stream, n, one.slot)
            wish = Request(row=0, sigma=one.sigma, stream=stream, n=n, first_block=first)
            requests.append(replace(wish, tally=tally.kind, anchor=tally.anchor))
    return requests


def _sizes(one: Measurement) -> list[int]:
    """In which portions a measurement was drawn."""
    ends = [look.n for look in one.looks] or [one.n]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def _tally(header: Header, one: Measurement) -> Tally:
    """What a measurement counted."""
    if one.anchor is not None:
        return Tally(WINS, one.anchor)
    if one.least is None:
        return Tally(VOTES)
    rule = header.stateless
    return header.judge.pilot_tally(header.num_classes) if rule is None else rule.pilot_tally(one.slot)


def check_same(run: Run, smoothed: SmoothedClassifier, data: Dataset) -> None:
    """Raise InputError unless model and data are those the run was made with."""
    header = run.header
    if data.fingerprint() != header.data.model_dump():
        raise InputError(f"the run was made with another data set: {header.data.name}, {header.data.length} inputs.")
    if header.model.sha256 is not None and model_hash(smoothed.model) != header.model.sha256:
        raise InputError(f"the run was made with another model: {header.model.name}; its hash differs.")
    made = (smoothed.certificate.norm, smoothed.num_classes, smoothed.vote)
    if header.stateless is not None:  # it has a vote and offsets of its own
        made = (*made[:2], header.vote)
    elif made == (header.norm, header.num_classes, header.vote) and smoothed.offsets != header.rule.offsets:
        raise InputError("the run was made with other class offsets, or one of both has none; give those of the run.")
    if made != (header.norm, header.num_classes, header.vote):
        raise InputError(f"the run was made for {header.norm}, {header.num_classes} classes and a {header.vote} vote.")
    if header.behaviour is not None:
        check_behaviour(header.behaviour, behaviour(smoothed, data[:BEHAVIOUR_INPUTS][0]), str(run.path))
