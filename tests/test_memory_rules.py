"""The geometry of the memory: distances, guards, the online and the order-free rule, ellipsoids, cross-polytopes."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq, minimize_scalar

from ddsmoothing.errors import InputError, ShapeError
from ddsmoothing.memory import Risk, rules
from ddsmoothing.memory.rules import Pair
from memory_helpers import true_distance

NORMS = ("l2", "l1")


def exact_square(x: np.ndarray, y: np.ndarray) -> Fraction:
    return sum(((Fraction(a) - Fraction(b)) ** 2 for a, b in zip(x.tolist(), y.tolist(), strict=True)), Fraction(0))


@pytest.mark.parametrize("d", [2, 784, 3072, 150_528])
@pytest.mark.parametrize("norm", NORMS)
def test_distances_are_within_the_guard(norm: str, d: int) -> None:
    rng = np.random.default_rng(0)
    whole = rng.integers(0, 256, (2, d)).astype(np.uint8)
    exact = whole.astype(np.longdouble) / 255
    for x, y, a, b in (
        (whole[0], whole[1], exact[0], exact[1]),
        (whole[0], rng.random(d), exact[0], None),
        (rng.random(d), rng.random(d), None, None),
    ):
        found = rules.distance(norm, x, y)
        truth = true_distance(norm, x if a is None else a, y if b is None else b)
        assert abs(found - truth) <= rules.guard(norm, d, found) / 2
        assert rules.guard(norm, d, found) < 1e-5 * max(found, 1.0)


def test_images_are_compared_in_integers() -> None:
    x = np.zeros(150_528, dtype=np.uint8)
    y = np.full(150_528, 255, dtype=np.uint8)
    assert rules.distance("l1", x, y) == 150_528
    assert rules.distance("l2", x, y) == pytest.approx(math.sqrt(150_528), rel=1e-15)
    y[:] = 0
    y[0] = 1
    assert rules.distance("l2", x, y) == rules.distance("l1", x, y) == 1 / 255


def test_wrong_points_are_refused() -> None:
    with pytest.raises(ShapeError, match="same length"):
        rules.distance("l2", np.zeros(3), np.zeros(4))
    with pytest.raises(InputError, match="unknown norm 'l3'"):
        rules.distance("l3", np.zeros(3), np.zeros(3))


@given(
    st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1)), min_size=2, max_size=9),
    st.lists(st.floats(1e-4, 2.0), min_size=9, max_size=9),
    st.lists(st.integers(0, 2), min_size=9, max_size=9),
    st.sampled_from(NORMS),
)
@settings(max_examples=150, deadline=None)
def test_online_and_order_free_balls_are_disjoint(
    points: list[tuple[float, float]], radii: list[float], labels: list[int], norm: str
) -> None:
    x, size = np.array(points), len(points)
    kept: list[tuple[int, float]] = []
    for i in range(size):
        others = [(j, r) for j, r in kept if labels[j] != labels[i]]
        far = np.array([rules.distance(norm, x[i], x[j]) for j, _ in others])
        cut = rules.reconciled(norm, 2, radii[i], far, np.array([r for _, r in others]))
        assert cut.radius <= radii[i]
        assert (cut.by is None) == (cut.radius == radii[i])
        kept.append((i, cut.radius))
    pairs = [Pair(i=i, j=j, far=rules.distance(norm, x[i], x[j])) for i in range(size) for j in range(i + 1, size)]
    free = rules.order_free(norm, 2, np.array(labels[:size]), np.array(radii[:size]), pairs)
    back = rules.order_free(
        norm,
        2,
        np.array(labels[:size][::-1]),
        np.array(radii[:size][::-1]),
        [Pair(i=size - 1 - p.j, j=size - 1 - p.i, far=p.far) for p in pairs],
    )
    assert [c.radius for c in free] == [c.radius for c in back][::-1]
    for i in range(size):
        assert free[i].radius <= radii[i]
        for j in range(i):
            if labels[i] != labels[j]:
                gap = true_distance(norm, x[i], x[j])
                if min(kept[i][1], kept[j][1]) > 0:
                    assert kept[i][1] + kept[j][1] <= gap
                if min(free[i].radius, free[j].radius) > 0:
                    assert free[i].radius + free[j].radius <= gap


def test_boundary_probes_lie_in_one_class_only() -> None:
    """Points where two balls touch: the guard band leaves none of them in two classes, and without it some are."""
    rng = np.random.default_rng(1)
    double = with_guard = 0
    for _ in range(4000):
        x, y = rng.random((2, 30))
        far = rules.distance("l2", x, y)
        first = float(rng.uniform(0.1, 0.9)) * far
        probe = x + (y - x) * (first / far)
        a, b = rules.distance("l2", probe, x), rules.distance("l2", probe, y)
        double += a < first and b < far - first
        second = rules.reconciled("l2", 30, 9.0, np.array([far]), np.array([first])).radius
        with_guard += a < first and b < second
    assert with_guard == 0
    assert double > 0


def test_advertised_radii_leave_the_guard() -> None:
    eta = rules.guard("l2", 784, 1.0)
    assert rules.at_centre("l2", 784, 1.0) <= 1.0 - eta
    assert rules.at_centre("l2", 784, 0.0) == 0.0
    assert rules.within("l2", 784, 1.0, 0.25) <= 0.75 - 2 * eta
    assert rules.within("l2", 784, 1.0, 1.0) == 0.0


def test_nested_and_touching_balls() -> None:
    nested = rules.reconciled("l2", 2, 0.5, np.array([0.2]), np.array([0.3]))
    assert nested == rules.Cut(radius=0.0, by=0)
    touching = rules.reconciled("l2", 2, 0.5, np.array([1.0]), np.array([0.5]))
    assert 0.5 - 1e-14 < touching.radius < 0.5
    both = rules.order_free("l2", 2, np.array([0, 1]), np.array([0.3, 0.1]), [Pair(i=0, j=1, far=0.0)])
    assert [c.radius for c in both] == [0.0, 0.0]
    same = rules.order_free("l2", 2, np.array([1, 1]), np.array([0.3, 0.1]), [Pair(i=0, j=1, far=0.0)])
    assert [c.radius for c in same] == [0.3, 0.1]


def ellipses(seed: int, d: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    x1, x2 = rng.normal(size=(2, d))
    a1, a2 = np.exp(rng.normal(0, 1, (2, d))) * rng.uniform(0.1, 1.5)
    return x1, a1, x2, a2


def largest_factor(x1: np.ndarray, a1: np.ndarray, x2: np.ndarray, a2: np.ndarray) -> float:
    """The distance of the second ellipse from 0 in units of the first, by its boundary's angle (d = 2)."""
    w, b = (x2 - x1) / a1, a2 / a1

    def size(angle: float) -> float:
        return float(np.hypot(*(w + b * np.array([np.cos(angle), np.sin(angle)]))))

    grid = np.linspace(0, 2 * np.pi, 400)
    start = grid[np.argmin([size(angle) for angle in grid])]
    return float(
        minimize_scalar(size, bounds=(start - 0.02, start + 0.02), method="bounded", options={"xatol": 1e-12}).fun
    )


@pytest.mark.parametrize("seed", range(60))
def test_ellipsoids_are_kept_apart_and_no_more_than_needed(seed: int) -> None:
    x1, a1, x2, a2 = ellipses(seed, 2)
    t = rules.ellipsoid_factor(x1, a1, x2, a2)
    if np.sum(((x1 - x2) / a2) ** 2) <= 1:
        assert t == 0.0
        return
    best = min(1.0, largest_factor(x1, a1, x2, a2))
    assert t <= best + 1e-9
    assert t >= best - 1e-6


def norms(norm: str, v: np.ndarray) -> np.ndarray:
    return np.asarray(np.sqrt((v**2).sum(-1)) if norm == "l2" else np.abs(v).sum(-1))


@pytest.mark.parametrize("d", [2, 50, 3072])
def test_no_point_lies_in_both_regions(d: int) -> None:
    """Random directions, and the one in which the other region is nearest."""
    rng, apart = np.random.default_rng(d), 0
    for seed in range(20):
        x1, a1, x2, a2 = ellipses(seed, d)
        x2 = x2 + 3.0 * rng.normal(size=d)
        w, b = (x2 - x1) / a1, a2 / a1
        if float((w**2 / b**2).sum()) <= 1:
            assert rules.ellipsoid_factor(x1, a1, x2, a2) == 0.0
            continue
        mu = brentq(lambda m, w=w, b=b: float((w**2 * b**2 / (b**2 + m) ** 2).sum()) - 1, 0, 1e12)
        nearest = {"l2": w * mu / (b**2 + mu), "l1": np.where(np.arange(d) == b.argmax(), w, 0) + w}
        for norm, factor in (("l2", rules.ellipsoid_factor), ("l1", rules.cross_polytope_factor)):
            t = factor(x1, a1, x2, a2)
            apart += t > 0
            u = np.vstack([rng.laplace(size=(100, d)), nearest[norm]])
            u /= norms(norm, u)[:, None]
            if t > 0:
                assert (norms(norm, (x1 + t * (1 - 1e-9) * u * a1 - x2) / a2) >= 1).all()
    assert apart > 10


def test_equal_balls_are_a_special_case_of_ellipsoids() -> None:
    x1, x2 = np.zeros(5), np.full(5, 1.0)
    far = math.sqrt(5)
    t = rules.ellipsoid_factor(x1, np.full(5, 3.0), x2, np.full(5, 0.5))
    assert 3.0 * t == pytest.approx(far - 0.5, rel=1e-9)
    assert 3.0 * t <= far - 0.5
    flat = rules.cross_polytope_factor(x1, np.full(5, 9.0), x2, np.full(5, 0.5))
    assert 9.0 * flat == pytest.approx(5.0 - 0.5, rel=1e-9)
    assert rules.cross_polytope_factor(x1, np.full(5, 9.0), x1, np.full(5, 0.5)) == 0.0


@pytest.mark.parametrize("norm", NORMS)
def test_what_a_region_leaves_round_a_point_inside(norm: str) -> None:
    rng = np.random.default_rng(2)
    for _ in range(50):
        centre, axes = rng.normal(size=4), np.exp(rng.normal(size=4))
        x = centre + 0.2 * axes * rng.uniform(-1, 1, 4)
        left, radius = rules.region_left(norm, x, centre, axes)
        assert left > 0
        u = rng.normal(size=(200, 4))
        u /= norms(norm, u)[:, None]
        for z in (x + left * u * axes, x + radius * u):
            assert (norms(norm, (z - centre) / axes) < 1).all()
    assert rules.region_left(norm, np.full(2, 9.0), np.zeros(2), np.ones(2)) == (0.0, 0.0)


def test_impossible_half_axes_are_refused() -> None:
    good = np.ones(3)
    with pytest.raises(InputError, match="not positive and finite"):
        rules.ellipsoid_factor(good, np.array([1.0, 0.0, 1.0]), good, good)
    with pytest.raises(ShapeError, match="half-axes"):
        rules.cross_polytope_factor(good, np.ones(2), good, good)


def test_alpha_of_attempts_adds_up_to_delta() -> None:
    risk = Risk(delta=0.01)
    assert sum(Fraction(risk.of(t)) for t in range(1, 2000)) < Fraction(1, 100)
    assert sum(risk.of(t) for t in range(1, 2000)) > 0.00999
    assert risk.of(1) > risk.of(2) == pytest.approx(risk.of(1) / 4)
    assert Risk(alpha=0.01).of(5) == 0.01
    assert str(risk) == "delta=0.01 for the whole memory"
    for wrong in ({}, {"alpha": 0.1, "delta": 0.1}, {"alpha": 0.0}, {"delta": 1.5}):
        with pytest.raises(InputError):
            Risk(**wrong)
    with pytest.raises(InputError, match="attempt is 0"):
        risk.of(0)
