"""What training minimises on one batch: Gaussian noise, SmoothAdv, MACER, consistency, and a denoiser's error.

It knows neither data sets nor optimizers. Noise is given, one row of copies for each input, scaled by that input's own
sigma, and the model is told that sigma if it asks; a copy can therefore not meet the sigma of another input.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy, log_softmax, nll_loss

from ddsmoothing.attacks import Attack, eot_pgd
from ddsmoothing.certificate import L2Certificate
from ddsmoothing.counting.contract import BaseClassifier
from ddsmoothing.counting.engine import at_sigma
from ddsmoothing.errors import ModelError
from ddsmoothing.models.unet import edm_weight


@dataclass(frozen=True, kw_only=True, eq=False)
class Loss:
    """What an objective found.

    Attributes:
        value: scalar with gradients, the mean over the batch.
        log_probs: ``(B, K)``, logarithm of the mean softmax; None of a denoiser.
        noisy: ``(B, ...)``, the first noisy copy that was trained on.
    """

    value: torch.Tensor
    log_probs: torch.Tensor | None
    noisy: torch.Tensor


def scaled(noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Standard noise ``(B, m, ...)`` times the sigma ``(B,)`` of its own input."""
    return noise * sigma.to(noise.dtype).reshape(-1, *[1] * (noise.ndim - 1))


def gaussian(
    model: BaseClassifier,
    x: torch.Tensor,
    y: torch.Tensor,
    noise: torch.Tensor,
    sigma: torch.Tensor,
    *,
    targets: torch.Tensor | None = None,
) -> Loss:
    """Cross-entropy on noisy inputs, the mean over copies.

    Args:
        model: inputs, and their sigma if it takes sigma, to logits.
        x: ``(B, ...)``.
        y: ``(B,)``.
        noise: ``(B, m, ...)``, already scaled.
        sigma: ``(B,)``, of each input.
        targets: ``(B, K)`` probabilities in place of the labels y.
    References: Cohen et al. 2019, arXiv:1902.02918, section 3.3; with targets Salman et al. 2020, arXiv:2003.01908, the
        stability objective, whose targets are the classes of the largest probabilities.
    """
    logits = copies_of(model, x, noise, sigma)
    labels = (y if targets is None else targets).repeat_interleave(noise.shape[1], dim=0)
    return Loss(
        value=cross_entropy(logits.flatten(0, 1), labels), log_probs=mean_softmax(logits), noisy=x + noise[:, 0]
    )


def smoothadv(
    model: BaseClassifier,
    x: torch.Tensor,
    y: torch.Tensor,
    noise: torch.Tensor,
    sigma: torch.Tensor,
    *,
    attacked: BaseClassifier,
    epsilon: float,
    steps: int,
) -> Loss:
    """Cross-entropy on noisy copies of the point near x at which the smoothed soft classifier is least sure of y.

    The attack's loss is ``-log`` of the mean softmax over the same copies that the training loss then sees; one point
    for each input, labels as they came. A step is ``2 epsilon / steps`` long, the start is x, and the end is kept.

    Args:
        attacked: the model without wrappers, used in eval mode.
        epsilon: radius of the L2 ball.
        steps: of the attack; 0: none.
    References: Salman et al. 2019, arXiv:1906.04584, SmoothAdv-PGD; the point is clamped to [0, 1], there after every
        step.
    """
    if steps > 0 and epsilon > 0.0:
        attack = Attack(steps=steps, samples=noise.shape[1], step=2.0, restarts=1, keep="last")
        told = sigma.detach().cpu().numpy()
        point = eot_pgd(
            attacked, x, y, sigma=told, radius=epsilon, certificate=L2Certificate(), attack=attack, noise=noise
        )
        x = point.clamp(0.0, 1.0)  # x lies in [0, 1], so this brings the point no farther from it
    return gaussian(model, x, y, noise, sigma)


def macer(
    model: BaseClassifier,
    x: torch.Tensor,
    y: torch.Tensor,
    noise: torch.Tensor,
    sigma: torch.Tensor,
    *,
    weight: float,
    gamma: float,
    beta: float,
) -> Loss:
    """Cross-entropy of the mean softmax plus a hinge on the radius of the correctly classified.

    ``-log p_y + weight * sigma/2 * max(0, gamma - (Phi^-1(q_y) - Phi^-1(max_c q_c)))``, p the mean softmax over the
    copies, q that of beta times the logits; the second term where q is largest at y. Mean over all inputs.

    Args:
        weight: lambda in the paper.
        gamma: hinge, in units of Phi^-1.
        beta: inverse temperature.
    References: Zhai et al. 2020, arXiv:2001.02378, eq. 9 and Algorithm 1. A radius that float32 rounds to infinity
        lies beyond the hinge.
    """
    logits = copies_of(model, x, noise, sigma)
    log_probs = mean_softmax(logits)
    top = (beta * logits).softmax(2).mean(1).topk(2)
    right = top.indices[:, 0] == y
    pair, scale = top.values[right], sigma.to(logits)[right]
    near = _gap(pair).detach() <= gamma  # others add nothing, and infinity would give gradient NaN
    hinge = scale[near] / 2 * (gamma - _gap(pair[near]))
    return Loss(
        value=nll_loss(log_probs, y) + weight * hinge.sum() / len(x), log_probs=log_probs, noisy=x + noise[:, 0]
    )


def consistency(
    model: BaseClassifier,
    x: torch.Tensor,
    y: torch.Tensor,
    noise: torch.Tensor,
    sigma: torch.Tensor,
    *,
    weight: float,
    eta: float,
    targets: torch.Tensor | None = None,
) -> Loss:
    """Cross-entropy of the copies, how far they differ from their mean, and how unsure that mean is.

    ``mean_i CE(f(x + d_i), y) + weight * mean_i KL(p_avg || p_i) + eta * H(p_avg)``, p_i the softmax of copy i, p_avg
    their mean, H the entropy. Mean over all inputs.

    Args:
        weight: lambda in the paper.
        eta: of the entropy.
        targets: ``(B, K)`` probabilities in place of the labels y, for a selector: of each expert how good it is here.
    References: Jeong and Shin 2020, arXiv:2006.04062.
    """
    logits = copies_of(model, x, noise, sigma)
    log_each, log_mean = log_softmax(logits, 2), mean_softmax(logits)
    mean = log_mean.exp()
    if targets is None:
        right = log_each.gather(2, y[:, None, None].expand(-1, noise.shape[1], 1))
    else:
        if targets.shape != log_mean.shape:
            raise ModelError(f"the network gives {log_mean.shape[1]} outputs for soft labels of {targets.shape[1]}.")
        right = (targets[:, None].to(log_each.dtype) * log_each).sum(2)
    spread = (mean[:, None] * (log_mean[:, None] - log_each)).sum(2).mean()
    entropy = -(mean * log_mean).sum(1).mean()
    return Loss(value=weight * spread + eta * entropy - right.mean(), log_probs=log_mean, noisy=x + noise[:, 0])


def denoiser(model: BaseClassifier, x: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> Loss:
    """Squared error of the denoised copies in pixel units, the mean over pixels, weighted by ``edm_weight(sigma)``.

    Args:
        model: ``D(y, sigma)``, images to images, as ``SmallUNet``; labels are not used.
    References: Karras et al. 2022, arXiv:2206.00364, with the weight of table 1.
    """
    noisy = (x[:, None] + noise).flatten(0, 1)
    found = at_sigma(model, sigma)(noisy)
    if found.shape != noisy.shape:
        raise ModelError(f"the denoiser returned {tuple(found.shape)} for {tuple(noisy.shape)}, expected the same.")
    error = (found.float() - x.repeat_interleave(noise.shape[1], dim=0)).square().flatten(1).mean(1)
    weight = edm_weight(sigma.float()).repeat_interleave(noise.shape[1])
    return Loss(value=(weight * error).mean(), log_probs=None, noisy=x + noise[:, 0])


def _gap(pair: torch.Tensor) -> torch.Tensor:
    """``Phi^-1`` of the first minus that of the second of two probabilities ``(B, 2)``."""
    z: torch.Tensor = torch.special.ndtri(pair)
    return z[:, 0] - z[:, 1]


def copies_of(model: BaseClassifier, x: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Logits ``(B, m, K)`` of all noisy copies, interleaved (x0 x0 x1 x1) in one pass; float32 at least."""
    logits = at_sigma(model, sigma)((x[:, None] + noise).flatten(0, 1))
    if logits.ndim != 2 or len(logits) != noise.shape[0] * noise.shape[1]:
        raise ModelError(f"the base classifier returned {tuple(logits.shape)} for {noise.shape[:2].numel()} inputs.")
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits.reshape(*noise.shape[:2], -1)


def mean_softmax(logits: torch.Tensor) -> torch.Tensor:
    """Logarithm ``(B, K)`` of the softmax averaged over the copies of ``(B, m, K)``."""
    return log_softmax(logits, 2).logsumexp(1) - math.log(logits.shape[1])
