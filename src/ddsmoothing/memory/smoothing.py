"""A smoothed classifier as a memory asks it: one input, one attempt, noise that is never drawn twice."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ddsmoothing.bounds import check_bound
from ddsmoothing.campaigns.policy import SigmaPolicy
from ddsmoothing.classifier import SmoothedClassifier
from ddsmoothing.counting.fingerprint import behaviour
from ddsmoothing.errors import InputError
from ddsmoothing.inputs import check_sigma
from ddsmoothing.memory.records import Binding, run_mode
from ddsmoothing.memory.regions import Found
from ddsmoothing.models import model_identity
from ddsmoothing.noise import LEVELS
from ddsmoothing.plan import Sampler
from ddsmoothing.sigma.search import search_sigma

PREDICT_SAMPLES, PREDICT_ALPHA = 1000, 0.001


class SmoothedCertifier:
    """Chooses sigma by a policy, then certifies with fresh samples; both keyed by the memory's seed and a noise id.

    The streams of search, pilot and certification are disjoint, and each attempt has a noise id of its own, so no
    random number is ever used twice.
    """

    def __init__(self, smoothed: SmoothedClassifier, policy: SigmaPolicy, sampler: Sampler, bound: str) -> None:
        if policy.rule is not None:
            raise InputError("a stateless rule needs no memory: it answers every query inside a radius alike already.")
        policy.check(smoothed, 1)
        self._smoothed, self._policy = smoothed, policy
        self._sampler, self._bound = sampler, check_bound(bound)

    def check(self, alpha: float) -> None:
        """Raise InfeasibleError if samples that all agree certify nothing at this alpha."""
        self._sampler.check(alpha, self._bound)

    def certify(self, x: torch.Tensor, *, alpha: float, seed: int, noise_id: int) -> Found:
        """Certify one input ``(1, ...)``."""
        sigma = self._sigma(x, alpha, seed, noise_id)
        result = self._smoothed.certify(
            x, sigma, sampler=self._sampler, alpha=alpha, bound=self._bound, seed=seed, ids=[noise_id]
        )
        return Found(
            prediction=int(result.prediction[0]),
            radius=float(result.radius[0]),
            sigma=sigma,
            evidence=result.evidence(0),
        )

    def predict(self, x: torch.Tensor, *, seed: int) -> int:
        """The smoothed classifier's class at the sigma of the policy; nothing is claimed."""
        sigma = self._sigma(x, PREDICT_ALPHA, seed, 0)
        answer = self._smoothed.predict(x, sigma, n=PREDICT_SAMPLES, alpha=PREDICT_ALPHA, seed=seed, ids=[0])
        return int(answer.prediction[0])

    def _sigma(self, x: torch.Tensor, alpha: float, seed: int, noise_id: int) -> float:
        policy = self._policy
        if policy.kind != "search":
            assert policy.sigma is not None
            return float(check_sigma(np.asarray(policy.sigma), 1)[0])
        assert policy.sigma0 is not None
        found = search_sigma(
            self._smoothed,
            x,
            sigma0=policy.sigma0,
            sigma_min=policy.sigma_min,
            sigma_max=policy.sigma_max,
            sigma_grid=policy.sigma_grid,
            n=self._sampler.largest(),
            alpha=alpha,
            seed=seed,
            ids=[noise_id],
        )
        return float(found.sigma[0])


def binding_of(
    smoothed: SmoothedClassifier, shape: tuple[int, ...], *, transform: str, dtype: str, model_id: str | None
) -> Binding:
    """What a memory of this smoothed classifier belongs to.

    Raises: InputError for a bare callable without ``model_id``, for one that snaps inputs (a region is round the point
        that was certified, and a query is not moved), and for a grid other than the 8-bit one.
    """
    if smoothed.snap or smoothed.levels != LEVELS:
        raise InputError("a memory takes inputs as they are, on the 8-bit grid or off it: no snap, no other levels.")
    if smoothed.offsets is not None:
        raise InputError("a memory's binding does not hold class offsets; give a smoothed classifier without them.")
    return Binding(
        model=model_identity(smoothed.model, model_id),
        transform=transform,
        norm=smoothed.certificate.norm,
        dtype=dtype,
        precision=run_mode(smoothed.precision, smoothed.channels_last, smoothed.compiled),
        shape=tuple(int(size) for size in shape),
        num_classes=smoothed.num_classes,
        vote=smoothed.vote,
        behaviour=behaviour(smoothed, torch.from_numpy(patterns(shape))),
    )


def patterns(shape: Sequence[int]) -> NDArray[np.uint8]:
    """Inputs that a model's behaviour is looked at on where there is no data set: lines through a few drawn values."""
    size, rng = math.prod(shape), np.random.default_rng(0)
    places = np.linspace(0.0, 1.0, size)
    knots = [np.linspace(0.0, 1.0, number) for number in (2, 3, 5, 9, 17, 33, 65, 129)]
    lines = [np.interp(places, at, rng.random(len(at))) for at in knots]
    return np.round(255.0 * np.stack(lines)).astype(np.uint8).reshape(len(lines), *shape)
