"""Fitting class offsets by coordinate ascent on counts, and what they do to held-out inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ddsmoothing.bounds import check_alpha, check_count, clopper_pearson_lower
from ddsmoothing.claims import Pairwise
from ddsmoothing.classifier import SmoothedClassifier
from ddsmoothing.counting.contract import Progress
from ddsmoothing.errors import InputError
from ddsmoothing.plan import N0
from ddsmoothing.stateless.counts import checked_labels, own_phis
from ddsmoothing.stateless.figures import MULTIPLES, figures
from ddsmoothing.stateless.files import DIGITS, Figures, OffsetsFile
from ddsmoothing.streams import checked_seed

HELD_OUT: Final = 4  # every so many-th input is not fitted on
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
    check_count(n, "n")
    check_alpha(alpha)
    if smoothed.vote != Pairwise.vote or smoothed.offsets is not None:
        raise InputError("offsets are fitted to a pairwise vote without offsets.")
    if not 0.0 <= favour_accuracy < np.inf:
        raise InputError(f"favour_accuracy is {favour_accuracy}, expected a number of at least 0.")
    if len(x) < HELD_OUT:
        raise InputError(f"got {len(x)} inputs, expected at least {HELD_OUT}: every fourth one is held out.")
    labels = checked_labels(y, x, smoothed.num_classes)
    seed = checked_seed(seed)
    keys = np.asarray(range(len(x)) if ids is None else ids)
    held = np.arange(len(x)) % HELD_OUT == HELD_OUT - 1
    kept, out = torch.from_numpy(np.flatnonzero(~held)), torch.from_numpy(np.flatnonzero(held))
    own = own_phis(smoothed, x[kept], labels[~held], [sigma], n, seed, keys[~held].tolist(), progress)
    scale = smoothed.certificate.noise.scale(sigma)
    found = ascended(own.phi[:, 0], own.y, float(own.caps[0]), scale, favour_accuracy, smoothed.num_classes)

    def figures_of(offsets: tuple[float, ...] | None) -> Figures:
        return held_out_figures(
            smoothed.with_offsets(offsets), x[out], labels[held], sigma, samples, alpha, seed, keys[held]
        )

    return OffsetsFile(
        norm=smoothed.certificate.norm,
        n=n,
        alpha=alpha,
        samples=samples,
        seed=seed,
        favour_accuracy=favour_accuracy,
        inputs=tuple(sorted(digest[:DIGITS] for digest in own.sha256)),
        held_out=int(held.sum()),
        sigma=sigma,
        offsets=found,
        without=figures_of(None),
        figures=figures_of(found),
    )


def held_out_figures(
    smoothed: SmoothedClassifier,
    x: torch.Tensor,
    y: NDArray[np.int64],
    sigma: float,
    samples: int,
    alpha: float,
    seed: int,
    ids: NDArray[np.int64],
    *,
    n0: int = N0,
    cap: float | None = None,
    unit: float | None = None,
) -> Figures:
    """Figures of certificates of these inputs, with the noise that every other classifier gets."""
    result = smoothed.certify(x, sigma, n0=n0, n=samples, alpha=alpha, seed=seed, ids=ids.tolist())
    largest = np.array(clopper_pearson_lower(samples, samples, alpha))
    own_cap = float(smoothed.certificate.estimate(np.array(sigma), largest))
    return figures(
        y,
        result.prediction,
        result.radius,
        cap=own_cap if cap is None else cap,
        radii=tuple(m * (unit or smoothed.certificate.noise.scale(sigma)) for m in MULTIPLES),
        num_classes=smoothed.num_classes,
        forwards=float(result.samples.mean()),
    )


def ascended(
    phi: NDArray[np.float32],
    y: NDArray[np.int64],
    cap: float,
    scale: float,
    favour_accuracy: float,
    num_classes: int,
    start: NDArray[np.float64] | None = None,
) -> tuple[float, ...]:
    """Offsets by coordinate ascent, their mean 0.

    Args:
        phi: ``(B, K)`` of "the true class beats b", infinite for itself.   y: ``(B,)``.   cap: on radii.
        scale: sigma, or lambda for L1.
    """
    beta, rows = np.zeros(num_classes) if start is None else start.copy(), np.arange(len(y))

    def worth(margin: NDArray[np.float64]) -> float:
        return float(((np.minimum(margin, cap) / scale + favour_accuracy) * (margin > 0.0)).mean())

    margins = phi - beta + beta[y][:, None]
    best = worth(margins.min(1))
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
                    trials.append((worth(moved), move))
                value, move = max(trials)
                if value > best + 1e-12:
                    best = value
                    beta[c] += move
                    margins = phi - beta + beta[y][:, None]
            if best <= before:
                break
    return tuple(float(f"{value:.6f}") for value in beta - beta.mean())
