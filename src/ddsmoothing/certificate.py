"""Certificates: a noise and the theorem that turns bounds on class probabilities into a radius.

It knows neither models nor samples.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from ddsmoothing.bounds import normal_quantile_above, normal_quantile_below
from ddsmoothing.errors import InputError, unknown
from ddsmoothing.noise import Gaussian, Noise, Uniform


class Certificate(ABC):
    """A norm, the noise that certifies it, and the radius theorem. All balls are open."""

    norm: ClassVar[str]
    noise: ClassVar[Noise]

    @abstractmethod
    def radius(self, sigma: float, p_lower: float, p_upper: float) -> float:
        """A radius within which the smoothed class cannot change; errs low; 0 where nothing is certified.

        Args:
            sigma: standard deviation of the noise.   p_lower: lower bound on the top class.
            p_upper: upper bound on every other class; ``1 - p_lower`` (rounded up) for the one-class bound.
        """

    @abstractmethod
    def estimate(self, sigma: NDArray[np.float64], p: NDArray[np.float64]) -> NDArray[np.float64]:
        """The one-class radius (float64, no claim) if the top class had probability p; negative below one half."""


class L2Certificate(Certificate):
    """L2 balls from Gaussian noise: ``R = sigma/2 * (Phi^-1(pA) - Phi^-1(pB))``.

    References: Cohen, Rosenfeld, Kolter 2019, arXiv:1902.02918, Theorem 1.
    """

    norm = "l2"
    noise = Gaussian()

    def radius(self, sigma: float, p_lower: float, p_upper: float) -> float:
        gap = math.nextafter(normal_quantile_below(p_lower) - normal_quantile_above(p_upper), -math.inf)
        return max(0.0, math.nextafter(0.5 * sigma * gap, -math.inf))

    def estimate(self, sigma: NDArray[np.float64], p: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(sigma * ndtri(p))


class L1Certificate(Certificate):
    """L1 balls from uniform noise on ``[-lambda, lambda]``: ``R = lambda * (pA - pB)``, lambda = sqrt(3) sigma.

    References: Yang et al. 2020 (RS4A), arXiv:2002.08118. The 2021 package used ``lambda = sigma / sqrt(3)`` instead.
    """

    norm = "l1"
    noise = Uniform()

    def radius(self, sigma: float, p_lower: float, p_upper: float) -> float:
        gap = math.nextafter(p_lower - p_upper, -math.inf)
        return max(0.0, math.nextafter(self.noise.scale(sigma) * gap, -math.inf))

    def estimate(self, sigma: NDArray[np.float64], p: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(2.0 * math.sqrt(3.0) * sigma * (p - 0.5))


CERTIFICATES: Final[dict[str, type[Certificate]]] = {"l2": L2Certificate, "l1": L1Certificate}


def certificate_for(norm: str) -> Certificate:
    """The certificate of a norm named ``l2`` or ``l1``."""
    if norm not in CERTIFICATES:
        raise InputError(unknown("norm", norm, CERTIFICATES))
    return CERTIFICATES[norm]()
