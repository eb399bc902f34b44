"""Pairwise votes: valid, tight, never below the one-class bound, and another classifier than the plurality vote.

Validity is judged on simulated logits that the package's own counting, samplers and rules are driven with: Gaussian
logits of K classes, in which pairs are correlated and some are exactly at one half, so that every certificate is false.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtri

import ddsmoothing as dds
from ddsmoothing.bounds import clopper_pearson_lower
from ddsmoothing.certificate import certificate_for
from ddsmoothing.claims import ABSTAIN, Look, Measurement, Pairwise, Plurality, Rule, Tally, measured, rule_for
from ddsmoothing.counting.contract import Request
from ddsmoothing.counting.tallies import Tallies
from ddsmoothing.errors import InfeasibleError, InputError
from ddsmoothing.plan import EARLY_SHARE, LAST_SHARE, Exact, Found, Plan, Question, Sampler, Target
from reference import is_valid, violations_allowed

ALPHA, R = 0.05, 1500
L2 = dds.L2Certificate()
Logits = Callable[[int], torch.Tensor]


def counted(logits: torch.Tensor, tally: Tally, role: str = "certify", sigma: float = 1.0) -> Measurement:
    """What the package counts on these samples."""
    n, num_classes = logits.shape
    request = Request(row=0, sigma=sigma, stream=1, n=n, tally=tally.kind, anchor=tally.anchor)
    tallies = Tallies([request], num_classes, torch.device("cpu"))
    tallies.add(logits, torch.zeros(n, dtype=torch.int64))
    return measured(role, sigma, tally, tallies.found()[0])


def gap(norm: str, p: float) -> float:
    return float(certificate_for(norm).estimate(np.array(1.0), np.array(p)))


def drive(sampler: Sampler, rule: Rule, draw: Logits, num_classes: int, norm: str = "l2") -> Found:
    """One conversation of a sampler, answered with fresh logits; sigma is 1."""
    talk = sampler.converse(Question(ALPHA, rule, num_classes, None, partial(gap, norm), norm == "l1"))
    wishes = next(talk)
    while True:
        answers = [counted(draw(wish.n), wish.tally, wish.stream.name.lower()) for wish in wishes]
        try:
            wishes = talk.send(answers)
        except StopIteration as end:
            found: Found = end.value
            return found


def gaussian(mean: list[float], mix: float = 0.0, seed: int = 0) -> Logits:
    """Logits ``mean + e``; a common part of size mix in all but the first class correlates the pairs."""
    rng = np.random.default_rng(seed)

    def draw(n: int) -> torch.Tensor:
        noise = rng.standard_normal((n, len(mean)))
        noise[:, 1:] += mix * rng.standard_normal((n, 1))
        return torch.from_numpy(noise + np.array(mean))

    return draw


# no class beats all others in these, so that every certificate is false
AT_ONE_HALF = {
    "K=3, all pairs": ([0.0] * 3, 0.0),
    "K=3, one pair": ([0.0, 0.0, -3.0], 0.0),
    "K=5, two pairs of the first": ([0.0, 0.0, 0.0, -2.0, -4.0], 1.0),
    "K=10, one pair, others near": ([0.0, 0.0, *[-0.8] * 8], 0.5),
}


@pytest.mark.parametrize("name", AT_ONE_HALF)
@pytest.mark.parametrize("sampler", [Exact(n0=30, n=300), Plan(pilot=60, n_max=600), Target(radii=(0.05,), pilot=30)])
def test_certificates_of_pairs_at_one_half_are_as_rare_as_alpha_says(name: str, sampler: Sampler) -> None:
    mean, mix = AT_ONE_HALF[name]
    draw, rule = gaussian(mean, mix, seed=7), Pairwise()
    repetitions = R // 3 if sampler.name == "target" else R
    found = [drive(sampler, rule, draw, len(mean)) for _ in range(repetitions)]
    false = np.array([rule.claim(one.pilot, one.fresh, L2, ALPHA).radius > 0.0 for one in found])
    assert false.sum() <= violations_allowed(repetitions, ALPHA)


def test_the_test_has_teeth_where_one_pair_binds() -> None:
    """Failures happen, at about alpha."""
    draw, rule = gaussian([0.0, 0.0, -6.0], seed=1), Pairwise()
    found = [drive(Exact(n0=30, n=300), rule, draw, 3) for _ in range(R)]
    assert is_valid(np.array([rule.claim(one.pilot, one.fresh, L2, ALPHA).radius > 0.0 for one in found]), ALPHA)


def test_a_class_chosen_on_the_certified_samples_is_rejected() -> None:
    draw, rule = gaussian([0.0, 0.0, -6.0], seed=2), Pairwise()
    false = []
    for _ in range(R):
        logits = draw(300)
        top = rule.choose(counted(logits, rule.pilot_tally(3)))
        fresh = counted(logits, rule.tally(top))
        fresh = replace(fresh, looks=(rule.look(fresh, top, ALPHA),))
        false.append(rule.claim_of(top, fresh, L2, ALPHA).radius > 0.0)
    assert not is_valid(np.array(false), ALPHA)


def test_the_largest_bound_of_all_pairs_is_rejected() -> None:
    draw, rule = gaussian([0.0, 0.0, -2.0], seed=3), Pairwise()
    found = [drive(Exact(n0=30, n=300), rule, draw, 3) for _ in range(200)]
    false = []
    for one in found:
        assert one.fresh is not None
        assert one.fresh.wins is not None
        others = [k for c, k in enumerate(one.fresh.wins) if c != one.fresh.anchor]
        false.append(clopper_pearson_lower(max(others), one.fresh.n, ALPHA) > 0.5)
    assert not is_valid(np.array(false), ALPHA)


def test_full_alpha_at_every_look_is_rejected() -> None:
    """A pair may pass at a look of its own, so every look has to spend."""
    draw, rule = gaussian([0.0, 0.0, -6.0], seed=4), Pairwise()
    found = [drive(Target(radii=(0.2,), pilot=30), rule, draw, 3) for _ in range(R // 2)]
    false = []
    for one in found:
        assert one.fresh is not None
        shares = {look.n: LAST_SHARE if look.n == 100_000 else EARLY_SHARE for look in one.fresh.looks}
        greedy = [look._replace(alpha=look.alpha / shares[look.n]) for look in one.fresh.looks]
        false.append(rule.binding(greedy) > 0.5)
    assert not is_valid(np.array(false), ALPHA)


@pytest.mark.parametrize("num_classes", [3, 6])
def test_radii_of_linear_classifiers_are_tight(num_classes: int) -> None:
    """The true distance is the nearest of the K - 1 planes: pairwise radii nearly reach it, one-class ones do not."""
    rng = np.random.default_rng(num_classes)
    weights, n = rng.standard_normal((num_classes, num_classes)), 100_000
    ratios: dict[str, list[float]] = {"pairwise": [], "plurality": []}
    for _ in range(12):
        x = rng.standard_normal(num_classes)
        margins = weights @ x
        top = int(margins.argmax())
        gaps = np.delete(margins[top] - margins, top)
        distance = float((gaps / np.linalg.norm(np.delete(weights[top] - weights, top, 0), axis=1)).min())
        sigma = distance / 0.8  # so that the nearest pair is won with probability .79
        logits = torch.from_numpy((x + sigma * rng.standard_normal((n, num_classes))) @ weights.T)
        for vote, found in ratios.items():
            rule = rule_for(vote)
            fresh = counted(logits, rule.tally(top), sigma=sigma)
            fresh = replace(fresh, looks=(rule.look(fresh, top, 0.001),))
            radius = rule.claim_of(top, fresh, L2, 0.001).radius
            assert radius <= distance
            found.append(radius / distance)
    assert np.mean(ratios["pairwise"]) >= 0.97
    assert np.mean(ratios["plurality"]) < np.mean(ratios["pairwise"])


@given(
    logits=st.lists(st.lists(st.integers(0, 3), min_size=4, max_size=4), min_size=1, max_size=40),
    alpha=st.sampled_from([0.001, 0.05]),
    norm=st.sampled_from(["l2", "l1"]),
)
@settings(max_examples=300, deadline=None)
def test_pairwise_is_never_below_one_class(logits: list[list[int]], alpha: float, norm: str) -> None:
    """On the same samples, whatever they are, ties included."""
    samples, certificate = torch.tensor(logits, dtype=torch.float32), dds.certificate.certificate_for(norm)
    for top in range(4):
        radii = []
        for rule in (Plurality(), Pairwise()):
            fresh = counted(samples, rule.tally(top))
            fresh = replace(fresh, looks=(rule.look(fresh, top, alpha),))
            radii.append(rule.claim_of(top, fresh, certificate, alpha).radius)
        assert radii[1] >= radii[0]


@given(logits=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=60))
@settings(max_examples=100, deadline=None)
def test_with_two_classes_both_votes_are_one(logits: list[tuple[int, int]]) -> None:
    samples = torch.tensor(logits, dtype=torch.float32)
    for top in range(2):
        claims = []
        for rule in (Plurality(), Pairwise()):
            fresh = counted(samples, rule.tally(top))
            claims.append(rule.claim_of(top, replace(fresh, looks=(rule.look(fresh, top, 0.05),)), L2, 0.05))
        assert claims[0] == claims[1]


def test_two_class_bounds_can_be_larger() -> None:
    """No promise against them: with p = (.5, .25, .25) and ``w_{A>b} = .5`` two classes separate and pairs do not."""
    votes, wins, n = (5000, 2500, 2500), (10_000, 5000, 5000), 10_000
    both = Plurality(bound="two-class")
    look = both.look(Measurement(role="certify", sigma=1.0, n=n, votes=votes), 0, both.share(0.001))
    plurality = Measurement(role="certify", sigma=1.0, n=n, votes=votes, looks=(look,))
    pairwise = Measurement(
        role="certify", sigma=1.0, n=n, votes=votes, anchor=0, wins=wins, looks=(Look(n, wins, 0.001),)
    )
    assert both.claim_of(0, plurality, L2, 0.001).radius > 0.0
    assert Pairwise().claim_of(0, pairwise, L2, 0.001).prediction == ABSTAIN


class Rankings(torch.nn.Module):
    """The first coordinate decides who stands where: A beats both others on most samples, yet b has most votes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = (x[:, 0] - 0.5) / 0.25
        orders = torch.tensor([[1.0, 2.0, 0.0], [2.0, 1.0, 0.0], [1.0, 0.0, 2.0]])  # b A c, A b c, c A b
        return orders[(z > float(ndtri(0.4))).long() + (z > float(ndtri(0.7))).long()]


def test_a_plurality_vote_is_not_protected_by_a_pairwise_certificate() -> None:
    x = torch.full((1, 2), 0.5, dtype=torch.float64)
    pairwise = dds.SmoothedClassifier(Rankings(), L2, num_classes=3)
    plurality = dds.SmoothedClassifier(Rankings(), L2, num_classes=3, vote="plurality")
    certified = pairwise.certify(x, 0.25, n0=1000, n=10_000, seed=0)
    assert certified.prediction.tolist() == [0]
    assert certified.radius[0] > 0.05
    assert pairwise.predict(x, 0.25, n=10_000, seed=0).prediction.tolist() == [0]
    assert plurality.predict(x, 0.25, n=10_000, seed=0).prediction.tolist() == [1]  # inside the ball


def test_predictions_of_pairs_at_one_half_are_as_rare_as_alpha_says() -> None:
    """Where no class beats all others the smoothed classifier abstains, and any class would be an error."""
    draw, rule = gaussian([0.0, 0.0, -6.0], seed=5), Pairwise()
    answers = []
    for _ in range(R):
        pilot = counted(draw(30), rule.pilot_tally(3), "pilot")
        answers.append(rule.answer(pilot, counted(draw(200), rule.tally(rule.choose(pilot))), ALPHA))
    assert is_valid(np.array(answers) != ABSTAIN, ALPHA)


def test_predictions_without_a_pilot_are_rejected() -> None:
    draw, rule = gaussian([0.0, 0.0, -6.0], seed=6), Pairwise()
    answers = []
    for _ in range(3 * R):
        logits = draw(200)
        pilot = counted(logits, rule.pilot_tally(3), "pilot")
        answers.append(rule.answer(pilot, counted(logits, rule.tally(rule.choose(pilot))), ALPHA))
    assert not is_valid(np.array(answers) != ABSTAIN, ALPHA)


def test_few_samples_are_refused_with_the_number_that_works(linear: dds.SmoothedClassifier) -> None:
    x = torch.full((1, 3), 7, dtype=torch.uint8)
    with pytest.raises(InfeasibleError, match="n >= 10"):
        linear.predict(x, 0.1, n=9, alpha=0.001)
    assert linear.predict(x, 0.1, n=10, alpha=0.001, seed=0).prediction.tolist() == [0]


def test_a_pairwise_vote_takes_no_two_class_bound(linear: dds.SmoothedClassifier) -> None:
    with pytest.raises(InputError, match=r"two-class.*vote plurality"):
        linear.certify(torch.full((1, 3), 7, dtype=torch.uint8), 0.25, n=100, bound="two-class")
    with pytest.raises(InputError, match="unknown vote 'majority'"):
        dds.SmoothedClassifier(linear.model, L2, num_classes=2, vote="majority")


def test_the_vote_comes_with_every_result(smoothed: dds.SmoothedClassifier, data: dds.Dataset) -> None:
    x, y = data[:6]
    result = smoothed.certify(x, 0.5, n0=50, n=500, seed=1)
    assert (result.vote, result.bound) == ("pairwise", "one-class")
    other = result.under(Plurality())
    assert (other.vote, other.bound) == ("plurality", "one-class")
    assert (result.radius >= other.radius).all()
    plain = dds.SmoothedClassifier(smoothed.model, L2, num_classes=10, vote="plurality")
    assert plain.certify(x, 0.5, n0=50, n=500, seed=1).radius.tolist() == other.radius.tolist()
    assert result.outcome(y).correct.tolist() == (result.prediction == y.numpy()).tolist()


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize(
    "options", [{"n0": 50, "n": 400}, {"n_max": 2000}, {"radii": [0.1, 0.3]}, {"n": 400, "randomized": True}]
)
def test_block_size_and_batch_change_nothing(
    smoothed: dds.SmoothedClassifier, data: dds.Dataset, norm: str, options: dict[str, object]
) -> None:
    x, _ = data[[0, 1, 5]]
    used = dds.SmoothedClassifier(smoothed.model, dds.certificate.certificate_for(norm), num_classes=10, block_size=64)
    together = used.certify(x, [0.3, 0.6, 1.0], seed=2, ids=[0, 1, 2], **options)  # type: ignore[arg-type]
    for i, sigma in enumerate((0.3, 0.6, 1.0)):
        alone = used.with_block_size(50).certify(x[i : i + 1], sigma, seed=2, ids=[i], **options)  # type: ignore[arg-type]
        assert alone.claims[0] == together.claims[i]
        assert alone.fresh[0] == together.fresh[i]
