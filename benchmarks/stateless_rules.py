"""Stateless rules on kept counts, for all images at once: certificates by another path than the package's, SciPy's.

Every rule comes down to atoms: events at some sigmas whose ``sigma Phi^-1(P)`` exceeds a threshold each. A pilot fixes
class, atoms and shares of the samples; the radius is the least margin, each bound at full alpha.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, ndtri

ALPHA, N0, UNIT = 0.001, 100, 250  # failure probability; samples of a pilot at each sigma; samples are shared in units
GATE, VOTES, OTHERS = -3, -2, -1  # events behind the wins over each class: group picked, the class, not the top class
EACH = ("id", "label", "pilots", "fresh", "chosen", "away")  # of ``Draws``, for each image
Floats, Ints, Bools = NDArray[np.float64], NDArray[np.int64], NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False)
class Draws:
    """Counts of B images at S sigmas; K classes.

    Attributes:
        label, id: ``(B,)``.   pilots: ``(B, S, K, K)`` duels.   fresh: ``(B, S, parts, K, K)``.
        chosen, away: of a gate without noise ``(B,)`` and ``(B, 2)``: the expert, and how far each is from being it.
        sizes: samples of each part. A single part stands for as many samples as are asked for: no claim.
    """

    sigmas: tuple[float, ...]
    id: Ints
    label: Ints
    pilots: Ints
    fresh: Ints
    chosen: Ints
    away: Floats
    sizes: tuple[int, ...]

    def at(self, sigmas: Sequence[float]) -> Draws:
        """Some of the sigmas, in this order."""
        k = [self.sigmas.index(sigma) for sigma in sigmas]
        return replace(self, sigmas=tuple(sigmas), pilots=self.pilots[:, k], fresh=self.fresh[:, k])

    def of(self, images: Bools) -> Draws:
        """Some of the images."""
        parts = {name: getattr(self, name)[images] for name in EACH}
        return replace(self, **parts)

    def drawn(self, k: int, units: Ints) -> Ints:
        """``(B, K, K)`` duels at a sigma among so many units of each image; a single part is taken as it is."""
        if len(self.sizes) == 1:
            return self.fresh[:, k, 0]
        taken = np.stack([_subset(self.sizes, n) for n in range(0, sum(self.sizes) + 1, UNIT)])[units]
        return np.asarray(np.einsum("bp,bpij->bij", taken, self.fresh[:, k]))

    @property
    def phi(self) -> Floats:
        """``(B, S, K, K)`` estimated phi of "a beats b" on the pilots, infinite for a class itself."""
        found = estimated(self.pilots, N0, np.array(self.sigmas)[:, None, None])
        found[:, :, np.arange(found.shape[2]), np.arange(found.shape[2])] = np.inf
        return found


def _subset(sizes: Sequence[int], n: int) -> Ints:
    """Which parts have n samples together."""
    taken, left = np.zeros(len(sizes), dtype=np.int64), n
    for i in np.argsort(sizes, kind="stable")[::-1]:
        if sizes[i] <= left:
            taken[i], left = 1, left - sizes[i]
    return taken


def estimated(counts: NDArray[np.number], n: int, sigma: Floats) -> Floats:
    """The phi that counts of n samples show (no claim)."""
    return np.asarray(sigma * ndtri((counts + 0.5) / (n + 1.0)))


def lower(k: Floats, n: Floats) -> Floats:
    """``Phi^-1`` of the lower bound on a probability; -inf where nothing happened. Each pair is computed once."""
    pairs_of, place = np.unique(k + 1j * n, return_inverse=True)
    some = (pairs_of.real > 0.0) & (pairs_of.imag > 0.0)
    happened, of = np.where(some, pairs_of.real, 1.0), np.where(some, pairs_of.imag, 1.0)
    found = np.where(some, ndtri(betaincinv(happened, of - happened + 1.0, ALPHA)), -np.inf)
    return np.asarray(found[place].reshape(np.broadcast_shapes(k.shape, n.shape)))


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """What the pilots settle for B images: atoms over S sigmas and the K + 3 events at each.

    Attributes:
        top: ``(B,)`` the class.   active: ``(B, S, K + 3)`` which atoms.   threshold: ``(B, S, K + 3)`` of phi.
        members: ``(B, K)`` the classes that stand for the expert that a gate picks.
        limit: ``(B,)`` as far as a gate without noise keeps experts away.
    """

    top: Ints
    active: Bools
    threshold: Floats
    members: Bools
    limit: Floats


def _plan(draws: Draws, top: Ints) -> Plan:
    shape = (len(top), len(draws.sigmas), draws.pilots.shape[2] + 3)
    return Plan(
        top=top,
        active=np.zeros(shape, dtype=bool),
        threshold=np.zeros(shape),
        members=np.ones((len(top), shape[2] - 3), dtype=bool),
        limit=np.full(len(top), np.inf),
    )


def _events(duels: NDArray[np.number], plan: Plan) -> Floats:
    """``(B, K + 3)`` how often each event happened: wins of the top class, and those behind."""
    votes = np.diagonal(duels, axis1=1, axis2=2)
    wins = duels[np.arange(len(duels)), plan.top]
    more = [(votes * plan.members).sum(1), votes[np.arange(len(votes)), plan.top], votes.sum(1) - votes.max(1)]
    return np.concatenate([wins, np.stack(more, 1)], 1).astype(np.float64)


@dataclass(frozen=True, kw_only=True, eq=False)
class Certificates:
    """Of B images: answers, -1 for none, radii, and samples drawn in all."""

    prediction: Ints
    radius: Floats
    samples: Ints


def shares(draws: Draws, plan: Plan, samples: int) -> Ints:
    """``(B, S)`` units of fresh samples at each sigma, of at most so many samples with the pilots'.

    A function of the pilots: the sigmas that the plan needs share whole units, and the one whose margin is expected to
    bind gets the next.
    """
    units = (samples - N0 * len(draws.sigmas)) // UNIT
    sigma, rows = np.array(draws.sigmas), np.arange(len(plan.top))
    pilots = np.stack([_events(draws.pilots[:, k], plan) for k in range(len(sigma))], 1)
    margin = estimated(pilots, N0, sigma[:, None]) - plan.threshold
    binding = np.where(plan.active, margin, np.inf).argmin(2)[..., None]
    share = (np.take_along_axis(pilots, binding, 2)[..., 0] + 0.5) / (N0 + 1.0)
    n = UNIT * np.arange(units + 1.0)
    expected = sigma[:, None] * lower(n * share[..., None], n) - np.take_along_axis(plan.threshold, binding, 2)
    needed = plan.active.any(2)
    taken = needed.astype(np.int64)
    for _ in range(units):
        now = np.where(needed, np.take_along_axis(expected, np.minimum(taken, units)[..., None], 2)[..., 0], np.inf)
        more = taken.sum(1) < units
        taken[rows[more], now.argmin(1)[more]] += 1
    return taken


def certified(draws: Draws, plan: Plan, samples: int) -> Certificates:
    """Certificates from at most so many samples of an image, the pilots' included."""
    taken, radius = shares(draws, plan, samples), plan.limit.copy()
    for k, s in enumerate(draws.sigmas):
        events, n = _events(draws.drawn(k, taken[:, k]), plan), np.array(taken[:, [k]] * UNIT, dtype=np.float64)
        if len(draws.sizes) == 1:
            events = n * (events + 0.5) / (draws.sizes[0] + 1.0)
        margins = s * lower(events, n) - plan.threshold[:, k]
        radius = np.minimum(radius, np.where(plan.active[:, k], margins, np.inf).min(1))
    held = radius > 0.0
    return Certificates(
        prediction=np.where(held, plan.top, -1),
        radius=np.where(held, radius, 0.0),
        samples=N0 * len(draws.sigmas) + UNIT * taken.sum(1),
    )


def largest(values: Floats, votes: Ints) -> Ints:
    """``(B,)`` the class with the largest value; of equal ones that with more votes, then the first."""
    return np.asarray(np.where(values == values.max(1, keepdims=True), votes, -1).argmax(1))


def one_class(draws: Draws) -> Plan:
    """A plurality vote at one sigma."""
    found = _plan(draws, np.diagonal(draws.pilots[:, 0], axis1=1, axis2=2).argmax(1))
    found.active[:, 0, VOTES] = True
    return found


def two_class(draws: Draws, samples: int) -> Certificates:
    """The same with the bound that holds the class against the runner-up and splits alpha."""
    top, units = one_class(draws).top, np.full(len(draws.id), (samples - N0) // UNIT)
    votes = np.diagonal(draws.drawn(0, units), axis1=1, axis2=2).astype(np.float64)
    n, k, rows = votes.sum(1), votes[np.arange(len(top)), top], np.arange(len(top))
    votes[rows, top] = 0.0
    second = votes.max(1)
    p = np.where(k > 0, betaincinv(np.maximum(k, 1.0), n - k + 1.0, 0.9 * ALPHA), 0.0)
    q = np.minimum(1.0 - betaincinv(np.maximum(n - second, 1e-9), second + 1.0, 0.1 * ALPHA), 1.0 - p)
    held = p > q
    radius = np.where(held, draws.sigmas[0] / 2.0 * (ndtri(p) - ndtri(np.maximum(q, 1e-300))), 0.0)
    return Certificates(prediction=np.where(held, top, -1), radius=radius, samples=N0 + UNIT * units)


@dataclass(frozen=True)
class Option:
    """What a pair of classes is held to: phi at one sigma, or the median of ``large - c, small, large + c`` of two phi.

    The median is as Lipschitz as each, and changes its sign with them: two classes never win both.

    Attributes:
        large, small: which sigmas, the same for one.   c: see above.
    """

    large: int
    small: int
    c: float = 0.0

    def of(self, phi: NDArray[np.floating]) -> NDArray[np.floating]:
        """The value from phi ``(B, S, ..)``."""
        at, other = phi[:, self.large], phi[:, self.small]
        return np.maximum(at - self.c, np.minimum(other, at + self.c))


def pairs(draws: Draws, options: Sequence[Option], slots: Ints, beta: Floats) -> Plan:
    """A pairwise vote in which each pair of classes has its option ``slots[a, b]``, with class offsets."""
    classes, phi = np.arange(len(beta)), draws.phi
    all_of = np.stack([option.of(phi) for option in options], 1)
    away = beta[None, :] - beta[:, None]
    margins = (all_of[:, slots, classes[:, None], classes[None, :]] - away).min(2)
    votes = np.diagonal(draws.pilots, axis1=2, axis2=3).sum(1)
    found, rows = _plan(draws, largest(margins, votes)), np.arange(len(draws.id))
    for b in classes:
        for i, option in enumerate(options):
            mine = rows[(slots[found.top, b] == i) & (found.top != b)]
            t, at = away[found.top[mine], b], phi[mine, :, found.top[mine], b]
            first = at[:, option.large] - option.c >= np.minimum(at[:, option.small], at[:, option.large] + option.c)
            found.active[mine, option.large, b] = True
            found.threshold[mine, option.large, b] = t + np.where(first, option.c, -option.c)
            both = mine[~first]
            found.active[both, option.small, b] = True
            found.threshold[both, option.small, b] = t[~first]
    return found


def routed(draws: Draws, betas: Sequence[Floats], groups: Ints | None, slot: int = 0, dual: bool = False) -> Plan:
    """An expert at each sigma, with offsets of its own, behind a gate; the reach rule, or Dual RS's.

    Args:
        groups: ``(K,)`` the expert of each class: the gate is the group that noisy copies at the sigma ``slot`` are in,
            whose samples serve gate and expert. None: the gate without noise.
    """
    rows, phi = np.arange(len(draws.id)), draws.phi
    votes = np.diagonal(draws.pilots, axis1=2, axis2=3)
    margins = [phi[:, e] - (beta[None, :] - beta[:, None]) for e, beta in enumerate(betas)]
    tops = np.stack([largest(margin.min(2), votes[:, e]) for e, margin in enumerate(margins)], 1)
    chosen, away = draws.chosen, draws.away
    if groups is not None:
        picked = np.stack([(votes[:, slot] * (groups == e)).sum(1) for e in range(len(betas))], 1)
        chosen, keeps = picked.argmax(1), estimated(picked.max(1), N0, np.array(draws.sigmas[slot]))
        away = np.broadcast_to(keeps[:, None], picked.shape)
    found = _plan(draws, tops[rows, chosen])
    for e, beta in enumerate(betas):
        radius = margins[e][rows, found.top].min(1)
        kept = (chosen != e) & (dual | (away[:, e] >= radius))
        found.active[:, e, :GATE] |= ~kept[:, None] & (np.arange(len(beta)) != found.top[:, None])
        found.threshold[:, e, :GATE] = beta[None, :] - beta[found.top][:, None]
        if groups is not None:
            found.active[:, slot, GATE] |= kept
            found.members[:] = groups[None, :] == chosen[:, None]
        else:
            found.limit[kept] = np.minimum(found.limit, away[:, e])[kept]
    return found


def cascade(draws: Draws, taus: Sequence[float], reach: bool) -> Plan:
    """Plurality experts in the order of the sigmas: the first that is sure answers."""
    votes = np.diagonal(draws.pilots, axis1=2, axis2=3)
    phi, rows = estimated(votes, N0, np.array(draws.sigmas)[:, None]), np.arange(len(draws.id))
    sure = phi.max(2) > np.array(taus)
    last = np.where(sure.any(1), sure.argmax(1), len(taus) - 1)
    top = votes[rows, last].argmax(1)
    if reach:
        mine = phi[rows, :, top]
        worth = [np.minimum.reduce([*(mine[:, :j] + taus[:j]).T, mine[:, j] - tau]) for j, tau in enumerate(taus)]
        last = np.stack(worth, 1).argmax(1)
    found = _plan(draws, top)
    for j, tau in enumerate(taus):
        before, here = last > j, last == j
        found.active[before, j, VOTES if reach else OTHERS] = True
        found.threshold[before, j, VOTES if reach else OTHERS] = -tau
        found.active[here, j, VOTES] = True
        found.threshold[here, j, VOTES] = tau
    return found
