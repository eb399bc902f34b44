"""Exact toys: base functions constant on random cells of the line and the plane, probabilities in closed form.

For each rule: a violation is a point with another one inside its radius whose answer is another, or none. Radii come
from the package's rules, answers from the definition. Every wrong variant is violated.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from scipy.stats import norm as gaussian

from ddsmoothing.claims import OffsetPairwise, PairTable
from ddsmoothing.claims.cascade import cascade_radius

Array = NDArray[np.float64]
WORLDS, POINTS, CLASSES = 200, 200, 3
RULES = ("offsets", "table", "cascade", "cascade as published")
WRONG = (
    *(
        "offsets: those of another vote",
        "offsets: none",
        "table: other offsets",
        "table: asymmetric",
        "table: largest pair",
    ),
    *("cascade: largest scale", "cascade: chosen expert alone"),
    "cascade as published: only its own class is unsure",
)


class World:
    """Points, cells and exact probabilities; L1 worlds have uniform noise of standard deviation sigma."""

    def __init__(self, rng: np.random.Generator, norm: str, dim: int) -> None:
        self.norm, self.dim, self.rng = norm, dim, rng
        if dim == 1:
            self.x = np.linspace(-3, 3, 901)[:, None]
            self.edges = [np.sort(rng.uniform(-3, 3, rng.integers(3, 9)))]
        else:
            grid = np.linspace(-2, 2, 31)
            self.x = np.stack(np.meshgrid(grid, grid, indexing="ij"), -1).reshape(-1, 2)
            self.edges = [np.sort(rng.uniform(-2, 2, 4)) for _ in range(2)]
        self.cells = tuple(len(edges) + 1 for edges in self.edges)

    def probability(self, hit: NDArray[np.bool_], sigma: float) -> Array:
        """``(N,)`` of the event that a noisy point lies in one of these cells."""
        parts = []
        for axis, edges in enumerate(self.edges):
            far = (edges[None] - self.x[:, axis : axis + 1]) / sigma
            below = gaussian.cdf(far) if self.norm == "l2" else np.clip(0.5 + far / (2.0 * np.sqrt(3.0)), 0.0, 1.0)
            ends = np.ones((len(self.x), 1))
            parts.append(np.diff(np.concatenate([0.0 * ends, below, ends], 1), axis=1))
        if self.dim == 1:
            return np.asarray(parts[0] @ hit.astype(float))
        return np.asarray(np.einsum("ni,ij,nj->n", parts[0], hit.astype(float), parts[1]))

    def phi(self, hit: NDArray[np.bool_], sigma: float) -> Array:
        """``(N,)`` of the event; clipped where rounding would matter, which keeps it 1-Lipschitz."""
        p = self.probability(hit, sigma)
        if self.norm == "l1":
            return np.asarray(2.0 * np.sqrt(3.0) * sigma * (p - 0.5))
        return np.asarray(sigma * np.clip(gaussian.ppf(np.clip(p, 1e-12, 1.0 - 1e-12)), -5.5, 5.5))

    def violations(self, answers: NDArray[np.int64], chosen: NDArray[np.int64], radii: Array) -> tuple[int, int]:
        """Of these points: how many have another answer inside their radius, and how many have a radius."""
        near = cdist(self.x[chosen], self.x, "cityblock" if self.norm == "l1" else "euclidean") < radii[:, None] - 1e-9
        changed = (near & (answers[None] != answers[chosen][:, None])).any(1)
        return int(changed.sum()), len(chosen)


def winner(margins: Array) -> NDArray[np.int64]:
    """``(N,)`` the class whose margins ``(N, K, K)`` are all above 0; the first of several, -1 where there is none."""
    least = margins.min(2) > 0.0
    return np.where(least.any(1), least.argmax(1), -1)


def duel_phis(world: World, logits: list[Array], sigmas: Array, slots: NDArray[np.int64]) -> Array:
    """``(N, K, K)`` phi of "a beats b" at the scale of the pair, infinite for a = b."""
    found = np.full((len(world.x), CLASSES, CLASSES), np.inf)
    for a in range(CLASSES):
        for b in range(CLASSES):
            if a != b:
                one = logits[slots[a, b]]
                found[:, a, b] = world.phi(one[..., a] > one[..., b], float(sigmas[slots[a, b]]))
    return found


@lru_cache(maxsize=2)
def toys(norm: str) -> tuple[Counter[str], Counter[str]]:
    """Violations and points tested, by rule."""
    rng, bad, tested = np.random.default_rng(7), Counter[str](), Counter[str]()
    for trial in range(WORLDS):
        world = World(rng, norm, 1 + trial % 2)
        rows = np.arange(len(world.x))
        sigmas = np.sort(rng.uniform(0.1, 1.2, 3))
        shared = rng.normal(size=(*world.cells, CLASSES))
        logits = [shared if trial % 4 < 2 else rng.normal(size=(*world.cells, CLASSES)) for _ in sigmas]
        beta = tuple((rng.normal(size=CLASSES) * 0.1).tolist())

        def add(name: str, answers: NDArray[np.int64], radii: Array, world: World = world) -> None:
            usable = np.flatnonzero((answers >= 0) & (radii > 1e-6))
            chosen = rng.permutation(usable)[:POINTS]
            wrong, seen = world.violations(answers, chosen, radii[chosen])
            bad[name] += wrong
            tested[name] += seen

        # class offsets at one sigma
        vote = OffsetPairwise(offsets=beta, norm=norm)
        thresholds = np.stack([vote.thresholds(top) for top in range(CLASSES)])
        same = np.zeros((CLASSES, CLASSES), dtype=np.int64)
        plain = duel_phis(world, logits, sigmas, same)
        margins = plain - thresholds
        answers = winner(margins)
        add("offsets", answers, margins.min(2)[rows, answers])
        add("offsets: those of another vote", answers, (plain - 3.0 * thresholds[::-1]).min(2)[rows, answers])

        add("offsets: none", answers, plain.min(2)[rows, answers])

        # a sigma for each pair, with offsets
        slots = np.triu(rng.integers(0, 3, (CLASSES, CLASSES)), 1)
        lopsided, slots = slots + np.tril(rng.integers(0, 3, slots.shape), -1), slots + slots.T
        table = PairTable(
            sigmas=tuple(sigmas.tolist()),
            slots=tuple(map(tuple, slots.tolist())),
            groups=tuple(range(CLASSES)),
            offsets=beta,
            norm=norm,
        )
        used = np.stack([table.row(top) for top in range(CLASSES)])
        pairs = duel_phis(world, logits, sigmas, used)
        margins = pairs - thresholds
        answers = winner(margins)
        add("table", answers, margins.min(2)[rows, answers])
        add("table: other offsets", answers, (pairs + thresholds).min(2)[rows, answers])
        add("table: largest pair", answers, np.where(np.isinf(margins), -np.inf, margins).max(2)[rows, answers])
        margins = duel_phis(world, logits, sigmas, lopsided) - thresholds
        answers = winner(margins)
        add("table: asymmetric", answers, margins.min(2)[rows, answers])

        # a cascade
        phis = np.stack(
            [
                np.stack([world.phi(one.argmax(-1) == c, float(s)) for c in range(CLASSES)], 1)
                for one, s in zip(logits, sigmas, strict=True)
            ],
            1,
        )  # (N, expert, class)
        taus = np.array([rng.uniform(0, 0.4), rng.uniform(0, 0.4), 0.0])
        sure = phis.max(2) > taus
        first = np.where(sure.any(1), sure.argmax(1), 0)
        answers = np.where(sure.any(1), phis.argmax(2)[rows, first], -1)
        of_answer = phis[rows[:, None], np.arange(3)[None], np.maximum(answers, 0)[:, None]]
        add("cascade", answers, np.array([cascade_radius(row.tolist(), taus.tolist()) for row in of_answer]))
        add("cascade: largest scale", answers, (of_answer - taus).max(1))
        add("cascade: chosen expert alone", answers, of_answer[rows, first] - taus[first])
        before = np.arange(3)[None] < first[:, None]
        own = of_answer[rows, first] - taus[first]
        for name, most in (
            ("cascade as published", phis.max(2)),
            ("cascade as published: only its own class is unsure", of_answer),
        ):
            unsure = np.where(before, taus - most, np.inf).min(1)
            add(name, answers, np.minimum(unsure, own))
    return bad, tested


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("rule", RULES)
def test_no_answer_changes_inside_a_radius(rule: str, norm: str) -> None:
    bad, tested = toys(norm)
    assert tested[rule] >= 25_000  # both norms together twice as many
    assert bad[rule] == 0


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("variant", WRONG)
def test_wrong_variants_are_violated(variant: str, norm: str) -> None:
    bad, tested = toys(norm)
    assert tested[variant] > 1000
    assert bad[variant] > 0
