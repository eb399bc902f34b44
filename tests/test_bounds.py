from __future__ import annotations

import math
import re
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import betaincinv, ndtri

from ddsmoothing.bounds import (
    binomial_tail_at_most,
    check_feasible,
    clopper_pearson_lower,
    clopper_pearson_upper,
    floor_text,
    largest_lower_bound,
    normal_cdf_bounds,
    normal_quantile_above,
    normal_quantile_below,
    top_two_bounds,
)
from ddsmoothing.errors import InfeasibleError, InputError
from reference import binomial_tail, normal_cdf

Bound = Callable[[int, int, float], float]
CASES = [
    (k, n, alpha)
    for n in (1, 2, 7, 30, 100, 250)
    for k in sorted({1, n // 3, n // 2, n - 1, n} - {0})
    for alpha in (0.3, 0.05, 0.001, 1e-7)
]
QUANTILES = [*np.linspace(0.001, 0.999, 41), 1e-12, 1e-5, 0.5, 0.5 + 1e-9, 1 - 1e-6, 1 - 1e-13, 1 - 2**-53]


def holds(bound: Bound) -> bool:
    """``P_p[X >= k] <= alpha`` at the bound itself, exactly, in every case."""
    return all(binomial_tail(k, n, bound(k, n, alpha)) <= Fraction(alpha) for k, n, alpha in CASES)


def holds_below(quantile: Callable[[float], float]) -> bool:
    return all(normal_cdf(quantile(float(p))) <= Decimal(float(p)) for p in QUANTILES)


def test_clopper_pearson_holds_exactly() -> None:
    assert holds(clopper_pearson_lower)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda k, n, alpha: float(betaincinv(k, n - k + 1, alpha)) * (1 + 1e-12),
        lambda k, n, alpha: round(clopper_pearson_lower(k, n, alpha), 6),
        lambda k, n, alpha: float(betaincinv(k + 1, n - k + 1, alpha)),
    ],
    ids=["nudged up", "rounded to nearest", "off by one"],
)
def test_wrong_lower_bounds_are_rejected(wrong: Bound) -> None:
    assert not holds(wrong)


@pytest.mark.parametrize(("k", "n", "alpha"), CASES)
def test_clopper_pearson_is_tight(k: int, n: int, alpha: float) -> None:
    p = clopper_pearson_lower(k, n, alpha)
    assert p < k / n
    assert binomial_tail(k, n, p * (1 + 1e-9)) > Fraction(alpha)


@pytest.mark.parametrize(("k", "n", "p"), [(3, 10, 0.2), (60, 100, 0.5), (1, 50, 0.9), (200, 200, 0.97)])
def test_tail_bound_is_above_and_close(k: int, n: int, p: float) -> None:
    exact = binomial_tail(k, n, p)
    assert exact <= Fraction(binomial_tail_at_most(k, n, p)) <= exact * (1 + Fraction(1, 10**11))


@pytest.mark.parametrize("n", [1_000, 100_000, 1_000_000])
def test_saturated_bound_is_the_nth_root(n: int) -> None:
    p = clopper_pearson_lower(n, n, 0.001)
    assert p == pytest.approx(0.001 ** (1 / n), rel=1e-9)
    assert p <= 0.001 ** (1 / n)
    assert largest_lower_bound(n, 0.001) == pytest.approx(p, rel=1e-12)


def test_clopper_pearson_at_the_ends() -> None:
    assert clopper_pearson_lower(0, 10, 0.05) == 0.0
    assert clopper_pearson_upper(10, 10, 0.05) == 1.0
    assert clopper_pearson_upper(0, 10, 0.05) == pytest.approx(1 - 0.05**0.1, rel=1e-12)


@given(n=st.integers(1, 400), share=st.floats(0, 1), alpha=st.floats(1e-9, 0.5))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_upper_mirrors_lower(n: int, share: float, alpha: float) -> None:
    k = round(share * n)
    upper = clopper_pearson_upper(k, n, alpha)
    assert Fraction(upper) >= 1 - Fraction(clopper_pearson_lower(n - k, n, alpha))
    assert clopper_pearson_lower(k, n, alpha) <= k / n <= upper


@given(n=st.integers(2, 300), k=st.integers(0, 299), alpha=st.floats(1e-6, 0.4))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_clopper_pearson_grows_with_k(n: int, k: int, alpha: float) -> None:
    k %= n
    assert clopper_pearson_lower(k, n, alpha) < clopper_pearson_lower(k + 1, n, alpha)


@pytest.mark.parametrize(("k", "n", "alpha"), [(3, 2, 0.1), (-1, 2, 0.1), (0, 0, 0.1), (1, 2, 0.0), (1, 2, math.nan)])
def test_clopper_pearson_refuses(k: int, n: int, alpha: float) -> None:
    with pytest.raises(InputError, match="expected"):
        clopper_pearson_lower(k, n, alpha)


def test_one_class_bounds_add_up_to_one() -> None:
    lower, upper = top_two_bounds(clopper_pearson_lower(90, 100, 0.05), 4, 100, 0.05, "one-class", 0.0)
    assert lower == clopper_pearson_lower(90, 100, 0.05)
    assert Fraction(lower) + Fraction(upper) >= 1
    assert upper == pytest.approx(1 - lower, rel=1e-12)


def test_two_class_bound_splits_alpha() -> None:
    lower, upper = top_two_bounds(clopper_pearson_lower(45, 100, 0.9 * 0.05), 12, 100, 0.05, "two-class", 0.0)
    assert binomial_tail(45, 100, lower) <= Fraction(0.9 * 0.05)
    assert lower == pytest.approx(float(betaincinv(45, 56, 0.045)), rel=1e-9)
    # P[X <= 12] at the upper bound is at most the rest
    assert 1 - binomial_tail(13, 100, upper) <= Fraction((1 - 0.9) * 0.05)
    assert lower > upper  # certifies although pA < 1/2
    assert lower < 0.5


def test_two_class_upper_bound_is_never_above_the_complement() -> None:
    lower, upper = top_two_bounds(clopper_pearson_lower(95, 100, 0.9 * 0.05), 5, 100, 0.05, "two-class", 0.0)
    assert upper <= math.nextafter(1 - lower, 2)


@pytest.mark.parametrize("bound", ["one-class", "two-class"])
def test_total_variation_widens_both_bounds(bound: str) -> None:
    exact, near = (top_two_bounds(clopper_pearson_lower(50, 100, 0.05), 20, 100, 0.05, bound, tv) for tv in (0.0, 1e-6))
    assert Fraction(near[0]) <= Fraction(exact[0]) - Fraction(1e-6)
    assert near[1] >= exact[1] + 0.99e-6


def test_bounds_stay_probabilities() -> None:
    assert top_two_bounds(0.0, 100, 100, 0.05, "two-class", 1e-3) == (0.0, 1.0)


@pytest.mark.parametrize("bound", ["one-class", "two-class"])
@pytest.mark.parametrize("alpha", [0.4, 0.25, 0.125, 0.05, 2.0**-10, 0.001, 2.0**-20, 2.0**-40, 1e-7])
def test_infeasible_names_the_smallest_n(alpha: float, bound: str) -> None:
    with pytest.raises(InfeasibleError, match="Use n >=") as caught:
        check_feasible(1, alpha, bound)
    found = re.search(r"n >= (\d+)", str(caught.value))
    assert found
    smallest = int(found[1])
    check_feasible(smallest, alpha, bound)
    with pytest.raises(InfeasibleError):
        check_feasible(smallest - 1, alpha, bound)
    assert clopper_pearson_lower(smallest, smallest, alpha if bound == "one-class" else 0.9 * alpha) > 0.5


def test_infeasible_counts_the_total_variation() -> None:
    with pytest.raises(InfeasibleError, match="Use n >= ") as caught:
        check_feasible(10, 0.001, tv=0.1)
    smallest = int(re.search(r"n >= (\d+)", str(caught.value))[1])  # type: ignore[index]
    check_feasible(smallest, 0.001, tv=0.1)
    with pytest.raises(InfeasibleError):
        check_feasible(smallest - 1, 0.001, tv=0.1)


@pytest.mark.parametrize(("n", "alpha", "bound"), [(0, 0.1, "one-class"), (9, 2.0, "one-class"), (9, 0.1, "none")])
def test_check_feasible_refuses(n: int, alpha: float, bound: str) -> None:
    with pytest.raises(InputError, match="expected"):
        check_feasible(n, alpha, bound)


def test_normal_quantile_below_is_below() -> None:
    assert holds_below(normal_quantile_below)


@pytest.mark.parametrize(
    "wrong", [lambda p: float(ndtri(p)) + 1e-12, lambda p: round(float(ndtri(p)), 3)], ids=["nudged up", "rounded"]
)
def test_wrong_quantiles_are_rejected(wrong: Callable[[float], float]) -> None:
    assert not holds_below(wrong)


@pytest.mark.parametrize("p", QUANTILES)
def test_normal_quantile_above_is_above_and_both_are_tight(p: float) -> None:
    p = float(p)
    below, above = normal_quantile_below(p), normal_quantile_above(p)
    assert normal_cdf(above) >= Decimal(p)
    assert below <= above
    if 1e-4 < p < 1 - 1e-4:
        assert above - below < 1e-11
        assert abs(below - float(ndtri(p))) < 1e-11


def test_normal_quantiles_at_the_ends() -> None:
    assert normal_quantile_below(0.0) == -math.inf
    assert normal_quantile_above(1.0) == math.inf
    assert 8.0 < normal_quantile_below(1.0) < 8.3  # as for the largest float below one


@pytest.mark.parametrize("z", [-9.5, -4.0, -1.0, -1e-9, 0.0, 0.3, 1.0, 2.46, 5.77, 8.2])
def test_normal_cdf_bounds_enclose(z: float) -> None:
    low, high = normal_cdf_bounds(z)
    assert low <= normal_cdf(z) <= high
    assert high - low < Decimal("1e-35")


@given(value=st.floats(-1e9, 1e9), digits=st.integers(0, 12))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_floor_text_never_says_too_much(value: float, digits: int) -> None:
    text = floor_text(value, digits)
    assert Decimal(text) <= Decimal(value) < Decimal(text) + Decimal(1).scaleb(-digits)
    assert "E" not in text


def test_floor_text_differs_from_rounding() -> None:
    assert floor_text(0.9999999) == "0.999999"
    assert f"{0.9999999:.6f}" == "1.000000"
    assert floor_text(-0.1234561, 6) == "-0.123457"
