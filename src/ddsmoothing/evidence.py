"""What a certification or prediction found: evidence in, claims derived.

It draws nothing and knows no models and no files. Anyone who holds the evidence can recompute every claim.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest

from ddsmoothing.bounds import lower_of_looks, top_two_bounds
from ddsmoothing.certificate import Certificate, certificate_for
from ddsmoothing.noise import grid_table
from ddsmoothing.plan import Look

ABSTAIN: Final = -1
LEVEL_POINTWISE: Final = "pointwise"


@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """What was drawn, and how; B inputs, K classes.

    Attributes:
        ids: noise keys.   input_sha256: of each input's bytes.   d: numbers in one input.
        sigma: ``(B,)`` float64, standard deviation in the units of the input.   norm: ``l2`` or ``l1``.
        noise: ``grid`` or ``float`` for each input.   counts: ``(B, K)`` int64.   alpha: failure probability an input.
        levels: of the grid, steps to the unit: 255 for 8-bit images.
        moved: ``(B,)`` bound on the distance that each input was moved to the grid before anything was drawn.
        seed: of the noise.   block_size: rows of each forward pass.   seconds: wall time of the whole batch.
    """

    ids: tuple[int, ...]
    input_sha256: tuple[str, ...]
    d: int
    sigma: NDArray[np.float64]
    norm: str
    noise: tuple[str, ...]
    levels: int
    moved: NDArray[np.float64]
    counts: NDArray[np.int64]
    alpha: float
    seed: int
    block_size: int
    seconds: float

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def certificate(self) -> Certificate:
        """The theorem that these samples are used with."""
        return certificate_for(self.norm)

    @cached_property
    def scale(self) -> NDArray[np.float64]:
        """``(B,)`` the noise's own parameter: sigma for L2, lambda = sqrt(3) sigma for L1."""
        return np.array([self.certificate.noise.scale(float(s)) for s in self.sigma])

    @cached_property
    def tv(self) -> NDArray[np.float64]:
        """``(B,)`` bound on the total-variation distance of the drawn noise to the theorem's, all d coordinates.

        0 for float noise, where it is not known.
        """
        return np.array(
            [
                total_variation(self.certificate, float(sigma), self.d, self.levels) if kind == "grid" else 0.0
                for kind, sigma in zip(self.noise, self.sigma, strict=True)
            ]
        )


def total_variation(certificate: Certificate, sigma: float, d: int, levels: int) -> float:
    """Bound on the total-variation distance of d-dimensional grid noise to the rounded noise of the theorem."""
    return d * grid_table(certificate.noise.name, certificate.noise.scale(sigma), levels).tau


def top_if_clear(counts: NDArray[np.int64], alpha: float) -> int:
    """The top class of counts ``(K,)``, or ABSTAIN unless a two-sided binomial test tells it from the runner-up.

    Wrong with probability at most alpha.
    References: Cohen et al. 2019, arXiv:1902.02918, PREDICT.
    """
    order = np.argsort(-counts, kind="stable")
    first, second = int(counts[order[0]]), int(counts[order[1]])
    return int(order[0]) if binomtest(first, first + second, 0.5).pvalue <= alpha else ABSTAIN


@dataclass(frozen=True, kw_only=True, eq=False)
class Certification(Evidence):
    """Certificates of B inputs, level ``pointwise``: each holds for the classifier that uses ITS sigma everywhere.

    Attributes:
        n0_counts: ``(B, K)`` int64, the pilot that chose the class.   counts: the fresh samples that bound it.
        looks: for each input, the counts ``(n, k, alpha)`` that a bound may be taken from; see ``plan.Found``.
        stopped: for each input, why no fresh samples were drawn (``planned``, ``wrong``, ..), or None.
        sampler: how many samples were drawn.   bound: ``one-class`` or ``two-class``.
        coin: ``(B,)`` coins of the randomised bound, or None for the plain one.
    """

    n0_counts: NDArray[np.int64]
    looks: tuple[tuple[Look, ...], ...]
    stopped: tuple[str | None, ...]
    sampler: str
    bound: str
    coin: NDArray[np.float64] | None = None
    level: str = LEVEL_POINTWISE

    @cached_property
    def top(self) -> NDArray[np.int64]:
        """``(B,)`` the class chosen by the pilot."""
        return np.asarray(self.n0_counts.argmax(1))

    @cached_property
    def _bounds(self) -> NDArray[np.float64]:
        rows = []
        for i, (top, counts, tv) in enumerate(zip(self.top, self.counts, self.tv, strict=True)):
            others = int(np.delete(counts, top).max(initial=0))
            lower = lower_of_looks(self.looks[i], None if self.coin is None else float(self.coin[i]))
            rows.append(top_two_bounds(lower, others, int(counts.sum()), self.alpha, self.bound, float(tv)))
        return np.array(rows)

    @property
    def p_lower(self) -> NDArray[np.float64]:
        """``(B,)`` lower bound on the top class's probability; errs low."""
        return self._bounds[:, 0]

    @property
    def p_upper(self) -> NDArray[np.float64]:
        """``(B,)`` upper bound on every other class's probability; errs high."""
        return self._bounds[:, 1]

    @cached_property
    def abstained(self) -> NDArray[np.bool_]:
        """``(B,)`` True where the bounds do not separate the top class, or not as far as the input was moved."""
        return (self.p_lower <= self.p_upper) | ((self.moved > 0.0) & (self.radius <= 0.0))

    @cached_property
    def prediction(self) -> NDArray[np.int64]:
        """``(B,)`` the certified class, ABSTAIN (-1) where there is none."""
        return np.where(self.abstained, ABSTAIN, self.top)

    @cached_property
    def radius(self) -> NDArray[np.float64]:
        """``(B,)`` certified radius, 0 where abstained; errs low; each is false with probability <= alpha."""
        pairs = zip(self.sigma, self.p_lower, self.p_upper, strict=True)
        found = np.array([self.certificate.radius(float(s), float(a), float(b)) for s, a, b in pairs])
        return np.where(self.moved > 0.0, np.maximum(0.0, np.nextafter(found - self.moved, -np.inf)), found)

    @property
    def samples(self) -> NDArray[np.int64]:
        """``(B,)`` noisy copies drawn for each input, pilot included."""
        return np.asarray(self.n0_counts.sum(1) + self.counts.sum(1))

    @property
    def reason(self) -> tuple[str, ...]:
        """``certified``, ``abstained``, or why sampling stopped before there was anything to certify."""
        pairs = zip(self.abstained, self.stopped, strict=True)
        return tuple((stopped or "abstained") if gone else "certified" for gone, stopped in pairs)

    def outcome(self, labels: ArrayLike) -> Outcome:
        """These certificates against the true classes ``(B,)``, for analysis."""
        return Outcome(correct=np.asarray(self.prediction == np.asarray(labels)), radius=self.radius)


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """Certificates held against labels.

    Attributes:
        correct: ``(B,)`` True where a certificate names the right class.   radius: ``(B,)`` certified radius.
    """

    correct: NDArray[np.bool_]
    radius: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Prediction(Evidence):
    """Answers of the smoothed classifier, without any statement about robustness."""

    @cached_property
    def prediction(self) -> NDArray[np.int64]:
        """``(B,)`` the smoothed classifier's class, or ABSTAIN (-1).

        Each differs from the smoothed classifier's true answer with probability at most ``alpha + n * tv``.
        """
        return np.array([top_if_clear(counts, self.alpha) for counts in self.counts], dtype=np.int64)

    @property
    def abstained(self) -> NDArray[np.bool_]:
        """``(B,)`` True where the two top classes could not be told apart."""
        return np.asarray(self.prediction == ABSTAIN)
