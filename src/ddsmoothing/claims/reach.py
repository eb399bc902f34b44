"""Routing among experts that exist anyway: the reach rule, and the rules of two papers beside it.

``G(y) = g_{s(y)}(y)``: a gate s picks one of finitely many experts. Let ``E`` bound the distance within which the gate
keeps its choice c, and ``R_i`` the one within which expert i answers A. Then G is A on
``T = min(R_c, min over the other i of max(E, R_i))``: at a distance below T the expert picked is c, or else it is one
whose ``R_i`` is at least T. The pilot commits to E or R_i for each i, which leaves atoms that all have to hold; each
has the whole alpha. Taking the larger bound of two afterwards fails more often than alpha.

References: Berger 1982, Multiparameter hypothesis testing; Sun, Mao, Vechev 2026 (Dual RS: never R_i); Jeong and Shin
2024 (the cascade).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from ddsmoothing.bounds import check_bound, lower_of_looks, top_two_bounds
from ddsmoothing.certificate import Certificate
from ddsmoothing.claims.measurement import Measurement
from ddsmoothing.claims.rules import ABSTAIN, Claim, Rule
from ddsmoothing.errors import InputError

BRANCHES: Final = ("reach", "dual")


def estimated(one: Measurement, count: int, certificate: Certificate) -> float:
    """The phi that a pilot shows of an event (float64, no claim)."""
    return float(certificate.estimate(np.array(one.sigma), np.array((count + 0.5) / (one.n + 1.0))))


def phi_below(one: Measurement, count: int, certificate: Certificate, alpha: float) -> tuple[float, float]:
    """Lower bounds on an event's probability and on its phi, at this alpha; both err low."""
    lower = lower_of_looks([(one.n, count, alpha)], one.coin)
    p_lower, _ = top_two_bounds(lower, 0, one.n, alpha, check_bound("one-class"), one.tv)
    return p_lower, certificate.phi(one.sigma, p_lower)


@dataclass(frozen=True, kw_only=True)
class Commitment:
    """What a pilot settles before anything is certified.

    Attributes:
        chosen: the expert that the gate picks.   top: the class that it answers.
        by_gate: the other experts that the gate is to keep away; of the rest each has to answer the same class.
    """

    chosen: int
    top: int
    by_gate: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Reach:
    """Experts behind a smoothed gate, whose most frequent output picks one.

    Attributes:
        experts: the rule of each: its smoothed classifier, with a scale of its own.
        branches: ``reach``, or ``dual`` to rely on the gate alone.
    """

    experts: tuple[Rule, ...]
    branches: str = "reach"

    def __post_init__(self) -> None:
        if self.branches not in BRANCHES:
            raise InputError(f"branches are {self.branches!r}, expected one of {', '.join(BRANCHES)}.")
        if not self.experts:
            raise InputError("expected at least one expert.")

    def commit(self, gate: Measurement, pilots: Sequence[Measurement], certificate: Certificate) -> Commitment:
        """Expert, class and branches; a function of the pilots alone.

        Args:
            gate: votes for each expert.   pilots: of each expert.
        """
        chosen = int(np.argmax(gate.votes))
        top = self.experts[chosen].choose(pilots[chosen])
        far = estimated(gate, gate.votes[chosen], certificate)
        by_gate = [
            i
            for i, (expert, pilot) in enumerate(zip(self.experts, pilots, strict=True))
            if i != chosen
            and (self.branches == "dual" or far >= estimated(pilot, expert.fewest(pilot, top), certificate))
        ]
        return Commitment(chosen=chosen, top=top, by_gate=tuple(by_gate))

    def claim(
        self,
        made: Commitment,
        gate: Measurement,
        fresh: Sequence[Measurement | None],
        certificate: Certificate,
        alpha: float,
    ) -> Claim:
        """Class and radius; false with probability at most alpha; errs low.

        Args:
            made: from pilots that are not counted here.   gate: votes for each expert; looked at where it is needed.
            fresh: of each expert its measurement for the class, None where the gate keeps it away.
        """
        atoms = []
        for i, expert in enumerate(self.experts):
            if i in made.by_gate:
                continue
            one = fresh[i]
            if one is None:
                raise InputError(f"expert {i} has to answer the class itself, and nothing was drawn of it.")
            claim = expert.claim_of(made.top, one, certificate, alpha)
            atoms.append((claim.radius if claim.prediction == made.top else 0.0, claim.p_lower))
        if made.by_gate:
            p_lower, phi = phi_below(gate, gate.votes[made.chosen], certificate, alpha)
            atoms.append((phi, p_lower))
        return _least(made.top, atoms)


@dataclass(frozen=True, kw_only=True)
class Cascade:
    """Experts asked one after the other: the first that is sure of its class answers.

    Expert j is sure of class c where ``phi_jc > tau_j``; the last one needs ``phi > 0`` only. No other class than A is
    sure at j while ``phi_jA > -tau_j``, as two classes share one. So the answer stays A on the least of
    ``phi_jA + tau_j`` for j before some J and ``phi_JA - tau_J``: with ``reach`` the pilot commits to the best J.
    Without it J is the expert that answers, and each before it has to stay unsure of every class.

    Attributes:
        taus: of each expert, in the units of the radius, at least 0; the last one's is 0.
        reach: see above.
    """

    taus: tuple[float, ...]
    reach: bool = True

    def __post_init__(self) -> None:
        if not self.taus or any(not 0.0 <= tau < math.inf for tau in self.taus) or self.taus[-1] != 0.0:
            raise InputError(f"the thresholds of a cascade are {self.taus}, expected numbers from 0 on, the last 0.")

    def commit(self, pilots: Sequence[Measurement], certificate: Certificate) -> tuple[int, int]:
        """The expert J and the class A; a function of the pilots alone."""
        phis = [[estimated(one, k, certificate) for k in one.votes] for one in pilots]
        first = next((j for j, tau in enumerate(self.taus) if max(phis[j]) > tau), len(self.taus) - 1)
        top = int(np.argmax(pilots[first].votes))
        if not self.reach:
            return first, top
        worth = [
            min([phis[i][top] + self.taus[i] for i in range(j)] + [phis[j][top] - self.taus[j]])
            for j in range(len(self.taus))
        ]
        return int(np.argmax(worth)), top

    def claim(self, last: int, top: int, fresh: Sequence[Measurement], certificate: Certificate, alpha: float) -> Claim:
        """Class and radius; false with probability at most alpha; errs low.

        Args:
            last, top: J and A, from pilots that are not counted here.   fresh: votes of experts 0 to J.
        """
        atoms = []
        for j, one in enumerate(fresh[: last + 1]):
            count, threshold = one.votes[top], self.taus[j] if j == last else -self.taus[j]
            if j < last and not self.reach:
                count = one.n - max(one.votes)  # "another class", of the class that comes nearest to being sure
            p_lower, phi = phi_below(one, count, certificate, alpha)
            atoms.append((math.nextafter(phi - threshold, -math.inf), p_lower))
        return _least(top, atoms)


def _least(top: int, atoms: Sequence[tuple[float, float]]) -> Claim:
    """What atoms (margin, p_lower) imply together."""
    margin, p_lower = min(atoms)
    p_upper = min(1.0, math.nextafter(1.0 - p_lower, 2.0))
    held = margin > 0.0
    return Claim(prediction=top if held else ABSTAIN, radius=margin if held else 0.0, p_lower=p_lower, p_upper=p_upper)


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
