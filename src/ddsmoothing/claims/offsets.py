"""Class offsets: a pairwise vote in which some classes have to win by more than others.

``G(x) = A`` iff for every other b ``phi_{A>b}(x) > t_Ab`` with ``t_Ab = beta_b - beta_A``. Of two classes exactly one
beats the other on a sample, so that ``phi_{b>A} = -phi_{A>b}`` and ``t_bA = -t_Ab``: at most one class has all its
atoms. The radius is the least of ``phi_{A>b} - t_Ab``; it has no bound in beta, so a mean radius says nothing without
the accuracy beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ddsmoothing.bounds import lower_of_looks, top_two_bounds
from ddsmoothing.certificate import Certificate, certificate_for
from ddsmoothing.claims.measurement import DUELS, Look, Measurement, Tally
from ddsmoothing.claims.rules import ABSTAIN, Pairwise
from ddsmoothing.claims.several import CERTAIN, probability_at
from ddsmoothing.errors import InfeasibleError, InputError

LARGEST_OFFSET: Final = 1e3  # in the units of the input, where no radius comes near it


def check_offsets(offsets: Sequence[float], num_classes: int | None = None) -> tuple[float, ...]:
    """Offsets as a tuple of finite numbers, one a class, else InputError."""
    try:
        found = tuple(float(beta) for beta in offsets)
    except (OverflowError, TypeError, ValueError):
        raise InputError(f"offsets are {offsets!r}, expected one number a class.") from None
    if len(found) < 2 or any(not abs(beta) <= LARGEST_OFFSET for beta in found):
        raise InputError(
            f"offsets are {found[:3]}.., expected finite numbers, at least 2, none above {LARGEST_OFFSET}."
        )
    if num_classes is not None and len(found) != num_classes:
        raise InputError(f"got {len(found)} offsets for {num_classes} classes, expected one a class.")
    return found


@dataclass(frozen=True, kw_only=True)
class OffsetPairwise(Pairwise):
    """A pairwise vote with class offsets; equal offsets are a pairwise vote without.

    Attributes:
        offsets: beta, one a class, in the units of the radius; only their differences matter.
        norm: ``l2`` or ``l1``: which phi they are thresholds of.
    """

    offsets: tuple[float, ...]
    norm: str

    def __post_init__(self) -> None:
        super().__post_init__()
        certificate_for(self.norm)
        object.__setattr__(self, "offsets", check_offsets(self.offsets))

    def thresholds(self, top: int) -> NDArray[np.float64]:
        """``(K,)`` what phi of "top beats b" has to exceed; exactly the negative of b's threshold against top."""
        return np.array(self.offsets) - self.offsets[top]

    def pilot_tally(self, num_classes: int) -> Tally:
        plain = super().pilot_tally(num_classes)
        return plain._replace(rivals=self._rivals) if plain.kind == DUELS else plain

    def against(self, top: int) -> NDArray[np.int64]:
        """The classes that the certified one is held against."""
        return np.delete(np.arange(len(self.offsets)), top)

    @cached_property
    def _held(self) -> NDArray[np.bool_]:
        """``(K, K)`` which classes each one is held against."""
        held = np.zeros((len(self.offsets),) * 2, dtype=bool)
        for c in range(len(self.offsets)):
            held[c, self.against(c)] = True
        return held

    @cached_property
    def _hardest(self) -> NDArray[np.int64]:
        """``(K,)`` of each class the one with the largest threshold that it is held against; itself without any."""
        rivals = np.where(self._held, np.array(self.offsets), -math.inf).argmax(1)
        return np.where(self._held.any(1), rivals, np.arange(len(rivals)))

    def _rivals(self, sigma: float, n: int, duels: NDArray[np.int64]) -> NDArray[np.int64]:
        """Of each class the other one against which its estimated margin is smallest; itself where it has none."""
        margins = self._estimate(sigma, n, duels) - (np.array(self.offsets) - np.array(self.offsets)[:, None])
        held = self._held
        margins[~held] = math.inf
        return np.asarray(np.where(held.any(1), margins.argmin(1), np.arange(len(margins))))

    def _estimate(self, sigma: float, n: int, counts: NDArray[np.int64]) -> NDArray[np.float64]:
        shares: NDArray[np.float64] = (counts.astype(np.float64) + 0.5) / (n + 1.0)
        return certificate_for(self.norm).estimate(np.full(shares.shape, sigma), shares)

    def bound_by(self, pilot: Measurement) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Of each class the count of its binding event and the rival; without duels the votes and the hardest rival."""
        if pilot.least is not None and pilot.rivals is not None:
            return np.array(pilot.least), np.array(pilot.rivals)
        return np.array(pilot.votes), self._hardest

    def margins(self, pilot: Measurement) -> NDArray[np.float64]:
        """``(K,)`` the smallest estimated margin of each class, infinite where it is held against none."""
        least, rivals = self.bound_by(pilot)
        offsets = np.array(self.offsets)
        found = self._estimate(pilot.sigma, pilot.n, least) - (offsets[rivals] - offsets)
        return np.where(rivals == np.arange(len(rivals)), math.inf, found)

    def choose(self, pilot: Measurement) -> int:
        """The class whose smallest estimated margin is largest; of equal ones that with more votes, then the first."""
        margins = self.margins(pilot).tolist()
        return max(range(len(margins)), key=lambda c: (margins[c], pilot.votes[c], -c))

    def fewest(self, pilot: Measurement, top: int) -> int:
        return int(self.bound_by(pilot)[0][top])

    def threshold(self, pilot: Measurement, top: int) -> float:
        return self.offsets[int(self.bound_by(pilot)[1][top])] - self.offsets[top]

    def needed(self, pilot: Measurement, top: int) -> float:
        return self.probability_at(self.threshold(pilot, top), pilot.sigma)

    def probability_at(self, threshold: float, sigma: float) -> float:
        """Of an event whose phi is at the threshold (float64), kept away from 0 and 1."""
        return probability_at(self.norm, threshold, sigma)

    def handicap(self, top: int) -> float:
        return float(self.thresholds(top)[self.against(top)].max())

    def reached(self, looks: Sequence[Look], top: int, gap: Callable[[float], float]) -> float:
        if not looks:
            return -math.inf
        return min(gap(lower_of_looks(draws)) - threshold for draws, threshold in self._atoms(looks, top))

    def hoped(self, look: Look, top: int, gap: Callable[[int], float]) -> float:
        return min(gap(draws[0][1]) - threshold for draws, threshold in self._atoms((look,), top))

    def _atoms(self, looks: Sequence[Look], top: int) -> Iterator[tuple[list[tuple[int, int, float]], float]]:
        """The looks and the threshold of each atom that can bind.

        Left out is an atom that happened at least as often at every look as one with no smaller threshold: the other's
        bound holds for it as well.
        """
        held = self.against(top)
        counts, thresholds = np.array([look.counts for look in looks]).T[held], self.thresholds(top)[held]
        while len(counts):
            first = np.lexsort((-thresholds, counts[:, -1]))[0]
            draws = [(look.n, k, look.alpha) for look, k in zip(looks, counts[first].tolist(), strict=True)]
            yield draws, float(thresholds[first])
            left = (counts < counts[first]).any(1) | (thresholds > thresholds[first])
            counts, thresholds = counts[left], thresholds[left]

    def judged(
        self, fresh: Measurement, top: int, certificate: Certificate, alpha: float
    ) -> tuple[float, float, float, bool]:
        """Bounds of the atom with the least margin, that margin as the radius, and whether it is above 0; errs low."""
        if certificate.norm != self.norm:
            raise InputError(f"these offsets are thresholds of the norm {self.norm}, got {certificate.norm}.")
        p_lower, p_upper, margin = self.least(fresh, top, certificate, alpha)
        return p_lower, p_upper, max(0.0, margin), margin > 0.0

    def least(self, fresh: Measurement, top: int, certificate: Certificate, alpha: float) -> tuple[float, float, float]:
        if not fresh.looks:
            return 0.0, 1.0, -math.inf
        p_lower, p_upper, margin = 0.0, 1.0, math.inf
        for draws, threshold in self._atoms(fresh.looks, top):
            lower = lower_of_looks(draws, fresh.coin)
            bounds = top_two_bounds(lower, 0, fresh.n, alpha, self.bound, fresh.tv)
            found = math.nextafter(certificate.phi(fresh.sigma, bounds[0]) - threshold, -math.inf)
            if found < margin:
                (p_lower, p_upper), margin = bounds, found
        return p_lower, p_upper, margin

    def answer(self, pilot: Measurement, fresh: Measurement, alpha: float) -> int:
        """One-sided tests that each phi exceeds its threshold, each at full alpha; all must pass."""
        top = self.choose(pilot)
        asked = replace(fresh, looks=(self.look(fresh, top, alpha),), tv=0.0, coin=None)
        return top if self.judged(asked, top, certificate_for(self.norm), alpha)[3] else ABSTAIN

    def check(self, sigma: float, n: int, alpha: float) -> None:
        least = self.probability_at(max(self.offsets) - min(self.offsets), sigma)
        if alpha ** (1.0 / n) > least:
            return
        spread = max(self.offsets) - min(self.offsets)
        text = f"offsets that differ by {spread:g} leave a class that n={n} samples at sigma {sigma:g} cannot certify"
        if least >= 1.0 - CERTAIN:
            raise InfeasibleError(f"{text}, and no number can. Use smaller offsets or a larger sigma.")
        smallest = math.floor(math.log(alpha) / math.log(least)) + 1
        raise InfeasibleError(f"{text}. Use n >= {smallest}, smaller offsets or a larger sigma.")

    def config(self) -> dict[str, Any]:
        return {**super().config(), "offsets": list(self.offsets)}
