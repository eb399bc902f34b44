"""Statements about a data set: certified accuracy, ACR, and their intervals.

Pure numpy: it knows no files and no models. Everything takes per-input arrays that hold ALL inputs of a run; an input
that abstained or was answered wrongly counts as one that is not certified. A run knows the labels; results that do not,
such as a Certification, are judged by ``labels``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binom

from ddsmoothing.bounds import check_alpha, clopper_pearson_lower, clopper_pearson_upper
from ddsmoothing.errors import InputError
from ddsmoothing.labels import checked_labels
from ddsmoothing.plan import SAMPLERS

RADII = (0.0, 0.25, 0.5, 0.75, 1.0)
CONFIDENCE = 0.95
RESAMPLES = 2000


class Certified(Protocol):
    """Anything with one certificate an input that knows the labels, such as a Run."""

    @property
    def correct(self) -> NDArray[np.bool_]:
        """``(B,)`` True where a certificate names the right class."""

    @property
    def radius(self) -> NDArray[np.float64]:
        """``(B,)`` certified radius."""


class Unlabelled(Protocol):
    """Anything with one certificate an input that knows no labels, such as a Certification."""

    @property
    def prediction(self) -> NDArray[np.int64]:
        """``(B,)`` certified class, -1 where there is none."""

    @property
    def radius(self) -> NDArray[np.float64]:
        """``(B,)`` certified radius."""


Judged = Certified | Unlabelled


def correct_of(results: Judged, labels: ArrayLike | None = None) -> NDArray[np.bool_]:
    """Where a certificate names the right class.

    Args:
        results: Certificates of B inputs.
        labels: ``(B,)`` true classes, for results that do not know them.
    Returns:
        ``(B,)``.
    Raises:
        InputError: Labels are missing, not one for each input, or no classes.
    """
    if labels is None:
        if not hasattr(results, "correct"):
            raise InputError(f"{type(results).__name__} holds no labels; give the true classes, labels=y.")
        return np.asarray(results.correct)
    if not hasattr(results, "prediction"):
        raise InputError(f"{type(results).__name__} holds no classes to compare with labels; leave labels out.")
    answers = np.asarray(results.prediction)
    return np.asarray(answers == checked_labels(labels, len(answers)))  # abstentions are below every label


def certified_accuracy(
    results: Judged, radii: ArrayLike = RADII, labels: ArrayLike | None = None
) -> NDArray[np.float64]:
    """Share of all inputs with a certificate of the right class and radius at least r.

    Args:
        results: A Run, or a Certification with its labels.
        radii: ``(R,)`` in the units of the input.
        labels: ``(B,)`` true classes, for results that do not know them.
    Returns:
        ``(R,)`` in [0, 1].
    Raises:
        InputError: Labels are missing, or not one for each input.
    References:
        Cohen et al. 2019, arXiv:1902.02918, section 4 (approximate certified test set accuracy).
    """
    correct = correct_of(results, labels)
    held = np.sort(np.asarray(results.radius)[correct])
    return (len(held) - np.searchsorted(held, np.asarray(radii, dtype=np.float64), side="left")) / len(correct)


def share_interval(hits: int, total: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Clopper-Pearson interval of a share, for the population the inputs were drawn from; its ends err outwards."""
    tail = check_alpha((1.0 - confidence) / 2.0)
    return clopper_pearson_lower(hits, total, tail), clopper_pearson_upper(hits, total, tail)


def certified_accuracy_interval(
    results: Judged, radii: ArrayLike = RADII, confidence: float = CONFIDENCE, labels: ArrayLike | None = None
) -> NDArray[np.float64]:
    """Clopper-Pearson interval ``(R, 2)`` for the population the inputs were drawn from; it ignores alpha."""
    total = len(results.radius)
    hits = np.round(np.atleast_1d(certified_accuracy(results, radii, labels)) * total).astype(int)
    return np.array([share_interval(int(k), total, confidence) for k in hits])


def certified_wrong(results: Judged, labels: ArrayLike | None = None) -> float:
    """Share of all inputs with a certificate, of a radius above 0, that names a wrong class."""
    return float(np.mean(~correct_of(results, labels) & (np.asarray(results.radius) > 0.0)))


def envelope(results: Sequence[Certified], radii: ArrayLike = RADII) -> NDArray[np.float64]:
    """The largest certified accuracy ``(R,)`` that any of several results on the same inputs has at each radius.

    Different radii may take it from different classifiers, so no single classifier need attain it.
    """
    best: NDArray[np.float64] = np.max([certified_accuracy(one, radii) for one in results], axis=0)
    return best


def held_radius(results: Judged, labels: ArrayLike | None = None) -> NDArray[np.float64]:
    """``(B,)`` radius where a certificate names the right class, else 0: what ACR is the mean of."""
    return np.where(correct_of(results, labels), results.radius, 0.0)


def acr(results: Judged, labels: ArrayLike | None = None) -> float:
    """Average certified radius: the mean over ALL inputs of radius where correct, else 0.

    Args:
        results: A Run, or a Certification with its labels.
        labels: ``(B,)`` true classes, for results that do not know them.
    Returns:
        In the units of the input.
    Raises:
        InputError: The run stopped sampling at a wanted radius; or labels are missing.
    References:
        Zhai et al. 2020 (MACER), arXiv:2001.02378.
    """
    sampler = SAMPLERS.get(getattr(results, "sampler", ""))
    if getattr(results, "stops_at_radius", sampler is not None and sampler.adaptive_radius):
        raise InputError("this run stopped sampling at a wanted radius, so its average radius means nothing.")
    return float(np.mean(held_radius(results, labels)))


def acr_interval(
    results: Judged, confidence: float = CONFIDENCE, labels: ArrayLike | None = None
) -> tuple[float, float]:
    """Percentile bootstrap interval of ACR over inputs (asymptotic); the resampling is fixed, so it is reproducible."""
    values = held_radius(results, labels)
    rng = np.random.default_rng(0)
    means = [values[rng.integers(0, len(values), len(values))].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [(1.0 - confidence) / 2.0, (1.0 + confidence) / 2.0])
    return float(low), float(high)


def failures_at_most(n: int, alpha: float, rho: float) -> int:
    """The smallest q with ``P[Bin(n, alpha) > q] <= rho``.

    With probability at least ``1 - rho`` at most q of n independent certificates are false, so the true certified
    accuracy of these n inputs is at least the empirical one minus q/n.
    """
    q = max(0, int(binom.isf(rho, n, alpha)) - 2)
    while binom.sf(q, n, alpha) > rho:
        q += 1
    return q


def certified_accuracy_of_inputs(results: Certified, radii: ArrayLike, alpha: float, rho: float) -> NDArray[np.float64]:
    """A lower bound ``(R,)``, with probability ``1 - rho``, on the true certified accuracy of exactly these inputs."""
    total = len(results.correct)
    return np.maximum(0.0, certified_accuracy(results, radii) - failures_at_most(total, alpha, rho) / total)


def closed_form_loss(n: int, alpha: float, rho: float) -> float:
    """What the empirical certified accuracy of n inputs may exceed the true one by, with probability ``1 - rho``.

    ``alpha + sqrt(2 alpha (1 - alpha) ln(1/rho) / n) + ln(1/rho) / (3n)`` (Bernstein); never below the exact q/n.
    """
    log = math.log(1.0 / rho)
    return alpha + math.sqrt(2.0 * alpha * (1.0 - alpha) * log / n) + log / (3.0 * n)


def certified_accuracy_of_population(
    results: Certified, radii: ArrayLike, alpha: float, rho: float
) -> NDArray[np.float64]:
    """A lower bound ``(R,)``, with probability ``1 - rho``, for the population: ``CP_lower(hits, n, rho) - alpha``."""
    total = len(results.correct)
    hits = np.round(np.atleast_1d(certified_accuracy(results, radii)) * total).astype(int)
    return np.array([max(0.0, clopper_pearson_lower(int(k), total, rho) - alpha) for k in hits])
