"""Certificates: a noise and the theorem that turns bounds on class probabilities into a radius.

It knows neither models nor samples. What a gradient climbs is in ``surrogate``; one class a norm has both, as in 2021.
"""

from __future__ import annotations

import math
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from ddsmoothing.bounds import normal_quantile_above, normal_quantile_below
from ddsmoothing.errors import InputError, unknown
from ddsmoothing.noise import Gaussian, Noise, Uniform
from ddsmoothing.surrogate import GaussianSurrogate, Surrogate, UniformSurrogate


class Certificate(Surrogate):
    """A norm, the noise that certifies it, and the radius theorem. All balls are open.

    It is not abstract: a subclass for the ascent alone needs ``sample_noise`` and ``compute_radius_estimate`` only, as
    in 2021.
    """

    norm: ClassVar[str]
    noise: ClassVar[Noise]

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def radius(self, sigma: float, p_lower: float, p_upper: float) -> float:
        """A radius within which the smoothed class cannot change; errs low; 0 where nothing is certified.

        Args:
            sigma: standard deviation of the noise.
            p_lower: lower bound on the top class.
            p_upper: upper bound on every other class; ``1 - p_lower`` (rounded up) for the one-class bound.
        """
        raise NotImplementedError

    def phi(self, sigma: float, p_lower: float) -> float:
        """A lower bound on an event's phi, which moves by at most the distance that the input moves; see ``claims``.

        It is negative below one half. Errs low; ``-inf`` where nothing is known of the event.

        Args:
            sigma: standard deviation of the noise.
            p_lower: lower bound on the event's probability.
        """
        raise NotImplementedError

    def estimate(self, sigma: NDArray[np.float64], p: NDArray[np.float64]) -> NDArray[np.float64]:
        """The one-class radius (float64, no claim) if the top class had probability p; negative below one half."""
        raise NotImplementedError


class L2Certificate(GaussianSurrogate, Certificate):
    """L2 balls from Gaussian noise: ``R = sigma/2 * (Phi^-1(pA) - Phi^-1(pB))``.

    References: Cohen, Rosenfeld, Kolter 2019, arXiv:1902.02918, Theorem 1.
    """

    norm = "l2"
    noise = Gaussian()

    def radius(self, sigma: float, p_lower: float, p_upper: float) -> float:
        gap = math.nextafter(normal_quantile_below(p_lower) - normal_quantile_above(p_upper), -math.inf)
        return max(0.0, math.nextafter(0.5 * sigma * gap, -math.inf))

    def phi(self, sigma: float, p_lower: float) -> float:
        return math.nextafter(sigma * normal_quantile_below(p_lower), -math.inf)

    def estimate(self, sigma: NDArray[np.float64], p: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(sigma * ndtri(p))


class L1Certificate(UniformSurrogate, Certificate):
    """L1 balls from uniform noise on ``[-lambda, lambda]``: ``R = lambda * (pA - pB)``, lambda = sqrt(3) sigma.

    References: Yang et al. 2020 (RS4A), arXiv:2002.08118. The 2021 scripts used ``lambda = sigma / sqrt(3)`` instead.
    """

    norm = "l1"
    noise = Uniform()

    def radius(self, sigma: float, p_lower: float, p_upper: float) -> float:
        gap = math.nextafter(p_lower - p_upper, -math.inf)
        return max(0.0, math.nextafter(self.noise.scale(sigma) * gap, -math.inf))

    def phi(self, sigma: float, p_lower: float) -> float:
        gap = math.nextafter(p_lower - 0.5, -math.inf)
        return math.nextafter(2.0 * self.noise.scale(sigma) * gap, -math.inf)

    def estimate(self, sigma: NDArray[np.float64], p: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(2.0 * math.sqrt(3.0) * sigma * (p - 0.5))


CERTIFICATES: Final[dict[str, type[Certificate]]] = {"l2": L2Certificate, "l1": L1Certificate}


def checked_certificate(certificate: object) -> Certificate:
    """A certificate as it is, or that of a norm's name; InputError where it is neither."""
    if isinstance(certificate, str):
        return certificate_for(certificate.lower())
    if not isinstance(certificate, Certificate):
        raise InputError(f"certificate is {certificate!r}, expected 'l2', 'l1', L2Certificate() or L1Certificate().")
    return certificate


def certificate_for(norm: str) -> Certificate:
    """The certificate of a norm named ``l2`` or ``l1``."""
    if not isinstance(norm, str) or norm not in CERTIFICATES:
        raise InputError(unknown("norm", str(norm), CERTIFICATES))
    return CERTIFICATES[norm]()
