"""Rules of experts, each the most frequent class at a scale of its own: cascades, and experts behind a gate.

A cascade asks one expert after the other, and the first that is sure answers. ``G(y) = g_{s(y)}(y)`` behind a gate s,
which picks one of finitely many: let ``E`` bound the distance within which the gate keeps its choice c, and ``R_i`` the
one within which expert i answers A. Then G is A on ``T = min(R_c, min over the other i of max(E, R_i))``: at a distance
below T the expert picked is c, or else it is one whose ``R_i`` is at least T. The pilot commits to E or R_i for each i,
which leaves atoms that all have to hold; each has the whole alpha. Taking the larger bound of two afterwards fails more
often than alpha.

References: Berger 1982, Multiparameter hypothesis testing; Sun, Mao, Vechev 2026 (Dual RS: never R_i); Jeong and Shin
2024 (the cascade).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from scipy.special import betaincinv

from ddsmoothing.bounds import check_bound, lower_of_looks, top_two_bounds
from ddsmoothing.certificate import Certificate, certificate_for
from ddsmoothing.claims.measurement import VOTES, Measurement, Tally
from ddsmoothing.claims.several import (
    Atom,
    Commitment,
    StatelessRule,
    check_sigmas,
    fewest_at,
    plain_numbers,
    probability_at,
)
from ddsmoothing.errors import InputError

BRANCHES: Final = ("reach", "dual")


@dataclass(frozen=True, kw_only=True)
class _OfVotes(StatelessRule):
    """Rules with one event at each scale, that so many votes are of some classes, and a threshold for its phi.

    Attributes:
        sigmas: see each rule.   classes: K.   norm: ``l2`` or ``l1``.
    """

    vote = "plurality"
    sigmas: tuple[float, ...]
    classes: int
    norm: str = "l2"

    @property
    def num_classes(self) -> int:
        return self.classes

    def _check(self) -> None:
        certificate_for(self.norm)
        check_sigmas(self.sigmas, f"a {self.words}")
        if type(self.classes) is not int or self.classes < 2:
            raise InputError(f"a {self.words} of {self.classes!r} classes, expected at least 2.")

    @abstractmethod
    def threshold(self, made: Commitment, slot: int) -> float:
        """What phi of a scale's event has to exceed."""

    @abstractmethod
    def count(self, made: Commitment, one: Measurement) -> int:
        """How often it happened."""

    def pilot_tally(self, slot: int) -> Tally:
        return Tally(VOTES)

    def tally(self, top: int, slot: int) -> Tally:
        return Tally(VOTES)

    def events(self, made: Commitment, one: Measurement) -> tuple[int, ...]:
        return (self.count(made, one),)

    def estimated(self, one: Measurement, count: int) -> float:
        """The phi that a pilot shows of an event (float64, no claim)."""
        share = np.array((count + 0.5) / (one.n + 1.0))
        return float(certificate_for(self.norm).estimate(np.array(one.sigma), share))

    def expected(self, made: Commitment, pilot: Measurement, n: int, alpha: float) -> float:
        share = (self.count(made, pilot) + 0.5) / (pilot.n + 1.0)
        lower = betaincinv(n * share, n * (1.0 - share) + 1.0, alpha)
        gap = certificate_for(self.norm).estimate(np.array(pilot.sigma), np.array(lower))
        return float(gap) - self.threshold(made, pilot.slot)

    def fewest(self, made: Commitment, slot: int, alpha: float) -> int:
        needed = probability_at(self.norm, self.threshold(made, slot), self.sigmas[slot])
        return fewest_at(needed, alpha, f"the threshold {self.threshold(made, slot):g}", self.sigmas[slot])

    def atom(self, made: Commitment, one: Measurement, certificate: Certificate, alpha: float) -> Atom:
        draws = [(look.n, look.counts[0], look.alpha) for look in one.looks]
        lower = lower_of_looks(draws, one.coin)
        p_lower, p_upper = top_two_bounds(lower, 0, one.n, alpha, check_bound("one-class"), one.tv)
        margin = certificate.phi(one.sigma, p_lower) - self.threshold(made, one.slot)
        return Atom(math.nextafter(margin, -math.inf), p_lower, p_upper)


@dataclass(frozen=True, kw_only=True)
class Cascade(_OfVotes):
    """Experts asked one after the other: the first that is sure of its class answers.

    Expert j is sure of class c where ``phi_jc > tau_j``; the last one needs ``phi > 0`` only. No other class than A is
    sure at j while ``phi_jA > -tau_j``, as two classes share one. So the answer stays A on the least of
    ``phi_jA + tau_j`` for j before some J and ``phi_JA - tau_J``: with ``reach`` the pilot commits to the best J.
    Without it J is the expert that answers, and each before it has to stay unsure of every class.

    Attributes:
        sigmas: of the experts, in the order in which they are asked.
        taus: of each expert, in the units of the radius, at least 0; the last one's is 0.
        reach: see above.
    """

    kind = "cascade"
    words = "cascade"
    taus: tuple[float, ...]
    reach: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "sigmas", plain_numbers(self.sigmas, "the sigmas of a cascade"))
        object.__setattr__(self, "taus", plain_numbers(self.taus, "the thresholds of a cascade"))
        self._check()
        if type(self.reach) is not bool:
            raise InputError(f"reach is {self.reach!r}, expected True or False.")
        if not self.taus or any(not 0.0 <= tau < math.inf for tau in self.taus) or self.taus[-1] != 0.0:
            raise InputError(f"the thresholds of a cascade are {self.taus}, expected numbers from 0 on, the last 0.")
        if len(self.taus) != len(self.sigmas):
            raise InputError(
                f"a cascade of {len(self.sigmas)} sigmas has {len(self.taus)} thresholds, expected one each."
            )

    def commit(self, pilots: Sequence[Measurement]) -> Commitment:
        """The class A, and the experts up to J."""
        phis = [[self.estimated(one, k) for k in one.votes] for one in pilots]
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

    def threshold(self, made: Commitment, slot: int) -> float:
        return self.taus[slot] if slot == made.chosen else -self.taus[slot]

    def count(self, made: Commitment, one: Measurement) -> int:
        if one.slot < made.chosen and not self.reach:
            return one.n - max(one.votes)  # "another class", of the class that comes nearest to being sure
        return one.votes[made.top]

    def most_needed(self, alpha: float) -> int:
        found = []
        for last in range(len(self.taus)):
            made = Commitment(0, tuple(range(last + 1)), last)
            found.append(sum(self.fewest(made, slot, alpha) for slot in made.slots))
        return max(found)

    def config(self) -> dict[str, Any]:
        return {"kind": self.kind, "sigmas": list(self.sigmas), "taus": list(self.taus), "reach": self.reach}


@dataclass(frozen=True, kw_only=True)
class Routed(_OfVotes):
    """Experts behind a smoothed gate: the group of classes that is most frequent at the gate's scale picks one.

    The gate looks at the same base classifier, so that it needs no training.

    Attributes:
        sigmas: of the experts, then that of the gate.
        groups: ``(K,)`` which expert the gate picks by each class.
        branches: ``reach``, or ``dual`` to rely on the gate alone.
    """

    kind = "routed"
    words = "gate before experts"
    groups: tuple[int, ...]
    branches: str = "reach"

    def __post_init__(self) -> None:
        self._check()
        if self.branches not in BRANCHES:
            raise InputError(f"branches are {self.branches!r}, expected one of {', '.join(BRANCHES)}.")
        if len(self.sigmas) < 2:
            raise InputError("expected the sigma of at least one expert, and that of the gate.")
        if len(self.groups) != self.classes or any(
            type(g) is not int or not 0 <= g < len(self.sigmas) - 1 for g in self.groups
        ):
            raise InputError(
                f"the gate needs one of {len(self.sigmas) - 1} experts for each of {self.classes} classes."
            )

    @property
    def gate(self) -> int:
        """Its slot."""
        return len(self.sigmas) - 1

    def _of(self, gate: Measurement, expert: int) -> int:
        return sum(k for k, group in zip(gate.votes, self.groups, strict=True) if group == expert)

    def commit(self, pilots: Sequence[Measurement]) -> Commitment:
        """Expert, class and branches: which experts the gate is to keep away, and which have to answer A as well."""
        gate, experts = pilots[-1], pilots[:-1]
        chosen = max(range(self.gate), key=lambda i: (self._of(gate, i), -i))
        top = int(np.argmax(experts[chosen].votes))
        far = self.estimated(gate, self._of(gate, chosen))
        away = [
            i
            for i, pilot in enumerate(experts)
            if i != chosen and (self.branches == "dual" or far >= self.estimated(pilot, pilot.votes[top]))
        ]
        slots = [i for i in range(self.gate) if i not in away] + ([self.gate] if away else [])
        return Commitment(top, tuple(slots), chosen)

    def threshold(self, made: Commitment, slot: int) -> float:
        return 0.0

    def count(self, made: Commitment, one: Measurement) -> int:
        return self._of(one, made.chosen) if one.slot == self.gate else one.votes[made.top]

    def most_needed(self, alpha: float) -> int:
        drawn = min(self.gate, 2) if self.branches == "dual" else self.gate  # the chosen one, and what holds the others
        return drawn * self.fewest(Commitment(0, (0,)), 0, alpha)

    def config(self) -> dict[str, Any]:
        groups = list(self.groups)
        return {"kind": self.kind, "sigmas": list(self.sigmas), "groups": groups, "branches": self.branches}


def reach_radius(keeps: float, radii: Sequence[float], chosen: int) -> float:
    """T of exact values: E and the signed radii ``R_i``, negative where an expert answers another class."""
    others = [max(keeps, radius, 0.0) for i, radius in enumerate(radii) if i != chosen]
    return max(0.0, min([radii[chosen], *others]))


def cascade_radius(phis: Sequence[float], taus: Sequence[float]) -> float:
    """The cascade's radius with reach of exact values: phi of class A at each expert."""
    found = -math.inf
    for phi, tau in zip(reversed(phis), reversed(taus), strict=True):
        found = min(phi + tau, max(phi - tau, found))
    return max(0.0, found)
