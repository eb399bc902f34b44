"""What the ascent on sigma climbs: differentiable noise and a differentiable radius, by the names of the 2021 package.

Nothing here is a claim but ``compute_gap``. It knows neither models nor samples, and imports torch only where gradients
are wanted.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from ddsmoothing.bounds import normal_quantile_below

if TYPE_CHECKING:
    import torch

CLAMP_2021: Final = (0.001, 0.999)


class Surrogate:
    """The methods that the 2021 package asks of a certificate; theta is the noise's own parameter.

    Args:
        batch_size: taken and not needed, as in 2021; a device may stand here.
        device: checked; noise always follows the device of the batch.
    """

    def __init__(
        self, batch_size: int | str | torch.device | None = None, device: str | torch.device | None = None
    ) -> None:
        for place in (batch_size, device):
            if place is not None and not isinstance(place, int):
                from ddsmoothing.devices import named_device

                named_device(place)

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


class GaussianSurrogate(Surrogate):
    """Of Gaussian noise, theta being sigma."""

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


class UniformSurrogate(Surrogate):
    """Of uniform noise, theta being its half-width lambda."""

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
