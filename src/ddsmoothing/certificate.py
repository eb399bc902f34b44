"""Certificates: a noise and the theorem that turns bounds on class probabilities into a radius.

It knows neither models nor samples, and imports torch only where gradients are wanted. One class a norm serves
certification, the gradient ascent on sigma, and code written for the 2021 package, whose method names
(``sample_noise``, ``compute_*``) are kept.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from ddsmoothing.bounds import normal_quantile_above, normal_quantile_below
from ddsmoothing.errors import InputError, unknown
from ddsmoothing.noise import Gaussian, Noise, Uniform

if TYPE_CHECKING:
    import torch

CLAMP_2021: Final = (0.001, 0.999)


class Certificate:
    """A norm, the noise that certifies it, and the radius theorem. All balls are open.

    A subclass for the ascent alone needs ``sample_noise`` and ``compute_radius_estimate`` only, as in 2021.

    Args:
        batch_size: taken and not needed, as in 2021; a device may stand here.
        device: checked; noise always follows the device of the batch.
    """

    norm: ClassVar[str]
    noise: ClassVar[Noise]

    def __init__(
        self, batch_size: int | str | torch.device | None = None, device: str | torch.device | None = None
    ) -> None:
        for place in (batch_size, device):
            if place is not None and not isinstance(place, int):
                from ddsmoothing.devices import named_device

                named_device(place)

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

    def sample_noise(
        self, batch: torch.Tensor, repeated_theta: torch.Tensor, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """Differentiable float noise of the batch's shape.

        Args:
            batch: ``(B, ...)`` of the shape, type and device wanted; its numbers are not used.
            repeated_theta: Sigma for L2, lambda for L1; broadcastable to the batch.
            generator: Of the random numbers; torch's global one by default.
        """
        raise NotImplementedError

    def compute_gap(self, p_lower: float) -> float:
        """Radius in units of theta at a lower bound on the top class: ``R = theta * gap``; errs low."""
        raise NotImplementedError

    def compute_proxy_gap(self, probs: torch.Tensor, clamp: tuple[float, float] = CLAMP_2021) -> torch.Tensor:
        """Differentiable gap ``(B,)`` of the two top probabilities ``(B, 2)``."""
        raise NotImplementedError

    def compute_radius_estimate(
        self, probs: torch.Tensor, theta: torch.Tensor, clamp: tuple[float, float] = CLAMP_2021
    ) -> torch.Tensor:
        """Differentiable radius ``(B,)``; an estimate, no claim.

        Args:
            probs: ``(B, 2)`` the two top probabilities, the larger one first.
            theta: ``(B,)`` sigma for L2, lambda for L1.
            clamp: Least and largest probability that is told from 0 and 1.
        """
        raise NotImplementedError


class L2Certificate(Certificate):
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

    def sample_noise(
        self, batch: torch.Tensor, repeated_theta: torch.Tensor, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        return batch.new_empty(batch.shape).normal_(generator=generator) * repeated_theta

    def compute_gap(self, p_lower: float) -> float:
        return normal_quantile_below(p_lower)

    def compute_proxy_gap(self, probs: torch.Tensor, clamp: tuple[float, float] = CLAMP_2021) -> torch.Tensor:
        from torch.special import ndtri as differentiable_ndtri

        z: torch.Tensor = differentiable_ndtri(probs.clamp(*clamp))
        return z[:, 0] - z[:, 1]

    def compute_radius_estimate(
        self, probs: torch.Tensor, theta: torch.Tensor, clamp: tuple[float, float] = CLAMP_2021
    ) -> torch.Tensor:
        return theta / 2 * self.compute_proxy_gap(probs, clamp)


class L1Certificate(Certificate):
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

    def sample_noise(
        self, batch: torch.Tensor, repeated_theta: torch.Tensor, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        return (2 * batch.new_empty(batch.shape).uniform_(generator=generator) - 1) * repeated_theta

    def compute_gap(self, p_lower: float) -> float:
        return math.nextafter(2.0 * (p_lower - 0.5), -math.inf)

    def compute_proxy_gap(self, probs: torch.Tensor, clamp: tuple[float, float] = CLAMP_2021) -> torch.Tensor:
        """Linear in the probabilities, so nothing has to be clamped."""
        return probs[:, 0] - probs[:, 1]

    def compute_radius_estimate(
        self, probs: torch.Tensor, theta: torch.Tensor, clamp: tuple[float, float] = CLAMP_2021
    ) -> torch.Tensor:
        return theta * self.compute_proxy_gap(probs, clamp)


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
    if norm not in CERTIFICATES:
        raise InputError(unknown("norm", norm, CERTIFICATES))
    return CERTIFICATES[norm]()
