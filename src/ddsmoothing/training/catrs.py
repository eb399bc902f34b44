"""CAT-RS: more is asked of the inputs that the smoothed classifier gets right, less of the others.

It knows neither data sets nor optimizers, and not where smoothed predictions come from.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.functional import cross_entropy, log_softmax

from ddsmoothing.counting.contract import BaseClassifier
from ddsmoothing.devices import untouched
from ddsmoothing.training.objectives import Loss, copies_of, mean_softmax

Draw = Callable[[torch.Tensor], torch.Tensor]
Predict = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def catrs(
    model: BaseClassifier,
    x: torch.Tensor,
    y: torch.Tensor,
    noise: torch.Tensor,
    sigma: torch.Tensor,
    *,
    attacked: BaseClassifier,
    draw: Draw,
    predict: Predict,
    weight: float,
    epsilon: float,
    steps: int,
    by_prediction: bool = False,
) -> Loss:
    """The loss ``L_low + weight sigma [K = m] L_high``, its mean over all inputs, each with its own sigma.

    ``K ~ Binomial(m, w)``, at least 1, where w is the share of the m copies whose class is y. ``L_low`` is 1/m times
    the sum of the K SMALLEST cross-entropies of the copies. ``L_high`` is the largest over the copies of
    ``KL(p^ || f(x + d*_i))``: p^ is a smoothed prediction at x, d*_i noise moved from d_i by ``moved_noise``. It is
    looked for only where K = m.

    Args:
        model: inputs, and their sigma if it takes sigma, to logits; it sees the copies in one pass.
        x: ``(B, ...)``.
        y: ``(B,)``.
        noise: ``(B, m, ...)``, already scaled.
        sigma: ``(B,)``, of each input.
        attacked: the model without wrappers: attacked in eval mode, then run on the moved noise in its own mode.
        draw: from shares w ``(B,)`` to ``Binomial(m, w)`` ``(B,)``.
        predict: from rows ``(n,)`` of the batch, and the mean softmax ``(B, K)`` found here, to p^ ``(n, K)``.
        weight: of L_high in units of sigma: lambda in the paper is .5, 1, 2 at sigma .25, .5, 1, so twice sigma.
        epsilon: radius of the L2 ball round each copy's noise.
        steps: of the attack.
        by_prediction: w is p^ of the label, as the paper has it for ImageNet.
    References: Jeong, Kim and Shin 2023, arXiv:2212.09000.
    """
    m = noise.shape[1]
    logits = copies_of(model, x, noise, sigma)
    log_probs = mean_softmax(logits)
    probs = log_probs.detach().exp()
    if by_prediction:
        share = predict(torch.arange(len(x), device=x.device), probs).gather(1, y[:, None])[:, 0]
    else:
        share = (logits.detach().argmax(2) == y[:, None]).to(probs.dtype).mean(1)
    kept = draw(share).clamp(1, m)
    labels = y[:, None].expand(-1, m)
    losses = cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").reshape(-1, m)
    low = smallest(losses, kept).sum() / len(x)
    rows = (kept == m).nonzero()[:, 0]
    if len(rows) > 0:
        x_, sigma_, target = x[rows], sigma[rows], predict(rows, probs)
        moved = moved_noise(attacked, x_, noise[rows], sigma_, target, epsilon=epsilon, steps=steps)
        high = divergence(target, copies_of(attacked, x_, moved, sigma_)).amax(1)
        low = low + (weight * sigma_.to(high) * high).sum() / len(x)
    return Loss(value=low, log_probs=log_probs, noisy=x + noise[:, 0])


def smallest(losses: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """``(B,)``: the sum of the ``kept`` ``(B,)`` smallest of the losses ``(B, m)`` of an input, over m."""
    m = losses.shape[1]
    ranks = torch.arange(m, device=losses.device)
    return torch.where(ranks < kept[:, None], losses.sort(1).values, 0.0).sum(1) / m


def divergence(target: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """``KL(target || softmax(logits))`` ``(B, m)`` of probabilities ``(B, K)`` and logits ``(B, m, K)``."""
    target = target.to(logits.dtype)[:, None]
    return (torch.xlogy(target, target) - target * log_softmax(logits, 2)).sum(2)


def moved_noise(
    model: BaseClassifier,
    x: torch.Tensor,
    noise: torch.Tensor,
    sigma: torch.Tensor,
    target: torch.Tensor,
    *,
    epsilon: float,
    steps: int,
) -> torch.Tensor:
    """Noise near the given one under which the model's copies are farthest from the target.

    Each step follows the normalised gradient of the mean over the copies of ``KL(target || f(x + d_i))``, is
    ``2 epsilon / steps`` long, ends in the ball of radius epsilon round d_i, and then shifts and scales the noise back
    to the mean and standard deviation of d_i, so that it stays what noise of this input's sigma looks like. The model
    is used in eval mode and left as it came.

    Args:
        noise: ``(B, m, ...)``.
        target: ``(B, K)`` probabilities.
    Returns: ``(B, m, ...)``, detached.
    References: Jeong, Kim and Shin 2023, arXiv:2212.09000. Their script takes the root mean square of the noise in
        place of its standard deviation; the two differ by the square of its mean.
    """
    start = noise.detach().flatten(2)
    mean, std = start.mean(2, keepdim=True), start.std(2, keepdim=True, correction=0)
    moved = start
    with untouched(model), torch.enable_grad():
        for _ in range(steps):
            moved = moved.detach().requires_grad_(True)
            distance = divergence(target, copies_of(model, x, moved.reshape(noise.shape), sigma)).mean(1).sum()
            (gradient,) = torch.autograd.grad(distance, moved)
            step = _unit(gradient.nan_to_num(0.0)) * (2.0 * epsilon / steps)
            away = moved.detach() + step - start
            away = away * (epsilon / _length(away)).clamp_max(1.0)
            moved = start + away
            spread = moved.std(2, keepdim=True, correction=0).clamp_min(torch.finfo(moved.dtype).tiny)
            moved = (moved - moved.mean(2, keepdim=True)) / spread * std + mean
    return moved.detach().reshape(noise.shape)


def _length(v: torch.Tensor) -> torch.Tensor:
    """L2 norm of the last axis, kept, and never zero."""
    length: torch.Tensor = v.norm(dim=-1, keepdim=True)
    return length.clamp_min(torch.finfo(v.dtype).tiny)


def _unit(v: torch.Tensor) -> torch.Tensor:
    return v / _length(v)
