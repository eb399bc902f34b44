"""The score that every choice of sigma is judged by: the certified radius that its counts promise. Never a claim."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv

from ddsmoothing.certificate import Certificate


def certified_scores(
    certificate: Certificate,
    counts: NDArray[np.floating | np.integer],
    sigma: NDArray[np.float64],
    n: int = 10_000,
    alpha: float = 0.001,
) -> NDArray[np.float64]:
    """Radius ``(B, G, K)`` that n samples would certify if each class had its share ``(k + .5)/(m + 1)`` of m samples.

    Args:
        counts: ``(B, G, K)``.   sigma: ``(G,)`` or ``(B, G)``.   n, alpha: of the certification to come.
    """
    share = (counts + 0.5) / (counts.sum(2, keepdims=True) + 1.0)
    lower = betaincinv(n * share, n * (1.0 - share) + 1.0, alpha)
    return certificate.estimate(np.broadcast_to(sigma[..., None], share.shape), lower)
