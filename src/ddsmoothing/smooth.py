"""The smoothed classifier: predict and certify, one noise scale for each input.

It knows no files. Results hold evidence (counts and what they were drawn with); claims are derived from it.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest

from ddsmoothing.bounds import check_alpha, check_bound, check_feasible, top_two_bounds
from ddsmoothing.certificate import Certificate, certificate_for
from ddsmoothing.errors import InfeasibleError, InputError, ShapeError, SigmaError
from ddsmoothing.noise import LARGEST_SCALE, Stream, check_word, grid_table
from ddsmoothing.sampling import (
    BaseClassifier,
    Batch,
    ClassCounter,
    Progress,
    Request,
    default_block_size,
    device_of,
    prepare,
)

ABSTAIN: Final = -1
LEVEL_POINTWISE: Final = "pointwise"


@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """What was drawn, and how; B inputs, K classes.

    Attributes:
        ids: noise keys.   input_sha256: of each input's bytes.   d: numbers in one input.
        sigma: ``(B,)`` float64, standard deviation in the units of the input.   norm: ``l2`` or ``l1``.
        noise: ``grid`` or ``float`` for each input.   counts: ``(B, K)`` int64.   alpha: failure probability an input.
        seed: of the noise.   block_size: rows of each forward pass.   seconds: wall time of the whole batch.
    """

    ids: tuple[int, ...]
    input_sha256: tuple[str, ...]
    d: int
    sigma: NDArray[np.float64]
    norm: str
    noise: tuple[str, ...]
    counts: NDArray[np.int64]
    alpha: float
    seed: int
    block_size: int
    seconds: float

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def certificate(self) -> Certificate:
        """The theorem that these samples are used with."""
        return certificate_for(self.norm)

    @cached_property
    def scale(self) -> NDArray[np.float64]:
        """``(B,)`` the noise's own parameter: sigma for L2, lambda = sqrt(3) sigma for L1."""
        return np.array([self.certificate.noise.scale(float(s)) for s in self.sigma])

    @cached_property
    def tv(self) -> NDArray[np.float64]:
        """``(B,)`` bound on the total-variation distance of the drawn noise to the theorem's, all d coordinates.

        0 for float noise, where it is not known.
        """
        return np.array(
            [
                self.d * grid_table(self.certificate.noise.name, float(scale)).tau if kind == "grid" else 0.0
                for kind, scale in zip(self.noise, self.scale, strict=True)
            ]
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Certification(Evidence):
    """Certificates of B inputs, level ``pointwise``: each holds for the classifier that uses ITS sigma everywhere.

    Attributes:
        n0_counts: ``(B, K)`` int64, the pilot that chose the class.   counts: the fresh samples that bound it.
        sampler: how many samples were drawn.   bound: ``one-class`` or ``two-class``.
    """

    n0_counts: NDArray[np.int64]
    sampler: str
    bound: str
    level: str = LEVEL_POINTWISE

    @cached_property
    def top(self) -> NDArray[np.int64]:
        """``(B,)`` the class chosen by the pilot."""
        return np.asarray(self.n0_counts.argmax(1))

    @cached_property
    def _bounds(self) -> NDArray[np.float64]:
        rows = []
        for top, counts, tv in zip(self.top, self.counts, self.tv, strict=True):
            others = int(np.delete(counts, top).max(initial=0))
            rows.append(top_two_bounds(int(counts[top]), others, int(counts.sum()), self.alpha, self.bound, float(tv)))
        return np.array(rows)

    @property
    def p_lower(self) -> NDArray[np.float64]:
        """``(B,)`` lower bound on the top class's probability; errs low."""
        return self._bounds[:, 0]

    @property
    def p_upper(self) -> NDArray[np.float64]:
        """``(B,)`` upper bound on every other class's probability; errs high."""
        return self._bounds[:, 1]

    @cached_property
    def abstained(self) -> NDArray[np.bool_]:
        """``(B,)`` True where the bounds do not separate the top class."""
        return self.p_lower <= self.p_upper

    @cached_property
    def prediction(self) -> NDArray[np.int64]:
        """``(B,)`` the certified class, ABSTAIN (-1) where there is none."""
        return np.where(self.abstained, ABSTAIN, self.top)

    @cached_property
    def radius(self) -> NDArray[np.float64]:
        """``(B,)`` certified radius, 0 where abstained; errs low; each is false with probability <= alpha."""
        pairs = zip(self.sigma, self.p_lower, self.p_upper, strict=True)
        return np.array([self.certificate.radius(float(s), float(a), float(b)) for s, a, b in pairs])

    @property
    def samples(self) -> NDArray[np.int64]:
        """``(B,)`` noisy copies drawn for each input, pilot included."""
        return np.asarray(self.n0_counts.sum(1) + self.counts.sum(1))

    @property
    def reason(self) -> tuple[str, ...]:
        """Why each row says what it says."""
        return tuple("abstained" if gone else "certified" for gone in self.abstained)


@dataclass(frozen=True, kw_only=True, eq=False)
class Prediction(Evidence):
    """Answers of the smoothed classifier, without any statement about robustness."""

    @cached_property
    def prediction(self) -> NDArray[np.int64]:
        """``(B,)`` the smoothed classifier's class, or ABSTAIN (-1).

        Each differs from the smoothed classifier's true answer with probability at most ``alpha + n * tv``.
        References: Cohen et al. 2019, arXiv:1902.02918, PREDICT.
        """
        answers = []
        for counts in self.counts:
            order = np.argsort(-counts, kind="stable")
            first, second = int(counts[order[0]]), int(counts[order[1]])
            sure = binomtest(first, first + second, 0.5).pvalue <= self.alpha
            answers.append(int(order[0]) if sure else ABSTAIN)
        return np.array(answers, dtype=np.int64)

    @property
    def abstained(self) -> NDArray[np.bool_]:
        """``(B,)`` True where the two top classes could not be told apart."""
        return np.asarray(self.prediction == ABSTAIN)


class SmoothedClassifier:
    """``g_sigma(x)`` = the class that the base classifier gives most often to x plus noise.

    Args:
        model: base classifier, from inputs ``(B, ...)`` to logits ``(B, K)``. A module is used in eval mode and given
            back in the mode it came in.
        certificate: ``L2Certificate()`` or ``L1Certificate()``.
        num_classes: K, at least 2.
        block_size: rows of one forward pass (a constant: the last one is padded); None chooses by the input's size.
    """

    def __init__(
        self, model: BaseClassifier, certificate: Certificate, *, num_classes: int, block_size: int | None = None
    ) -> None:
        if not callable(model):
            raise InputError(f"model is {type(model).__name__}, expected a module or callable from inputs to logits.")
        if not isinstance(certificate, Certificate):
            raise InputError(f"certificate is {certificate!r}, expected L2Certificate() or L1Certificate().")
        if num_classes < 2:
            raise InputError(f"num_classes is {num_classes}, expected at least 2.")
        if block_size is not None and block_size < 1:
            raise InputError(f"block_size is {block_size}, expected at least 1.")
        self.model, self.certificate, self.num_classes, self.block_size = model, certificate, num_classes, block_size

    def certify(
        self,
        x: torch.Tensor,
        sigma: ArrayLike,
        *,
        n0: int = 100,
        n: int = 100_000,
        alpha: float = 0.001,
        bound: str = "one-class",
        seed: int | None = None,
        ids: Sequence[int] | None = None,
        progress: Progress | None = None,
    ) -> Certification:
        """Certify every input at its own sigma.

        The class is chosen on n0 samples; its probability is bounded on n fresh ones.

        Args:
            x: ``(B, ...)``, uint8 or floating point in [0, 1] (normalisation belongs into the model).
            sigma: one number or ``(B,)``, standard deviation in the units of x.
            n0, n: samples for selection and for estimation.   alpha: failure probability of each certificate.
            bound: ``one-class`` (as in papers' tables) or ``two-class``; fixed before any sample is seen.
            seed: None takes one from the operating system; a published seed lets an adversary look for failures.
            ids: noise keys; None takes them from the inputs' bytes.   progress: called with samples done.
        Raises: ShapeError, SigmaError, InfeasibleError, ModelError.
        References: Cohen et al. 2019, arXiv:1902.02918, CERTIFY.
        """
        _check_count(n0, "n0")
        check_feasible(n, alpha, bound)
        check_bound(bound)
        batch, sigmas = self._prepare(x, sigma, ids)
        seed = checked_seed(seed)
        start = time.perf_counter()
        pilot = _requests(sigmas, Stream.PILOT, n0)
        counts = self.count(batch, pilot + _requests(sigmas, Stream.CERTIFY, n), seed, progress)
        return Certification(
            **self._evidence(batch, sigmas, alpha, seed, start),
            n0_counts=counts[: len(batch)],
            counts=counts[len(batch) :],
            sampler="exact",
            bound=bound,
        )

    def predict(
        self,
        x: torch.Tensor,
        sigma: ArrayLike,
        *,
        n: int = 1_000,
        alpha: float = 0.001,
        seed: int | None = None,
        ids: Sequence[int] | None = None,
        progress: Progress | None = None,
    ) -> Prediction:
        """The smoothed classifier's answer to every input, or ABSTAIN; arguments as for ``certify``."""
        _check_count(n, "n")
        if 2.0 * 0.5**n > check_alpha(alpha):
            needed = math.ceil(1.0 - math.log2(alpha))
            raise InfeasibleError(f"n={n} samples at alpha={alpha} would always abstain. Use n >= {needed}.")
        batch, sigmas = self._prepare(x, sigma, ids)
        seed = checked_seed(seed)
        start = time.perf_counter()
        counts = self.count(batch, _requests(sigmas, Stream.PREDICT, n), seed, progress)
        return Prediction(**self._evidence(batch, sigmas, alpha, seed, start), counts=counts)

    def prepare(self, x: torch.Tensor, ids: Sequence[int] | None = None) -> Batch:
        """Inputs made ready for ``count``."""
        return prepare(x, ids, device_of(self.model))

    def count(
        self, batch: Batch, requests: Sequence[Request], seed: int, progress: Progress | None = None
    ) -> NDArray[np.int64]:
        """Class counts ``(len(requests), K)``; see ``sampling.ClassCounter``."""
        counter = ClassCounter(self.model, self.certificate.noise, self.num_classes, self.block_rows(batch.d))
        return counter.count(batch, requests, seed, progress)

    def block_rows(self, d: int) -> int:
        """Rows of one forward pass for d-dimensional inputs."""
        return self.block_size or default_block_size(d)

    def _prepare(
        self, x: torch.Tensor, sigma: ArrayLike, ids: Sequence[int] | None
    ) -> tuple[Batch, NDArray[np.float64]]:
        batch = self.prepare(x, ids)
        return batch, check_sigma(sigma, len(batch))

    def _evidence(
        self, batch: Batch, sigma: NDArray[np.float64], alpha: float, seed: int, start: float
    ) -> dict[str, Any]:
        return {
            "ids": batch.ids,
            "input_sha256": batch.sha256,
            "d": batch.d,
            "sigma": sigma,
            "norm": self.certificate.norm,
            "noise": tuple("grid" if on else "float" for on in batch.on_grid),
            "alpha": alpha,
            "seed": seed,
            "block_size": self.block_rows(batch.d),
            "seconds": time.perf_counter() - start,
        }


def check_sigma(sigma: ArrayLike, size: int) -> NDArray[np.float64]:
    """One sigma for each of ``size`` inputs, float64; SigmaError or ShapeError if it is not usable."""
    if isinstance(sigma, torch.Tensor):
        sigma = sigma.detach().cpu().numpy()
    values = np.asarray(sigma, dtype=np.float64)
    if values.shape not in ((), (1,), (size,)):
        raise ShapeError(f"got sigma of shape {values.shape}, expected one number or one for each of {size} inputs.")
    for value in values.ravel():
        if not (math.isfinite(value) and 0.0 < value <= LARGEST_SCALE):
            raise SigmaError(
                f"sigma is {value}, expected a positive finite number of at most {LARGEST_SCALE:g} in the units of the "
                "input (pixels in [0, 1]: a sigma given for 0..255 is to be divided by 255)."
            )
    return np.array(np.broadcast_to(values, (size,)))


def _requests(sigma: NDArray[np.float64], stream: Stream, n: int) -> list[Request]:
    return [Request(row=row, sigma=float(value), stream=stream, n=n) for row, value in enumerate(sigma)]


def _check_count(n: int, name: str) -> None:
    if n < 1:
        raise InputError(f"{name} is {n}, expected at least 1 sample.")


def checked_seed(seed: int | None) -> int:
    """The seed given, or one from the operating system."""
    return secrets.randbits(63) if seed is None else check_word(seed, "seed")
