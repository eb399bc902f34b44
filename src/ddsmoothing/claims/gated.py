"""Experts behind a gate that picks one of them: the reach rule, and Dual RS.

``G(y) = g_{s(y)}(y)``: a gate s picks one of finitely many experts. Let ``E_i`` bound the distance within which the
gate does not pick expert i, and ``R_i`` the one within which i answers A. With c picked, G is A on
``T = min(R_c, min over the other i of max(E_i, R_i))``: at a distance below T the expert picked is c, or one whose
``E_i`` is below T, and then ``R_i`` is at least T. The pilot commits to ``E_i`` or ``R_i`` for each i, which leaves
atoms that all have to hold; each has the whole alpha. Taking the larger bound of two afterwards fails more often.

References: Berger 1982, Multiparameter hypothesis testing; Sun, Mao, Vechev 2026 (Dual RS: plurality votes, never R_i).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from ddsmoothing.bounds import lower_of_looks, top_two_bounds
from ddsmoothing.certificate import Certificate, certificate_for
from ddsmoothing.claims.centres import Seen
from ddsmoothing.claims.measurement import VOTES, Measurement, Tally
from ddsmoothing.claims.offsets import OffsetPairwise
from ddsmoothing.claims.rules import ABSTAIN, Claim, Pairwise, Plurality, Rule
from ddsmoothing.claims.several import (
    Atom,
    Commitment,
    StatelessRule,
    check_sigmas,
    fewest_at,
    plain_numbers,
    probability_at,
)
from ddsmoothing.errors import InputError

BRANCHES: Final = ("reach", "dual")
EXPERTS: Final = (Pairwise, OffsetPairwise, Plurality)  # none that a header could not say


@dataclass(frozen=True, kw_only=True)
class Gated(StatelessRule):
    """Experts, each with a vote at a scale of its own, behind a gate that picks one of them.

    A smoothed gate picks the expert that its noisy votes are most often for. Of a gate without noise each input's
    ``Seen`` is put in by ``at``: its distances are exact and cost neither samples nor alpha.

    Attributes:
        experts: the rule of each, all with the same vote, one-class; pairwise ones with offsets of their own if they
            have some.
        sigmas: of each expert, and behind them that of a smoothed gate.
        classes: K of the experts.
        groups: of each output of a smoothed gate the expert that it stands for; None for a gate without noise.
        branches: ``reach``, or ``dual`` to rely on the gate alone.
        norm: ``l2`` or ``l1``.
        seen: what a gate without noise says of the input.
    """

    kind = "gated"
    words = "gate before experts"
    experts: tuple[Rule, ...]
    sigmas: tuple[float, ...]
    classes: int
    groups: tuple[int, ...] | None = None
    branches: str = "reach"
    norm: str = "l2"
    seen: Seen | None = None

    def __post_init__(self) -> None:
        certificate_for(self.norm)
        object.__setattr__(self, "sigmas", plain_numbers(self.sigmas, "the sigmas of a gate and its experts"))
        if not isinstance(self.experts, Sequence) or any(type(one) not in EXPERTS for one in self.experts):
            known = ", ".join(one.__name__ for one in EXPERTS)
            raise InputError(f"the experts are {self.experts!r}, expected several of {known}.")
        object.__setattr__(self, "experts", tuple(self.experts))
        count = len(self.experts)
        if not isinstance(self.branches, str) or self.branches not in BRANCHES:
            raise InputError(f"branches are {self.branches!r}, expected one of {', '.join(BRANCHES)}.")
        if len({(one.vote, one.bound) for one in self.experts}) != 1 or self.experts[0].bound != "one-class":
            raise InputError("a gate takes at least one expert, all with the same vote and one-class bounds.")
        if type(self.classes) is not int or self.classes < 2:
            raise InputError(f"experts of {self.classes!r} classes, expected at least 2.")
        if len(self.sigmas) != count + (self.groups is not None) or not all(0.0 < s < math.inf for s in self.sigmas):
            raise InputError(
                f"the sigmas are {self.sigmas}, expected positive ones of {count} experts, and of the gate if it is "
                "smoothed."
            )
        if self.groups is not None:
            groups = plain_numbers(self.groups, "the groups of a gate")
            if set(groups) != set(range(count)):
                raise InputError(
                    f"the gate's outputs stand for the experts {self.groups}, expected each of 0 to {count - 1}."
                )
            object.__setattr__(self, "groups", tuple(map(int, groups)))
        for expert in self.experts:
            if isinstance(expert, OffsetPairwise) and (len(expert.offsets), expert.norm) != (self.classes, self.norm):
                raise InputError("the offsets of an expert are of other classes or of another norm than the rule's.")
        if self.seen is not None:
            self._check_seen(self.seen)

    def _check_seen(self, seen: Seen) -> None:
        """Raise InputError unless a gate without noise can say this."""
        known = range(len(self.experts))
        if self.groups is not None or not isinstance(seen, Seen) or len(seen.away) != len(known):
            raise InputError(f"a gate without noise and of {len(known)} experts is expected, got {seen}.")
        if seen.chosen not in known or not all(away >= 0.0 for away in seen.away):
            raise InputError(f"the gate says {seen}, expected an expert of {len(known)} and distances from 0 on.")

    @property
    def vote(self) -> str:
        return self.experts[0].vote

    @property
    def num_classes(self) -> int:
        return self.classes

    def check_alone(self) -> None:
        if self.groups is None or len(self.groups) != self.classes:
            raise InputError(
                f"the gate of one model needs the expert of each of its {self.classes} classes, got "
                f"{0 if self.groups is None else len(self.groups)}; one without noise, or of another model, goes with "
                "certify_routed."
            )
        check_sigmas(self.sigmas, "experts and gate of one model")

    def at(self, seen: Seen) -> Gated:
        """The same rule at an input of which a gate without noise says this."""
        return replace(self, seen=seen)

    def pilot_tally(self, slot: int) -> Tally:
        return Tally(VOTES) if slot == len(self.experts) else self.experts[slot].pilot_tally(self.classes)

    def commit(self, pilots: Sequence[Measurement]) -> Commitment:
        """Expert, class, and of each other expert whether the gate is to keep it away or it is to answer the class."""
        gate = len(self.experts)
        if self.groups is not None:
            chosen = int(np.argmax(self._gate_votes(pilots[gate])))
            away = [self.estimated(Commitment(0, (), chosen), pilots[gate])] * gate
        elif self.seen is None:
            raise InputError("this gate has not seen the input, expected the rule at what it says: Gated.at(seen).")
        else:
            chosen, away = self.seen.chosen, list(self.seen.away)
        made = Commitment(self.experts[chosen].choose(pilots[chosen]), (), chosen)
        others = [i for i in range(gate) if i != chosen]
        kept = {i for i in others if self.branches == "dual" or away[i] >= self.estimated(made, pilots[i])}
        slots = [i for i in range(gate) if i not in kept]
        return made._replace(slots=(*slots, gate) if kept and self.groups is not None else tuple(slots))

    def _gate_votes(self, one: Measurement) -> tuple[int, ...]:
        """How many samples were for each expert."""
        found = [0] * len(self.experts)
        assert self.groups is not None
        for expert, count in zip(self.groups, one.votes, strict=True):
            found[expert] += count
        return tuple(found)

    def fewest(self, made: Commitment, slot: int, alpha: float) -> int:
        return self._fewest(made.top, slot, alpha)

    def _fewest(self, top: int, slot: int, alpha: float) -> int:
        threshold = 0.0 if slot == len(self.experts) else self.experts[slot].handicap(top)
        needed = probability_at(self.norm, threshold, self.sigmas[slot])
        return fewest_at(needed, alpha, f"the threshold {threshold:g} of expert {slot}", self.sigmas[slot])

    def most_needed(self, alpha: float) -> int:
        most, gate = 0, self._fewest(0, len(self.experts), alpha) if self.groups is not None else 0
        for top in range(self.classes):
            each = [self._fewest(top, slot, alpha) for slot in range(len(self.experts))]
            by_gate = gate if len(each) > 1 else 0
            some = max(each) if self.branches == "dual" else sum(each) - (min(each) if len(each) > 1 else 0)
            most = max(most, some + by_gate, 0 if self.branches == "dual" else sum(each))
        return most

    def tally(self, top: int, slot: int) -> Tally:
        return Tally(VOTES) if slot == len(self.experts) else self.experts[slot].tally(top)

    def binding(self, made: Commitment, pilot: Measurement) -> tuple[int, float]:
        if pilot.slot == len(self.experts):
            return self._gate_votes(pilot)[made.chosen], 0.0
        expert = self.experts[pilot.slot]
        return expert.fewest(pilot, made.top), expert.threshold(pilot, made.top)

    def events(self, made: Commitment, one: Measurement) -> tuple[int, ...]:
        """The gate's votes for the expert picked, or an expert's events for the class."""
        if one.slot == len(self.experts):
            return (self._gate_votes(one)[made.chosen],)
        return self.experts[one.slot].counts(one, made.top)

    def atom(self, made: Commitment, one: Measurement, certificate: Certificate, alpha: float) -> Atom:
        if one.slot < len(self.experts):
            p_lower, p_upper, margin = self.experts[one.slot].least(one, made.top, certificate, alpha)
            return Atom(margin, p_lower, p_upper)
        lower = lower_of_looks([(look.n, look.counts[0], look.alpha) for look in one.looks], one.coin)
        p_lower, p_upper = top_two_bounds(lower, 0, one.n, alpha, "one-class", one.tv)
        return Atom(certificate.phi(one.sigma, p_lower), p_lower, p_upper)

    def claim(
        self,
        pilots: Sequence[Measurement],
        fresh: Sequence[Measurement],
        certificate: Certificate,
        alpha: float,
        moved: float = 0.0,
    ) -> Claim:
        """As for every stateless rule; no farther than a gate without noise keeps the experts away that it has to."""
        found = super().claim(pilots, fresh, certificate, alpha, moved)
        if self.seen is None or found.prediction == ABSTAIN:
            return found
        made = self.commit(pilots)
        kept = [away for i, away in enumerate(self.seen.away) if i != made.chosen and i not in made.slots]
        away = min(kept, default=math.inf)
        if moved > 0.0:
            away = math.nextafter(away - moved, -math.inf)
        held = away > 0.0
        return replace(
            found, prediction=found.prediction if held else ABSTAIN, radius=min(found.radius, away) if held else 0.0
        )

    def config(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "experts": [expert.config() for expert in self.experts],
            "sigmas": list(self.sigmas),
            "groups": None if self.groups is None else list(self.groups),
            "branches": self.branches,
        }


def gated_radius(away: Sequence[float], radii: Sequence[float], chosen: int) -> float:
    """T of exact values: ``E_i`` and the signed radii ``R_i``, negative where an expert answers another class."""
    others = [max(away[i], radius) for i, radius in enumerate(radii) if i != chosen]
    return max(0.0, min([radii[chosen], *others]))
