"""Stateless rules: one function of the input that looks at several noise scales.

A rule says what a pilot counts at every scale, which class that chooses, at which scales fresh samples are drawn and in
which shares, and what follows from them. Its atoms at all scales together imply the answer; each bound has the whole
alpha, since which atoms they are is fixed by the pilot alone.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import replace
from numbers import Real
from typing import Any, ClassVar, Final, NamedTuple

import numpy as np
from scipy.special import betaincinv, ndtr

from ddsmoothing.certificate import Certificate, certificate_for
from ddsmoothing.claims.measurement import Look, Measurement, Tally
from ddsmoothing.claims.rules import ABSTAIN, Claim
from ddsmoothing.errors import InfeasibleError, InputError

CERTAIN: Final = 1e-9  # probabilities nearer to 0 and 1 are no plan's concern
MOST_SIGMAS: Final = 1000  # of a rule that a header holds
PARTS: Final = 32  # into which the samples are divided between the scales


class Atom(NamedTuple):
    """The least margin above its threshold of the events at one scale, and the bounds it follows from; errs low."""

    margin: float
    p_lower: float
    p_upper: float


class Commitment(NamedTuple):
    """What the pilots settle before anything is certified.

    Attributes:
        top: the class.
        slots: at which scales fresh samples are drawn, ascending.
        chosen: which of several experts was picked, where there are some.
    """

    top: int
    slots: tuple[int, ...]
    chosen: int = 0


class StatelessRule(ABC):
    """How answers at several noise scales become one answer with a radius.

    Attributes:
        kind: as files name it.
        words: as people do.
        vote: ``pairwise`` or ``plurality``: which answer is meant at each scale.
        sigmas: the scales in the order of their slots, standard deviations in the units of the input.
        norm: ``l2`` or ``l1``.
        num_classes: K.
        offsets: of the classes, None for none.
    """

    kind: ClassVar[str]
    words: ClassVar[str]
    sigmas: tuple[float, ...]
    norm: str

    @property
    @abstractmethod
    def vote(self) -> str:
        """``pairwise`` or ``plurality``."""

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """K."""

    @property
    def given_offsets(self) -> tuple[float, ...] | None:
        """Offsets of the classes, None for none."""
        return None

    @abstractmethod
    def pilot_tally(self, slot: int) -> Tally:
        """What the pilot counts at a scale."""

    @abstractmethod
    def commit(self, pilots: Sequence[Measurement]) -> Commitment:
        """What is certified, and by which samples; a function of the pilots alone."""

    @abstractmethod
    def fewest(self, made: Commitment, slot: int, alpha: float) -> int:
        """The fewest fresh samples at a scale with which all its atoms can hold; InfeasibleError if no number does."""

    @abstractmethod
    def most_needed(self, alpha: float) -> int:
        """The fewest samples in all with which every class can be certified, whatever the pilot shows."""

    @abstractmethod
    def tally(self, top: int, slot: int) -> Tally:
        """What is counted to certify this class at a scale."""

    @abstractmethod
    def binding(self, made: Commitment, pilot: Measurement) -> tuple[int, float]:
        """Of the event at a pilot's scale that will bind, as the pilot shows it, count and threshold (no claim)."""

    def estimated(self, made: Commitment, pilot: Measurement) -> float:
        """The margin that a pilot shows (float64, no claim)."""
        count, threshold = self.binding(made, pilot)
        return phi_of(self.norm, pilot.sigma, (count + 0.5) / (pilot.n + 1.0)) - threshold

    def expected(self, made: Commitment, pilot: Measurement, n: int, alpha: float) -> float:
        """The margin that n samples at a pilot's scale will show, if shares are those of the pilot (no claim)."""
        count, threshold = self.binding(made, pilot)
        share = (count + 0.5) / (pilot.n + 1.0)
        lower = float(betaincinv(n * share, n * (1.0 - share) + 1.0, alpha))
        return phi_of(self.norm, pilot.sigma, lower) - threshold

    @abstractmethod
    def events(self, made: Commitment, one: Measurement) -> tuple[int, ...]:
        """How often each event happened that is looked at on fresh samples of one scale."""

    @abstractmethod
    def atom(self, made: Commitment, one: Measurement, certificate: Certificate, alpha: float) -> Atom:
        """What fresh samples of one scale show; errs low."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Everything that defines it beside vote, offsets, norm and K, as a header stores it; its class takes it."""

    def check_alone(self) -> None:  # noqa: B027
        """Raise InputError if one model at the sigmas of the rule is not all that it asks."""

    def described(self) -> dict[str, Any]:
        """The whole classifier, as a header stores it."""
        offsets = None if self.given_offsets is None else list(self.given_offsets)
        return {"vote": self.vote, "bound": "one-class", "offsets": offsets, "stateless": self.config()}

    def check(self, n: int, alpha: float) -> None:
        """Raise InfeasibleError, naming the n that works, if n samples can never certify some class."""
        most = self.most_needed(alpha)
        if n < most:
            raise InfeasibleError(
                f"n={n} samples at alpha={alpha}, divided between the sigmas of a class, can never certify every "
                f"class. Use n >= {most}."
            )

    def allocated(self, pilots: Sequence[Measurement], n: int, alpha: float) -> dict[int, int]:
        """By slot, its share of n samples: as the pilot shows it, the scale that binds gets most.

        A function of the pilot alone, so that every bound keeps the whole alpha.
        """
        made = self.commit(pilots)
        found = {slot: self.fewest(made, slot, alpha) for slot in made.slots}
        left = n - sum(found.values())
        assert left >= 0, "checked before"
        part = max(1, left // PARTS)
        expected = {slot: self.expected(made, pilots[slot], size, alpha) for slot, size in found.items()}
        while left > 0:
            slot = min(found, key=lambda k: (expected[k], k))
            found[slot] += min(part, left)
            left -= min(part, left)
            expected[slot] = self.expected(made, pilots[slot], found[slot], alpha)
        return found

    def looked(
        self, pilots: Sequence[Measurement], fresh: Sequence[Measurement], alpha: float
    ) -> tuple[Measurement, ...]:
        """Fresh measurements with their one look each."""
        made = self.commit(pilots)
        return tuple(replace(one, looks=(Look(one.n, self.events(made, one), alpha),)) for one in fresh)

    def claim(
        self,
        pilots: Sequence[Measurement],
        fresh: Sequence[Measurement],
        certificate: Certificate,
        alpha: float,
        moved: float = 0.0,
    ) -> Claim:
        """Class and radius; false with probability at most alpha; errs low.

        Args:
            pilots: at every scale, in the order of slots; they choose the class.
            fresh: at every scale that the pilots ask for; nothing is certified where one is missing.
            certificate: the theorem of the noise.
            alpha: failure probability.
            moved: how far the input was moved before anything was drawn; errs high.
        """
        if certificate.norm != self.norm:
            raise InputError(f"this rule is of the norm {self.norm}, got {certificate.norm}.")
        made = self.commit(pilots)
        if sorted(one.slot for one in fresh) != list(made.slots):
            return Claim(prediction=ABSTAIN, radius=0.0, p_lower=0.0, p_upper=1.0)
        found = []
        for one in sorted(fresh, key=lambda one: one.slot):
            assert one.sigma == self.sigmas[one.slot], "a measurement at another sigma than its slot's"
            found.append((one.slot, self.atom(made, one, certificate, alpha)))
        slot, least = min(found, key=lambda pair: pair[1].margin)
        radius = least.margin
        if radius > 0.0 and moved > 0.0:
            radius = math.nextafter(radius - moved, -math.inf)
        held = radius > 0.0
        return Claim(
            prediction=made.top if held else ABSTAIN,
            radius=radius if held else 0.0,
            p_lower=least.p_lower,
            p_upper=least.p_upper,
            slot=slot,
        )

    def answer(self, pilots: Sequence[Measurement], fresh: Sequence[Measurement], alpha: float) -> int:
        """PREDICT: one-sided tests of every atom, each at full alpha; all must pass."""
        bare = [replace(one, tv=0.0, coin=None) for one in self.looked(pilots, fresh, alpha)]
        return self.claim(pilots, bare, certificate_for(self.norm), alpha).prediction


def phi_of(norm: str, sigma: float, share: float) -> float:
    """Phi of an event with this probability (float64, no claim)."""
    return float(certificate_for(norm).estimate(np.array(sigma), np.array(share)))


def probability_at(norm: str, threshold: float, sigma: float) -> float:
    """Of an event whose phi is at the threshold (float64), kept away from 0 and 1."""
    if norm == "l2":
        found = float(ndtr(threshold / sigma))
    else:
        found = 0.5 + threshold / (2.0 * certificate_for(norm).noise.scale(sigma))
    return min(max(found, CERTAIN), 1.0 - CERTAIN)


def fewest_at(needed: float, alpha: float, what: str, sigma: float) -> int:
    """The fewest samples that can show a probability above ``needed``; InfeasibleError naming what if no number can."""
    if needed >= 1.0 - CERTAIN:
        raise InfeasibleError(
            f"no number of samples certifies above {what} at sigma {sigma:g}. Use a smaller one or a larger sigma."
        )
    return max(1, math.floor(math.log(alpha) / math.log(needed)) + 1)


def plain_numbers(values: object, what: str) -> tuple[float, ...]:
    """Numbers of any type as float64, as a header keeps them; InputError where some are none."""
    found = tuple(values) if isinstance(values, Iterable) else (None,)
    if any(not isinstance(value, Real) or isinstance(value, bool) for value in found):
        raise InputError(f"{what} are {values!r}, expected numbers.")
    try:
        return tuple(map(float, found))
    except OverflowError:
        raise InputError(f"{what} are numbers that float64 cannot hold, expected smaller ones.") from None


def check_sigmas(sigmas: Sequence[float], what: str, *, ascending: bool = False) -> None:
    """Raise InputError unless these are different positive numbers, ascending where that is asked for."""
    distinct = bool(sigmas) and len(set(sigmas)) == len(sigmas) and all(0.0 < s < math.inf for s in sigmas)
    if not distinct or (ascending and list(sigmas) != sorted(sigmas)):
        order = ", ascending" if ascending else ""
        raise InputError(f"the sigmas of {what} are {tuple(sigmas)}, expected different positive numbers{order}.")
    if len(sigmas) > MOST_SIGMAS:
        raise InputError(f"{what} has {len(sigmas):,} sigmas, expected at most {MOST_SIGMAS:,}.")
