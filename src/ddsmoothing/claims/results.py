"""What a certification or prediction of some inputs found: measurements in, claims derived.

It draws nothing and knows no models and no files. Anyone who holds the measurements can recompute every claim.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Final, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ddsmoothing.bounds import floor_text
from ddsmoothing.certificate import Certificate, certificate_for
from ddsmoothing.claims.levels import POINTWISE
from ddsmoothing.claims.measurement import Look, Measurement
from ddsmoothing.claims.rules import ABSTAIN, Claim, Rule
from ddsmoothing.claims.stored import CertificationForm, EvidenceForm, check_stored, rule_of
from ddsmoothing.errors import InputError
from ddsmoothing.labels import checked_labels
from ddsmoothing.noise import grid_table
from ddsmoothing.shown import Form, Stored, inputs_text, spread

EACH: Final = ("ids", "input_sha256", "pilots", "fresh", "sigma", "noise", "moved")


def total_variation(certificate: Certificate, sigma: float, d: int, levels: int) -> float:
    """Bound on the total-variation distance of d-dimensional grid noise to the rounded noise of the theorem."""
    return d * grid_table(certificate.noise.name, certificate.noise.scale(sigma), levels).tau


def evidence_text(rule: Rule, alpha: float, moved: float, measurements: Sequence[dict[str, Any]]) -> str:
    """JSON of a rule, the failure probability its looks were given, and measurements."""
    text = {"rule": rule.config(), "alpha": alpha, "moved": moved, "measurements": measurements}
    return json.dumps(text, separators=(",", ":"))


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Evidence(Stored):
    """What was drawn, and how; B inputs, K classes.

    Attributes:
        ids: noise keys.
        input_sha256: of each input's bytes.
        d: numbers in one input.
        pilots: what chose each input's class.
        fresh: what was counted after that, None where nothing was drawn.
        rule: how noisy answers become the smoothed answer.
        norm: ``l2`` or ``l1``.
        sigma: ``(B,)`` float64, standard deviation of each input's noise, in the units of the input.
        noise: ``grid`` or ``float`` for each input.
        levels: of the grid, steps to the unit: 255 for 8-bit images.
        moved: ``(B,)`` bound on the distance that each input was moved to the grid before anything was drawn.
        alpha: failure probability an input.
        seed: of the noise.
        block_size: rows of each forward pass.
        seconds: wall time of the whole batch.
        num_classes: K.
    """

    _each: ClassVar[tuple[str, ...]] = EACH
    _form: ClassVar[type[Form]] = EvidenceForm
    _arrays: ClassVar[Mapping[str, str]] = {"sigma": "float64", "moved": "float64"}

    ids: tuple[int, ...]
    input_sha256: tuple[str, ...]
    d: int
    pilots: tuple[Measurement, ...]
    fresh: tuple[Measurement | None, ...]
    rule: Rule
    norm: str
    sigma: NDArray[np.float64]
    noise: tuple[str, ...]
    levels: int
    moved: NDArray[np.float64]
    alpha: float
    seed: int
    block_size: int
    seconds: float
    num_classes: int

    @classmethod
    def _made(cls, read: dict[str, Any]) -> Self:
        read["rule"] = rule_of(read["rule"], read["norm"])
        check_stored(read)
        return cls(**read)

    @cached_property
    def prediction(self) -> NDArray[np.int64]:
        """``(B,)`` the class, ABSTAIN (-1) where there is none."""
        raise NotImplementedError

    @property
    def abstained(self) -> NDArray[np.bool_]:
        """``(B,)`` True where there is no class."""
        return np.asarray(self.prediction == ABSTAIN)

    @property
    def samples(self) -> NDArray[np.int64]:
        """``(B,)`` noisy copies drawn for each input, pilot included."""
        return np.asarray(self._votes(self.pilots).sum(1) + self.counts.sum(1))

    def _line(self) -> str:
        words = "answered" if self._radii() is None else "certified"
        if len(self) == 1:
            answer = "abstained" if self.abstained[0] else f"class {self.prediction[0]}"
        else:
            answer = f"{int((~self.abstained).sum()):,} {words}, {int(self.abstained.sum()):,} abstained"
        radii, samples = self._radii(), spread(self.samples)
        if radii is not None and len(self):
            answer += f", {'radius' if len(self) == 1 else 'median radius'} {floor_text(float(np.median(radii)), 3)}"
        level = f", level {self.level}" if isinstance(self, Certification) else ""
        how = f"{self.norm.upper()}{level}, {self.vote} vote, sigma {spread(self.sigma)}, {samples} samples an input"
        return f"{type(self).__name__} of {inputs_text(len(self))}: {answer}; {how}, alpha {self.alpha:g}"

    def _radii(self) -> NDArray[np.float64] | None:
        return None

    def _columns(self) -> dict[str, NDArray[Any]]:
        return {
            "id": np.array(self.ids, dtype=np.uint64),
            "prediction": self.prediction,
            "sigma": self.sigma,
            "samples": self.samples,
        }

    @property
    def vote(self) -> str:
        """``pairwise`` or ``plurality``: which smoothed classifier this is about."""
        return self.rule.vote

    @property
    def bound(self) -> str:
        """``one-class`` or ``two-class``."""
        return self.rule.bound

    @cached_property
    def certificate(self) -> Certificate:
        """The theorem that these samples are used with."""
        return certificate_for(self.norm)

    @cached_property
    def scale(self) -> NDArray[np.float64]:
        """``(B,)`` the noise's own parameter: sigma for L2, lambda = sqrt(3) sigma for L1."""
        return np.array([self.certificate.noise.scale(float(s)) for s in self.sigma])

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """``(B, K)`` how many fresh samples were of each class."""
        return self._votes(self.fresh)

    @property
    def tv(self) -> NDArray[np.float64]:
        """``(B,)`` bound on the total-variation distance of the drawn noise to the theorem's, all d coordinates.

        0 for float noise, where it is not known, and where nothing was drawn.
        """
        return np.array([0.0 if one is None else one.tv for one in self.fresh])

    def _votes(self, measured: tuple[Measurement | None, ...]) -> NDArray[np.int64]:
        none = (0,) * self.num_classes
        found = [none if one is None else one.votes for one in measured]
        return np.array(found, dtype=np.int64).reshape(len(measured), self.num_classes)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Certification(Evidence):
    """Certificates of B inputs, level ``pointwise``: each holds for the classifier that uses ITS sigma everywhere.

    An index takes out some of the inputs: ``result[3]``, ``result[result.radius > 0.5]``.

    Attributes:
        pilots: what chose each input's class.
        fresh: what bounds it, None where nothing was drawn.
        stopped: for each input, why no fresh samples were drawn (``planned``, ``wrong``, ..), or None.
        sampler: how many samples were drawn.
    """

    stopped: tuple[str | None, ...]
    sampler: str
    level: str = POINTWISE.name

    _each: ClassVar = (*EACH, "stopped")
    _form: ClassVar = CertificationForm

    def _radii(self) -> NDArray[np.float64]:
        return self.radius

    def _columns(self) -> dict[str, NDArray[Any]]:
        found = super()._columns()
        known = {name: found.pop(name) for name in ("id", "prediction")}
        said = {"radius": self.radius, "p_lower": self.p_lower}
        return {**known, **said, **found, "reason": np.array(self.reason, dtype=object)}

    @cached_property
    def claims(self) -> tuple[Claim, ...]:
        """What follows for each input."""
        return tuple(
            self.rule.claim(pilot, fresh, self.certificate, self.alpha, float(moved))
            for pilot, fresh, moved in zip(self.pilots, self.fresh, self.moved, strict=True)
        )

    @property
    def measurements(self) -> tuple[tuple[Measurement, ...], ...]:
        """Of each input all that was drawn, the pilot first."""
        return tuple(
            (pilot,) if fresh is None else (pilot, fresh) for pilot, fresh in zip(self.pilots, self.fresh, strict=True)
        )

    @cached_property
    def n0_counts(self) -> NDArray[np.int64]:
        """``(B, K)`` how many samples of the pilot were of each class."""
        return self._votes(self.pilots)

    @cached_property
    def top(self) -> NDArray[np.int64]:
        """``(B,)`` the class chosen by the pilot."""
        return np.array([self.rule.choose(pilot) for pilot in self.pilots], dtype=np.int64)

    @cached_property
    def p_lower(self) -> NDArray[np.float64]:
        """``(B,)`` lower bound on the probability of the least likely event that the answer rests on; errs low.

        With a plurality vote that the top class is given, with a pairwise one that it beats its strongest rival.
        """
        return np.array([claim.p_lower for claim in self.claims])

    @cached_property
    def p_upper(self) -> NDArray[np.float64]:
        """``(B,)`` upper bound on every other class's probability, or on that of losing to the rival; errs high."""
        return np.array([claim.p_upper for claim in self.claims])

    @cached_property
    def prediction(self) -> NDArray[np.int64]:
        """``(B,)`` the certified class, ABSTAIN (-1) where there is none."""
        return np.array([claim.prediction for claim in self.claims], dtype=np.int64)

    @cached_property
    def abstained(self) -> NDArray[np.bool_]:
        """``(B,)`` True where the bounds do not separate the class, or not as far as the input was moved."""
        return np.asarray(self.prediction == ABSTAIN)

    @cached_property
    def radius(self) -> NDArray[np.float64]:
        """``(B,)`` certified radius, 0 where abstained; errs low; each is false with probability <= alpha."""
        return np.array([claim.radius for claim in self.claims])

    @property
    def reason(self) -> tuple[str, ...]:
        """``certified``, ``abstained``, or why sampling stopped before there was anything to certify."""
        pairs = zip(self.abstained, self.stopped, strict=True)
        return tuple((stopped or "abstained") if gone else "certified" for gone, stopped in pairs)

    def evidence(self, i: int) -> str:
        """JSON of all that the claim of one input follows from, for those who keep certificates one by one."""
        drawn = [one.compact() for one in self.measurements[i]]
        return evidence_text(self.rule, self.alpha, float(self.moved[i]), drawn)

    def outcome(self, labels: ArrayLike) -> Outcome:
        """These certificates against the true classes ``(B,)``, for analysis; InputError where they are no classes."""
        truth = checked_labels(labels, len(self), self.num_classes)
        return Outcome(correct=np.asarray(self.prediction == truth), radius=self.radius)

    def under(self, rule: Rule) -> Certification:
        """The same samples judged by another rule, to compare votes and bounds.

        Which rule counts has to be fixed before the samples are seen; taking the better one afterwards fails.

        Raises: InputError where other samples would have been drawn, or were not counted.
        """
        if any(one is not None and len(one.looks) != 1 for one in self.fresh):
            raise InputError("only certificates of one look can be judged by another rule: samplers exact and plan.")
        if rule.asks_twice and not self.rule.asks_twice:
            raise InputError(f"a {rule.vote} vote needs wins, and a {self.vote} vote does not count them.")
        if rule.asks_twice and rule.config() != self.rule.config():
            raise InputError("with other class offsets other wins would have been counted; certify again with these.")
        found: list[Measurement | None] = []
        for pilot, fresh in zip(self.pilots, self.fresh, strict=True):
            if fresh is None:
                found.append(None)
                continue
            counts = rule.counts(fresh, rule.choose(pilot))
            found.append(replace(fresh, looks=(Look(fresh.n, counts, rule.share(self.alpha)),)))
        return replace(self, rule=rule, fresh=tuple(found))


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """Certificates held against labels.

    Attributes:
        correct: ``(B,)`` True where a certificate names the right class.   radius: ``(B,)`` certified radius.
    """

    correct: NDArray[np.bool_]
    radius: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Prediction(Evidence):
    """Answers of the smoothed classifier, without any statement about robustness."""

    @cached_property
    def prediction(self) -> NDArray[np.int64]:
        """``(B,)`` the smoothed classifier's class, or ABSTAIN (-1).

        Each differs from the smoothed classifier's true answer with probability at most ``alpha + n * tv``.
        """
        pairs = zip(self.pilots, self.fresh, strict=True)
        found = [ABSTAIN if fresh is None else self.rule.answer(pilot, fresh, self.alpha) for pilot, fresh in pairs]
        return np.array(found, dtype=np.int64)
