"""What ``stateless_tables.py`` compares: designs fitted on training images, chosen by cross-validation on these."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import NamedTuple

import numpy as np
from scipy.special import ndtri

import stateless_counts as kept
from ddsmoothing.stateless.counts import OwnPhis
from ddsmoothing.stateless.offsets import ascended
from ddsmoothing.stateless.tables import table_ascended
from stateless_rules import (
    ALPHA,
    N0,
    Certificates,
    Draws,
    Floats,
    Ints,
    Option,
    Plan,
    cascade,
    certified,
    estimated,
    largest,
    one_class,
    pairs,
    routed,
)

K, SHIRT = 10, 6
WEIGHTS = (0.5, 1.0, 2.0, 3.0, 5.0)  # of accuracy, while tables are fitted; medians take every second one
TAUS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)  # of cascades
WIDTHS = (0.05, 0.1, 0.2, 0.3, 0.5)  # c of medians
BELOW = (0.0, 0.25)  # radii at which the gap to the envelope is looked at
EVERYWHERE = np.zeros((K, K), dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class Design:
    """A rule with everything fixed.

    Attributes:
        family: designs of one family compete on held-out images.   sigmas: of the rule.   plan: from counts at these.
        note: its parameters in words.   offsets: whether the votes have class offsets.
    """

    family: str
    sigmas: tuple[float, ...]
    plan: Callable[[Draws], Plan]
    note: str = ""
    offsets: bool = False

    def on(self, draws: Draws, samples: int) -> Certificates:
        """Certificates, with radii counted up to the largest one without offsets."""
        here = draws.at(self.sigmas)
        return capped(certified(here, self.plan(here), samples), self.sigmas, samples)


def capped(one: Certificates, sigmas: Sequence[float], samples: int) -> Certificates:
    """Radii count up to the largest one that all samples together show without offsets."""
    most = max(sigmas) * float(ndtri(ALPHA ** (1.0 / (samples - N0))))
    return Certificates(prediction=one.prediction, radius=np.minimum(one.radius, most), samples=one.samples)


FOLDS = 4


@dataclass(frozen=True, kw_only=True, eq=False)
class Fit:
    """Fits on counts of training images.

    Attributes:
        fold: every FOLDS-th image, from this one on, is held out of the fits; None: none is.
    """

    draws: Draws
    fold: int | None = None

    @cached_property
    def _held(self) -> Ints:
        return np.arange(len(self.draws.id)) % FOLDS == (FOLDS if self.fold is None else self.fold)

    @cached_property
    def held(self) -> Draws:
        """Counts of the images that were held out."""
        return self.draws.of(self._held)

    @cached_property
    def own(self) -> tuple[Floats, Ints, int]:
        """``(B, S, K)`` phi of "the true class beats b" on the others, their classes, and the samples of each."""
        draws = self.draws.of(~self._held)
        n, rows = N0 + draws.sizes[0], np.arange(len(draws.label))
        phi = estimated(draws.pilots + draws.fresh[:, :, 0], n, np.array(draws.sigmas)[:, None, None])
        found = phi[rows, :, draws.label]
        found[rows, :, draws.label] = np.inf
        return found, draws.label, n

    def cap(self, sigma: float) -> float:
        """The largest phi that the samples show."""
        n = self.own[2]
        return float(sigma * ndtri((n + 0.5) / (n + 1.0)))

    @cache  # noqa: B019
    def offsets(self, sigma: float, weight: float = 1.0) -> Floats:
        """Class offsets at one sigma."""
        phi, y, _ = self.own
        at = phi[:, self.draws.sigmas.index(sigma)].astype(np.float32)
        return np.array(ascended(at, y, self.cap(sigma), sigma, weight, K))

    def table(
        self, sigmas: Sequence[float], options: Sequence[Option], weight: float, with_offsets: bool
    ) -> tuple[Ints, Floats]:
        """An option for each pair of classes, and then class offsets; in units of the pixel."""
        phi, y, n = self.own
        here = phi[:, [self.draws.sigmas.index(sigma) for sigma in sigmas]]
        values = np.stack([option.of(here) for option in options], 1).astype(np.float32)
        cap = self.cap(max(sigmas))
        own = OwnPhis(
            phi=values, y=y, sigmas=tuple(range(len(options))), n=n, caps=np.full(len(options), cap), sha256=()
        )
        least = values.min(2)
        start = int(((np.minimum(least, cap) + weight) * (least > 0.0)).mean(0).argmax())
        slots = table_ascended(own, np.arange(K), start, 1.0, weight)
        if not with_offsets:
            return slots, np.zeros(K)
        chosen = values[np.arange(len(y))[:, None], slots[y], np.arange(K)]
        return slots, np.array(ascended(chosen, y, cap, 1.0, weight, K))


def fixed_designs(fit: Fit, sigmas: Sequence[float]) -> list[Design]:
    """One sigma for all, by vote; two-class rows are made elsewhere, having no atoms."""
    plain, found = _table([Option(0, 0)], EVERYWHERE), []
    for s in sigmas:
        moved = _table([Option(0, 0)], EVERYWHERE, fit.offsets(s))
        for vote, plan in (("one-class", one_class), ("pairwise", plain), ("pairwise + offsets", moved)):
            found.append(Design(family=vote, sigmas=(s,), plan=plan, note=f"{s:g}", offsets="offsets" in vote))
    return found


def _table(options: Sequence[Option], slots: Ints, beta: Floats | None = None) -> Callable[[Draws], Plan]:
    offsets = np.zeros(K) if beta is None else beta
    return lambda draws: pairs(draws, options, slots, offsets)


def designs(fit: Fit, couples: Sequence[tuple[float, ...]]) -> list[Design]:
    """All that look at several sigmas of one input and are one function of it."""
    found: list[Design] = []
    for with_offsets in (False, True):
        for sigmas in couples:
            found += _tables(fit, sigmas, with_offsets)
            if len(sigmas) == 2:
                found += _routed(fit, sigmas, with_offsets)
            if sigmas == kept.ROUTED and kept.GATE in fit.draws.sigmas:
                found += _selected(fit, with_offsets)
    for small, large in (sigmas for sigmas in couples if len(sigmas) == 2):
        found += _cascades((small, large)) + _cascades((large, small))
    return found


def _tables(fit: Fit, sigmas: tuple[float, ...], with_offsets: bool) -> list[Design]:
    single, found = [Option(k, k) for k in range(len(sigmas))], []
    kinds = {"pair table": (single, WEIGHTS)}
    if len(sigmas) == 2:
        kinds["median of two sigmas"] = (single + [Option(1, 0, c) for c in WIDTHS], WEIGHTS[1::2])
    for name, (options, weights) in kinds.items():
        for weight in weights:
            slots, beta = fit.table(sigmas, options, weight, with_offsets)
            plan = _table(options, slots, beta)
            found.append(_design(name, sigmas, plan, f"{_and(sigmas)}, weight {weight:g}", with_offsets))
    return found


def _design(
    name: str, sigmas: tuple[float, ...], plan: Callable[[Draws], Plan], note: str, with_offsets: bool
) -> Design:
    family = name + (" + offsets" if with_offsets else "")
    return Design(family=family, sigmas=sigmas, plan=plan, note=note, offsets=with_offsets)


def _routed(fit: Fit, sigmas: tuple[float, ...], with_offsets: bool) -> list[Design]:
    betas, found = [fit.offsets(s, 3.0) if with_offsets else np.zeros(K) for s in sigmas], []
    groups = np.array(kept.GROUPS)
    for slot, dual in ((0, False), (1, False), (0, True), (1, True)):

        def behind(draws: Draws, slot: int = slot, dual: bool = dual) -> Plan:
            return routed(draws, betas, groups, slot, dual)

        name = "dual, groups" if dual else "reach, groups"
        found.append(_design(name, sigmas, behind, f"{_and(sigmas)}, gate at {sigmas[slot]:g}", with_offsets))
    found.append(
        _design("reach, centres", sigmas, lambda draws: routed(draws, betas, None), _and(sigmas), with_offsets)
    )
    return found


def _selected(fit: Fit, with_offsets: bool) -> list[Design]:
    """Behind the trained selector, whose classes are the experts; its samples are none of theirs."""
    betas = [fit.offsets(s, 3.0) if with_offsets else np.zeros(K) for s in kept.ROUTED]
    experts = np.where(np.arange(K) < len(betas), np.arange(K), -1)
    slot, sigmas, found = len(betas), (*kept.ROUTED, kept.GATE), []
    for dual in (False, True):

        def behind(draws: Draws, dual: bool = dual) -> Plan:
            return routed(draws, betas, experts, slot, dual)

        name, note = "dual, selector" if dual else "reach, selector", f"{_and(kept.ROUTED)}, gate at {kept.GATE:g}"
        found.append(_design(name, sigmas, behind, note, with_offsets))
    return found


def _cascades(sigmas: tuple[float, ...]) -> list[Design]:
    found = []
    for tau in TAUS:
        for reach in (False, True):

            def plan(draws: Draws, tau: float = tau, reach: bool = reach) -> Plan:
                return cascade(draws, (tau, 0.0), reach)

            name = "cascade with reach" if reach else "cascade, as published"
            found.append(_design(name, sigmas, plan, f"{_and(sigmas, ' then ')}, {tau:g}", False))
    return found


def _and(sigmas: Sequence[float], word: str = " and ") -> str:
    return word.join(f"{s:g}" for s in sigmas)


class Promise(NamedTuple):
    """What a design is expected to show on images that it was not fitted on: mean radius, accuracy, that below 0.5."""

    acr: float
    accuracy: float
    below: float

    @property
    def worth(self) -> float:
        """What designs are chosen by: with offsets a mean radius alone is no measure."""
        return self.acr + self.accuracy


def promised(draws: Draws, make: Callable[[Fit], list[Design]], samples: int) -> list[tuple[Design, Promise]]:
    """Designs fitted on all of these images, each with what those fitted without a fold show on it, over all folds."""
    folds = [Fit(draws=draws, fold=fold) for fold in range(FOLDS)]
    shown = np.mean([[_shown(design, fit.held, samples) for design in make(fit)] for fit in folds], 0)
    return [(design, Promise(*each)) for design, each in zip(make(Fit(draws=draws)), shown.tolist(), strict=True)]


def _shown(design: Design, draws: Draws, samples: int) -> Promise:
    """On images."""
    one = design.on(draws, samples)
    right = (one.prediction == draws.label) & (one.radius > 0.0)
    below = np.mean([(right & (one.radius >= r)).mean() for r in BELOW])
    return Promise(float((one.radius * right).mean()), float(right.mean()), float(below))


def chosen(known: list[tuple[Design, Promise]], goal: float) -> list[tuple[Design, Promise]]:
    """Of each family the design of the largest worth; where it is another, also the most accurate one below 0.5 whose
    mean radius is not below the goal, that of every fixed pairwise vote."""
    found = []
    for family in dict.fromkeys(design.family for design, _ in known):
        mine = [one for one in known if one[0].family == family]
        best = max(mine, key=lambda one: one[1].worth)
        exact = max(mine, key=lambda one: (one[1].acr >= goal, one[1].below))
        found += [best] + ([exact] if exact[1].acr >= goal and exact[0] is not best[0] else [])
    return found


def pointwise(draws: Draws, family: str, fit: Fit, samples: int) -> Certificates:
    """Another level: for each image the sigma whose pilot promises most for the class that the middle one chooses."""
    sigmas, rows = draws.sigmas, np.arange(len(draws.id))
    betas = [fit.offsets(s) if "offsets" in family else np.zeros(K) for s in sigmas]
    votes = np.diagonal(draws.pilots, axis1=2, axis2=3)
    if family == "one-class":
        phi = estimated(votes, N0, np.array(sigmas)[:, None])
    else:
        phi = np.stack([(draws.phi[:, k] - beta[None] + beta[:, None]).min(2) for k, beta in enumerate(betas)], 1)
    middle = len(sigmas) // 2
    anchor = largest(phi[:, middle], votes[:, middle])
    best = phi[rows, :, anchor].argmax(1)
    fresh = samples - N0 * (len(sigmas) - 1)
    each = []
    for k, s in enumerate(sigmas):
        here = draws.at((s,))
        plan = one_class(here) if family == "one-class" else pairs(here, [Option(0, 0)], EVERYWHERE, betas[k])
        each.append(capped(certified(here, plan, fresh), (s,), samples))
    return Certificates(
        prediction=np.stack([one.prediction for one in each])[best, rows],
        radius=np.stack([one.radius for one in each])[best, rows],
        samples=each[0].samples + N0 * (len(sigmas) - 1),
    )


def remembered(one: Certificates, ids: Ints) -> Certificates:
    """Level memory: the same certificates, asked for in the order of the images by one memory."""
    place, near = {i: row for row, i in enumerate(ids.tolist())}, {row: [] for row in range(len(ids))}
    for i, j, square in kept.geometry()["near"].tolist():
        if i in place and j in place:
            near[place[j]].append((place[i], np.sqrt(square) / 255.0))
    prediction, radius = one.prediction.copy(), one.radius.copy()
    stored = np.zeros(len(ids))
    samples = one.samples.copy()
    for row in range(len(ids)):
        inside = [(stored[j] - far, prediction[j]) for j, far in near[row] if far < stored[j]]
        if inside:
            (radius[row], prediction[row]), samples[row] = max(inside), 0
            continue
        others = [far - stored[j] for j, far in near[row] if stored[j] > 0.0 and prediction[j] != prediction[row]]
        radius[row] = max(0.0, min([radius[row], *others]))
        stored[row] = radius[row] if prediction[row] >= 0 else 0.0
    return Certificates(prediction=prediction, radius=radius, samples=samples)
