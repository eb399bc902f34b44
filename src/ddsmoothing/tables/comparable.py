"""Which runs may stand side by side, and which are the same inputs, pairs, or the same thing twice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ddsmoothing.analysis import held_radius
from ddsmoothing.errors import RunError
from ddsmoothing.runs import Results, Run
from ddsmoothing.tables.facts import is_pointwise, levels_of, units_of, vote_of

SEEN: Final = 1e-6  # of the largest radius: smaller differences are less than a pixel of any figure


def alike(runs: Sequence[Results]) -> Iterator[list[Results]]:
    """Runs whose radii may share an axis: of one norm, in the same units."""
    for key in sorted({(run.header.norm, units_of(run)) for run in runs}):
        yield [run for run in runs if (run.header.norm, units_of(run)) == key]


def same_inputs(one: Results, other: Results, *, some: bool = False) -> bool:
    """Whether two runs are of the same inputs: data set, ids and labels; with ``some``, of those both have.

    The data set behind an imported file is not known; there ids and labels decide.
    """
    if isinstance(one, Run) and isinstance(other, Run) and one.header.data != other.header.data:
        return False
    if not some and not np.array_equal(one.ids, other.ids):
        return False
    _, i, j = np.intersect1d(one.ids, other.ids, assume_unique=True, return_indices=True)
    return len(i) > 0 and bool((one.label[i] == other.label[j]).all())


@dataclass(frozen=True, kw_only=True, eq=False)
class Paired:
    """Two runs, input by input, on the inputs that both have.

    Attributes:
        ids: ``(B,)``.   ours, theirs: ``(B,)`` radius of the right class, else 0, of the run and of its baseline.
    """

    ids: NDArray[np.uint64]
    ours: NDArray[np.float64]
    theirs: NDArray[np.float64]

    @property
    def counts(self) -> tuple[int, int, int]:
        """Inputs won (a larger radius than the baseline's), lost and equal."""
        won, lost = int((self.ours > self.theirs).sum()), int((self.ours < self.theirs).sum())
        return won, lost, len(self.ids) - won - lost


def paired(run: Results, baseline: Results) -> Paired:
    """Match two runs by id; RunError where their norms, units, levels, data or labels differ."""
    kinds = [(one.header.norm, units_of(one), one.level) for one in (run, baseline)]
    for what, one, other in zip(("norm", "units", "level"), *kinds, strict=True):
        if one != other and not (what == "level" and levels_of(run) & levels_of(baseline)):
            raise RunError(f"{run.path} is of {what} {one} and {baseline.path} of {what} {other}: not comparable.")
    if run.stops_at_radius or baseline.stops_at_radius:
        raise RunError(f"{run.path} or {baseline.path} stopped sampling at a wanted radius: its radii do not compare.")
    if not same_inputs(run, baseline, some=True):
        raise RunError(f"{run.path} and {baseline.path} are not of the same data set, or share no input.")
    ids, i, j = np.intersect1d(run.ids, baseline.ids, assume_unique=True, return_indices=True)
    return Paired(ids=ids, ours=held_radius(run)[i], theirs=held_radius(baseline)[j])


def labelled(runs: Sequence[Results]) -> bool:
    """Whether every input of every run has a label."""
    return all(row.label is not None for run in runs for row in run.rows)


def fixed_group(runs: Sequence[Results]) -> list[Results]:
    """The fixed-sigma runs whose envelope may be drawn: level pointwise, one norm and vote, the same inputs."""
    fixed = [run for run in runs if run.header.sigma is not None and is_pointwise(run)]
    if len(fixed) < 2 or len({(run.header.norm, units_of(run), vote_of(run)) for run in fixed}) > 1:
        return []
    return fixed if all(same_inputs(fixed[0], run) for run in fixed[1:]) else []


def same_run(one: Results, other: Results) -> bool:
    """Whether two runs of different levels say the same of every input: same vote, sigma, answers and radii.

    So it is where a memory kept every certificate whole; both need not be drawn. Radii count as the same where no
    figure can tell them apart: a memory takes a hair off each.
    """
    if not (isinstance(one, Run) and isinstance(other, Run)) or one.header.data != other.header.data:
        return False
    if one.level == other.level or vote_of(one) != vote_of(other):
        return False
    if not all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("ids", "sigma", "prediction")):
        return False
    return np.allclose(one.radius, other.radius, rtol=SEEN, atol=SEEN * float(one.radius.max()))
