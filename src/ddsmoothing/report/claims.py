"""What the certificates of a run claim, how likely one is false, and what is not claimed: the words and the bounds.

It knows no files and no models. Every number errs on the side of claiming less.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from ddsmoothing.analysis import RADII, failures_at_most
from ddsmoothing.bounds import floor_text
from ddsmoothing.claims import level_named
from ddsmoothing.noise import LEVELS
from ddsmoothing.runs import Header, Results, Run

VOTES: Final = {
    "pairwise": "The vote is pairwise: the certified class beats every other one on more than half of the noisy "
    "copies. A deployed system has to vote the same way: a plurality vote is another classifier where no class has "
    "half of the votes.",
    "plurality": "The vote is plurality: the certified class is the one given to most noisy copies. A deployed system "
    "has to vote the same way.",
}
OFFSETS: Final = (
    "Some classes have to win by more than others (class offsets), in the deployed system as well. A mean radius can "
    "be made as large as one likes by offsets, so it says nothing without the accuracy beside it."
)
SEEN: Final = "The offsets or the pair table were fitted on inputs of this run, which flatters its figures."
RHO: Final = 0.001  # failure probability of the statement about all certificates at once
MORE_RADII: Final = 8  # in a table


def down(value: float, digits: int = 4) -> float:
    """A number rounded down to so many decimals."""
    return float(floor_text(value, digits))


def up(value: float, digits: int = 4) -> float:
    """A number rounded up to so many decimals."""
    return -float(floor_text(-value, digits))


def radii_for(runs: Sequence[Results]) -> list[float]:
    """Radii of tables: the usual ones, and on from there in halves while some run certifies as much."""
    largest = max(float(run.radius.max()) for run in runs)
    return [*RADII, *(radius for i in range(MORE_RADII) if (radius := RADII[-1] + 0.5 * (i + 1)) <= largest)]


def share_down(share: float, of: int, digits: int = 4) -> float:
    """A share ``k/of`` rounded down, exactly: 114/200 is 0.57, though the float is below."""
    return float(round(share * of) * 10**digits // of / 10**digits)


@dataclass(frozen=True, kw_only=True)
class SetRisk:
    """How many of a run's certifications may be false.

    Attributes:
        alpha: the largest failure probability of one.   certifications: at most so many were made.
        expected: at most so many are false on average; also bounds the probability that any is.
        rho, false: at most ``false`` of them are false, with probability at least ``1 - rho``.
    """

    alpha: float
    certifications: int
    expected: float
    rho: float
    false: int


def set_risk(run: Run) -> SetRisk | None:
    """The risk of all certifications of a run together; every number errs high.

    Inputs without a row count as well, since the noise may have decided when a run stopped. A memory's rows rest on any
    certification it ever made; with delta for the whole memory attempt t has ``alpha_1 / t^2``, else all have the same.

    Returns: None for rows that only repeat what another run certified.
    """
    if not level_named(run.level).from_regions:
        return _risk(run.header.alpha, run.header.subset.size)
    notes = [row.memory for row in run.rows if row.memory is not None]
    made = {note.attempt: note.alpha for note in notes if note.attempt is not None and note.alpha is not None}
    if not made:
        return None
    answered = sum(note.attempt is None for note in notes)
    attempts = max(made) + answered  # where none of them is answered, each is an attempt
    least, alike = min(made.values()), len(set(made.values())) == 1
    if alike and (len(made) > 1 or max(made) == 1):
        return _risk(least, attempts)
    first = max(alpha * attempt**2 for attempt, alpha in made.items())
    total = max(least * attempts, first * math.fsum(1.0 / t**2 for t in range(1, attempts + 1)))
    return _risk(first, attempts, total * (1.0 + 2.0**-40))


def _risk(alpha: float, certifications: int, expected: float | None = None) -> SetRisk:
    """Markov's inequality where it already excludes any false one, else the binomial tail.

    Args:
        expected: sum of the failure probabilities, None where each is alpha.
    """
    if expected is None:
        expected = alpha * certifications
        if Fraction(expected) < Fraction(alpha) * certifications:
            expected = math.nextafter(expected, math.inf)
    false = 0 if expected <= RHO else failures_at_most(certifications, alpha, RHO)
    return SetRisk(alpha=alpha, certifications=certifications, expected=expected, rho=RHO, false=false)


def statement(header: Header, risk: SetRisk | None) -> str:
    """What one certificate says, in two sentences.

    Args:
        risk: from ``set_risk``.
    """
    likely = "with the probability that the run which stored it states"
    if risk is not None:
        likely = f"with probability at least 1 - {risk.alpha!r} over the noise drawn"
    ball = f"at every point closer to the input than its radius in the {header.norm.upper()} norm"
    return level_named(header.level).says(likely, ball, header.sigma is not None)


def limits(run: Run) -> list[str]:
    """What is NOT claimed, one sentence or two each."""
    header = run.header
    found = [
        "Certificates are about the smoothed classifier, never about the base classifier used alone.",
        f"Only perturbations smaller than the radius in the {header.norm.upper()} norm are covered: nothing is said of "
        "other norms, rotation, blur, weather or inputs from elsewhere.",
        "Inputs were fixed before sampling. Intervals speak about other inputs only if these were drawn like them.",
        "The base classifier is taken to be a function: the same input gives the same logits, in the recorded form.",
    ]
    if header.sigma is None or level_named(header.level).from_regions:
        found.extend(level_named(header.level).limits)
    found.append(VOTES[header.vote])
    if header.rule.offsets is not None:
        found.append(OFFSETS)
    if header.offsets is not None and header.offsets.seen:
        found.append(SEEN)
    grid = "8-bit grid" if header.levels == LEVELS else f"grid of multiples of 1/{header.levels}"
    notes = (
        (run.partial, f"Partial run: {len(run)} of {header.subset.size} inputs are finished."),
        (
            header.label_aware,
            "Sampling used labels: inputs whose pilot class was wrong were stopped, so nothing is known of their "
            "certificates.",
        ),
        (
            run.stops_at_radius,
            "Sampling stopped at wanted radii: larger radii were not looked for, and there is no average radius.",
        ),
        (
            any(row.noise == "grid" for row in run.rows),
            f"Where noise is of integers, the certified classifier rounds its noisy input to the {grid} first. A "
            "system that draws such noise itself equals it at queries on that grid only.",
        ),
        (
            any(row.noise == "float" for row in run.rows),
            f"Some inputs are off the {grid} and got floating-point noise, whose distance to the theorem's noise is "
            "not bounded; nothing is rounded for them.",
        ),
        (header.snap, f"Inputs were moved to the {grid} first; a radius is for queries that lie on the grid."),
        (
            header.model.sha256 is None,
            "The model has no hash: which weights were certified is known by name only.",
        ),
        (True, "This repeats what the run folder says; the command ddsmoothing verify recomputes it from the counts."),
    )
    return found + [text for holds, text in notes if holds]
