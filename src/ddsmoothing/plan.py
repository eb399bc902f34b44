"""Samplers: how many samples an input gets, and what may be claimed from them.

It knows no torch, no models and no files. A sampler is a conversation: it asks for samples (``Draw``), is given class
counts, and ends with the looks it took. Every look's bound has its own share of alpha, fixed before the first sample.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, ndtr, ndtri

from ddsmoothing.bounds import alpha_of_top, check_count, check_feasible, clopper_pearson_lower, largest_lower_bound
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
    """A wish for n samples of a stream, none of which was drawn before."""

    stream: Stream
    n: int


class Question(NamedTuple):
    """What is asked of one input.

    Attributes:
        alpha, bound: of its certificate.   label: the true class if a wrong pilot is to stop the input, else None.
        gap: radius at a probability for this input's noise (float64, no claim); linear: whether it is linear (L1).
    """

    alpha: float
    bound: str
    label: int | None
    gap: Callable[[float], float]
    linear: bool


class Look(NamedTuple):
    """A moment at which the top class's count was looked at: k of n, with this share of alpha for the lower bound."""

    n: int
    k: int
    alpha: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """What a sampler found for one input.

    Attributes:
        n0_counts: ``(K,)`` the pilot that chose the class.   counts: ``(K,)`` all fresh samples.
        looks: the moments at which a lower bound may be taken; any of them holds, all at once, with probability at
            least ``1 - alpha``.   stopped: why no fresh samples were drawn, or None.
    """

    n0_counts: NDArray[np.int64]
    counts: NDArray[np.int64]
    looks: tuple[Look, ...]
    stopped: str | None = None


Conversation = Generator[tuple[Draw, ...], list[NDArray[np.int64]], Found]


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
        if ask.label is None:
            pilot, counts = yield Draw(Stream.PILOT, self.n0), Draw(Stream.CERTIFY, self.n)
        else:
            (pilot,) = yield (Draw(Stream.PILOT, self.n0),)
            if int(pilot.argmax()) != ask.label:
                return _wrong(pilot)
            (counts,) = yield (Draw(Stream.CERTIFY, self.n),)
        look = Look(self.n, int(counts[pilot.argmax()]), alpha_of_top(ask.alpha, ask.bound))
        return Found(n0_counts=pilot, counts=counts, looks=(look,))


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
        (pilot,) = yield (Draw(Stream.PILOT, self.pilot),)
        top = int(pilot.argmax())
        if ask.label is not None and top != ask.label:
            return _wrong(pilot)
        share = alpha_of_top(ask.alpha, ask.bound)
        n = planned_samples(int(pilot[top]), self.pilot, share, self.n_max, self.price, ask.linear)
        if n == 0:
            return Found(n0_counts=pilot, counts=np.zeros_like(pilot), looks=(), stopped="planned")
        (counts,) = yield (Draw(Stream.CERTIFY, n),)
        return Found(n0_counts=pilot, counts=counts, looks=(Look(n, int(counts[top]), share),))


@lru_cache(maxsize=4096)
def planned_samples(count: int, pilot: int, alpha: float, n_max: int, price: float, linear: bool) -> int:
    """The number of fresh samples with the best expected radius less price; 0 to abstain.

    The posterior of ``z = Phi^-1(p)``, flat in z, given ``count`` of ``pilot``, weighs the radius at the expected
    count. Radii are in units of the largest one that n_max allows, scaled to that of Gaussian noise.

    Args:
        linear: True where the radius is linear in p (L1), False where it is ``Phi^-1(p)`` (L2).
    """
    z = np.linspace(-0.2, 5.2, 271)
    p = ndtr(z)
    log_weight = count * np.log(p) + (pilot - count) * np.log(ndtr(-z))
    weight = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    best, best_value = 0, 0.0
    cap = float(ndtri(largest_lower_bound(n_max, alpha)))
    for n in candidates(n_max):
        lower = betaincinv(n * p, n * (1 - p) + 1, alpha)
        radius = np.maximum(0.0, (2 * lower - 1) * cap if linear else ndtri(lower))
        value = float(weight @ (radius + CERTIFIED_BONUS * (radius > 0))) - price * n / n_max
        if value > best_value:
            best, best_value = n, value
    return best


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
        (pilot,) = yield (Draw(Stream.PILOT, self.pilot),)
        top = int(pilot.argmax())
        if ask.label is not None and top != ask.label:
            return _wrong(pilot)
        reach = ask.gap(largest_lower_bound(LOOKS[-1], LAST_SHARE * ask.alpha))
        counts, looks, wanted = np.zeros_like(pilot), [], list(self.radii)
        for n in LOOKS:
            if not wanted or reach <= wanted[0]:
                break
            (new,) = yield (Draw(Stream.CERTIFY, n - int(counts.sum())),)
            counts = counts + new
            k = int(counts[top])
            looks.append(Look(n, k, ask.alpha * (LAST_SHARE if n == LOOKS[-1] else EARLY_SHARE)))
            best = ask.gap(clopper_pearson_lower(k, n, looks[-1].alpha))
            wanted = [radius for radius in wanted if best <= 0.0 or radius > best * (1.0 - 1e-9)]
            upper = 1.0 - clopper_pearson_lower(n - k, n, GIVE_UP / (len(LOOKS) - 1))
            if wanted and ask.gap(upper) < wanted[0]:
                break
        return Found(n0_counts=pilot, counts=counts, looks=tuple(looks), stopped=None if looks else "out of reach")


def _wrong(pilot: NDArray[np.int64]) -> Found:
    return Found(n0_counts=pilot, counts=np.zeros_like(pilot), looks=(), stopped="wrong")


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


SAMPLERS: Final[dict[str, type[Sampler]]] = {sampler.name: sampler for sampler in (Exact, Plan, Target)}
