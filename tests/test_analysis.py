from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy.stats import binom

import ddsmoothing as dds
from ddsmoothing.analysis import (
    acr_interval,
    certified_accuracy_interval,
    certified_accuracy_of_inputs,
    certified_accuracy_of_population,
    certified_wrong,
    closed_form_loss,
    envelope,
    failures_at_most,
    held_radius,
)
from ddsmoothing.bounds import clopper_pearson_lower, clopper_pearson_upper
from ddsmoothing.errors import InputError


@dataclass
class Results:
    correct: np.ndarray
    radius: np.ndarray


# certified right, certified wrong, abstained, certified right exactly at .5, certified right with a tiny radius
FIVE = Results(np.array([True, False, False, True, True]), np.array([1.0, 2.0, 0.0, 0.5, 1e-12]))
RHO, ALPHA = 0.001, 0.01


def test_certified_accuracy_counts_every_input() -> None:
    """Wrong answers and abstentions stay in the denominator and never count as certified, not even at r = 0."""
    found = dds.certified_accuracy(FIVE, [0.0, 1e-12, 1e-11, 0.5, 0.500001, 1.0, 1.0000001, 2.0])
    assert found.tolist() == [0.6, 0.6, 0.4, 0.4, 0.2, 0.2, 0.0, 0.0]


def test_certified_accuracy_never_grows_with_the_radius() -> None:
    rng = np.random.default_rng(0)
    results = Results(rng.random(200) < 0.7, rng.random(200))
    radii = np.linspace(0, 1.2, 50)
    accuracy = dds.certified_accuracy(results, radii)
    assert (np.diff(accuracy) <= 0).all()
    slow = [(results.correct & (results.radius >= r)).mean() for r in radii]
    np.testing.assert_allclose(accuracy, slow, atol=1e-15)


def test_default_radii() -> None:
    assert dds.certified_accuracy(FIVE).shape == (5,)


def test_nothing_certified() -> None:
    none = Results(np.zeros(4, bool), np.zeros(4))
    assert dds.certified_accuracy(none, [0.0]).tolist() == [0.0]
    assert dds.acr(none) == 0.0
    assert acr_interval(none) == (0.0, 0.0)


def test_acr_counts_every_input() -> None:
    assert dds.acr(FIVE) == pytest.approx((1.0 + 0.5 + 1e-12) / 5, rel=1e-15)


def test_acr_is_the_area_under_certified_accuracy() -> None:
    rng = np.random.default_rng(1)
    results = Results(rng.random(300) < 0.8, rng.random(300))
    radii = (np.arange(20_000) + 0.5) / 20_000
    assert dds.acr(results) == pytest.approx(dds.certified_accuracy(results, radii).mean(), abs=1e-4)


def test_interval_is_clopper_pearson() -> None:
    (low, high), (zero, _) = certified_accuracy_interval(FIVE, [0.0, 5.0])
    assert low == pytest.approx(clopper_pearson_lower(3, 5, 0.025), rel=1e-12)
    assert high == pytest.approx(clopper_pearson_upper(3, 5, 0.025), rel=1e-12)
    assert zero == 0.0
    wide = certified_accuracy_interval(FIVE, [0.0], confidence=0.999)[0]
    assert wide[0] < low < 0.6 < high < wide[1]


def test_accuracy_interval_covers() -> None:
    """2,000 fixed data sets of 60 inputs with a true share of .37."""
    rng = np.random.default_rng(2)
    hits = rng.binomial(60, 0.37, 2000)
    ends = {}
    for k in set(hits.tolist()):
        some = Results(np.arange(60) < k, np.ones(60))
        ends[k] = certified_accuracy_interval(some, [0.5])[0]
    missed = sum(not ends[k][0] <= 0.37 <= ends[k][1] for k in hits.tolist())
    assert 0 < missed <= binom.isf(1e-6, 2000, 0.05)


def test_acr_interval_covers_about_right() -> None:
    rng = np.random.default_rng(3)
    missed = 0
    for _ in range(120):
        low, high = acr_interval(Results(rng.random(200) < 0.8, rng.random(200)))
        missed += not low <= 0.4 <= high
    assert missed <= binom.isf(1e-6, 120, 0.08)  # asymptotic: a little slack over .05


def test_acr_interval_is_reproducible_and_surrounds() -> None:
    low, high = acr_interval(FIVE)
    assert (low, high) == acr_interval(FIVE)
    assert low < dds.acr(FIVE) < high


@pytest.mark.parametrize("n", [1, 10, 100, 500, 10_000])
@pytest.mark.parametrize("alpha", [1e-4, 0.001, 0.05, 0.3])
@pytest.mark.parametrize("rho", [0.001, 0.05])
def test_failures_at_most_is_the_smallest(n: int, alpha: float, rho: float) -> None:
    q = failures_at_most(n, alpha, rho)
    assert binom.sf(q, n, alpha) <= rho
    assert q == 0 or binom.sf(q - 1, n, alpha) > rho


@pytest.mark.parametrize("n", [10, 100, 500, 10_000])
@pytest.mark.parametrize("alpha", [1e-4, 0.001, 0.05, 0.3])
def test_closed_form_is_never_below_the_exact_loss(n: int, alpha: float) -> None:
    for rho in (1e-6, 0.001, 0.05):
        assert closed_form_loss(n, alpha, rho) >= (failures_at_most(n, alpha, rho)) / n


def test_without_the_factor_two_the_closed_form_fails() -> None:
    """The published analysis script lacks it."""
    n, alpha, rho = 10_000, 0.05, 1e-6
    log = math.log(1 / rho)
    published = alpha + math.sqrt(alpha * (1 - alpha) * log / n) + log / (3 * n)
    assert published < failures_at_most(n, alpha, rho) / n


def test_bound_for_these_inputs() -> None:
    results = Results(np.arange(500) < 300, np.full(500, 0.5))
    found = certified_accuracy_of_inputs(results, [0.0, 0.6], ALPHA, RHO)
    assert found.tolist() == [0.6 - failures_at_most(500, ALPHA, RHO) / 500, 0.0]


def test_bound_for_these_inputs_holds() -> None:
    """True certificates: 60 of 100; each of the other 40 gets a false one with probability alpha."""
    rng, alpha, rho = np.random.default_rng(4), 0.05, 0.05
    failed = 0
    for false in rng.binomial(100, alpha, 2000):
        results = Results(np.arange(100) < 60 + min(false, 40), np.ones(100))
        failed += bool(certified_accuracy_of_inputs(results, [0.5], alpha, rho)[0] > 0.6)
    assert 0 < failed <= binom.isf(1e-6, 2000, rho)


def test_bound_for_the_population() -> None:
    results = Results(np.arange(500) < 300, np.full(500, 0.5))
    found = certified_accuracy_of_population(results, [0.0, 0.6], ALPHA, RHO)
    assert found[0] == clopper_pearson_lower(300, 500, RHO) - ALPHA
    assert found[1] == 0.0
    assert found[0] < certified_accuracy_of_inputs(results, [0.0], ALPHA, RHO)[0]


def test_bound_for_the_population_holds() -> None:
    """Every input is certified correctly with probability .5; a false certificate comes with alpha more."""
    rng, alpha, rho = np.random.default_rng(5), 0.02, 0.05
    ends = {}
    failed = 0
    for hits in rng.binomial(80, 0.5 + alpha, 2000).tolist():
        if hits not in ends:
            some = Results(np.arange(80) < hits, np.ones(80))
            ends[hits] = certified_accuracy_of_population(some, [0.5], alpha, rho)[0]
        failed += ends[hits] > 0.5
    assert 0 < failed <= binom.isf(1e-6, 2000, rho)


def test_the_envelope_is_the_best_at_each_radius() -> None:
    one, other = (
        Results(np.array([True] * 4), np.array([0.1, 0.2, 0.3, 0.4])),
        Results(FIVE.correct[:4], FIVE.radius[:4]),
    )
    radii = [0.0, 0.25, 0.45, 1.5]
    assert envelope([one, other], radii).tolist() == [1.0, 0.5, 0.5, 0.0]
    assert envelope([other], radii).tolist() == dds.certified_accuracy(other, radii).tolist()


def test_held_radius_is_what_acr_is_the_mean_of() -> None:
    assert held_radius(FIVE).tolist() == [1.0, 0.0, 0.0, 0.5, 1e-12]
    assert held_radius(FIVE).mean() == dds.acr(FIVE)


def test_a_run_is_analysed(run_l2: dds.Run) -> None:
    assert dds.acr(run_l2) == pytest.approx((run_l2.radius * run_l2.correct).sum() / 12)
    assert dds.certified_accuracy(run_l2, [0.0])[0] == run_l2.correct.mean()


@dataclass
class Unlabelled:
    prediction: np.ndarray
    radius: np.ndarray
    sampler: str = "exact"


# of classes 1 2 - 1 2, where - abstained
ANSWERS = Unlabelled(np.array([1, 2, -1, 1, 2]), np.array([1.0, 2.0, 0.0, 0.5, 0.25]))


def test_labels_given_are_what_a_run_would_know() -> None:
    labels = [1, 1, 1, 1, 2]
    known = Results(np.array([True, False, False, True, True]), ANSWERS.radius)
    for given in (labels, np.array(labels), torch.tensor(labels)):
        assert dds.certified_accuracy(ANSWERS, [0.0, 0.3], labels=given).tolist() == [0.6, 0.4]
    assert dds.acr(ANSWERS, labels=labels) == dds.acr(known)
    assert acr_interval(ANSWERS, labels=labels) == acr_interval(known)
    found = certified_accuracy_interval(ANSWERS, [0.0], labels=labels)
    assert found.tolist() == certified_accuracy_interval(known, [0.0]).tolist()
    assert dds.certified_accuracy(known, [0.0]).tolist() == [0.6]


def test_minus_one_is_no_label() -> None:
    """It stands for abstention, and would be right where the classifier abstained."""
    for labels in ([-1] * 5, [1, 2, -1, 1, 2], [1.0] * 5, ["a"] * 5):
        with pytest.raises(InputError, match="for data without labels give none at all"):
            dds.certified_accuracy(ANSWERS, [0.0], labels=labels)


def test_labels_that_are_missing_or_do_not_fit() -> None:
    for results, labels, message in (
        (ANSWERS, None, "labels=y"),
        (ANSWERS, [1, 2], r"shape \(2,\), expected \(5,\)"),
        (ANSWERS, np.eye(5), r"shape \(5, 5\)"),
        (FIVE, [1] * 5, "leave labels out"),
    ):
        with pytest.raises(InputError, match=message):
            dds.certified_accuracy(results, [0.0], labels=labels)
    with pytest.raises(InputError, match="wanted radius"):
        dds.acr(Unlabelled(ANSWERS.prediction, ANSWERS.radius, "target"), labels=[1] * 5)


def test_a_certification_is_judged_by_labels(linear: dds.SmoothedClassifier, pixels: torch.Tensor) -> None:
    result = linear.certify(pixels, 0.25, n0=50, n=200, alpha=0.01, seed=0)
    labels = (pixels[:, 0].numpy() > 100).astype(int)
    expected = ((result.prediction == labels) & (result.radius >= 0.1)).mean()
    assert 0.0 < expected < 1.0
    assert dds.certified_accuracy(result, [0.1], labels=labels).tolist() == [expected]


def test_wrong_certificates_are_those_with_a_radius() -> None:
    assert certified_wrong(FIVE) == 0.2
    assert certified_wrong(ANSWERS, labels=[2, 2, 2, 2, 2]) == 0.4
    assert certified_wrong(Results(np.array([False, True]), np.array([0.0, 1.0]))) == 0.0
