"""The score that every choice of sigma is judged by: the certified radius that its counts promise. Never a claim."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv

from ddsmoothing.certificate import Certificate
from ddsmoothing.claims.measurement import VOTES, WINS


def certified_scores(
    certificate: Certificate,
    hits: NDArray[np.floating | np.integer],
    samples: NDArray[np.floating | np.integer],
    sigma: NDArray[np.float64],
    n: int = 10_000,
    alpha: float = 0.001,
) -> NDArray[np.float64]:
    """Radius ``(B, G, C)`` that n samples would certify if each event had its share ``(k + .5)/(m + 1)`` of m samples.

    Args:
        hits: ``(B, G, C)`` k, how often an event happened: with a plurality vote that a class was given, with a
            pairwise one that it beat its strongest rival.
        samples: ``(B, G)`` m.
        sigma: ``(G,)`` or ``(B, G)``.
        n, alpha: of the certification to come.
    """
    share = (hits + 0.5) / (samples[..., None] + 1.0)
    lower = betaincinv(n * share, n * (1.0 - share) + 1.0, alpha)
    return certificate.estimate(np.broadcast_to(sigma[..., None], share.shape), np.asarray(lower, dtype=np.float64))


def supports(kind: str, counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """How often the event happened that each class's answer hangs on ``(.., K)``.

    Args:
        kind, counts: ``votes`` ``(.., K)``, which are it themselves; or ``duels`` ``(.., K, K)``: the fewest samples on
            which a class beat another one.
    """
    if kind == VOTES:
        return counts
    n = np.diagonal(counts, axis1=-2, axis2=-1).sum(-1)
    own = np.eye(counts.shape[-1], dtype=bool)
    return np.asarray(np.where(own, n[..., None, None], counts).min(-1))


def events(kind: str, counts: NDArray[np.int64], anchor: NDArray[np.int64]) -> NDArray[np.int64]:
    """``(B, W, K)`` how often each event happened that the answer ``anchor`` ``(B,)`` rests on.

    Args:
        kind, counts: ``votes`` ``(B, W, K)``, of which the anchor's stand for every event; ``wins``
            ``(B, W, 2, K)``; or ``duels`` ``(B, W, K, K)``.
    """
    rows = np.arange(len(counts))
    if kind == VOTES:
        return np.broadcast_to(counts[rows, :, anchor][..., None], counts.shape)
    if kind == WINS:
        return counts[:, :, 1]
    found = counts[rows, :, anchor]
    found[rows, :, anchor] = counts.trace(axis1=2, axis2=3)
    return found
