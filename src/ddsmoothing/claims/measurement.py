"""Measurements: what was drawn from one input at one noise scale, and nothing that follows from it.

It knows no bounds and no files. Class A beats b on a sample if its logit is larger, or equal and A < b.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field

Count = Annotated[int, Field(ge=0, lt=2**63)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
VOTES, WINS, DUELS = "votes", "wins", "duels"  # what may be counted, see ``Tally``
MOST_DUELLISTS: Final = 128  # classes, of which every pair is counted; with more, only votes are


class Tally(NamedTuple):
    """What is counted on each sample.

    ``votes``: the class. ``wins``: the class, and which others the anchor beats. ``duels``: who beats whom, of which
    only what each class did against one rival is kept: the one it beat least often, or that which ``rivals`` names.

    Attributes:
        rivals: from sigma, n and duels ``(K, K)`` (n on the diagonal) the rival ``(K,)`` of each class.
    """

    kind: str
    anchor: int | None = None
    rivals: Callable[[float, int, NDArray[np.int64]], NDArray[np.int64]] | None = None


class Look(NamedTuple):
    """A moment at which counts were looked at: of each of the events of the rule so many in n, with this alpha each."""

    n: Count
    counts: tuple[Count, ...]
    alpha: Share


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Samples of one input at one noise scale; K classes.

    Attributes:
        role: what they were drawn for: ``pilot``, ``certify``, ``predict``, ..
        slot: which of several measurements of that role: a scale, an expert or a round.
        sigma: standard deviation of the noise, in the units of the input.
        n: samples.
        votes: ``(K,)`` how many samples were of each class.
        least: ``(K,)`` of each class, the fewest samples on which it beat another one; where all pairs were counted.
        rivals: ``(K,)`` the other class that ``least`` is of, where the rule holds some rivals against others.
        anchor: the class whose wins were counted, None where none were.
        wins: ``(K,)`` on how many samples the anchor beat each class; its own entry is n.
        looks: when counts were looked at, ascending in n; any of their bounds may be used.
        tv: bound on the total-variation distance of a sample to the noise of the theorem, all coordinates together.
        coin: of the randomised bound, in (0, 1]; None for the plain one.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    role: str
    slot: Count = 0
    sigma: Annotated[float, Field(gt=0.0, le=1e6)]
    n: Count
    votes: tuple[Count, ...]
    least: tuple[Count, ...] | None = None
    rivals: tuple[Count, ...] | None = None
    anchor: Count | None = None
    wins: tuple[Count, ...] | None = None
    looks: tuple[Look, ...] = ()
    tv: Annotated[float, Field(ge=0.0)] = 0.0
    coin: Annotated[float, Field(gt=0.0, le=1.0)] | None = None

    def plus(self, other: Measurement) -> Measurement:
        """Both together: more samples of the same role, slot, scale and tally."""
        return replace(
            self,
            n=self.n + other.n,
            votes=_sum(self.votes, other.votes),
            wins=None if self.wins is None or other.wins is None else _sum(self.wins, other.wins),
        )

    def shrunk(self, factor: float) -> Measurement:
        """The same counts where every look gets this share of its alpha, which was fixed before any count was seen."""
        return replace(self, looks=tuple(look._replace(alpha=look.alpha * factor) for look in self.looks))

    def compact(self) -> dict[str, Any]:
        """As a run folder holds it: fields that say nothing are left out."""
        found = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: value for name, value in found.items() if value is not None and value != ()}


def measured(role: str, sigma: float, tally: Tally, counts: NDArray[np.int64], *, slot: int = 0) -> Measurement:
    """What an executor counted, as a measurement.

    Args:
        tally: what it was asked to count.
        counts: ``(K,)`` votes; ``(2, K)`` votes and the anchor's wins; or ``(K, K)`` duels with votes on the diagonal.
    """
    found: Measurement = SHAPES[tally.kind](
        Measurement(role=role, slot=slot, sigma=sigma, n=0, votes=()), tally, counts
    )
    return found


def _of_votes(empty: Measurement, tally: Tally, counts: NDArray[np.int64]) -> Measurement:
    return replace(empty, n=int(counts.sum()), votes=tuple(counts.tolist()))


def _of_wins(empty: Measurement, tally: Tally, counts: NDArray[np.int64]) -> Measurement:
    votes, wins = counts
    return replace(_of_votes(empty, tally, votes), anchor=tally.anchor, wins=tuple(wins.tolist()))


def _of_duels(empty: Measurement, tally: Tally, counts: NDArray[np.int64]) -> Measurement:
    votes = counts.diagonal()
    found = _of_votes(empty, tally, votes)
    others = counts + np.diag(votes.sum() - votes)  # no class loses to itself
    if tally.rivals is None:
        return replace(found, least=tuple(others.min(1).tolist()))
    rivals = tally.rivals(empty.sigma, found.n, others)
    least = others[np.arange(len(rivals)), rivals]
    return replace(found, least=tuple(least.tolist()), rivals=tuple(rivals.tolist()))


SHAPES: Final[Mapping[str, Any]] = {VOTES: _of_votes, WINS: _of_wins, DUELS: _of_duels}


def _sum(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(a + b for a, b in zip(one, other, strict=True))
