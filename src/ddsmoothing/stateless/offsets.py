"""Fitting class offsets by coordinate ascent on counts, and what they do to held-out inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ddsmoothing.bounds import clopper_pearson_lower
from ddsmoothing.classifier import SmoothedClassifier
from ddsmoothing.counting.contract import Progress
from ddsmoothing.plan import N0
from ddsmoothing.stateless.counts import Split, split_for
from ddsmoothing.stateless.figures import figures
from ddsmoothing.stateless.files import DIGITS, Figures, OffsetsFile

STEPS: Final = (0.5, 0.2, 0.1, 0.05, 0.02)  # of sigma (lambda for L1), tried one after the other
SWEEPS: Final = 20  # through all classes with one step, at most


def fit_offsets(
    smoothed: SmoothedClassifier,
    x: torch.Tensor,
    y: ArrayLike,
    *,
    sigma: float,
    favour_accuracy: float = 1.0,
    n: int = 128,
    samples: int = 1000,
    alpha: float = 0.001,
    seed: int | None = None,
    ids: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> OffsetsFile:
    """Fit class offsets of a pairwise vote at one sigma.

    The mean radius has no bound in the offsets, so that radii count up to the largest one without offsets, and accuracy
    is part of what is made large: ``mean(min(R, cap)) / noise + favour_accuracy * accuracy``, over the inputs whose
    class wins. Three of four inputs are fitted on; the figures are of certificates of the fourth.

    Args:
        smoothed: the classifier, with a pairwise vote and without offsets.
        x: ``(B, ...)`` as for ``certify``: training or validation inputs, none that will be certified.
        y: ``(B,)`` true classes.
        sigma: standard deviation of the noise, in the units of x.
        favour_accuracy: weight of accuracy against the mean radius in units of sigma (lambda for L1), at least 0.
        n: samples an input, for fitting.
        samples: samples an input of the certificates behind the figures; 100 more choose the class.
        alpha: failure probability of each of these certificates.
        seed: of the noise; None takes one from the operating system.
        ids: noise keys; None takes positions.
        progress: called with samples done.
    Returns: offsets with their figures and those without; save them by ``save_fit``.
    Raises: InputError, ShapeError, SigmaError, InfeasibleError.
    """
    split = split_for(
        "offsets are", smoothed, x, y, favour_accuracy=favour_accuracy, n=n, alpha=alpha, seed=seed, ids=ids
    )
    own = split.own_phis(smoothed, x, [sigma], n, progress)
    scale = smoothed.certificate.noise.scale(sigma)
    found = ascended(own.phi[:, 0], own.y, float(own.caps[0]), scale, favour_accuracy, smoothed.num_classes)

    def figures_of(offsets: tuple[float, ...] | None) -> Figures:
        return held_out_figures(smoothed.with_offsets(offsets), x, split, sigma, samples, alpha)

    return OffsetsFile(
        norm=smoothed.certificate.norm,
        n=n,
        alpha=alpha,
        samples=samples,
        seed=split.seed,
        favour_accuracy=favour_accuracy,
        inputs=tuple(sorted(digest[:DIGITS] for digest in own.sha256)),
        held_out=int(split.held.sum()),
        sigma=sigma,
        offsets=found,
        without=figures_of(None),
        figures=figures_of(found),
    )


def held_out_figures(
    smoothed: SmoothedClassifier,
    x: torch.Tensor,
    split: Split,
    sigma: float,
    samples: int,
    alpha: float,
    *,
    n0: int = N0,
    cap: float | None = None,
    unit: float | None = None,
) -> Figures:
    """Figures of certificates of the held-out inputs, with the noise that every other classifier gets."""
    ids = split.ids[split.held].tolist()
    result = smoothed.certify(x[split.out], sigma, n0=n0, n=samples, alpha=alpha, seed=split.seed, ids=ids)
    largest = np.array(clopper_pearson_lower(samples, samples, alpha))
    own_cap = float(smoothed.certificate.estimate(np.array(sigma), largest))
    return figures(
        split.y[split.held],
        result,
        cap=own_cap if cap is None else cap,
        unit=unit or smoothed.certificate.noise.scale(sigma),
        num_classes=smoothed.num_classes,
    )


def worth(margins: NDArray[np.floating[Any]], cap: float, scale: float, favour_accuracy: float) -> float:
    """What a fit makes large, of ``(B,)`` margins of the true class; see ``fit_offsets``."""
    return float(((np.minimum(margins, cap) / scale + favour_accuracy) * (margins > 0.0)).mean())


def ascended(
    phi: NDArray[np.float32],
    y: NDArray[np.int64],
    cap: float,
    scale: float,
    favour_accuracy: float,
    num_classes: int,
) -> tuple[float, ...]:
    """Offsets by coordinate ascent, their mean 0.

    Args:
        phi: ``(B, K)`` of "the true class beats b", infinite for itself.   y: ``(B,)``.   cap: on radii.
        scale: sigma, or lambda for L1.
    """
    beta, rows = np.zeros(num_classes), np.arange(len(y))

    def worth_of(margin: NDArray[np.floating[Any]]) -> float:
        return worth(margin, cap, scale, favour_accuracy)

    margins = phi - beta + beta[y][:, None]
    best = worth_of(margins.min(1))
    for step in STEPS:
        for _ in range(SWEEPS):
            before = best
            for c in range(num_classes):
                first = margins.argmin(1)
                rest = margins.min(1)
                hit = np.flatnonzero(first == c)
                others = margins[hit].copy()
                others[:, c] = np.inf
                rest[hit] = others.min(1)
                trials = []
                for move in (-step * scale, step * scale):
                    moved = np.where(y == c, margins[rows, first] + move, np.minimum(rest, margins[:, c] - move))
                    trials.append((worth_of(moved), move))
                value, move = max(trials)
                if value > best + 1e-12:
                    best = value
                    beta[c] += move
                    margins = phi - beta + beta[y][:, None]
            if best <= before:
                break
    return tuple(float(f"{value:.6f}") for value in beta - beta.mean())
