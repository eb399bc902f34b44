"""Attacks on the smoothed classifier: projected gradients averaged over noise (EOT-PGD), in L2 and L1.

They look for points near x at which the smoothed classifier's soft class probability is low. Training on such points
and testing certificates use the same code. It makes no claims and knows no files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch.nn.functional import log_softmax

from ddsmoothing.certificate import Certificate
from ddsmoothing.counting.contract import BaseClassifier
from ddsmoothing.counting.engine import at_sigma, called, takes_sigma
from ddsmoothing.devices import untouched
from ddsmoothing.errors import InputError, ModelError, ShapeError
from ddsmoothing.kernels.rounding import on_grid_values
from ddsmoothing.noise import LEVELS

INSIDE: Final = 1.0 - 1e-6  # of the radius: float32 rounding must not carry a point out of the ball
ROWS: Final = 2048  # noisy copies in one forward and backward pass


@dataclass(frozen=True, kw_only=True)
class Attack:
    """How hard to try.

    Attributes:
        steps: gradient steps.   samples: noisy copies an input, the same ones in every step.
        step: length of a step in units of ``radius / steps``.   restarts: the first starts at x, others at random.
        keep: ``best``, the point of the largest loss that was met; or ``last``, where the steps of the only restart
            end, whose loss is not looked at.
    """

    steps: int = 20
    samples: int = 32
    step: float = 2.5
    restarts: int = 2
    keep: str = "best"

    def __post_init__(self) -> None:
        if min(self.steps, self.samples, self.restarts) < 1 or not (math.isfinite(self.step) and self.step > 0.0):
            raise InputError(f"{self}: expected at least 1 step, sample and restart, and a positive step length.")
        if self.keep not in ("best", "last") or (self.keep == "last" and self.restarts > 1):
            raise InputError(f"{self}: expected keep 'best', or 'last' with 1 restart.")


def eot_pgd(
    model: BaseClassifier,
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    sigma: ArrayLike,
    radius: ArrayLike,
    certificate: Certificate,
    attack: Attack | None = None,
    generator: torch.Generator | None = None,
    noise: torch.Tensor | None = None,
) -> torch.Tensor:
    """Points inside the balls round x at which the smoothed classifier is least sure of y.

    The loss is ``-log`` of the mean softmax of class y over noisy copies; the noise stays the same over the steps. The
    base classifier is used in eval mode and given back as it came.

    Args:
        x: ``(B, ...)`` floating point.   y: ``(B,)`` classes to leave.   radius: one number or ``(B,)``.
        sigma: one number or ``(B,)``, the standard deviation of the noise; a model that takes sigma is told it, so it
            has to be true of noise that is given too.
        certificate: its norm is that of the balls, its noise that of the smoothed classifier.
        generator: of noise and random starts, on the CPU.   noise: ``(B, m, ...)`` to use in place of new noise.
    Returns: ``(B, ...)``, the point that ``attack.keep`` names; not clamped to [0, 1], since balls are not.
    Raises: ShapeError, ModelError.
    References: Salman et al. 2019, arXiv:1906.04584, SmoothAdv-PGD, with several noisy copies.
    """
    attack = attack or Attack()
    if not x.is_floating_point() or x.ndim < 2 or y.shape != x.shape[:1]:
        raise ShapeError(f"got x {tuple(x.shape)} {x.dtype} and y {tuple(y.shape)}, expected floating point and (B,).")
    size = torch.as_tensor(_each(radius, x) * INSIDE, dtype=x.dtype).to(x.device)
    sigmas = torch.as_tensor(_each(sigma, x), dtype=torch.float32).to(x.device)
    if noise is None:
        noise = draw_noise(x, sigma, attack.samples, certificate, generator)
    best = x.detach().clone()
    highest = torch.full((len(x),), -math.inf, device=x.device, dtype=x.dtype)
    with untouched(model):
        for restart in range(attack.restarts):
            delta = torch.zeros_like(x) if restart == 0 else _random(x, size, certificate.norm, generator)
            for step in range(attack.steps + 1):
                if step == attack.steps and attack.keep == "last":
                    return x.detach() + delta
                gradient, loss = smoothed_gradient(model, x + delta, y, noise, sigmas)
                better = loss >= highest if restart == 0 else loss > highest  # of equal ones the farther point
                best[better], highest[better] = (x + delta)[better], loss[better]
                if step < attack.steps:
                    width = 1 if restart == 0 else _width(x[0].numel(), step / attack.steps)
                    move = _direction(gradient, certificate.norm, width) * _as(size * attack.step / attack.steps, x)
                    delta = project(delta + move, size, certificate.norm)
    return best


def draw_noise(
    x: torch.Tensor, sigma: ArrayLike, samples: int, certificate: Certificate, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Float noise ``(B, samples, ...)`` for each input at its own sigma; drawn on the CPU, as the generator is."""
    scale = [certificate.noise.scale(float(s)) for s in _each(sigma, x)]
    like = torch.empty((len(x), samples, *x.shape[1:]), dtype=x.dtype)
    theta = torch.tensor(scale, dtype=x.dtype).reshape(-1, *[1] * x.ndim)
    return certificate.sample_noise(like, theta, generator).to(x.device)


def smoothed_gradient(
    model: BaseClassifier, x: torch.Tensor, y: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradient ``(B, ...)`` and value ``(B,)`` of ``-log mean softmax_y`` over the noisy copies.

    Where the softmax is so sure that its gradient is zero, the gradient is that of the mean margin instead.

    Args:
        model: base classifier.   x: ``(B, ...)``.   y: ``(B,)``.
        noise: ``(B, m, ...)``.   sigma: ``(B,)``, its standard deviation, for a model that takes it.
    Raises: ModelError.
    """
    gradients, losses = [], []
    rows = max(1, ROWS // noise.shape[1])
    for start in range(0, len(x), rows):
        part, copies = x[start : start + rows].detach().requires_grad_(True), noise[start : start + rows]
        told = model if sigma is None else at_sigma(model, sigma[start : start + rows])
        logits = called(told, (part[:, None] + copies).flatten(0, 1))
        if not isinstance(logits, torch.Tensor) or not logits.requires_grad:
            raise ModelError("no gradient flows through the base classifier, so it cannot be attacked by gradients.")
        logits = logits.reshape(*copies.shape[:2], -1)
        labels = y[start : start + rows, None, None].expand(-1, copies.shape[1], 1)
        log_p = log_softmax(logits, -1).gather(-1, labels)[..., 0]
        loss = math.log(copies.shape[1]) - log_p.logsumexp(1)
        (gradient,) = torch.autograd.grad(loss.sum(), part, retain_graph=True)
        flat = gradient.flatten(1).abs().amax(1) == 0.0
        if bool(flat.any()):
            others = logits.scatter(-1, labels, -math.inf).amax(-1)
            margin = (others - logits.gather(-1, labels)[..., 0]).mean(1)
            (second,) = torch.autograd.grad(margin.sum(), part)
            gradient = torch.where(_as(flat, gradient), second, gradient)
        gradients.append(gradient.nan_to_num(0.0))
        losses.append(loss.detach())
    return torch.cat(gradients), torch.cat(losses).to(x.dtype)


def first_rounded(model: Any, levels: int = LEVELS) -> Any:
    """The base classifier that rounds its input to the grid first: the one that grid certificates speak of."""
    if isinstance(model, torch.nn.Module):
        return _Rounded(model, levels)

    def rounded(x: torch.Tensor, *sigma: torch.Tensor) -> Any:
        return model(on_grid_values((x * levels).round(), levels, x.dtype), *sigma)

    rounded.takes_sigma = takes_sigma(model)  # type: ignore[attr-defined]
    return rounded


class _Rounded(torch.nn.Module):
    def __init__(self, model: torch.nn.Module, levels: int) -> None:
        super().__init__()
        self.model, self.levels, self.takes_sigma = model, levels, takes_sigma(model)

    def forward(self, x: torch.Tensor, *sigma: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(on_grid_values((x * self.levels).round(), self.levels, x.dtype), *sigma)
        return logits


def _each(values: ArrayLike | torch.Tensor, x: torch.Tensor) -> NDArray[np.float64]:
    """One number for each input, of one number or of one each."""
    given = values.detach().cpu() if isinstance(values, torch.Tensor) else values
    return np.array(np.broadcast_to(np.asarray(given, np.float64), len(x)))


def _as(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """``(B,)`` made to broadcast over ``(B, ...)``."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def _width(d: int, progress: float) -> int:
    """How many coordinates an L1 step moves: a twentieth of them at first, one at the end."""
    return max(1, round(math.pow(d / 20, 1.0 - progress)))


def _direction(gradient: torch.Tensor, norm: str, width: int) -> torch.Tensor:
    """The steepest direction of unit length: the gradient's for L2, its largest coordinates for L1."""
    flat = gradient.flatten(1)
    if norm == "l2":
        flat = flat / flat.norm(dim=1, keepdim=True).clamp_min(torch.finfo(flat.dtype).tiny)
    else:
        places = flat.abs().topk(min(width, flat.shape[1]), dim=1).indices
        flat = torch.zeros_like(flat).scatter(1, places, flat.gather(1, places).sign() / places.shape[1])
    return flat.reshape(gradient.shape)


def project(delta: torch.Tensor, radius: torch.Tensor, norm: str) -> torch.Tensor:
    """The nearest point of the ball; for L1 by Duchi et al. 2008."""
    flat = delta.flatten(1)
    length = flat.norm(p=2 if norm == "l2" else 1, dim=1)
    if norm == "l2":
        return delta * _as((radius / length.clamp_min(torch.finfo(flat.dtype).tiny)).clamp_max(1.0), delta)
    ordered = flat.abs().sort(dim=1, descending=True).values
    excess = ordered.cumsum(1) - radius[:, None]
    ranks = torch.arange(1, flat.shape[1] + 1, device=flat.device, dtype=flat.dtype)
    last = ((ordered - excess / ranks > 0).sum(1) - 1).clamp_min(0)
    threshold = excess.gather(1, last[:, None]) / (last[:, None] + 1)
    shrunk = flat.sign() * (flat.abs() - threshold).clamp_min(0.0)
    return torch.where(length[:, None] <= radius[:, None], flat, shrunk).reshape(delta.shape)


def _random(x: torch.Tensor, radius: torch.Tensor, norm: str, generator: torch.Generator | None) -> torch.Tensor:
    """A random start on the ball's boundary."""
    start = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
    return project(start * _as(radius, x) * (1.0 if norm == "l2" else 2.0), radius, norm)
