"""Wins of each input's own class against every other one, at all sigmas at once, for fitting. Never a claim.

All sigmas see the same noise, scaled, so that what differs between them is sigma and not luck.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ddsmoothing.classifier import SmoothedClassifier
from ddsmoothing.counting.contract import WINS, Progress, Request
from ddsmoothing.errors import InputError, ShapeError
from ddsmoothing.inputs import check_sigma
from ddsmoothing.streams import SLOT_BLOCKS, Stream

FIT_SLOT = 2**16  # far beyond the rounds of a search, whose stream this is
GROUP = 64  # inputs made ready at once


@dataclass(frozen=True, kw_only=True, eq=False)
class OwnPhis:
    """What fitting looks at; B inputs, S sigmas, K classes.

    Attributes:
        phi: ``(B, S, K)`` float32, estimated phi of "the true class beats b"; infinite for the true class itself.
        y: ``(B,)`` true classes.   sigmas: ascending.   n: samples an input and sigma.
        caps: ``(S,)`` the largest phi that n samples can show.   sha256: of each input.
    """

    phi: NDArray[np.float32]
    y: NDArray[np.int64]
    sigmas: tuple[float, ...]
    n: int
    caps: NDArray[np.float64]
    sha256: tuple[str, ...]


def checked_labels(y: ArrayLike, x: torch.Tensor, num_classes: int) -> NDArray[np.int64]:
    """Labels ``(B,)``, one for each input and of these classes, else ShapeError or InputError."""
    found = np.asarray(y, dtype=np.int64)
    if found.shape != (len(x),):
        raise ShapeError(f"got labels of shape {found.shape} for {len(x)} inputs, expected one each.")
    if not ((found >= 0) & (found < num_classes)).all():
        raise InputError(f"labels go from {found.min()} to {found.max()}, expected classes 0 to {num_classes - 1}.")
    return found


def own_phis(
    smoothed: SmoothedClassifier,
    x: torch.Tensor,
    y: ArrayLike,
    sigmas: Sequence[float],
    n: int,
    seed: int,
    ids: Sequence[int],
    progress: Progress | None = None,
) -> OwnPhis:
    """Count n samples of each input at each sigma; arguments as for ``fit_offsets``."""
    labels = checked_labels(y, x, smoothed.num_classes)
    scales = tuple(sorted(set(check_sigma(np.asarray(sigmas), len(sigmas)).tolist())))
    phi = np.empty((len(x), len(scales), smoothed.num_classes), dtype=np.float32)
    digests: list[str] = []
    for start in range(0, len(x), GROUP):
        batch = smoothed.prepare(x[start : start + GROUP], list(ids[start : start + GROUP]))
        digests += batch.sha256
        requests = [
            Request(
                row=row,
                sigma=sigma,
                stream=Stream.SEARCH,
                n=n,
                first_block=FIT_SLOT * SLOT_BLOCKS,
                tally=WINS,
                anchor=int(labels[start + row]),
            )
            for row in range(len(batch))
            for sigma in scales
        ]
        wins = np.stack([counts[1] for counts in smoothed.count(batch, requests, seed, progress)])
        shares = (wins.reshape(len(batch), len(scales), -1) + 0.5) / (n + 1.0)
        at = np.broadcast_to(np.array(scales)[:, None], shares.shape)
        phi[start : start + len(batch)] = smoothed.certificate.estimate(at, shares)
    phi[np.arange(len(x)), :, labels] = np.inf
    caps = smoothed.certificate.estimate(np.array(scales), np.full(len(scales), (n + 0.5) / (n + 1.0)))
    return OwnPhis(phi=phi, y=labels, sigmas=scales, n=n, caps=caps, sha256=tuple(digests))
