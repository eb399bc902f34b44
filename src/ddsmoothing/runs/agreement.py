"""Header and rows of a run held against each other: what a reader may rely on before anything is computed from them,
and whether a run that is continued is still the same.

It derives no claims; that they follow from the counts is for ``verify`` to show.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ddsmoothing.claims import Measurement, Tally
from ddsmoothing.claims.measurement import WINS
from ddsmoothing.counting.fingerprint import check_behaviour
from ddsmoothing.errors import RunError
from ddsmoothing.runs.schema import NOT_COMPARED, PILOT, Header, ResultRow

Place = tuple[str, int, float]  # role, slot and sigma of a measurement


def disagreements(header: Header, row: ResultRow) -> Iterator[str]:
    """What a row says that its header excludes, one line each."""
    low, high, grid = header.policy.sigma_min, header.policy.sigma_max, header.policy.sigma_grid
    if header.sigma is not None and row.sigma != header.sigma:
        yield f"sigma is {row.sigma:g}, the run's is {header.sigma:g}"
    if low is not None and high is not None and not low <= row.sigma <= high:
        yield f"sigma is {row.sigma:g}, outside the run's range [{low:g}, {high:g}]"
    of_rule = None if header.stateless is None else header.stateless.sigmas
    if any(known is not None and row.sigma not in known for known in (grid, of_rule)):
        yield f"sigma is {row.sigma:g}, not one of the run's"
    if (row.lambda_ is not None) != (header.norm == "l1"):
        yield "lambda belongs to the norm l1, and only there"
    if row.label is not None and row.label >= header.num_classes:
        yield f"label {row.label} names no class of {header.num_classes}"
    if row.prediction >= header.num_classes:
        yield f"prediction {row.prediction} names no class of {header.num_classes}"
    for place, one in zip(_places(header, row), row.measurements, strict=False):
        yield from _measurement(header, place, one)
        if place[0] != PILOT:
            yield from _fresh(header, place, one)
    yield from _number(header, row)
    if row.samples != sum(one.n for one in row.measurements):
        yield f"samples is {row.samples}, the measurements have {sum(one.n for one in row.measurements)}"


def _places(header: Header, row: ResultRow) -> Iterator[Place]:
    """Where a row's measurements stand: a pilot at each sigma, then what certifies at those that it asks for."""
    rule = header.stateless
    if rule is None:
        yield from ((PILOT, 0, row.sigma), ("certify", 0, row.sigma))
        return
    yield from ((PILOT, slot, sigma) for slot, sigma in enumerate(rule.sigmas))
    yield from (("certify", one.slot, rule.sigmas[one.slot]) for one in row.certifying if one.slot < len(rule.sigmas))


def _number(header: Header, row: ResultRow) -> Iterator[str]:
    """Whether there are as many measurements as there are places for them, each once."""
    pilots = 1 if header.stateless is None else len(header.stateless.sigmas)
    slots = [one.slot for one in row.certifying]
    if len(row.pilots) != pilots or len(row.measurements) - pilots not in range(pilots + 1):
        yield f"{len(row.pilots)} pilots, {len(row.certifying)} more measurements, expected {pilots} and what certifies"
    elif slots != sorted(set(slots)):
        yield "the samples that certify are not in the order of their sigmas, each once"
    elif header.stateless is not None and slots and slots != list(header.stateless.commit(row.pilots).slots):
        yield "the samples that certify are not those that the pilots ask for"
    elif slots and row.fresh is None:
        yield f"sigma is {row.sigma:g}, at which nothing was drawn that certifies"


def _measurement(header: Header, place: Place, one: Measurement) -> Iterator[str]:
    if (one.role, one.slot, one.sigma) != place:
        yield f"the measurement {one.role!r} at sigma {one.sigma:g} is not that of {place[0]!r} at {place[2]:g}"
    if len(one.votes) != header.num_classes or sum(one.votes) != one.n:
        yield f"{len(one.votes)} votes with the sum {sum(one.votes)}, expected {header.num_classes} with {one.n}"
    if one.least is not None and len(one.least) != header.num_classes:
        yield f"{len(one.least)} numbers of wins, expected {header.num_classes}"
    if one.rivals is not None and (len(one.rivals) != len(one.votes) or max(one.rivals) >= len(one.votes)):
        yield f"rivals that are not of {header.num_classes} classes"
    held = one.least is not None and _counted(header, place).rivals is not None
    if one.role == PILOT and (one.rivals is not None) != held:
        yield "rivals belong to a vote with class offsets or several sigmas, and only there"


def _counted(header: Header, place: Place) -> Tally:
    """What the run's rule counts at a place, for class 0 where a class is chosen before."""
    role, slot, _ = place
    if header.stateless is not None:
        return header.stateless.pilot_tally(slot) if role == PILOT else header.stateless.tally(0, slot)
    return header.judge.pilot_tally(header.num_classes) if role == PILOT else header.judge.tally(0)


def _fresh(header: Header, place: Place, fresh: Measurement) -> Iterator[str]:
    wins = _counted(header, place).kind == WINS
    if (fresh.wins is not None) != wins or (fresh.wins is None) != (fresh.anchor is None):
        yield f"wins of an anchor belong to a pairwise vote, the run's is {header.vote}"
    elif fresh.wins is not None and (
        len(fresh.wins) != header.num_classes or fresh.anchor not in range(len(fresh.wins))
    ):
        yield f"{len(fresh.wins)} wins of class {fresh.anchor}, expected {header.num_classes}"
    if (fresh.coin is not None) != header.randomized:
        yield "a coin belongs to the randomised bound, and only there"
    if not fresh.looks or sum(look.alpha for look in fresh.looks) > header.alpha * (1.0 + 1e-12):
        yield f"the looks spend more than the run's alpha {header.alpha:g}, or there are none"


def continued(before: Header, now: Header, out: Path) -> Header:
    """The header of the run in ``out``; RunError naming what was asked otherwise this time."""
    if before.behaviour is not None and now.behaviour is not None:
        check_behaviour(before.behaviour, now.behaviour, f"the run in {out}")
    old, new = (header.model_dump(mode="json") for header in (before, now))
    if now.model.sha256 is not None:
        new["model"]["name"] = old["model"]["name"]  # the same weights may have moved
    names = [key for key in old if key not in NOT_COMPARED and old[key] != new[key]]
    if names:
        details = "; ".join(f"{key} was {old[key]}, now {new[key]}" for key in names[:3])
        raise RunError(f"{out} holds another run ({details}). Give another --out, or the same options to continue it.")
    return before
