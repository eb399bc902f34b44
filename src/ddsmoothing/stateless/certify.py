"""Certificates and answers of a stateless rule: level ``stateless``. It knows no files."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ddsmoothing.bounds import check_alpha, check_count
from ddsmoothing.certificate import certificate_for
from ddsmoothing.claims import ABSTAIN, STATELESS, Claim, Measurement, StatelessRule
from ddsmoothing.classifier import SmoothedClassifier
from ddsmoothing.counting.contract import Progress
from ddsmoothing.errors import InputError
from ddsmoothing.inputs import Batch
from ddsmoothing.labels import checked_labels
from ddsmoothing.plan import N0, Divided, Draw, N, Sampler, Talk
from ddsmoothing.streams import Stream, checked_seed

PILOT: Final = N0  # samples at each sigma that choose the class
Drawn = tuple[tuple[Measurement, ...], tuple[Measurement, ...]]


@dataclass(frozen=True, kw_only=True, eq=False)
class StatelessCertification:
    """Certificates of B inputs by a stateless rule, level ``stateless``.

    Attributes:
        ids: noise keys.
        input_sha256: of each input's bytes.
        rule: how answers at several scales become one.
        pilots: of each input one measurement at every scale of the rule; they chose the class.
        fresh: of each input those that bound it; none where sampling stopped.
        alpha: failure probability of each certificate.
        moved: ``(B,)`` how far inputs were moved to the grid.
        noise: ``grid`` or ``float`` for each input.
        seed: of the noise.
        seconds: wall time of the whole batch.
    """

    ids: tuple[int, ...]
    input_sha256: tuple[str, ...]
    rule: StatelessRule
    pilots: tuple[tuple[Measurement, ...], ...]
    fresh: tuple[tuple[Measurement, ...], ...]
    alpha: float
    moved: NDArray[np.float64]
    noise: tuple[str, ...]
    seed: int
    seconds: float
    level: str = STATELESS.name

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def norm(self) -> str:
        """``l2`` or ``l1``."""
        return self.rule.norm

    @property
    def measurements(self) -> tuple[tuple[Measurement, ...], ...]:
        """Of each input all that was drawn, pilots first."""
        return tuple((*pilots, *fresh) for pilots, fresh in zip(self.pilots, self.fresh, strict=True))

    @cached_property
    def claims(self) -> tuple[Claim, ...]:
        """What follows for each input."""
        certificate = certificate_for(self.norm)
        return tuple(
            self.rule.claim(pilots, fresh, certificate, self.alpha, float(moved))
            for pilots, fresh, moved in zip(self.pilots, self.fresh, self.moved, strict=True)
        )

    @cached_property
    def prediction(self) -> NDArray[np.int64]:
        """``(B,)`` certified class, or ABSTAIN."""
        return np.array([claim.prediction for claim in self.claims], dtype=np.int64)

    @cached_property
    def radius(self) -> NDArray[np.float64]:
        """``(B,)`` certified radius, 0 where abstained; errs low."""
        return np.array([claim.radius for claim in self.claims])

    @cached_property
    def p_lower(self) -> NDArray[np.float64]:
        """``(B,)`` lower bound on the probability of the event that binds; errs low."""
        return np.array([claim.p_lower for claim in self.claims])

    @cached_property
    def p_upper(self) -> NDArray[np.float64]:
        """``(B,)`` upper bound on what it is held against; errs high."""
        return np.array([claim.p_upper for claim in self.claims])

    @cached_property
    def sigma(self) -> NDArray[np.float64]:
        """``(B,)`` the scale that binds; the first one where nothing bounds the class."""
        return np.array([self.rule.sigmas[claim.slot] for claim in self.claims])

    @cached_property
    def scale(self) -> NDArray[np.float64]:
        """``(B,)`` its noise's own parameter: sigma for L2, lambda for L1."""
        noise = certificate_for(self.norm).noise
        return np.array([noise.scale(float(s)) for s in self.sigma])

    @property
    def reason(self) -> tuple[str, ...]:
        """``certified``, ``abstained``, or ``wrong`` where the label stopped sampling."""
        pairs = zip(self.prediction.tolist(), self.fresh, strict=True)
        return tuple("wrong" if not fresh else "abstained" if c == ABSTAIN else "certified" for c, fresh in pairs)

    @cached_property
    def samples(self) -> NDArray[np.int64]:
        """``(B,)`` noisy copies drawn for each input, pilots included."""
        return np.array([sum(one.n for one in drawn) for drawn in self.measurements])

    def evidence(self, i: int) -> str:
        """JSON of all that the claim of one input follows from."""
        found: dict[str, Any] = {
            "rule": self.rule.described() | {"norm": self.norm},
            "alpha": self.alpha,
            "moved": float(self.moved[i]),
            "measurements": [one.compact() for one in self.measurements[i]],
        }
        return json.dumps(found, separators=(",", ":"))


def certify_stateless(
    smoothed: SmoothedClassifier,
    x: torch.Tensor,
    rule: StatelessRule,
    *,
    n0: int = PILOT,
    n: int = 10_000,
    alpha: float = 0.001,
    labels: ArrayLike | None = None,
    seed: int | None = None,
    ids: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> StatelessCertification:
    """Certify every input by a stateless rule.

    Args:
        smoothed: the base classifier with its norm and engine; its own vote and offsets have no say here.
        x: ``(B, ...)`` as for ``certify``.
        rule: fixed before, on other inputs.
        n0: samples at each scale of the rule that choose the class.
        n: fresh samples in all, divided between the scales that the pilot asks for.
        alpha: failure probability of each certificate.
        labels: ``(B,)``: stop an input whose pilot class is another.
        seed: of the noise; None takes one from the operating system.
        ids: noise keys; None takes them from the inputs' bytes.
        progress: called with samples done.
    Raises: ShapeError, InputError, InfeasibleError, ModelError.
    """
    start = time.perf_counter()
    batch = prepared(smoothed, x, rule, n0, n, alpha, ids)
    truth = [None] * len(batch) if labels is None else checked_labels(labels, len(batch), rule.num_classes).tolist()
    seed = checked_seed(seed)
    talks = [stateless_talk(rule, n0, n, alpha, label) for label in truth]
    found = smoothed.converse(batch, np.full(len(batch), rule.sigmas[0]), talks, seed, progress)
    return StatelessCertification(
        **drawn_of(batch, found), rule=rule, alpha=alpha, seed=seed, seconds=time.perf_counter() - start
    )


def drawn_of(batch: Batch, found: Sequence[Drawn]) -> dict[str, Any]:
    """The fields of a certification that say what its inputs are and what was drawn for them."""
    return {
        "ids": batch.ids,
        "input_sha256": batch.sha256,
        "pilots": tuple(pilots for pilots, _ in found),
        "fresh": tuple(fresh for _, fresh in found),
        "moved": batch.moved,
        "noise": tuple("grid" if on else "float" for on in batch.on_grid),
    }


def predict_stateless(
    smoothed: SmoothedClassifier,
    x: torch.Tensor,
    rule: StatelessRule,
    *,
    n0: int = PILOT,
    n: int = 2_000,
    alpha: float = 0.001,
    seed: int | None = None,
    ids: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> NDArray[np.int64]:
    """The answers ``(B,)`` of a stateless rule, or ABSTAIN; each another than its true answer w.p. at most alpha.

    Arguments as for ``certify_stateless``. For noise on the grid n times its total-variation bound comes on top.
    """
    batch = prepared(smoothed, x, rule, n0, n, alpha, ids)
    talks = [stateless_talk(rule, n0, n, alpha, None, Stream.PREDICT) for _ in range(len(batch))]
    sigma = np.full(len(batch), rule.sigmas[0])
    found = smoothed.converse(batch, sigma, talks, checked_seed(seed), progress)
    return np.array([rule.answer(pilots, fresh, alpha) for pilots, fresh in found], dtype=np.int64)


def check_rule(smoothed: SmoothedClassifier, rule: StatelessRule, n0: int, n: int, alpha: float) -> None:
    """Raise InputError where a rule is not for this classifier, InfeasibleError where n samples are too few for it."""
    check_count(n0, "n0")
    check_count(n, "n")
    check_alpha(alpha)
    if not isinstance(rule, StatelessRule):
        raise InputError(f"the rule is {rule!r}, expected a stateless one, such as PairTable(..) or Cascade(..).")
    made = (smoothed.certificate.norm, smoothed.num_classes)
    if made != (rule.norm, rule.num_classes):
        raise InputError(
            f"the rule is of {rule.norm} and {rule.num_classes} classes, the model of {made[0]} and {made[1]} classes."
        )
    rule.check_alone()
    rule.check(n, alpha)


def prepared(
    smoothed: SmoothedClassifier,
    x: torch.Tensor,
    rule: StatelessRule,
    n0: int,
    n: int,
    alpha: float,
    ids: Sequence[int] | None,
) -> Batch:
    """The inputs made ready, once the rule fits and the model has been seen to be a function at a sigma of the rule."""
    batch = smoothed.prepare(x, ids)  # which finds K, where it was not given
    check_rule(smoothed, rule, n0, n, alpha)
    smoothed.check_function(batch, float(np.median(rule.sigmas)))
    return batch


def divided(
    rule: StatelessRule, n0: int | None, n: int | None, n_max: int | None, radii: Sequence[float] | None
) -> Divided:
    """The sampler of a stateless rule; InputError where numbers of another one are given."""
    if n_max is not None or radii is not None:
        raise InputError(
            "a stateless rule divides n fresh samples between its sigmas; expected n0 and n, no n_max and radii."
        )
    return Divided(n0=N0 if n0 is None else n0, n=N if n is None else n, scales=len(rule.sigmas))


def check_stateless(
    smoothed: SmoothedClassifier, rule: StatelessRule, sampler: Sampler, alpha: float, bound: str, randomized: bool
) -> None:
    """Raise InputError, or InfeasibleError with the n that works, before a run is begun."""
    if bound != "one-class" or randomized:
        raise InputError("the atoms of a stateless rule have one-class bounds, expected no other bound and no coin.")
    assert isinstance(sampler, Divided), "that of a stateless rule"
    check_rule(smoothed, rule, sampler.n0, sampler.n, alpha)


def stateless_talk(
    rule: StatelessRule, n0: int, n: int, alpha: float, label: int | None, role: Stream | None = None
) -> Talk[Drawn]:
    """Ask for a pilot at every scale, then for the samples of the class it chose.

    Args:
        role: one stream for both parts, one after the other; None for those of certificates.
    """
    first, second = (Stream.PILOT, Stream.CERTIFY) if role is None else (role, role)
    pilots = yield tuple(Draw(first, n0, rule.pilot_tally(slot), sigma, slot) for slot, sigma in enumerate(rule.sigmas))
    top = rule.commit(pilots).top
    if label not in (None, top):
        return tuple(pilots), ()
    shares = rule.allocated(pilots, n, alpha)
    fresh = yield tuple(Draw(second, m, rule.tally(top, k), rule.sigmas[k], k) for k, m in shares.items())
    return tuple(pilots), rule.looked(pilots, fresh, alpha)
