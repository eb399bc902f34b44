"""Rules: which events of which measurements imply "the answer is A", and the radius that follows from them.

An event E at scale s has ``phi(x) = s * Phi^-1(P[E at x + s e])``, for L1 ``2 lambda (P[E] - 1/2)``, which is
1-Lipschitz. An atom says ``phi > 0``. A rule names the atoms that together imply the answer; while all hold, it stays,
so that the radius is the least phi. Each atom's Clopper-Pearson bound gets the WHOLE alpha: a radius that is too large
means that the bound of the truly smallest atom failed, and that one was fixed before the samples (intersection-union
test). The class comes from a pilot that is never counted again.

References: Salman et al. 2019, arXiv:1906.04584, Lemma 2; Berger 1982, Multiparameter hypothesis testing.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np
from scipy.stats import binomtest

from ddsmoothing.bounds import (
    alpha_of_top,
    binomial_tail_at_most,
    check_bound,
    lower_of_looks,
    top_two_bounds,
)
from ddsmoothing.certificate import Certificate
from ddsmoothing.claims.measurement import DUELS, MOST_DUELLISTS, VOTES, WINS, Look, Measurement, Tally
from ddsmoothing.errors import InputError

ABSTAIN: Final = -1


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What follows from the measurements of one input.

    Attributes:
        prediction: the certified class, ABSTAIN where there is none.
        radius: within which the smoothed class cannot change, 0 where abstained; errs low.
        p_lower: lower bound on the least likely of the events that the answer rests on; errs low.
        p_upper: upper bound on what it is held against: every other class's probability, or that of losing; errs high.
        slot: which of several noise scales binds; 0 where there is one.
    """

    prediction: int
    radius: float
    p_lower: float
    p_upper: float
    slot: int = 0


class Rule(ABC):
    """How noisy answers become the smoothed answer, and how a radius is bounded.

    Attributes:
        vote: ``pairwise`` or ``plurality``: which smoothed classifier is meant. A deployed system must vote the same
            way.   bound: ``one-class`` or ``two-class``.
    """

    vote: ClassVar[str]
    asks_twice: ClassVar[bool]  # whether what is counted depends on the pilot, so that PREDICT needs one too
    bound: str

    @abstractmethod
    def pilot_tally(self, num_classes: int) -> Tally:
        """What the pilot counts, so that a class can be chosen."""

    @abstractmethod
    def choose(self, pilot: Measurement) -> int:
        """The class to certify; a function of the pilot alone."""

    @abstractmethod
    def tally(self, top: int) -> Tally:
        """What is counted to certify this class."""

    @abstractmethod
    def counts(self, measured: Measurement, top: int) -> tuple[int, ...]:
        """How often each atom's event happened."""

    @abstractmethod
    def fewest(self, pilot: Measurement, top: int) -> int:
        """The count of the event that will bind, as the pilot shows it; for planning only."""

    def threshold(self, pilot: Measurement, top: int) -> float:
        """What the phi of that event has to exceed; for planning only."""
        return 0.0

    def needed(self, pilot: Measurement, top: int) -> float:
        """The probability at which that event certifies radius 0; for planning only."""
        return 0.5

    def handicap(self, top: int) -> float:
        """How far the radius of this class stays below the largest one at any sigma; negative where it exceeds it."""
        return 0.0

    def reached(self, looks: Sequence[Look], top: int, gap: Callable[[float], float]) -> float:
        """The radius that looks have reached (float64, no claim), by the radius ``gap`` at a probability."""
        return gap(self.binding(looks))

    def hoped(self, look: Look, top: int, gap: Callable[[int], float]) -> float:
        """The same for one look, by the radius at a count."""
        return gap(min(look.counts))

    def check(self, sigma: float, n: int, alpha: float) -> None:  # noqa: B027
        """Raise InfeasibleError if thresholds leave a class that n agreeing samples at this sigma cannot certify."""

    def share(self, alpha: float) -> float:
        """The part of alpha that each atom's lower bound gets."""
        return alpha_of_top(alpha, self.bound)

    def look(self, measured: Measurement, top: int, alpha: float) -> Look:
        """The counts of a moment; alpha: of each atom's bound there."""
        return Look(measured.n, self.counts(measured, top), alpha)

    def binding(self, looks: Sequence[Look], coin: float | None = None) -> float:
        """The least over atoms of the largest lower bound over looks: every atom may pass at its own look."""
        if not looks:
            return 0.0
        counts = np.array([look.counts for look in looks]).T  # (atoms, looks)
        least = 1.0
        while len(counts):
            smallest = counts[counts[:, -1].argmin()]
            draws = zip(looks, smallest.tolist(), strict=True)
            least = min(least, lower_of_looks([(look.n, k, look.alpha) for look, k in draws], coin))
            counts = counts[(counts < smallest).any(1)]  # bounds grow with counts, so none of the others can be below
        return least

    @abstractmethod
    def bounds(self, fresh: Measurement, top: int, alpha: float) -> tuple[float, float]:
        """Bounds ``(p_lower, p_upper)`` of what binds, for the noise of the theorem; both hold w.p. >= 1 - alpha."""

    def claim(
        self, pilot: Measurement, fresh: Measurement | None, certificate: Certificate, alpha: float, moved: float = 0.0
    ) -> Claim:
        """Class and radius; false with probability at most alpha.

        Args:
            pilot: what chose the class.
            fresh: what bounds it, None where nothing was drawn.
            certificate: the theorem of the noise.
            alpha: failure probability of the certificate.
            moved: how far the input was moved before anything was drawn; errs high.
        """
        if fresh is None:
            return Claim(prediction=ABSTAIN, radius=0.0, p_lower=0.0, p_upper=1.0)
        return self.claim_of(self.choose(pilot), fresh, certificate, alpha, moved)

    def claim_of(
        self, top: int, fresh: Measurement, certificate: Certificate, alpha: float, moved: float = 0.0
    ) -> Claim:
        """The same for a class that was chosen on other samples. Where the input was moved, the radius shrinks."""
        p_lower, p_upper, radius, held = self.judged(fresh, top, certificate, alpha)
        if moved > 0.0:
            radius = max(0.0, float(np.nextafter(radius - moved, -np.inf)))
        held = held and not (moved > 0.0 and radius <= 0.0)
        return Claim(
            prediction=top if held else ABSTAIN, radius=radius if held else 0.0, p_lower=p_lower, p_upper=p_upper
        )

    def judged(
        self, fresh: Measurement, top: int, certificate: Certificate, alpha: float
    ) -> tuple[float, float, float, bool]:
        """p_lower, p_upper, the radius round the point that was sampled, and whether the class is certified there."""
        p_lower, p_upper = self.bounds(fresh, top, alpha)
        return p_lower, p_upper, certificate.radius(fresh.sigma, p_lower, p_upper), p_lower > p_upper

    def least(self, fresh: Measurement, top: int, certificate: Certificate, alpha: float) -> tuple[float, float, float]:
        """Bounds of the atom with the least margin, by the one-class bound, and that margin, which may be negative.

        Errs low.
        """
        p_lower, p_upper = self.bounds(fresh, top, alpha)
        return p_lower, p_upper, certificate.phi(fresh.sigma, p_lower)

    @abstractmethod
    def answer(self, pilot: Measurement, fresh: Measurement, alpha: float) -> int:
        """PREDICT: the smoothed class or ABSTAIN; another class than the smoothed one with probability <= alpha.

        Args:
            pilot: what chose the class that was counted; not looked at where the rule does not ask twice.
        """

    @abstractmethod
    def samples_to_answer(self, alpha: float) -> int:
        """The fewest samples with which PREDICT can give a class."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Everything that defines it, as a header stores it."""


@dataclass(frozen=True, kw_only=True)
class Plurality(Rule):
    """The class that the base classifier gives most often.

    Its one atom is "the class is A"; the two-class bound holds the top class against the runner-up and splits alpha.

    References: Cohen, Rosenfeld, Kolter 2019, arXiv:1902.02918, CERTIFY and PREDICT.
    """

    vote = "plurality"
    asks_twice = False
    bound: str = "one-class"

    def __post_init__(self) -> None:
        check_bound(self.bound)

    def pilot_tally(self, num_classes: int) -> Tally:
        return Tally(VOTES)

    def choose(self, pilot: Measurement) -> int:
        return int(np.argmax(pilot.votes))

    def tally(self, top: int) -> Tally:
        return Tally(VOTES)

    def counts(self, measured: Measurement, top: int) -> tuple[int, ...]:
        return (measured.votes[top],)

    def fewest(self, pilot: Measurement, top: int) -> int:
        return pilot.votes[top]

    def bounds(self, fresh: Measurement, top: int, alpha: float) -> tuple[float, float]:
        runner_up = max((k for i, k in enumerate(fresh.votes) if i != top), default=0)
        return top_two_bounds(self.binding(fresh.looks, fresh.coin), runner_up, fresh.n, alpha, self.bound, fresh.tv)

    def answer(self, pilot: Measurement, fresh: Measurement, alpha: float) -> int:
        """Two-sided binomial test of the top class against the runner-up, on the fresh samples alone."""
        order = np.argsort(-np.array(fresh.votes), kind="stable")
        first, second = fresh.votes[order[0]], fresh.votes[order[1]]
        return int(order[0]) if binomtest(first, first + second, 0.5).pvalue <= alpha else ABSTAIN

    def samples_to_answer(self, alpha: float) -> int:
        return math.ceil(1.0 - math.log2(alpha))

    def config(self) -> dict[str, Any]:
        return {"vote": self.vote, "bound": self.bound}


@dataclass(frozen=True, kw_only=True)
class Pairwise(Rule):
    """The class that beats every other one on more than half of the samples (Condorcet winner), if there is one.

    Its K - 1 atoms are "A beats b". With one scale and no thresholds the smallest of their counts decides: one
    Clopper-Pearson bound at full alpha, never below the one-class bound of the same samples, since A beats b wherever
    the class is A.
    """

    vote = "pairwise"
    asks_twice = True
    bound: str = "one-class"

    def __post_init__(self) -> None:
        if check_bound(self.bound) != "one-class":
            raise InputError(
                f"a pairwise vote bounds the wins of one class, got bound {self.bound!r}; expected one-class, or the "
                "vote plurality."
            )

    def pilot_tally(self, num_classes: int) -> Tally:
        return Tally(DUELS if num_classes <= MOST_DUELLISTS else VOTES)

    def choose(self, pilot: Measurement) -> int:
        """The class whose smallest number of wins is largest; of equal ones that with more votes, then the first."""
        least = pilot.votes if pilot.least is None else pilot.least
        return max(range(len(least)), key=lambda c: (least[c], pilot.votes[c], -c))

    def tally(self, top: int) -> Tally:
        return Tally(WINS, top)

    def counts(self, measured: Measurement, top: int) -> tuple[int, ...]:
        assert measured.wins is not None and measured.anchor == top, "wins of another class"
        return measured.wins

    def fewest(self, pilot: Measurement, top: int) -> int:
        return (pilot.votes if pilot.least is None else pilot.least)[top]

    def bounds(self, fresh: Measurement, top: int, alpha: float) -> tuple[float, float]:
        return top_two_bounds(self.binding(fresh.looks, fresh.coin), 0, fresh.n, alpha, self.bound, fresh.tv)

    def answer(self, pilot: Measurement, fresh: Measurement, alpha: float) -> int:
        """One-sided tests that the pilot's class beats each other one on more than half of the samples; all must pass.

        Each at full alpha: where the smoothed classifier abstains or answers b, the test against some b fails.
        """
        top = self.choose(pilot)
        fewest = min(self.counts(fresh, top))
        return top if fewest > 0 and binomial_tail_at_most(fewest, fresh.n, 0.5) <= alpha else ABSTAIN

    def samples_to_answer(self, alpha: float) -> int:
        return math.ceil(-math.log2(alpha))

    def config(self) -> dict[str, Any]:
        return {"vote": self.vote, "bound": self.bound}
