"""What training minimises: Gaussian noise, SmoothAdv, MACER. Each is a function of one batch of logits' inputs.

It knows neither data sets nor optimizers. Noise is given, one row of copies for each input, scaled by that input's own
sigma; a copy can therefore not meet the sigma of another input.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy, log_softmax, nll_loss

from ddsmoothing.attacks import Attack, eot_pgd
from ddsmoothing.certificate import L2Certificate
from ddsmoothing.errors import ModelError

Model = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class Loss:
    """What an objective found.

    Attributes:
        value: scalar with gradients, the mean over the batch.   log_probs: ``(B, K)``, logarithm of the mean softmax.
        noisy: ``(B, ...)``, the first noisy copy that was trained on.
    """

    value: torch.Tensor
    log_probs: torch.Tensor
    noisy: torch.Tensor


def scaled(noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Standard noise ``(B, m, ...)`` times the sigma ``(B,)`` of its own input."""
    return noise * sigma.to(noise.dtype).reshape(-1, *[1] * (noise.ndim - 1))


def gaussian(model: Model, x: torch.Tensor, y: torch.Tensor, noise: torch.Tensor) -> Loss:
    """Cross-entropy on noisy inputs, the mean over copies.

    Args:
        model: inputs to logits.   x: ``(B, ...)``.   y: ``(B,)``.   noise: ``(B, m, ...)``, already scaled.
    References: Cohen et al. 2019, arXiv:1902.02918, section 3.3.
    """
    logits = _logits(model, x, noise)
    labels = y.repeat_interleave(noise.shape[1])
    return Loss(
        value=cross_entropy(logits.flatten(0, 1), labels), log_probs=_mean_softmax(logits), noisy=x + noise[:, 0]
    )


def smoothadv(
    model: Model,
    x: torch.Tensor,
    y: torch.Tensor,
    noise: torch.Tensor,
    *,
    attacked: Model,
    epsilon: float,
    steps: int,
) -> Loss:
    """Cross-entropy on noisy copies of the point near x at which the smoothed soft classifier is least sure of y.

    The attack's loss is ``-log`` of the mean softmax over the same copies that the training loss then sees; one point
    for each input, labels as they came. A step is ``2 epsilon / steps`` long, the start is x, and the end is kept.

    Args:
        attacked: the model without wrappers, used in eval mode.   epsilon: radius of the L2 ball.
        steps: of the attack; 0: none.
    References: Salman et al. 2019, arXiv:1906.04584, SmoothAdv-PGD; the point is clamped to [0, 1], there after every
        step.
    """
    if steps > 0 and epsilon > 0.0:
        attack = Attack(steps=steps, samples=noise.shape[1], step=2.0, restarts=1, keep="last")
        point = eot_pgd(
            attacked, x, y, sigma=1.0, radius=epsilon, certificate=L2Certificate(), attack=attack, noise=noise
        )
        x = point.clamp(0.0, 1.0)  # x lies in [0, 1], so this brings the point no farther from it
    return gaussian(model, x, y, noise)


def macer(
    model: Model,
    x: torch.Tensor,
    y: torch.Tensor,
    noise: torch.Tensor,
    *,
    sigma: torch.Tensor,
    weight: float,
    gamma: float,
    beta: float,
) -> Loss:
    """Cross-entropy of the mean softmax plus a hinge on the radius of the correctly classified.

    ``-log p_y + weight * sigma/2 * max(0, gamma - (Phi^-1(q_y) - Phi^-1(max_c q_c)))``, p the mean softmax over the
    copies, q that of beta times the logits; the second term where q is largest at y. Mean over all inputs.

    Args:
        sigma: ``(B,)``.   weight: lambda in the paper.   gamma: hinge, in units of Phi^-1.   beta: inverse temperature.
    References: Zhai et al. 2020, arXiv:2001.02378, eq. 9 and Algorithm 1. A radius that float32 rounds to infinity
        lies beyond the hinge.
    """
    logits = _logits(model, x, noise)
    log_probs = _mean_softmax(logits)
    top = (beta * logits).softmax(2).mean(1).topk(2)
    right = top.indices[:, 0] == y
    pair, scale = top.values[right], sigma.to(logits)[right]
    near = _gap(pair).detach() <= gamma  # others add nothing, and infinity would give gradient NaN
    hinge = scale[near] / 2 * (gamma - _gap(pair[near]))
    return Loss(
        value=nll_loss(log_probs, y) + weight * hinge.sum() / len(x), log_probs=log_probs, noisy=x + noise[:, 0]
    )


def _gap(pair: torch.Tensor) -> torch.Tensor:
    """``Phi^-1`` of the first minus that of the second of two probabilities ``(B, 2)``."""
    z: torch.Tensor = torch.special.ndtri(pair)
    return z[:, 0] - z[:, 1]


def _logits(model: Model, x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Logits ``(B, m, K)`` of all noisy copies, interleaved (x0 x0 x1 x1) in one pass; float32 at least."""
    logits = model((x[:, None] + noise).flatten(0, 1))
    if logits.ndim != 2 or len(logits) != noise.shape[0] * noise.shape[1]:
        raise ModelError(f"the base classifier returned {tuple(logits.shape)} for {noise.shape[:2].numel()} inputs.")
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits.reshape(*noise.shape[:2], -1)


def _mean_softmax(logits: torch.Tensor) -> torch.Tensor:
    """Logarithm ``(B, K)`` of the softmax averaged over the copies of ``(B, m, K)``."""
    return log_softmax(logits, 2).logsumexp(1) - math.log(logits.shape[1])
