"""The paper's gradient ascent on sigma.

It knows the base classifier with gradients, and makes no claim. The parameter that moves is the noise's own: sigma for
L2, lambda for L1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

from ddsmoothing.certificate import Certificate, L2Certificate
from ddsmoothing.counting.engine import at_sigma, takes_sigma
from ddsmoothing.counting.local import BLOCK_ELEMENTS
from ddsmoothing.devices import untouched
from ddsmoothing.errors import InputError, ModelError, unknown
from ddsmoothing.inputs import check_sigma
from ddsmoothing.models import trained_range
from ddsmoothing.sigma.score import certified_scores
from ddsmoothing.streams import check_word

OUTPUTS: Final = ("logits", "probs")


@dataclass(frozen=True, kw_only=True)
class Ascent:
    """Hyper-parameters of the ascent.

    Attributes:
        step: of plain gradient ascent.
        iterations: steps.
        samples: noisy copies of each input in each step.
        clamp: range of the two top probabilities (L2 only; L1 is linear in them), None for the certificate's own.
    """

    step: float
    iterations: int
    samples: int
    clamp: tuple[float, float] | None


ASCENTS: Final[dict[str, Ascent]] = {
    "paper": Ascent(step=1e-4, iterations=100, samples=1, clamp=(0.02, 0.98)),
    "package-2021": Ascent(step=0.04, iterations=900, samples=100, clamp=(0.001, 0.999)),
}


def ascend_sigma(
    model: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    sigma0: float | torch.Tensor,
    *,
    certificate: Certificate | None = None,
    preset: str = "paper",
    step: float | None = None,
    iterations: int | None = None,
    samples: int | None = None,
    clamp: tuple[float, float] | None = None,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    anchored: bool = False,
    keep_best: bool = False,
    outputs: str = "logits",
    max_rows: int | None = None,
    seed: int | None = None,
) -> torch.Tensor:
    """Move each input's sigma up the gradient of its estimated certified radius.

    A model that takes sigma is told the moving one, and the gradient is the total derivative, through the model's own
    use of sigma too. Where that has steps (a nearest timestep, a choice among networks) it has no gradient.

    Repeats: draw fresh reparametrised noise at the current sigma; average the softmax; take the two top classes anew;
    ``sigma += step * dR/dsigma``. With the presets that is all. No label is used. The model's modes, parameters,
    gradients and buffers, and all tensors given, are left as they came.

    Args:
        model: base classifier, ``(B, ...)`` to logits (or probabilities, see outputs).
        x: ``(B, ...)`` float.
        sigma0: where to start, one number or ``(B,)``, standard deviation.
        certificate: default ``L2Certificate()``.
        preset: ``paper`` (the paper's scripts) or ``package-2021``: what the next four are by default.
        step: of plain gradient ascent.
        iterations: steps.
        samples: noisy copies of each input in each step.
        clamp: of the probabilities.
        sigma_min: least sigma after every step, default the least that the model says it was trained for
            (``sigma_range``); without it sigma may turn negative, which stops the ascent with an error.
        sigma_max: largest sigma, default the largest of these; without it sigma may grow without end.
        anchored: keep the class of the first step.
        keep_best: return the iterate with the best certified score.
        outputs: ``logits`` or ``probs``.
        max_rows: noisy copies in memory at once.
        seed: of the noise; None takes torch's global generator, as a training loop expects.
    Returns: ``(B,)`` new sigmas, detached, of x's device and type.
    Raises: InputError, ShapeError, SigmaError, ModelError.
    References: Alfarra et al. 2022, arXiv:2012.04351, Algorithm 1.
    """
    if preset not in ASCENTS:
        raise InputError(unknown("preset", preset, ASCENTS))
    if outputs not in OUTPUTS:
        raise InputError(unknown("outputs", outputs, OUTPUTS))
    base = ASCENTS[preset]
    ascent = Ascent(
        step=base.step if step is None else step,
        iterations=base.iterations if iterations is None else iterations,
        samples=base.samples if samples is None else samples,
        clamp=base.clamp if clamp is None else clamp,
    )
    certificate = certificate or L2Certificate()
    scale = certificate.noise.scale
    start = torch.tensor([scale(float(s)) for s in check_sigma(sigma0, len(x))], device=x.device, dtype=x.dtype)
    least, largest = trained_range(model) or (None, None)
    sigma_min, sigma_max = least if sigma_min is None else sigma_min, largest if sigma_max is None else sigma_max
    theta = ascend_theta(
        model,
        x,
        start,
        certificate=certificate,
        ascent=ascent,
        low=None if sigma_min is None else scale(sigma_min),
        high=None if sigma_max is None else scale(sigma_max),
        anchored=anchored,
        keep_best=keep_best,
        softmax=outputs == "logits",
        max_rows=max_rows,
        seed=seed,
    )
    return torch.tensor([certificate.noise.sigma(float(t)) for t in theta], device=x.device, dtype=x.dtype)


def ascend_theta(
    model: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    theta: torch.Tensor,
    *,
    certificate: Certificate,
    ascent: Ascent,
    low: float | None = None,
    high: float | None = None,
    anchored: bool = False,
    keep_best: bool = False,
    softmax: bool = True,
    max_rows: int | None = None,
    seed: int | None = None,
) -> torch.Tensor:
    """The ascent in the noise's own parameter theta ``(B,)``; see ``ascend_sigma``. Returns a new tensor."""
    if not x.is_floating_point():
        raise InputError(f"got inputs of type {x.dtype}, expected floating point in [0, 1]; divide uint8 by 255.")
    if ascent.iterations < 0 or ascent.samples < 1:
        raise InputError(f"got {ascent.iterations} iterations of {ascent.samples} samples, expected at least 0 and 1.")
    rows = max_rows or max(1, BLOCK_ELEMENTS // max(1, x[0].numel()))
    inputs = max(1, rows // ascent.samples)
    generator = None
    if seed is not None:
        generator = torch.Generator(x.device).manual_seed(check_word(seed, "seed") % 2**63)
    walk = _Walk(model, certificate, ascent, low, high, anchored, keep_best, softmax, rows, generator)
    with untouched(model), torch.inference_mode(False), torch.enable_grad():
        parts = zip(torch.split(x.detach().clone(), inputs), torch.split(theta.detach().clone(), inputs), strict=True)
        return torch.cat([walk.run(part, start) for part, start in parts])


@dataclass(frozen=True)
class _Walk:
    """The ascent of so few inputs that their noisy copies fit into memory, or of one whose copies do not."""

    model: Callable[[torch.Tensor], torch.Tensor]
    certificate: Certificate
    ascent: Ascent
    low: float | None
    high: float | None
    anchored: bool
    keep_best: bool
    softmax: bool
    rows: int
    generator: torch.Generator | None

    def run(self, x: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
        """Theta ``(B,)`` after all iterations."""
        extra = {} if self.ascent.clamp is None else {"clamp": self.ascent.clamp}
        anchor: torch.Tensor | None = None
        best, best_score = theta, np.full(len(theta), -np.inf)
        for _ in range(self.ascent.iterations):
            theta = theta.requires_grad_(True)
            probs, votes = self._mean_probs(x, theta)
            if anchor is None or not self.anchored:
                anchor = probs.detach().argmax(1)
            others = probs.scatter(1, anchor[:, None], -torch.inf).amax(1)
            pair = torch.stack((probs.gather(1, anchor[:, None])[:, 0], others), dim=1)
            radius = self.certificate.compute_radius_estimate(pair, theta, **extra)
            (gradient,) = torch.autograd.grad(radius.sum(), theta)
            theta = theta.detach()
            if self.keep_best:
                score = self._score(votes, anchor, theta)
                better = torch.from_numpy(score > best_score).to(theta.device)
                best, best_score = torch.where(better, theta, best), np.maximum(score, best_score)
            theta = theta + self.ascent.step * gradient
            if self.low is not None or self.high is not None:
                theta = theta.clamp(self.low, self.high)
            self._check(theta)
        return best.detach() if self.keep_best else theta.detach()

    def _mean_probs(self, x: torch.Tensor, theta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean probabilities ``(B, K)`` over fresh noise, with gradients in theta, and hard votes ``(B, K)``."""
        if len(x) * self.ascent.samples <= self.rows:
            probs = self._probs(x, theta, self.ascent.samples)
            return probs.mean(1), _votes(probs)
        means: torch.Tensor | float = 0.0
        votes: Any = 0
        for count in _chunks(self.ascent.samples, max(1, self.rows // len(x))):
            seed = int(torch.randint(2**62, (), generator=self.generator, device=x.device))
            probs = checkpoint(self._probs, x, theta, count, seed, use_reentrant=False, preserve_rng_state=False)
            means = means + probs.sum(1) / self.ascent.samples
            votes = votes + _votes(probs)
        assert isinstance(means, torch.Tensor)
        return means, votes

    def _probs(self, x: torch.Tensor, theta: torch.Tensor, count: int, seed: int | None = None) -> torch.Tensor:
        """Probabilities ``(B, count, K)``; copies are interleaved (x0 x0 x1 x1), and so are their thetas."""
        generator = self.generator if seed is None else torch.Generator(x.device).manual_seed(seed)
        copies = x.repeat_interleave(count, dim=0)
        thetas = theta.repeat_interleave(count).reshape(-1, *[1] * (x.ndim - 1))
        extra = {} if generator is None else {"generator": generator}
        model = self.model
        if takes_sigma(model):  # sigma is proportional to theta; told from it, it carries the gradient too
            model = at_sigma(model, theta * self.certificate.noise.sigma(1.0))
        out = model(copies + self.certificate.sample_noise(copies, thetas, **extra))
        if out.ndim != 2 or len(out) != len(copies):
            raise ModelError(f"the base classifier returned {tuple(out.shape)} for {len(copies)} inputs.")
        out = out if out.dtype == torch.float64 else out.float()  # under autocast a model answers in half precision
        probs = out.softmax(1) if self.softmax else out
        if not bool(torch.isfinite(probs).all()):
            raise ModelError("the base classifier gave NaN or infinite outputs on noisy inputs.")
        return probs.reshape(len(x), count, -1)

    def _score(self, votes: torch.Tensor, anchor: torch.Tensor, theta: torch.Tensor) -> np.ndarray[Any, Any]:
        sigma = np.array([self.certificate.noise.sigma(float(t)) for t in theta])
        counts = votes.cpu().numpy()[:, None]
        scores = certified_scores(self.certificate, counts, counts.sum(2), sigma[:, None])
        return np.asarray(scores[np.arange(len(sigma)), 0, anchor.cpu().numpy()])

    def _check(self, theta: torch.Tensor) -> None:
        if not bool(torch.isfinite(theta).all()) or bool((theta <= 0).any()):
            raise InputError(
                f"the ascent left the positive numbers (smallest theta {float(theta.min()):.4g}); the plain rule has "
                "no bounds. Give sigma_min and sigma_max, or a smaller step."
            )


def _votes(probs: torch.Tensor) -> torch.Tensor:
    """Hard votes ``(B, K)`` of probabilities ``(B, count, K)``."""
    return torch.nn.functional.one_hot(probs.detach().argmax(2), probs.shape[2]).sum(1)


def _chunks(total: int, size: int) -> Iterator[int]:
    for start in range(0, total, size):
        yield min(size, total - start)
