"""Cascades: experts asked one after the other, each the most frequent class at a scale of its own.

The first that is sure answers. See ``Cascade``; all of its atoms have the whole alpha.

References: Berger 1982, Multiparameter hypothesis testing; Jeong and Shin 2024.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ddsmoothing.bounds import check_bound, lower_of_looks, top_two_bounds
from ddsmoothing.certificate import Certificate, certificate_for
from ddsmoothing.claims.measurement import VOTES, Measurement, Tally
from ddsmoothing.claims.several import (
    Atom,
    Commitment,
    StatelessRule,
    check_sigmas,
    fewest_at,
    phi_of,
    plain_numbers,
    probability_at,
)
from ddsmoothing.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Cascade(StatelessRule):
    """Experts asked one after the other: the first that is sure of its class answers.

    Expert j is sure of class c where ``phi_jc > tau_j``; the last one needs ``phi > 0`` only. No other class than A is
    sure at j while ``phi_jA > -tau_j``, as two classes share one. So the answer stays A on the least of
    ``phi_jA + tau_j`` for j before some J and ``phi_JA - tau_J``: with ``reach`` the pilot commits to the best J.
    Without it J is the expert that answers, and each before it has to stay unsure of every class.

    Attributes:
        sigmas: of the experts, in the order in which they are asked.
        taus: of each expert, in the units of the radius, at least 0; the last one's is 0.
        classes: K.
        reach: see above.
        norm: ``l2`` or ``l1``.
    """

    kind = "cascade"
    words = "cascade"
    vote = "plurality"
    sigmas: tuple[float, ...]
    taus: tuple[float, ...]
    classes: int
    reach: bool = True
    norm: str = "l2"

    def __post_init__(self) -> None:
        certificate_for(self.norm)
        object.__setattr__(self, "sigmas", plain_numbers(self.sigmas, "the sigmas of a cascade"))
        object.__setattr__(self, "taus", plain_numbers(self.taus, "the thresholds of a cascade"))
        check_sigmas(self.sigmas, "a cascade")
        if type(self.reach) is not bool:
            raise InputError(f"reach is {self.reach!r}, expected True or False.")
        if type(self.classes) is not int or self.classes < 2:
            raise InputError(f"a cascade of {self.classes!r} classes, expected at least 2.")
        if not self.taus or any(not 0.0 <= tau < math.inf for tau in self.taus) or self.taus[-1] != 0.0:
            raise InputError(f"the thresholds of a cascade are {self.taus}, expected numbers from 0 on, the last 0.")
        if len(self.taus) != len(self.sigmas):
            raise InputError(
                f"a cascade of {len(self.sigmas)} sigmas has {len(self.taus)} thresholds, expected one each."
            )

    @property
    def num_classes(self) -> int:
        return self.classes

    def pilot_tally(self, slot: int) -> Tally:
        return Tally(VOTES)

    def tally(self, top: int, slot: int) -> Tally:
        return Tally(VOTES)

    def commit(self, pilots: Sequence[Measurement]) -> Commitment:
        """The class A, and the experts up to J."""
        phis = [[phi_of(self.norm, one.sigma, (k + 0.5) / (one.n + 1.0)) for k in one.votes] for one in pilots]
        first = next((j for j, tau in enumerate(self.taus) if max(phis[j]) > tau), len(self.taus) - 1)
        top = int(np.argmax(pilots[first].votes))
        last = first
        if self.reach:
            margins = [
                min([phis[i][top] + self.taus[i] for i in range(j)] + [phis[j][top] - self.taus[j]])
                for j in range(len(self.taus))
            ]
            last = int(np.argmax(margins))
        return Commitment(top, tuple(range(last + 1)), last)

    def _threshold(self, made: Commitment, slot: int) -> float:
        """What phi of a scale's event has to exceed."""
        return self.taus[slot] if slot == made.chosen else -self.taus[slot]

    def _count(self, made: Commitment, one: Measurement) -> int:
        """How often it happened."""
        if one.slot < made.chosen and not self.reach:
            return one.n - max(one.votes)  # "another class", of the class that comes nearest to being sure
        return one.votes[made.top]

    def events(self, made: Commitment, one: Measurement) -> tuple[int, ...]:
        return (self._count(made, one),)

    def binding(self, made: Commitment, pilot: Measurement) -> tuple[int, float]:
        return self._count(made, pilot), self._threshold(made, pilot.slot)

    def fewest(self, made: Commitment, slot: int, alpha: float) -> int:
        threshold = self._threshold(made, slot)
        needed = probability_at(self.norm, threshold, self.sigmas[slot])
        return fewest_at(needed, alpha, f"the threshold {threshold:g}", self.sigmas[slot])

    def most_needed(self, alpha: float) -> int:
        found = []
        for last in range(len(self.taus)):
            made = Commitment(0, tuple(range(last + 1)), last)
            found.append(sum(self.fewest(made, slot, alpha) for slot in made.slots))
        return max(found)

    def atom(self, made: Commitment, one: Measurement, certificate: Certificate, alpha: float) -> Atom:
        draws = [(look.n, look.counts[0], look.alpha) for look in one.looks]
        lower = lower_of_looks(draws, one.coin)
        p_lower, p_upper = top_two_bounds(lower, 0, one.n, alpha, check_bound("one-class"), one.tv)
        margin = certificate.phi(one.sigma, p_lower) - self._threshold(made, one.slot)
        return Atom(math.nextafter(margin, -math.inf), p_lower, p_upper)

    def config(self) -> dict[str, Any]:
        return {"kind": self.kind, "sigmas": list(self.sigmas), "taus": list(self.taus), "reach": self.reach}


def cascade_radius(phis: Sequence[float], taus: Sequence[float]) -> float:
    """The cascade's radius with reach of exact values: phi of class A at each expert."""
    found = -math.inf
    for phi, tau in zip(reversed(phis), reversed(taus), strict=True):
        found = min(phi + tau, max(phi - tau, found))
    return max(0.0, found)
