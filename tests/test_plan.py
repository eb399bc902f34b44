"""Samplers: validity of the production conversations on Bernoulli counts, and what each spends."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from scipy.special import ndtri
from scipy.stats import binom

from ddsmoothing.bounds import clopper_pearson_lower, lower_of_looks, randomized_lower
from ddsmoothing.claims import Plurality, Tally, measured
from ddsmoothing.errors import InfeasibleError, InputError
from ddsmoothing.plan import (
    LOOKS,
    SAMPLERS,
    Exact,
    Found,
    Plan,
    Question,
    Sampler,
    Target,
    candidates,
    planned_samples,
    sampler_for,
)
from ddsmoothing.streams import Stream, coin

ALPHA = 0.05
RUNS = 5_000  # at each of four p: 20,000 simulated certifications a sampler
PS = (0.5, 0.7, 0.9, 0.995)

Rule = Callable[[Found, float], float]


def gap(p: float) -> float:
    return float(ndtri(p))


def hold(sampler: Sampler, p: float, rng: np.random.Generator, label: int | None = None) -> tuple[Found, dict]:
    """One conversation with Bernoulli counts of two classes in place of forward passes; what each stream gave."""
    talk = sampler.converse(Question(ALPHA, Plurality(), 2, label, gap, False))
    drawn: dict[Stream, list[int]] = {}
    wish = next(talk)
    while True:
        answer = []
        for draw in wish:
            stream, n, tally = draw.stream, draw.n, draw.tally
            assert n > 0
            assert (tally, draw.sigma, draw.slot) == (Tally("votes"), None, 0)
            hits = int(rng.binomial(n, p))
            drawn.setdefault(stream, []).append(n)
            answer.append(measured(stream.name.lower(), 1.0, tally, np.array([n - hits, hits])))
        try:
            wish = talk.send(answer)
        except StopIteration as end:
            return end.value, drawn


def claimed(found: Found, coin_: float) -> float:
    """The bound that the package claims."""
    return lower_of_looks(plain_looks(found))


def plain_looks(found: Found) -> list[tuple[int, int, float]]:
    return [] if found.fresh is None else [(look.n, look.counts[0], look.alpha) for look in found.fresh.looks]


def failures(sampler: Sampler, p: float, rule: Rule = claimed, runs: int = RUNS) -> int:
    """How often the lower bound lies above the chosen class's true probability."""
    rng = np.random.default_rng(round(p * 1000))  # fixed, so that the verdict is the same every time
    bad = 0
    for _ in range(runs):
        found, _ = hold(sampler, p, rng)
        truth = p if Plurality().choose(found.pilot) == 1 else 1 - p
        bad += rule(found, float(rng.random())) > truth
    return bad


def allowed(runs: int = RUNS) -> int:
    return int(binom.isf(1e-6, runs, ALPHA))


SMALL: dict[str, Sampler] = {
    "exact": Exact(n0=20, n=300),
    "plan": Plan(pilot=50, n_max=2000),
    "target": Target(radii=(0.6,)),
    "radii": Target(radii=(0.25, 0.75, 1.25, 2.0)),
}


@pytest.mark.parametrize("p", PS)
@pytest.mark.parametrize("name", SMALL)
def test_every_sampler_is_valid(name: str, p: float) -> None:
    assert failures(SMALL[name], p) <= allowed()


def test_the_check_can_see_failures() -> None:
    assert failures(SMALL["exact"], 0.9) > 0


def peeking(found: Found, coin_: float) -> float:
    """Full alpha at every look, the largest taken: no spending."""
    return max((clopper_pearson_lower(k, n, ALPHA) for n, k, _ in plain_looks(found)), default=0.0)


def pooled(found: Found, coin_: float) -> float:
    """The pilot counted again."""
    assert found.fresh is not None
    both = found.pilot.plus(found.fresh)
    return clopper_pearson_lower(both.votes[Plurality().choose(found.pilot)], both.n, ALPHA)


def test_peeking_without_spending_is_rejected() -> None:
    patient = Target(radii=(1.2816,))  # the true radius at p = .9, so that sampling goes on
    assert failures(patient, 0.9, peeking, 2000) > allowed(2000)
    assert failures(patient, 0.9, claimed, 2000) <= allowed(2000)


def test_pooling_the_pilot_is_rejected() -> None:
    """With a small second stage planned by the pilot's luck the pooled count is too optimistic at p = 1/2."""
    lucky = Exact(n0=41, n=41)
    assert failures(lucky, 0.5, pooled) > allowed()
    assert failures(lucky, 0.5) <= allowed()


@pytest.mark.parametrize("p", PS)
def test_the_randomised_bound_is_exact_and_never_below_the_plain_one(p: float) -> None:
    rng = np.random.default_rng(7)
    bad, n = 0, 120
    for _ in range(RUNS):
        k, u = int(rng.binomial(n, p)), 1.0 - float(rng.random())
        bound = randomized_lower(k, n, ALPHA, u)
        assert bound >= clopper_pearson_lower(k, n, ALPHA)
        bad += bound > p
    assert bad <= allowed()
    assert bad >= binom.ppf(1e-6, RUNS, 0.9 * ALPHA) or p > 0.99  # exact where the cap at k = n does not bind


def test_choosing_the_coin_afterwards_is_rejected() -> None:
    rng = np.random.default_rng(7)
    counts = rng.binomial(120, 0.7, RUNS).tolist()
    best = [max(randomized_lower(k, 120, ALPHA, 1.0 - float(u)) for u in rng.random(8)) for k in counts]
    assert sum(bound > 0.7 for bound in best) > allowed()


@pytest.mark.parametrize("u", [0.0, -0.1, 1.5, math.nan])
def test_a_coin_outside_its_range_is_refused(u: float) -> None:
    with pytest.raises(InputError, match="coin"):
        randomized_lower(5, 10, ALPHA, u)


def test_randomised_bound_when_all_agree_stays_below_one() -> None:
    assert randomized_lower(100, 100, 0.5, 1e-9) < 1.0
    assert randomized_lower(100, 100, 0.001, 1.0) == clopper_pearson_lower(100, 100, 0.001)


def test_coins_are_uniform_and_keyed() -> None:
    coins = [coin(3, i) for i in range(4000)]
    assert 0.0 < min(coins) < 0.001
    assert 0.999 < max(coins) <= 1.0
    assert abs(np.mean(coins) - 0.5) < 0.02
    assert coin(3, 5) == coins[5] != coin(4, 5)


def test_alpha_is_spent_once() -> None:
    found, _ = hold(Target(radii=(0.0, 5.0)), 0.5, np.random.default_rng(0))
    shares = [0.03 * ALPHA] * (len(LOOKS) - 1) + [0.7 * ALPHA]
    assert math.fsum(shares) == pytest.approx(ALPHA)
    assert [a for _, _, a in plain_looks(found)] == pytest.approx(shares[: len(plain_looks(found))])


def test_counts_are_of_fresh_samples_and_looks_are_cumulative() -> None:
    found, drawn = hold(Target(radii=(1.2816,)), 0.9, np.random.default_rng(1))
    assert drawn[Stream.PILOT] == [100]
    assert np.cumsum(drawn[Stream.CERTIFY]).tolist() == [n for n, _, _ in plain_looks(found)]
    assert found.fresh is not None
    assert sum(found.fresh.votes) == found.fresh.n == plain_looks(found)[-1][0]


def test_target_stops_early_when_it_can() -> None:
    easy, _ = hold(Target(radii=(0.5,)), 0.995, np.random.default_rng(0))
    hopeless, _ = hold(Target(radii=(2.0,)), 0.7, np.random.default_rng(0))
    assert plain_looks(easy)[-1][0] <= 500
    assert gap(lower_of_looks(plain_looks(easy))) >= 0.5
    assert plain_looks(hopeless)[-1][0] <= 1000


def test_radii_go_on_until_the_first_failure() -> None:
    found, _ = hold(Target(radii=(0.25, 0.5, 3.0)), 0.9, np.random.default_rng(0))
    assert gap(lower_of_looks(plain_looks(found))) >= 0.5
    assert gap(lower_of_looks(plain_looks(found))) < 3.0


def test_a_radius_out_of_reach_is_refused_before_the_first_sample() -> None:
    with pytest.raises(InfeasibleError, match="larger sigma"):
        Target(radii=(2.0,)).check_reach(0.001, lambda p: 0.25 * gap(p), 0.25)
    found, drawn = hold(Target(radii=(9.0,)), 0.99, np.random.default_rng(0))
    assert (found.fresh, found.stopped, Stream.CERTIFY in drawn) == (None, "out of reach", False)


@pytest.mark.parametrize("sampler", SMALL.values(), ids=SMALL)
def test_a_wrong_pilot_stops_a_label_aware_input(sampler: Sampler) -> None:
    found, drawn = hold(sampler, 0.99, np.random.default_rng(0), label=0)
    assert (found.stopped, found.fresh) == ("wrong", None)
    assert Stream.CERTIFY not in drawn
    found, _ = hold(sampler, 0.99, np.random.default_rng(0), label=1)
    assert found.stopped is None


def test_the_planner_follows_the_pilot() -> None:
    plan = partial(planned_samples, pilot=500, alpha=0.001, n_max=100_000, price=0.1)
    assert plan(100, linear=False) == 0  # far below one half: abstain
    sure, even = plan(500, linear=False), plan(300, linear=False)
    assert 0 < even < sure <= 100_000
    assert plan(450, linear=False, price=0.5) < plan(450, linear=False, price=0.02)
    assert plan(450, linear=True) > 0


def test_a_planned_abstention_draws_nothing_more() -> None:
    """At the price asked by default the same pilot goes on."""
    found, drawn = hold(Plan(pilot=500), 0.6, np.random.default_rng(3))
    assert (found.stopped, Stream.CERTIFY in drawn) == (None, True)
    stopped, drawn = hold(Plan(pilot=500, price=50.0), 0.6, np.random.default_rng(3))
    assert (stopped.stopped, stopped.fresh, Stream.CERTIFY in drawn) == ("planned", None, False)


def test_candidates_are_multiples_of_500_up_to_the_most() -> None:
    found = candidates(100_000)
    assert found[0] == 500
    assert found[-1] == 100_000
    assert all(n % 500 == 0 for n in found)
    assert candidates(300) == (300,)


def test_numbers_select_the_sampler() -> None:
    assert sampler_for(None, None) == Plan()
    assert sampler_for(None, 5000) == Exact(n=5000)
    assert sampler_for(10, None) == Exact(n0=10)
    assert sampler_for(None, None, 7000) == Plan(n_max=7000)
    assert sampler_for(None, None, None, [0.5, 0.25]) == Target(radii=(0.25, 0.5))
    assert set(SAMPLERS) == {"exact", "divided", "plan", "target"}
    with pytest.raises(InputError, match="n_max"):
        sampler_for(10, None, 500)
    with pytest.raises(InputError, match="radii"):
        sampler_for(10, None, None, [0.5])
    with pytest.raises(InputError, match="radii"):
        Target(radii=(-1.0,))


@pytest.mark.parametrize("sampler", [Exact(n=5), Plan(n_max=5)])
def test_infeasible_samplers_say_so(sampler: Sampler) -> None:
    with pytest.raises(InfeasibleError, match="Use n >="):
        sampler.check(0.001, "one-class")


def test_target_takes_the_one_class_bound_only() -> None:
    with pytest.raises(InputError, match="one-class"):
        Target(radii=(0.5,)).check(0.001, "two-class")
