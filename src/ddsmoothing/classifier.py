"""The smoothed classifier: predict and certify, one noise scale for each input. It knows no files."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ddsmoothing.bounds import check_alpha, check_count
from ddsmoothing.certificate import Certificate, checked_certificate
from ddsmoothing.claims import Certification, Prediction, Rule, check_offsets, rule_for
from ddsmoothing.counting.contract import BaseClassifier
from ddsmoothing.counting.engine import Engine
from ddsmoothing.errors import InfeasibleError, InputError
from ddsmoothing.inputs import Batch, check_levels, check_sigma
from ddsmoothing.labels import checked_labels
from ddsmoothing.noise import LEVELS
from ddsmoothing.plan import N0, Question, Sampler, Target, asking, sampler_for
from ddsmoothing.progress import Told, telling
from ddsmoothing.smoothing import Smoothing
from ddsmoothing.streams import checked_seed, coin


class SmoothedClassifier(Smoothing):
    """The smoothed classifier: a vote of the base classifier's answers to x plus noise.

    With the vote ``pairwise`` its answer is the class that beats every other one on more than half of the samples, and
    with ``plurality`` the class given most often. They agree wherever one class has more than half of the samples; a
    deployed system has to vote the same way as its certificates.

    Args:
        model: Base classifier, from inputs ``(B, ...)`` to logits ``(B, K)``. A module is used in eval mode and given
            back in the mode it came in.
        certificate: ``"l2"`` or ``"l1"``, or ``L2Certificate()`` or ``L1Certificate()``.
        num_classes: K, at least 2; None finds it by one forward pass of the first input.
        vote: ``pairwise`` or ``plurality`` (as in papers' tables).
        offsets: Of the classes, for a pairwise vote: a class has to win by more against those with a larger offset. In
            the units of the radius; see ``fit_offsets``. None for none.
        block_size: Rows of one forward pass (a constant: the last one is padded); None chooses by the input's size.
        precision: ``fp32`` (the model as it is), ``bf16`` or ``fp16``: a copy of the module is cast, and that copy is
            what is certified.
        channels_last: Run a copy in that memory format.
        compiled: Run a copy by ``torch.compile``. Copies, and workers, keep the weights that the model has now.
        snap: Move inputs to the grid first and subtract the distance from radii, so that inputs off the grid get exact
            noise too.
        levels: The grid is X / levels, X an integer: 255 for 8-bit images, 65535 for 16 bits, 100 for columns in steps
            of 0.01. Inputs on it get exact noise.
        any_range: Take inputs outside [0, 1] also where no levels are stated; sigma and radii are in their units.
        check: Before the first answer, see on a few noisy rows whether the model is a function of one row: some hundred
            forward passes of few rows, once. False leaves that out.
    Raises:
        InputError: Something does not go together.
    """

    def __init__(
        self,
        model: BaseClassifier,
        certificate: Certificate | str = "l2",
        *,
        num_classes: int | None = None,
        vote: str = "pairwise",
        offsets: Sequence[float] | None = None,
        block_size: int | None = None,
        precision: str = "fp32",
        channels_last: bool = False,
        compiled: bool = False,
        snap: bool = False,
        levels: int = LEVELS,
        any_range: bool = False,
        check: bool = True,
    ) -> None:
        if not callable(model):
            raise InputError(f"model is {type(model).__name__}, expected a module or callable from inputs to logits.")
        certificate = checked_certificate(certificate)
        if num_classes is not None and num_classes < 2:
            raise InputError(f"num_classes is {num_classes}, expected at least 2.")
        if block_size is not None and block_size < 1:
            raise InputError(f"block_size is {block_size}, expected at least 1.")
        self.model, self.certificate, self.block_size = model, certificate, block_size
        self._classes = [] if num_classes is None else [num_classes]
        self.precision, self.channels_last, self.compiled, self.snap = precision, channels_last, compiled, snap
        self.levels, self.vote, self.any_range = check_levels(levels), rule_for(vote).vote, any_range
        self.offsets = None if offsets is None else check_offsets(offsets, num_classes)
        if self.offsets is not None and num_classes is None:
            self._classes.append(len(self.offsets))
        self.rule()  # what does not go together is said here
        self._engine = Engine(model, precision=precision, channels_last=channels_last, compiled=compiled)
        self._to_check = {True} if check else set()

    def __repr__(self) -> str:
        classes = f"{self._classes[0]} classes" if self._classes else "as many classes as its model has"
        name = getattr(self.model, "__name__", type(self.model).__name__)
        return f"SmoothedClassifier of {name}: {self.certificate.norm.upper()}, {classes}, {self.vote} vote"

    def rule(self, bound: str = "one-class") -> Rule:
        """How noisy answers become the smoothed answer, and how a radius is bounded."""
        return rule_for(self.vote, bound, offsets=self.offsets, norm=self.certificate.norm)

    def certify(
        self,
        x: torch.Tensor,
        sigma: ArrayLike,
        *,
        n0: int | None = None,
        n: int | None = None,
        n_max: int | None = None,
        radii: Sequence[float] | None = None,
        sampler: Sampler | None = None,
        alpha: float = 0.001,
        bound: str = "one-class",
        randomized: bool = False,
        labels: ArrayLike | None = None,
        seed: int | None = None,
        ids: Sequence[int] | None = None,
        progress: Told = None,
    ) -> Certification:
        """Certify every input at its own sigma.

        The class is chosen on a pilot; its probability is bounded on fresh samples.

        Args:
            x: ``(B, ...)``, a tensor or an array, uint8 or floating point in [0, 1]; the model normalises.
            sigma: One number or ``(B,)``, standard deviation in the units of x.
            n0: Samples that choose the class (100).
            n: Samples that bound its probability (100,000); giving it or n0 selects the sampler ``exact``.
            n_max: Giving neither selects ``plan``, which takes at most so many (100,000).
            radii: Select ``target``: only whether these are certified.
            sampler: In place of these numbers.
            alpha: Failure probability of each certificate.
            bound: ``one-class`` or, with a plurality vote, ``two-class``; fixed before any sample is seen.
            randomized: Use the randomised bound; it depends on a coin, drawn once and kept.
            labels: ``(B,)``: stop an input whose pilot class is another (reason ``wrong``).
            seed: None takes one from the operating system; a published seed lets an adversary look for failures.
            ids: Noise keys; None takes them from the inputs' bytes.
            progress: True for a bar, a callable that is told samples done, or a tqdm.
        Raises:
            InputError: ShapeError, SigmaError and InfeasibleError among them; ModelError.
        References:
            Cohen et al. 2019, arXiv:1902.02918, CERTIFY.
        """
        sampler = sampler or sampler_for(n0, n, n_max, radii)
        rule = self.rule(bound)
        sampler.check(check_alpha(alpha), bound)
        if randomized and bound != "one-class":
            raise InputError(f"the randomised bound is a one-class bound, got bound={bound!r}.")
        batch, sigmas = self._prepare(x, sigma, ids)
        seed, start = checked_seed(seed), time.perf_counter()
        truth = [None] * len(batch)
        if labels is not None:
            truth = checked_labels(labels, len(batch), self.num_classes).tolist()
        questions = [
            Question(alpha, rule, self.num_classes, label, self._gap(float(s)), self.certificate.norm == "l1")
            for s, label in zip(sigmas, truth, strict=True)
        ]
        if len(set(sigmas.tolist())) == 1:
            rule.check(float(sigmas[0]), sampler.largest(), alpha)
        if isinstance(sampler, Target) and self.offsets is None and len(set(sigmas.tolist())) == 1:
            sampler.check_reach(alpha, questions[0].gap, float(sigmas[0]))
        talks = [sampler.converse(question) for question in questions]
        with telling(progress, len(batch) * sampler.largest(), "certifying") as told:
            found = self.converse(batch, sigmas, talks, seed, told)
        coins = [coin(seed, i) if randomized else None for i in batch.ids]
        fresh = [
            None if one.fresh is None else replace(one.fresh, coin=each) for one, each in zip(found, coins, strict=True)
        ]
        return Certification(
            **self._evidence(batch, sigmas, rule, alpha, seed, start),
            pilots=tuple(one.pilot for one in found),
            fresh=tuple(fresh),
            stopped=tuple(one.stopped for one in found),
            sampler=sampler.name,
        )

    def _gap(self, sigma: float) -> Callable[[float], float]:
        return lambda p: float(self.certificate.estimate(np.array(sigma), np.array(p)))

    def predict(
        self,
        x: torch.Tensor,
        sigma: ArrayLike,
        *,
        n0: int = N0,
        n: int = 1_000,
        alpha: float = 0.001,
        seed: int | None = None,
        ids: Sequence[int] | None = None,
        progress: Told = None,
    ) -> Prediction:
        """The smoothed classifier's answer to every input, or ABSTAIN.

        With a pairwise vote n0 samples choose the class and n fresh ones test it; with a plurality vote n do both.

        Args:
            x: ``(B, ...)``, as for ``certify``.
            sigma: One number or ``(B,)``.
            n0: Samples that choose the class.
            n: Samples that test it.
            alpha: Probability of another answer than the smoothed classifier's, for each input.
            seed: As for ``certify``.
            ids: As for ``certify``.
            progress: As for ``certify``.
        Raises:
            InputError: ShapeError, SigmaError and InfeasibleError among them; ModelError.
        """
        check_count(n, "n")
        check_count(n0, "n0")
        rule = self.rule()
        if n < (needed := rule.samples_to_answer(check_alpha(alpha))):
            raise InfeasibleError(f"n={n} samples at alpha={alpha} would always abstain. Use n >= {needed}.")
        batch, sigmas = self._prepare(x, sigma, ids)
        if len(set(sigmas.tolist())) == 1:
            rule.check(float(sigmas[0]), n, alpha)
        seed, start = checked_seed(seed), time.perf_counter()
        talks = [asking(rule, self.num_classes, n0, n) for _ in range(len(batch))]
        with telling(progress, len(batch) * (n0 * rule.asks_twice + n), "predicting") as told:
            found = self.converse(batch, sigmas, talks, seed, told)
        return Prediction(
            **self._evidence(batch, sigmas, rule, alpha, seed, start),
            pilots=tuple(one.pilot for one in found),
            fresh=tuple(one.fresh for one in found),
        )

    def with_offsets(self, offsets: Sequence[float] | None) -> SmoothedClassifier:
        """The same base classifier with these class offsets, or with none."""
        known = None if offsets is None else check_offsets(offsets, next(iter(self._classes), None))
        other = self._with(offsets=known)
        other.rule()
        if known is not None and not self._classes:
            self._classes.append(len(known))
        return other

    def _prepare(
        self, x: torch.Tensor, sigma: ArrayLike, ids: Sequence[int] | None
    ) -> tuple[Batch, NDArray[np.float64]]:
        batch = self.prepare(x, ids)
        sigmas = check_sigma(sigma, len(batch))
        self.check_function(batch, float(np.median(sigmas)))
        return batch, sigmas

    def _evidence(
        self, batch: Batch, sigma: NDArray[np.float64], rule: Rule, alpha: float, seed: int, start: float
    ) -> dict[str, Any]:
        return {
            "ids": batch.ids,
            "input_sha256": batch.sha256,
            "d": batch.d,
            "sigma": sigma,
            "rule": rule,
            "num_classes": self.num_classes,
            "norm": self.certificate.norm,
            "levels": batch.levels,
            "moved": batch.moved,
            "noise": tuple("grid" if on else "float" for on in batch.on_grid),
            "alpha": alpha,
            "seed": seed,
            "block_size": self.block_rows(batch.d),
            "seconds": time.perf_counter() - start,
        }
