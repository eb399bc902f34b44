"""Wins of each input's own class against every other one, at all sigmas at once, for fitting. Never a claim.

All sigmas see the same noise, scaled, so that what differs between them is sigma and not luck.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ddsmoothing.bounds import check_alpha, check_count
from ddsmoothing.claims import Pairwise
from ddsmoothing.classifier import SmoothedClassifier
from ddsmoothing.counting.contract import WINS, Progress, Request
from ddsmoothing.errors import InputError
from ddsmoothing.inputs import check_sigma
from ddsmoothing.labels import checked_labels
from ddsmoothing.streams import SLOT_BLOCKS, Stream, checked_seed

HELD_OUT: Final = 4  # every so many-th input is not fitted on
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
    labels = checked_labels(y, len(x), smoothed.num_classes)
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


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """What every fit begins with: B inputs, of which every HELD_OUT-th is not fitted on.

    Attributes:
        y: ``(B,)`` true classes.   ids: ``(B,)`` noise keys.   held: ``(B,)`` whether an input is held out.
        seed: of the noise.
    """

    y: NDArray[np.int64]
    ids: NDArray[Any]
    held: NDArray[np.bool_]
    seed: int

    @property
    def out(self) -> torch.Tensor:
        """Positions of the inputs that are held out."""
        return torch.from_numpy(np.flatnonzero(self.held))

    def own_phis(
        self,
        smoothed: SmoothedClassifier,
        x: torch.Tensor,
        sigmas: Sequence[float],
        n: int,
        progress: Progress | None = None,
    ) -> OwnPhis:
        """Of the other inputs."""
        kept = ~self.held
        at = torch.from_numpy(np.flatnonzero(kept))
        return own_phis(smoothed, x[at], self.y[kept], sigmas, n, self.seed, self.ids[kept].tolist(), progress)


def split_for(
    what: str,
    smoothed: SmoothedClassifier,
    x: torch.Tensor,
    y: ArrayLike,
    *,
    favour_accuracy: float,
    n: int,
    alpha: float,
    seed: int | None,
    ids: Sequence[int] | None,
) -> Split:
    """Check what every fit is given, and hold some inputs out; arguments as for ``fit_offsets``.

    Args:
        what: is fitted.
    """
    check_count(n, "n")
    check_alpha(alpha)
    if smoothed.vote != Pairwise.vote or smoothed.offsets is not None:
        got = f"a {smoothed.vote} vote with{'out' if smoothed.offsets is None else ''} offsets"
        raise InputError(f"{what} fitted to a pairwise vote without offsets, got {got}.")
    if not 0.0 <= favour_accuracy < np.inf:
        raise InputError(f"favour_accuracy is {favour_accuracy}, expected a number of at least 0.")
    if len(x) < HELD_OUT:
        raise InputError(f"got {len(x)} inputs, expected at least {HELD_OUT}: every fourth one is held out.")
    return Split(
        y=checked_labels(y, len(x), smoothed.num_classes),
        ids=np.asarray(range(len(x)) if ids is None else ids),
        held=np.arange(len(x)) % HELD_OUT == HELD_OUT - 1,
        seed=checked_seed(seed),
    )
