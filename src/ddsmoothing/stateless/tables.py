"""Fitting a pair table by coordinate ascent on counts, and what it does beside every fixed sigma."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from ddsmoothing.bounds import clopper_pearson_lower
from ddsmoothing.claims import PairTable
from ddsmoothing.classifier import SmoothedClassifier
from ddsmoothing.counting.contract import Progress
from ddsmoothing.errors import InputError
from ddsmoothing.stateless.certify import PILOT, certify_stateless
from ddsmoothing.stateless.counts import OwnPhis, Split, split_for
from ddsmoothing.stateless.figures import figures
from ddsmoothing.stateless.files import DIGITS, Figures, Fixed, PairsFile
from ddsmoothing.stateless.offsets import ascended, held_out_figures, worth

MOST_GROUPS: Final = 24  # of classes; with more classes, confused ones share a row of the table
SWEEPS: Final = 8


def fit_pairs(
    smoothed: SmoothedClassifier,
    x: torch.Tensor,
    y: ArrayLike,
    *,
    sigmas: Sequence[float],
    favour_accuracy: float = 1.0,
    with_offsets: bool = False,
    n: int = 128,
    samples: int = 2_000,
    n0: int = PILOT,
    alpha: float = 0.001,
    seed: int | None = None,
    ids: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> PairsFile:
    """Fit one sigma for each pair of classes, or of groups of confused classes where there are many.

    What is made large is that of ``fit_offsets``, in units of the best fixed sigma, from which the ascent starts. A
    table costs samples: its class comes from a pilot at every sigma, and its row's sigmas share what is left. So the
    figures hold it against each fixed sigma at EQUAL TOTAL forward passes.

    Args:
        smoothed: the classifier, with a pairwise vote and without offsets.
        x: ``(B, ...)`` as for ``certify``: training or validation inputs, none that will be certified.
        y: ``(B,)`` true classes.
        sigmas: the finite set, standard deviations in the units of x.
        favour_accuracy: weight of accuracy against the mean radius, at least 0: it trades one for the other.
        with_offsets: fit class offsets as well, for the table and for each fixed sigma.
        n: samples an input and sigma, for fitting.
        samples: total forward passes an input of the certificates behind the figures.
        n0: of these, at each sigma, those that choose the class.
        alpha: failure probability of each of these certificates.
        seed: of the noise; None takes one from the operating system.
        ids: noise keys; None takes positions.
        progress: called with samples done.
    Returns: the table with its figures and those of every fixed sigma; save it by ``save_fit``.
    Raises: InputError, ShapeError, SigmaError, InfeasibleError.
    """
    split = split_for(
        "a pair table is", smoothed, x, y, favour_accuracy=favour_accuracy, n=n, alpha=alpha, seed=seed, ids=ids
    )
    count = len(set(sigmas))
    if count < 2 or samples <= count * n0:
        raise InputError(
            f"got {count} sigmas and {samples} samples, expected at least 2 sigmas and more samples than the {n0} at "
            "each that choose the class; raise samples, or lower n0."
        )
    own = split.own_phis(smoothed, x, sigmas, n, progress)
    scales = [smoothed.certificate.noise.scale(sigma) for sigma in own.sigmas]
    groups = confused(own, smoothed.num_classes)
    best = max(range(count), key=lambda k: worth(own.phi[:, k].min(1), float(own.caps[k]), scales[k], favour_accuracy))
    slots = table_ascended(own, groups, best, scales[best], favour_accuracy)

    def offsets_for(table: NDArray[np.int64], scale: float) -> tuple[float, ...] | None:
        if not with_offsets:
            return None
        phi = own.phi[np.arange(len(own.y))[:, None], table[groups[own.y]][:, groups], np.arange(len(groups))]
        return ascended(phi, own.y, float(own.caps.max()), scale, favour_accuracy, smoothed.num_classes)

    largest = np.array(clopper_pearson_lower(samples, samples, alpha))
    cap, fixed = float(smoothed.certificate.estimate(np.array(own.sigmas[-1]), largest)), []
    for k, sigma in enumerate(own.sigmas):
        offsets = offsets_for(np.full_like(slots, k), scales[k])
        used, fresh = smoothed.with_offsets(offsets), samples - n0
        found = held_out_figures(used, x, split, sigma, fresh, alpha, n0=n0, cap=cap, unit=scales[best])
        fixed.append(Fixed(sigma=sigma, offsets=offsets, figures=found))
    table = PairTable(
        sigmas=own.sigmas,
        slots=tuple(map(tuple, slots.tolist())),
        groups=tuple(groups.tolist()),
        offsets=offsets_for(slots, scales[best]),
        norm=smoothed.certificate.norm,
    )
    shown = _held_out(smoothed, x, split, table, samples, n0, alpha, cap, scales[best])
    return PairsFile(
        norm=smoothed.certificate.norm,
        n=n,
        alpha=alpha,
        samples=samples,
        seed=split.seed,
        favour_accuracy=favour_accuracy,
        inputs=tuple(sorted(digest[:DIGITS] for digest in own.sha256)),
        held_out=int(split.held.sum()),
        sigmas=table.sigmas,
        slots=table.slots,
        groups=table.groups,
        offsets=table.offsets,
        figures=shown,
        fixed=tuple(fixed),
        pays=not any(one.figures.acr >= shown.acr and one.figures.accuracy >= shown.accuracy for one in fixed),
    )


def _held_out(
    smoothed: SmoothedClassifier,
    x: torch.Tensor,
    split: Split,
    table: PairTable,
    samples: int,
    n0: int,
    alpha: float,
    cap: float,
    unit: float,
) -> Figures:
    n = samples - n0 * len(table.sigmas)
    ids = split.ids[split.held].tolist()
    result = certify_stateless(smoothed, x[split.out], table, n0=n0, n=n, alpha=alpha, seed=split.seed, ids=ids)
    return figures(split.y[split.held], result, cap=cap, unit=unit, num_classes=smoothed.num_classes)


def confused(own: OwnPhis, num_classes: int) -> NDArray[np.int64]:
    """``(K,)`` the group of each class: its own, or with many classes that of those it is confused with."""
    if num_classes <= MOST_GROUPS:
        return np.arange(num_classes)
    far = float(own.caps.max())
    apart = np.full((num_classes, num_classes), far)
    for c in np.unique(own.y):
        apart[c] = np.minimum(own.phi[own.y == c].mean(1).mean(0), far)
    apart = (apart + apart.T) / 2.0
    apart -= apart.min()
    np.fill_diagonal(apart, 0.0)
    found = fcluster(linkage(squareform(apart, checks=False), "average"), MOST_GROUPS, "maxclust")
    return np.unique(found, return_inverse=True)[1].astype(np.int64)


def table_ascended(
    own: OwnPhis, groups: NDArray[np.int64], start: int, scale: float, favour_accuracy: float
) -> NDArray[np.int64]:
    """``(G, G)`` a symmetric table of indices of sigmas, from one of them everywhere."""
    size, cap = int(groups.max()) + 1, float(own.caps.max())
    slots = np.full((size, size), start, dtype=np.int64)
    margins = own.phi[:, start].copy()
    least = margins.min(1)
    best = worth(least, cap, scale, favour_accuracy)
    of_row = groups[own.y]
    for _ in range(SWEEPS):
        before = best
        for g in range(size):
            for h in range(g, size):
                rows = np.flatnonzero((of_row == g) | (of_row == h))
                other = np.where(of_row[rows] == g, h, g)
                mine = groups[None] == other[:, None]
                for k in range(len(own.sigmas)):
                    if k == slots[g, h]:
                        continue
                    trial, mins = np.where(mine, own.phi[rows, k], margins[rows]), least.copy()
                    mins[rows] = trial.min(1)
                    value = worth(mins, cap, scale, favour_accuracy)
                    if value > best + 1e-9:
                        best, least, margins[rows] = value, mins, trial
                        slots[g, h] = slots[h, g] = k
        if best <= before:
            break
    return slots
