"""The cascade: experts asked one after the other, with reach or as its paper has it.

References: Berger 1982, Multiparameter hypothesis testing; Jeong and Shin 2024 (the cascade).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ddsmoothing.bounds import check_bound, lower_of_looks, top_two_bounds
from ddsmoothing.certificate import Certificate
from ddsmoothing.claims.measurement import Measurement
from ddsmoothing.claims.rules import ABSTAIN, Claim
from ddsmoothing.errors import InputError


def estimated(one: Measurement, count: int, certificate: Certificate) -> float:
    """The phi that a pilot shows of an event (float64, no claim)."""
    return float(certificate.estimate(np.array(one.sigma), np.array((count + 0.5) / (one.n + 1.0))))


def phi_below(one: Measurement, count: int, certificate: Certificate, alpha: float) -> tuple[float, float]:
    """Lower bounds on an event's probability and on its phi, at this alpha; both err low."""
    lower = lower_of_looks([(one.n, count, alpha)], one.coin)
    p_lower, _ = top_two_bounds(lower, 0, one.n, alpha, check_bound("one-class"), one.tv)
    return p_lower, certificate.phi(one.sigma, p_lower)


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


def cascade_radius(phis: Sequence[float], taus: Sequence[float]) -> float:
    """The cascade's radius with reach of exact values: phi of class A at each expert."""
    found = -math.inf
    for phi, tau in zip(reversed(phis), reversed(taus), strict=True):
        found = min(phi + tau, max(phi - tau, found))
    return max(0.0, found)
