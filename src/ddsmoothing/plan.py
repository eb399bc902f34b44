"""Samplers: how many samples an input gets, and what may be claimed from them.

It knows no torch, no models and no files. A sampler is a conversation: it asks for samples (``Draw``), is given
measurements, and ends with the looks it took. Every look's bound has its own share of alpha, fixed before the first
sample.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import ClassVar, Final, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, ndtr, ndtri

from ddsmoothing.bounds import check_count, check_feasible, clopper_pearson_lower, largest_lower_bound
from ddsmoothing.claims import Look, Measurement, Rule, Tally
from ddsmoothing.errors import InfeasibleError, InputError
from ddsmoothing.streams import Stream

N0: Final = 100
N: Final = 100_000
PLAN_PILOT: Final = 500
PRICE: Final = 0.1  # what the planner pays for N samples, in units of the radius at sigma 1
CERTIFIED_BONUS: Final = 0.05
LOOKS: Final[tuple[int, ...]] = (100, 200, 500, *(1000 * 2**i for i in range(7)), 100_000)
EARLY_SHARE: Final = 0.03  # of alpha, for each look but the last
LAST_SHARE: Final = 0.70
GIVE_UP: Final = 1e-3


class Draw(NamedTuple):
    """A wish for n samples of a stream, none of which was drawn before, and what is to be counted on them.

    Attributes:
        sigma: None for the input's own.   slot: which of several scales of the stream; 0 for the input's own.
    """

    stream: Stream
    n: int
    tally: Tally
    sigma: float | None = None
    slot: int = 0


class Question(NamedTuple):
    """What is asked of one input.

    Attributes:
        alpha: of its certificate.   rule: how noisy answers become the smoothed answer.   num_classes: K.
        label: the true class if a wrong pilot is to stop the input, else None.
        gap: radius at a probability for this input's noise (float64, no claim); linear: whether it is linear (L1).
    """

    alpha: float
    rule: Rule
    num_classes: int
    label: int | None
    gap: Callable[[float], float]
    linear: bool

    @property
    def pilot_tally(self) -> Tally:
        """What the pilot counts."""
        return self.rule.pilot_tally(self.num_classes)


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """What a sampler found for one input.

    Attributes:
        pilot: what chose the class.   fresh: all fresh samples, None where there are none. Of its looks, the moments at
            which lower bounds may be taken, all bounds of one event hold at once with probability at least
            ``1 - alpha``.   stopped: why no fresh samples were drawn, or None.
    """

    pilot: Measurement
    fresh: Measurement | None = None
    stopped: str | None = None


Result = TypeVar("Result")
Talk = Generator[tuple[Draw, ...], list[Measurement], Result]  # asks for samples, and ends with what it found
Conversation = Talk[Found]


@dataclass(frozen=True, kw_only=True)
class Sampler(ABC):
    """A rule for the number of samples. The class always comes from a pilot that is never counted again."""

    name: ClassVar[str]
    adaptive_radius: ClassVar[bool] = False  # True where sampling stops at a wanted radius, so that ACR means nothing

    @abstractmethod
    def check(self, alpha: float, bound: str) -> None:
        """Raise InfeasibleError if no input could be certified."""

    @abstractmethod
    def largest(self) -> int:
        """The most samples that one input may take."""

    @abstractmethod
    def converse(self, ask: Question) -> Conversation:
        """Ask for samples of one input until enough is known."""


@dataclass(frozen=True, kw_only=True)
class Exact(Sampler):
    """n0 samples choose the class, n fresh ones bound it: the tables of papers.

    Guarantee: the one bound fails with probability at most alpha.
    References: Cohen et al. 2019, arXiv:1902.02918, CERTIFY.
    """

    name = "exact"
    n0: int = N0
    n: int = N

    def check(self, alpha: float, bound: str) -> None:
        check_count(self.n0, "n0")
        check_feasible(self.n, alpha, bound)

    def largest(self) -> int:
        return self.n0 + self.n

    def converse(self, ask: Question) -> Conversation:
        rule, first = ask.rule, Draw(Stream.PILOT, self.n0, ask.pilot_tally)
        if ask.label is None and not rule.asks_twice:
            pilot, fresh = yield first, Draw(Stream.CERTIFY, self.n, rule.tally(0))
            top = rule.choose(pilot)
        else:
            (pilot,) = yield (first,)
            top = rule.choose(pilot)
            if ask.label not in (None, top):
                return Found(pilot=pilot, stopped="wrong")
            (fresh,) = yield (Draw(Stream.CERTIFY, self.n, rule.tally(top)),)
        return Found(pilot=pilot, fresh=_seen(fresh, rule.look(fresh, top, rule.share(ask.alpha))))


@dataclass(frozen=True, kw_only=True)
class Divided(Exact):
    """n0 samples at each scale of a stateless rule choose the class; n fresh ones in all, divided by what they show.

    Guarantee: class and division depend on the pilots only, so each bound fails with probability at most alpha. The
    rule says how few are too few. With one scale it is ``exact``.
    """

    name = "divided"
    scales: int = 1

    def largest(self) -> int:
        return self.n0 * self.scales + self.n


@dataclass(frozen=True, kw_only=True)
class Plan(Sampler):
    """A pilot chooses the class and the number of fresh samples that is worth its price.

    Guarantee: class and number depend on the pilot only and the fresh samples get the whole alpha, so the bound fails
    with probability at most alpha whatever the planner does. 0 fresh samples (``planned``) is an abstention.
    """

    name = "plan"
    pilot: int = PLAN_PILOT
    n_max: int = N
    price: float = PRICE

    def check(self, alpha: float, bound: str) -> None:
        check_count(self.pilot, "the pilot")
        check_feasible(self.n_max, alpha, bound)

    def largest(self) -> int:
        return self.pilot + self.n_max

    def converse(self, ask: Question) -> Conversation:
        rule = ask.rule
        (pilot,) = yield (Draw(Stream.PILOT, self.pilot, ask.pilot_tally),)
        top, share = rule.choose(pilot), rule.share(ask.alpha)
        if ask.label not in (None, top):
            return Found(pilot=pilot, stopped="wrong")
        fewest, needed = rule.fewest(pilot, top), rule.needed(pilot, top)
        n = planned_samples(fewest, self.pilot, share, self.n_max, self.price, ask.linear, needed)
        if n == 0:
            return Found(pilot=pilot, stopped="planned")
        (fresh,) = yield (Draw(Stream.CERTIFY, n, rule.tally(top)),)
        return Found(pilot=pilot, fresh=_seen(fresh, rule.look(fresh, top, share)))


@lru_cache(maxsize=4096)
def planned_samples(
    count: int, pilot: int, alpha: float, n_max: int, price: float, linear: bool, needed: float = 0.5
) -> int:
    """The number of fresh samples with the best expected radius less price; 0 to abstain.

    The posterior of ``z = Phi^-1(p)``, flat in z, given ``count`` of ``pilot``, weighs the radius at the expected
    count. Radii are in units of the largest one that n_max allows, scaled to that of Gaussian noise.

    Args:
        linear: True where the radius is linear in p (L1), False where it is ``Phi^-1(p)`` (L2).
        needed: probability of the event at which the radius is 0.
    """
    log_p, log_q, worth = _worths(alpha, n_max, linear, needed)
    log_weight = count * log_p + (pilot - count) * log_q
    weight = np.exp(log_weight - log_weight.max())
    tried = np.array(candidates(n_max))
    values = worth @ (weight / weight.sum()) - price * tried / n_max
    best = int(values.argmax())
    return int(tried[best]) if values[best] > 0.0 else 0


@lru_cache(maxsize=64)
def _worths(alpha: float, n_max: int, linear: bool, needed: float) -> tuple[NDArray[np.float64], ...]:
    """Logarithms of p and ``1 - p`` at each z, and what each number of candidates is worth there; for any pilot."""
    z = np.linspace(-0.2, 5.2, 271) + min(0.0, float(ndtri(needed)))
    p, n = ndtr(z), np.array(candidates(n_max))[:, None]
    cap = float(ndtri(largest_lower_bound(n_max, alpha)))
    lower = betaincinv(n * p, n * (1 - p) + 1, alpha)
    radius = np.maximum(0.0, (2 * lower - 2 * needed) * cap if linear else ndtri(lower) - float(ndtri(needed)))
    return np.log(p), np.log(ndtr(-z)), radius + CERTIFIED_BONUS * (radius > 0)


def candidates(n_max: int) -> tuple[int, ...]:
    """Numbers of samples to choose among: about geometric multiples of 500 up to n_max."""
    steps = np.geomspace(500, max(500, n_max), 24)
    return tuple(sorted({min(n_max, 500 * max(1, int(step / 500 + 0.5))) for step in steps}))


@dataclass(frozen=True, kw_only=True)
class Target(Sampler):
    """Is each of these radii certified? Radii are tested in ascending order, and sampling stops at the first failure.

    Guarantee: at looks 100, 200, 500, 1k, 2k, .., 64k, 100k the lower bound has .03 alpha each and .70 alpha at the
    last. By the union bound all bounds hold at once with probability at least ``1 - alpha``, whenever sampling stops.
    The radius reported is the largest over the looks taken. An input is given up when an upper bound shows that the
    next radius is out of reach; that can only lose certificates.
    """

    name = "target"
    adaptive_radius = True
    radii: tuple[float, ...]
    pilot: int = N0

    def __post_init__(self) -> None:
        if not self.radii or any(not (math.isfinite(r) and r >= 0.0) for r in self.radii):
            raise InputError(f"radii are {self.radii}, expected numbers of at least 0.")
        object.__setattr__(self, "radii", tuple(sorted(set(self.radii))))

    def check(self, alpha: float, bound: str) -> None:
        if bound != "one-class":
            raise InputError(f"the sampler target tests the one-class bound, not {bound}.")
        check_feasible(LOOKS[-1], LAST_SHARE * alpha)

    def check_reach(self, alpha: float, gap: Callable[[float], float], sigma: float) -> None:
        """Raise InfeasibleError if even agreeing samples could not certify the smallest radius at this sigma."""
        reach = gap(largest_lower_bound(LOOKS[-1], LAST_SHARE * alpha))
        if reach <= self.radii[0]:
            raise InfeasibleError(
                f"radius {self.radii[0]:g} is out of reach at sigma {sigma:g}: {LOOKS[-1]} agreeing samples give "
                f"{reach:.4f}. Use a larger sigma or a smaller radius."
            )

    def largest(self) -> int:
        return self.pilot + LOOKS[-1]

    def converse(self, ask: Question) -> Conversation:
        rule = ask.rule
        (pilot,) = yield (Draw(Stream.PILOT, self.pilot, ask.pilot_tally),)
        top = rule.choose(pilot)
        if ask.label not in (None, top):
            return Found(pilot=pilot, stopped="wrong")
        reach = ask.gap(largest_lower_bound(LOOKS[-1], LAST_SHARE * ask.alpha)) - rule.handicap(top)
        fresh, looks, wanted = None, list[Look](), list(self.radii)
        for n in LOOKS:
            if not wanted or reach <= wanted[0]:
                break
            (new,) = yield (Draw(Stream.CERTIFY, n if fresh is None else n - fresh.n, rule.tally(top)),)
            fresh = new if fresh is None else fresh.plus(new)
            looks.append(rule.look(fresh, top, ask.alpha * (LAST_SHARE if n == LOOKS[-1] else EARLY_SHARE)))
            best = rule.reached(looks, top, ask.gap)
            wanted = [radius for radius in wanted if best <= 0.0 or radius > best * (1.0 - 1e-9)]
            if wanted and rule.hoped(looks[-1], top, partial(_hope, ask.gap, n)) < wanted[0]:
                break
        if fresh is None:
            return Found(pilot=pilot, stopped="out of reach")
        return Found(pilot=pilot, fresh=_seen(fresh, *looks))


def _hope(gap: Callable[[float], float], n: int, count: int) -> float:
    """A radius that an event of so many in n will hardly exceed."""
    return gap(1.0 - clopper_pearson_lower(n - count, n, GIVE_UP / (len(LOOKS) - 1)))


def _seen(fresh: Measurement, *looks: Look) -> Measurement:
    return replace(fresh, looks=looks)


def asking(rule: Rule, num_classes: int, n0: int, n: int) -> Conversation:
    """The samples of one prediction; both parts are of one stream, one after the other."""
    if not rule.asks_twice:
        (fresh,) = yield (Draw(Stream.PREDICT, n, rule.tally(0)),)
        return Found(pilot=fresh, fresh=fresh)
    (pilot,) = yield (Draw(Stream.PREDICT, n0, rule.pilot_tally(num_classes)),)
    (fresh,) = yield (Draw(Stream.PREDICT, n, rule.tally(rule.choose(pilot))),)
    return Found(pilot=replace(pilot, role=Stream.PILOT.name.lower()), fresh=fresh)


def sampler_for(
    n0: int | None, n: int | None, n_max: int | None = None, radii: Sequence[float] | None = None
) -> Sampler:
    """The sampler that these numbers ask for: radii ``target``, n0 or n ``exact``, none of them ``plan``."""
    if radii is not None:
        if (n0, n, n_max) != (None, None, None):
            raise InputError("radii fix their own numbers of samples, expected no n0, n and n_max with them.")
        return Target(radii=tuple(radii))
    if n0 is None and n is None:
        return Plan(n_max=N if n_max is None else n_max)
    if n_max is not None:
        raise InputError("n_max is for the planning sampler, expected no n0 and n with it.")
    return Exact(n0=N0 if n0 is None else n0, n=N if n is None else n)


SAMPLERS: Final[dict[str, type[Sampler]]] = {sampler.name: sampler for sampler in (Exact, Divided, Plan, Target)}


@dataclass(frozen=True, kw_only=True, eq=False)
class SearchPlan:
    """How the search spends its forwards.

    Attributes:
        pilot: samples at sigma0 that fix the class.   widths: sigmas tried in each round, a shrinking window.
        samples: new samples at each of them in that round, the same noise for all.
    """

    pilot: int = 64
    widths: tuple[int, ...] = (12, 7, 5, 4)
    samples: tuple[int, ...] = (12, 24, 48, 96)

    @property
    def forwards(self) -> int:
        """Samples an input."""
        return self.pilot + sum(w * s for w, s in zip(self.widths, self.samples, strict=True))
