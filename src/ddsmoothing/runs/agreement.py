"""Header and rows of a run held against each other: what a reader may rely on before anything is computed from them.

It derives no claims; that they follow from the counts is for ``verify`` to show.
"""

from __future__ import annotations

from collections.abc import Iterator

from ddsmoothing.claims.measurement import Measurement
from ddsmoothing.runs.schema import Header, ResultRow


def disagreements(header: Header, row: ResultRow) -> Iterator[str]:
    """What a row says that its header excludes, one line each."""
    low, high, grid = header.policy.sigma_min, header.policy.sigma_max, header.policy.sigma_grid
    if header.sigma is not None and row.sigma != header.sigma:
        yield f"sigma is {row.sigma:g}, the run's is {header.sigma:g}"
    if low is not None and high is not None and not low <= row.sigma <= high:
        yield f"sigma is {row.sigma:g}, outside the run's range [{low:g}, {high:g}]"
    if grid is not None and row.sigma not in grid:
        yield f"sigma is {row.sigma:g}, not one of the run's"
    if (row.lambda_ is not None) != (header.norm == "l1"):
        yield "lambda belongs to the norm l1, and only there"
    if row.label is not None and row.label >= header.num_classes:
        yield f"label {row.label} names no class of {header.num_classes}"
    if row.prediction >= header.num_classes:
        yield f"prediction {row.prediction} names no class of {header.num_classes}"
    for role, one in zip(("pilot", "certify"), row.measurements, strict=False):
        yield from _measurement(header, row, role, one)
    if row.fresh is not None:
        yield from _fresh(header, row.fresh)
    if row.samples != sum(one.n for one in row.measurements):
        yield f"samples is {row.samples}, the measurements have {sum(one.n for one in row.measurements)}"


def _measurement(header: Header, row: ResultRow, role: str, one: Measurement) -> Iterator[str]:
    if one.role != role or one.slot != 0 or one.sigma != row.sigma:
        yield f"the measurement {one.role!r} at sigma {one.sigma:g} is not that of {role!r} at {row.sigma:g}"
    if len(one.votes) != header.num_classes or sum(one.votes) != one.n:
        yield f"{len(one.votes)} votes with the sum {sum(one.votes)}, expected {header.num_classes} with {one.n}"
    if one.least is not None and len(one.least) != header.num_classes:
        yield f"{len(one.least)} numbers of wins, expected {header.num_classes}"
    if one.rivals is not None and (len(one.rivals) != len(one.votes) or max(one.rivals) >= len(one.votes)):
        yield f"rivals that are not of {header.num_classes} classes"
    if one.role == "pilot" and (one.rivals is not None) != (one.least is not None and header.rule.offsets is not None):
        yield "rivals belong to a vote with class offsets, and only there"


def _fresh(header: Header, fresh: Measurement) -> Iterator[str]:
    if (fresh.wins is not None) != header.judge.asks_twice or (fresh.wins is None) != (fresh.anchor is None):
        yield f"wins of an anchor belong to a pairwise vote, the run's is {header.vote}"
    elif fresh.wins is not None and (
        len(fresh.wins) != header.num_classes or fresh.anchor not in range(len(fresh.wins))
    ):
        yield f"{len(fresh.wins)} wins of class {fresh.anchor}, expected {header.num_classes}"
    if (fresh.coin is not None) != header.randomized:
        yield "a coin belongs to the randomised bound, and only there"
    if not fresh.looks or sum(look.alpha for look in fresh.looks) > header.alpha * (1.0 + 1e-12):
        yield f"the looks spend more than the run's alpha {header.alpha:g}, or there are none"
