"""Certificates and answers of experts behind a gate: level ``stateless``. It knows no files.

An expert is a smoothed classifier at one sigma. Several may share a model, or each may have its own.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ddsmoothing.bounds import check_alpha, check_count
from ddsmoothing.certificate import certificate_for
from ddsmoothing.claims import Claim, Gated
from ddsmoothing.claims.centres import Centres, Seen
from ddsmoothing.classifier import SmoothedClassifier
from ddsmoothing.conversation import converse
from ddsmoothing.counting.contract import Progress, Request
from ddsmoothing.errors import InputError
from ddsmoothing.inputs import Batch, check_sigma
from ddsmoothing.labels import checked_labels
from ddsmoothing.stateless.certify import PILOT, Drawn, StatelessCertification, drawn_of, stateless_talk
from ddsmoothing.streams import SLOT_BLOCKS, Stream, checked_seed

Expert = tuple[SmoothedClassifier, float]


@dataclass(frozen=True, kw_only=True, eq=False)
class SmoothedGate:
    """A gate that picks the expert which its noisy votes are most often for.

    Attributes:
        smoothed: a trained selector, or a classifier whose classes stand for experts.
        sigma: standard deviation of its noise, in the units of x.
        groups: ``(outputs,)`` of each output the expert that it stands for; None: output i stands for expert i.
    """

    smoothed: SmoothedClassifier
    sigma: float
    groups: tuple[int, ...] | None = None


Gate = SmoothedGate | Centres


@dataclass(frozen=True, kw_only=True, eq=False)
class RoutedCertification(StatelessCertification):
    """Certificates of B inputs by experts behind a gate, level ``stateless``.

    Attributes:
        seen: of each input what a gate without noise says, None of a smoothed one.
    """

    seen: tuple[Seen | None, ...] = ()

    @cached_property
    def claims(self) -> tuple[Claim, ...]:
        """What follows for each input."""
        certificate = certificate_for(self.norm)
        return tuple(
            rule.claim(pilots, fresh, certificate, self.alpha, float(moved))
            for rule, pilots, fresh, moved in zip(self.rules, self.pilots, self.fresh, self.moved, strict=True)
        )

    @property
    def rules(self) -> tuple[Gated, ...]:
        """Of each input the rule at what its gate says."""
        assert isinstance(self.rule, Gated)
        return _rules(self.rule, self.seen)

    def evidence(self, i: int) -> str:
        """JSON of all that the claim of one input follows from."""
        seen, found = self.seen[i], json.loads(super().evidence(i))
        found["seen"] = None if seen is None else {"chosen": seen.chosen, "away": list(seen.away)}
        return json.dumps(found, separators=(",", ":"))


def certify_routed(
    experts: Sequence[Expert],
    x: torch.Tensor,
    gate: Gate,
    *,
    branches: str = "reach",
    n0: int = PILOT,
    n: int = 10_000,
    alpha: float = 0.001,
    labels: ArrayLike | None = None,
    seed: int | None = None,
    ids: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> RoutedCertification:
    """Certify every input by the expert that a gate picks.

    A pilot of gate and experts fixes expert, class, and for each other expert whether the gate is to keep it away or it
    is to answer the class too. Only what these atoms need is drawn then; each has the whole alpha.

    Args:
        experts: smoothed classifiers with the same vote, each with its sigma, in the units of x.
        x: ``(B, ...)`` as for ``certify``.
        gate: a ``SmoothedGate``, or ``Centres`` of which the nearest picks its expert; fixed before, on other inputs.
        branches: ``reach``, or ``dual`` to rely on the gate alone.
        n0: samples of a smoothed gate, and of each expert, that choose.
        n: fresh samples in all, divided between the atoms by what the pilot shows.
        alpha: failure probability of each certificate.
        labels: ``(B,)``: stop an input whose pilot class is another.
        seed: of the noise; None takes one from the operating system.
        ids: noise keys; None takes them from the inputs' bytes.
        progress: called with samples done.
    Raises: ShapeError, InputError, InfeasibleError, ModelError.
    """
    start = time.perf_counter()
    house = _House(experts, gate, branches, n0, n, alpha)
    batches = house.prepared(x, ids)
    first, rule = batches[0], house.rule
    truth = [None] * len(first) if labels is None else checked_labels(labels, len(first), rule.classes).tolist()
    seed, seen = checked_seed(seed), house.seen(first)
    talks = [stateless_talk(one, n0, n, alpha, label) for one, label in zip(_rules(rule, seen), truth, strict=True)]
    found = house.converse(batches, talks, seed, progress)
    return RoutedCertification(
        **drawn_of(first, found), rule=rule, alpha=alpha, seed=seed, seconds=time.perf_counter() - start, seen=seen
    )


def predict_routed(
    experts: Sequence[Expert],
    x: torch.Tensor,
    gate: Gate,
    *,
    branches: str = "reach",
    n0: int = PILOT,
    n: int = 2_000,
    alpha: float = 0.001,
    seed: int | None = None,
    ids: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> NDArray[np.int64]:
    """The answers ``(B,)`` of experts behind a gate, or ABSTAIN; each another than the true answer w.p. at most alpha.

    Arguments as for ``certify_routed``. For noise on the grid n times its total-variation bound comes on top.
    """
    house = _House(experts, gate, branches, n0, n, alpha)
    batches = house.prepared(x, ids)
    rules = _rules(house.rule, house.seen(batches[0]))
    talks = [stateless_talk(rule, n0, n, alpha, None, Stream.PREDICT) for rule in rules]
    found = house.converse(batches, talks, checked_seed(seed), progress)
    return np.array(
        [rule.answer(pilots, fresh, alpha) for rule, (pilots, fresh) in zip(rules, found, strict=True)], dtype=np.int64
    )


def _rules(rule: Gated, seen: Sequence[Seen | None]) -> tuple[Gated, ...]:
    return tuple(rule if one is None else rule.at(one) for one in seen)


class _House:
    """Experts and gate, checked, and the classifier that counts for each slot of their rule."""

    def __init__(self, experts: Sequence[Expert], gate: Gate, branches: str, n0: int, n: int, alpha: float) -> None:
        check_count(n0, "n0")
        check_count(n, "n")
        check_alpha(alpha)
        if not isinstance(experts, Sequence):
            raise InputError(f"the experts are {experts!r}, expected a list of smoothed classifiers with their sigmas.")
        if not isinstance(gate, SmoothedGate | Centres):
            raise InputError(f"the gate is {gate!r}, expected SmoothedGate(..) or Centres(..).")
        self.gate, self.slots, self._branches = gate, [*experts], branches
        if isinstance(gate, SmoothedGate):
            self.slots.append((gate.smoothed, gate.sigma))
        for pair in self.slots:
            if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], SmoothedClassifier)):
                raise InputError(f"an expert is {pair!r}, expected a smoothed classifier and its sigma; a gate too.")
        if len({one.vote for one, _ in experts}) != 1:
            raise InputError("routing takes at least one expert, all with the same vote.")
        self._n, self._alpha = n, alpha
        if isinstance(gate, Centres) and len(gate.points) != len(experts):
            raise InputError(f"got {len(gate.points)} centres for {len(experts)} experts, expected one each.")
        for _, sigma in self.slots:
            check_sigma(sigma, 1)
        forms = {(one.certificate.norm, one.levels, one.snap, one.any_range) for one, _ in self.slots}
        if len(forms) > 1:
            raise InputError("experts and gate differ in norm, levels, snap or any_range; expected the same of all.")
        self._experts = len(experts)

    def prepared(self, x: torch.Tensor, ids: Sequence[int] | None) -> list[Batch]:
        """The inputs made ready for each slot, once for each classifier; then the rule is known, and checked."""
        known: dict[int, Batch] = {}
        for one, sigma in self.slots:
            if id(one) not in known:
                known[id(one)] = one.prepare(x, ids)
                one.check_function(known[id(one)], sigma)
        self.rule = self._rule()
        self.rule.check(self._n, self._alpha)
        return [known[id(one)] for one, _ in self.slots]

    def _rule(self) -> Gated:
        experts, groups = [one for one, _ in self.slots[: self._experts]], None
        classes = {one.num_classes for one in experts}
        if len(classes) > 1:
            raise InputError(f"the experts have {sorted(classes)} classes, expected the same number.")
        if isinstance(self.gate, SmoothedGate):
            outputs = self.gate.smoothed.num_classes
            given = range(outputs) if self.gate.groups is None else self.gate.groups
            groups = tuple(given) if isinstance(given, Iterable) else ()
            if len(groups) != outputs:
                raise InputError(f"the gate has {outputs} outputs, and groups name the experts of {len(groups)}.")
        return Gated(
            experts=tuple(one.rule() for one in experts),
            sigmas=tuple(float(sigma) for _, sigma in self.slots),
            classes=classes.pop(),
            groups=groups,
            branches=self._branches,
            norm=experts[0].certificate.norm,
        )

    def seen(self, batch: Batch) -> tuple[Seen | None, ...]:
        """What a gate without noise says of each input."""
        gate = self.gate
        if isinstance(gate, SmoothedGate):
            return (None,) * len(batch)
        if gate.levels != batch.levels:
            raise InputError(f"the centres are of {gate.levels} levels, the inputs of {batch.levels}.")
        values = batch.values.double().numpy()
        return tuple(
            gate.seen(grid if on else value, self.rule.norm)
            for grid, value, on in zip(batch.grid, values, batch.on_grid, strict=True)
        )

    def converse(
        self, batches: Sequence[Batch], talks: Sequence[Any], seed: int, progress: Progress | None
    ) -> list[Drawn]:
        """Each input's samples, all inputs' and slots' wishes of a round packed by classifier."""

        def count(requests: Sequence[Request]) -> list[NDArray[np.int64]]:
            found: dict[int, NDArray[np.int64]] = {}
            owners = [id(self.slots[one.first_block // SLOT_BLOCKS][0]) for one in requests]
            for owner in dict.fromkeys(owners):
                mine = [i for i, other in enumerate(owners) if other == owner]
                slot = requests[mine[0]].first_block // SLOT_BLOCKS
                counts = self.slots[slot][0].count(batches[slot], [requests[i] for i in mine], seed, progress)
                found |= dict(zip(mine, counts, strict=True))
            return [found[i] for i in range(len(requests))]

        one, batch = self.slots[0][0], batches[0]
        return converse(
            batch, np.full(len(batch), self.slots[0][1]), talks, lambda row, s: one.tv(batch, row, s), count
        )
