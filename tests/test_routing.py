"""Experts behind a gate: exact on toys, valid at full alpha, one function of the input; wrong variants are caught."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn

import ddsmoothing as dds
from ddsmoothing.certificate import certificate_for
from ddsmoothing.claims import (
    ABSTAIN,
    Gated,
    Measurement,
    OffsetPairwise,
    Pairwise,
    Plurality,
    Rule,
    rule_for,
    stateless_rule,
)
from ddsmoothing.claims.centres import Centres, Seen
from ddsmoothing.claims.gated import gated_radius
from ddsmoothing.errors import InfeasibleError, InputError
from ddsmoothing.stateless import SmoothedGate, certify_routed, predict_routed
from ddsmoothing.stateless.certify import Drawn, certify_stateless, stateless_talk
from ddsmoothing.streams import Stream
from reference import Half, is_valid, violations_allowed
from test_pairwise import Logits, counted, gaussian
from test_stateless import at_threshold
from test_stateless_toys import CLASSES, Array, World, duel_phis, winner

ALPHA = 0.05
L2 = dds.L2Certificate()
WORLDS, POINTS, EXPERTS = 200, 200, 3
VOTES = ("pairwise", "plurality")
GATES = ("groups of classes", "learned selector", "nearest centre")
NO_GATE = "chosen expert alone"
WRONG = (
    *(
        f"{gate}: {variant}"
        for gate in GATES
        for variant in (NO_GATE, "larger of gate and chosen", "one expert left out")
    ),
    "nearest centre: centres at twice their distance",
)


# exact toys


def pairwise_expert(
    world: World, logits: Array, sigma: float, norm: str, rng: np.random.Generator
) -> tuple[NDArray[np.int64], Array]:
    """Answers ``(N,)`` and signed radii ``(N, K)`` of a pairwise vote with offsets of its own."""
    vote = OffsetPairwise(offsets=tuple((rng.normal(size=CLASSES) * 0.1).tolist()), norm=norm)
    same = np.zeros((CLASSES, CLASSES), dtype=np.int64)
    margins = duel_phis(world, [logits], np.array([sigma]), same)
    margins = margins - np.stack([vote.thresholds(top) for top in range(CLASSES)])
    return winner(margins), margins.min(2)


def plurality_expert(
    world: World, logits: Array, sigma: float, norm: str, rng: np.random.Generator
) -> tuple[NDArray[np.int64], Array]:
    """The same of the class that has more than half of the votes."""
    phis = np.stack([world.phi(logits.argmax(-1) == c, sigma) for c in range(CLASSES)], 1)
    return np.where(phis.max(1) > 0.0, phis.argmax(1), -1), phis


@lru_cache(maxsize=4)
def toys(norm: str, vote: str) -> tuple[Counter[str], Counter[str]]:
    """Violations and points tested, by gate and variant."""
    rng, bad, tested = np.random.default_rng(11), Counter[str](), Counter[str]()
    for trial in range(WORLDS):
        world = World(rng, norm, 1 + trial % 2)
        rows = np.arange(len(world.x))
        sigmas = rng.uniform(0.1, 1.2, EXPERTS)
        shared = rng.normal(size=(*world.cells, CLASSES))  # one model for all, or one each
        logits = [shared if trial % 4 < 2 else rng.normal(size=(*world.cells, CLASSES)) for _ in sigmas]
        answers_of, radii_of = [], []
        for one, sigma in zip(logits, sigmas, strict=True):
            expert = pairwise_expert if vote == "pairwise" else plurality_expert
            answers, radii = expert(world, one, float(sigma), norm, rng)
            answers_of.append(answers)
            radii_of.append(radii)
        answers_of, radii_of = np.stack(answers_of, 1), np.stack(radii_of, 1)  # (N, expert), (N, expert, class)

        def add(
            name: str,
            picked: NDArray[np.int64],
            away: Array,
            world: World = world,
            rows: NDArray[np.int64] = rows,
            answers_of: NDArray[np.int64] = answers_of,
            radii_of: Array = radii_of,
        ) -> None:
            answers = answers_of[rows, picked]
            of_answer = radii_of[rows, :, np.maximum(answers, 0)]
            own = of_answer[rows, picked]
            radii = {
                name: [gated_radius(a, r.tolist(), int(c)) for a, r, c in zip(away, of_answer, picked, strict=True)],
                f"dual, {name}": [
                    gated_radius(a, [v if i == c else -math.inf for i, v in enumerate(r.tolist())], int(c))
                    for a, r, c in zip(away, of_answer, picked, strict=True)
                ],
                f"{name}: {NO_GATE}": own,
                f"{name}: larger of gate and chosen": np.maximum(own, np.delete(away, 0, 1).max(1)),
                f"{name}: one expert left out": [
                    gated_radius(np.where(np.arange(EXPERTS) == (c + 1) % EXPERTS, np.inf, a), r.tolist(), int(c))
                    for a, r, c in zip(away, of_answer, picked, strict=True)
                ],
            }
            if name == "nearest centre":
                radii["nearest centre: centres at twice their distance"] = [
                    gated_radius(2.0 * a, r.tolist(), int(c)) for a, r, c in zip(away, of_answer, picked, strict=True)
                ]
            for key, found in radii.items():
                usable = np.flatnonzero((answers >= 0) & (np.array(found) > 1e-6))
                chosen = rng.permutation(usable)[:POINTS]
                wrong, seen = world.violations(answers, chosen, np.array(found)[chosen])
                bad[key] += wrong
                tested[key] += seen

        sigma = float(rng.uniform(0.1, 1.2))
        of_class = rng.permutation(CLASSES)  # the expert of each class of the first base classifier
        outputs = {
            "groups of classes": of_class[logits[0].argmax(-1)],
            "learned selector": rng.integers(0, EXPERTS, world.cells),
        }
        for name, output in outputs.items():
            q = np.stack([world.phi(output == e, sigma) for e in range(EXPERTS)], 1)
            add(name, q.argmax(1), np.repeat(q.max(1)[:, None], EXPERTS, 1))
        gate = Centres(points=rng.uniform(-2, 2, (EXPERTS, world.dim)))
        seen = [gate.seen(x, norm) for x in world.x]
        add("nearest centre", np.array([one.chosen for one in seen]), np.array([one.away for one in seen]))
    return bad, tested


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("branches", ["", "dual, "])
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("vote", VOTES)
def test_no_answer_changes_inside_a_radius(vote: str, gate: str, branches: str, norm: str) -> None:
    bad, tested = toys(norm, vote)
    assert tested[gate] >= 25_000  # both norms together twice as many
    assert tested[branches + gate] >= 15_000
    assert bad[branches + gate] == 0


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("variant", WRONG)
@pytest.mark.parametrize("vote", VOTES)
def test_wrong_variants_are_violated(vote: str, variant: str, norm: str) -> None:
    bad, tested = toys(norm, vote)
    assert tested[variant] > 1000
    assert bad[variant] > 0


@given(
    away=st.lists(st.floats(-1.0, 2.0), min_size=4, max_size=4),
    radii=st.lists(st.floats(-1.0, 2.0), min_size=4, max_size=4),
    chosen=st.integers(0, 3),
)
@settings(max_examples=200, deadline=None)
def test_reach_is_never_below_the_gate_alone_and_the_experts_alone(
    away: list[float], radii: list[float], chosen: int
) -> None:
    found = gated_radius(away, radii, chosen)
    others = [e for i, e in enumerate(away) if i != chosen]
    assert found >= max(0.0, min(radii[chosen], *others))
    assert found >= max(0.0, min(radii))
    assert found <= max(0.0, radii[chosen])


# gates without noise


def squared(v: list[Fraction]) -> Fraction:
    return sum((c * c for c in v), Fraction(0))


@given(
    data=st.data(), kind=st.sampled_from(["integers", "floats", "float centres"]), norm=st.sampled_from(["l2", "l1"])
)
@settings(max_examples=300, deadline=None)
def test_distances_to_other_centres_err_low_and_hardly(data: st.DataObject, kind: str, norm: str) -> None:
    """Against rational numbers: ``E_i^2 (2 |m_c - m_i|)^2 <= gap^2`` and nearly equal."""
    d, levels = data.draw(st.integers(1, 5)), 255
    pixels = st.lists(st.integers(0, 255), min_size=d, max_size=d)
    numbers = st.lists(st.floats(-2.0, 2.0), min_size=d, max_size=d)
    points = data.draw(st.lists(pixels if kind == "integers" else numbers, min_size=2, max_size=4, unique_by=tuple))
    assume(all(max(abs(a - b) for a, b in zip(*two, strict=True)) >= 1e-6 for two in combinations(points, 2)))
    x = data.draw(numbers if kind == "floats" else pixels)
    typed = np.array(x, dtype=np.float64 if kind == "floats" else np.int16)
    seen = Centres(points=np.array(points), levels=levels).seen(typed, norm)
    place = [Fraction(c) / (1 if kind == "floats" else levels) for c in x]
    centres = [[Fraction(c) / (levels if kind == "integers" else 1) for c in point] for point in points]
    squares = [squared([a - b for a, b in zip(place, centre, strict=True)]) for centre in centres]
    if kind == "integers":
        assert seen.chosen == squares.index(min(squares))
    assert seen.away[seen.chosen] == 0.0
    for i, away in enumerate(seen.away):
        apart = [a - b for a, b in zip(centres[seen.chosen], centres[i], strict=True)]
        gap = squares[i] - squares[seen.chosen]
        if i == seen.chosen:
            continue
        assert away >= 0.0
        if away > 0.0:
            length = squared(apart) if norm == "l2" else max(abs(c) for c in apart) ** 2
            assert gap > 0
            assert Fraction(away) ** 2 * 4 * length <= gap**2
        if kind == "integers":
            length = squared(apart) if norm == "l2" else max(abs(c) for c in apart) ** 2
            assert Fraction(away * (1 + 1e-12)) ** 2 * 4 * length >= gap**2


def test_a_gate_without_noise_picks_the_first_of_equal_centres_and_refuses_what_makes_none() -> None:
    seen = Centres(points=np.array([[0, 0], [2, 0], [0, 2]])).seen(np.array([1, 1], dtype=np.int16), "l2")
    assert seen == Seen(0, (0.0, 0.0, 0.0))
    with pytest.raises(InputError, match="two centres of a gate are the same"):
        Centres(points=np.array([[0, 1], [0, 1]]))
    for wraps in ([[-(2**63)], [5]], np.array([[2**64 - 1], [5]], dtype=np.uint64)):  # would stand near 0
        with pytest.raises(InputError, match="numbers of at most"):
            Centres(points=np.array(wraps))
    for none in ([[1, 2], [3]], [["a"]], [[True], [False]], [[1j], [2]], [1, 2], np.zeros((0, 3)), None):
        with pytest.raises(InputError, match=r"no array \(E, \.\.\) of numbers"):
            Centres(points=none)  # type: ignore[arg-type]
    for levels in (0, 2.5, True):
        with pytest.raises(InputError, match="levels is"):
            Centres(points=np.eye(2), levels=levels)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="numbers of at most"):
        Centres(points=np.array([[0.0], [np.nan]]))
    with pytest.raises(InputError, match="the centres have 2 numbers, the input 3"):
        Centres(points=np.eye(2)).seen(np.zeros(3), "l2")


# level


def categorical(shares: list[float], seed: int) -> Logits:
    """A base classifier that gives each class with this probability."""
    rng = np.random.default_rng(seed)

    def draw(n: int) -> torch.Tensor:
        return torch.eye(len(shares), dtype=torch.float64)[rng.choice(len(shares), size=n, p=shares)]

    return draw


def drive(rule: Gated, draws: list[Logits], n0: int = 30, n: int = 450, role: Stream | None = None) -> Drawn:
    """One conversation, answered with fresh logits of each slot's own base classifier."""
    talk = stateless_talk(rule, n0, n, ALPHA, None, role)
    wishes = next(talk)
    while True:
        found = [
            replace(
                counted(draws[one.slot](one.n), one.tally, one.stream.name.lower(), rule.sigmas[one.slot]),
                slot=one.slot,
            )
            for one in wishes
        ]
        try:
            wishes = talk.send(found)
        except StopIteration as end:
            drawn: Drawn = end.value
            return drawn


def world(norm: str, k: int, branches: str, seed: int, vote: str = "pairwise") -> tuple[Gated, list[Logits]]:
    """Three experts of K classes; nothing protects class 0, so that every certificate is false.

    The gate is at one half exactly, and so stand several pairs of the second expert at their thresholds, which are not
    0, or class 0 itself at one half with a plurality vote; the first and the third expert are sure of class 0.
    """
    at = list(range(1, max(3, k // 2)))
    mean = [0.4, *(0.1 * (-1) ** b if b in at else -4.0 for b in range(1, k))]
    offsets = at_threshold(mean, at, norm)
    sure = [3.0, *[-3.0] * (k - 1)]
    rules: tuple[Rule, ...] = tuple(
        OffsetPairwise(offsets=beta, norm=norm) for beta in ((0.0, 0.1, *[0.0] * (k - 2)), offsets, (0.0,) * k)
    )
    groups = tuple(c % 3 for c in range(k))
    shares = [(0.5 if g == 0 else 0.25) / groups.count(g) for g in groups]
    draws = [gaussian(sure, seed=seed), gaussian(mean, seed=seed + 1), gaussian(sure, seed=seed + 2)]
    if vote == "plurality":
        rules, draws[1] = (Plurality(),) * 3, categorical([0.5, *[0.5 / (k - 1)] * (k - 1)], seed + 1)
    rule = Gated(experts=rules, sigmas=(0.5, 1.0, 2.0, 0.7), classes=k, groups=groups, branches=branches, norm=norm)
    return rule, [*draws, categorical(shares, seed + 3)]


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("branches", ["reach", "dual"])
@pytest.mark.parametrize(
    ("vote", "k"), [("pairwise", 3), ("pairwise", 6), ("pairwise", 10), ("plurality", 3), ("plurality", 10)]
)
def test_certificates_at_their_thresholds_are_as_rare_as_alpha_says(
    vote: str, k: int, branches: str, norm: str
) -> None:
    rule, draws = world(norm, k, branches, seed=k, vote=vote)
    found = [drive(rule, draws) for _ in range(400)]
    claims = [rule.claim(pilots, fresh, certificate_for(norm), ALPHA) for pilots, fresh in found]
    assert sum(claim.radius > 0.0 for claim in claims) <= violations_allowed(400, ALPHA)
    assert all(sum(one.n for one in fresh) == 450 for _, fresh in found)
    asked = [drive(rule, draws, role=Stream.PREDICT) for _ in range(400)]
    answers = [rule.answer(pilots, fresh, ALPHA) for pilots, fresh in asked]
    assert sum(answer != ABSTAIN for answer in answers) <= violations_allowed(400, ALPHA)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("vote", VOTES)
def test_a_branch_that_is_chosen_afterwards_fails_too_often(vote: str, norm: str) -> None:
    """One event binds: failures happen at about alpha, and with the larger of both bounds nearly twice as often."""
    rule, draws = world(norm, 3, "reach", seed=0, vote=vote)
    if vote == "pairwise":
        mean = [0.4, 0.1, -6.0]
        second = OffsetPairwise(offsets=at_threshold(mean, [1], norm), norm=norm)
        rule = replace(rule, experts=(rule.experts[0], second, rule.experts[2]))
        draws[1] = gaussian(mean, seed=5)
    certificate, false, uncommitted = certificate_for(norm), [], []
    for _ in range(2400):
        pilots = [
            replace(counted(draw(30), rule.pilot_tally(slot), "pilot", rule.sigmas[slot]), slot=slot)
            for slot, draw in enumerate(draws)
        ]
        made = rule.commit(pilots)
        if (made.top, made.chosen) != (0, 0):
            continue
        raw = [
            replace(counted(draw(300), rule.tally(0, slot), "certify", rule.sigmas[slot]), slot=slot)
            for slot, draw in enumerate(draws)
        ]
        fresh = rule.looked(pilots, raw, ALPHA)
        false.append(rule.claim(pilots, [fresh[slot] for slot in made.slots], certificate, ALPHA).radius > 0.0)
        margins = [rule.atom(made, one, certificate, ALPHA).margin for one in fresh]
        uncommitted.append(gated_radius([margins[3]] * 3, margins[:3], 0) > 0.0)
    assert len(false) > 1800
    assert is_valid(np.array(false), ALPHA)
    assert not is_valid(np.array(uncommitted), ALPHA)


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("vote", VOTES)
def test_behind_a_gate_without_noise_the_chosen_expert_binds_at_alpha(vote: str, norm: str) -> None:
    """It stands at its threshold; the others' distances are exact: the first is kept away, the second is too near."""
    mean = [0.4, 0.1, -6.0]
    first, draw = OffsetPairwise(offsets=at_threshold(mean, [1], norm), norm=norm), gaussian(mean, seed=1)
    experts: tuple[Rule, ...] = (first, Pairwise(), Pairwise())
    if vote == "plurality":
        experts, draw = (Plurality(),) * 3, categorical([0.5, 0.5, 0.0], seed=1)
    rule = Gated(experts=experts, sigmas=(1.0, 0.5, 0.5), classes=3, norm=norm)
    rule = rule.at(Seen(0, (0.0, 5.0, 0.0)))
    draws = [draw, gaussian([-3.0, 3.0, 0.0], seed=2), gaussian([3.0, -3.0, -3.0], seed=3)]
    found = [drive(rule, draws) for _ in range(1000)]
    assert {one.slot for _, fresh in found for one in fresh} == {0, 2}
    claims = [rule.claim(pilots, fresh, certificate_for(norm), ALPHA) for pilots, fresh in found]
    assert is_valid(np.array([claim.radius > 0.0 for claim in claims]), ALPHA)


def test_the_radius_ends_where_a_gate_without_noise_may_pick_another() -> None:
    rule = Gated(experts=(Pairwise(), Pairwise()), sigmas=(1.0, 1.0), classes=2, branches="dual")
    draws = [gaussian([3.0, -3.0], seed=1), gaussian([-3.0, 3.0], seed=2)]
    for away, moved in ((0.25, 0.0), (0.25, 0.1), (0.25, 0.25), (9.0, 0.0)):
        here = rule.at(Seen(0, (0.0, away)))
        pilots, fresh = drive(here, draws)
        assert [one.slot for one in fresh] == [0]
        claim = here.claim(pilots, fresh, L2, ALPHA, moved)
        alone = here.at(Seen(0, (0.0, math.inf))).claim(pilots, fresh, L2, ALPHA, moved)
        expected = min(away - moved, alone.radius)
        assert claim.radius == pytest.approx(expected, abs=1e-12)
        assert claim.radius <= expected
        assert claim.prediction == (0 if expected > 0 else ABSTAIN)


def test_the_pilot_commits_to_what_reaches_farther_and_counts_thresholds() -> None:
    """The gate reaches phi .67 (p = .75): nearer than expert 1 without offsets, farther than with them."""
    gate = categorical([0.75, 0.25], seed=1)
    draws = [gaussian([3.0, -3.0], seed=2), gaussian([1.6, 0.0], seed=3), gate]
    for offsets, slots in (((0.0, 0.0), (0, 1)), ((0.0, 0.8), (0, 2))):
        rules = (Pairwise(), OffsetPairwise(offsets=offsets, norm="l2"))
        rule = Gated(experts=rules, sigmas=(1.0, 1.0, 1.0), classes=2, groups=(0, 1))
        pilots, fresh = drive(rule, draws, n0=2000, n=4000)
        assert rule.commit(pilots).slots == slots
        assert [one.slot for one in fresh] == list(slots)
        assert replace(rule, branches="dual").commit(pilots).slots == (0, 2)
        assert fresh[1].n > fresh[0].n  # what binds gets most


# end to end


class Selector(nn.Module):
    """A selector of three experts."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.w = nn.Parameter(torch.randn(784, 3, generator=generator))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x.flatten(1) - 0.5) @ self.w


def experts_of(smoothed: dds.SmoothedClassifier, vote: str) -> list[tuple[dds.SmoothedClassifier, float]]:
    if vote == "plurality":
        other = dds.SmoothedClassifier(smoothed.model, L2, num_classes=10, vote=vote, block_size=smoothed.block_size)
        return [(other, 0.4), (other, 0.7), (other, 0.9)]
    beta = (0.0, -0.1, 0.05, 0.0, 0.1, 0.0, -0.15, 0.0, 0.02, 0.0)
    return [(smoothed, 0.4), (smoothed.with_offsets(beta), 0.7), (smoothed, 0.9)]


def gates(smoothed: dds.SmoothedClassifier, x: torch.Tensor) -> dict[str, Any]:
    grid = (x[:3] * 255).round().to(torch.int64).flatten(1).numpy()
    return {
        "groups": SmoothedGate(smoothed=smoothed, sigma=0.5, groups=tuple(c % 3 for c in range(10))),
        "selector": SmoothedGate(smoothed=dds.SmoothedClassifier(Selector(), L2, num_classes=3), sigma=0.3),
        "centres": Centres(points=grid + 1),
        "float centres": Centres(points=x[:3].double().flatten(1).numpy() + 0.01),
    }


OPTIONS: dict[str, Any] = {"n0": 50, "n": 400, "seed": 4}


def read_back(text: str) -> tuple[Gated, list[Measurement], float]:
    """The rule and the measurements of a piece of evidence, read without the result that wrote it."""
    found = json.loads(text)
    again = stateless_rule(found["rule"]["stateless"], num_classes=10, norm="l2")
    assert isinstance(again, Gated)
    if found["seen"] is not None:
        again = again.at(Seen(found["seen"]["chosen"], tuple(found["seen"]["away"])))
    parts = [
        Measurement(**{key: tuple(v) if isinstance(v, list) else v for key, v in one.items() if key != "looks"})
        for one in found["measurements"]
    ]
    return again, parts, found["alpha"]


@pytest.mark.parametrize(
    ("gate", "vote"),
    [
        *(("groups", "pairwise"), ("selector", "pairwise"), ("centres", "pairwise"), ("float centres", "pairwise")),
        *(("groups", "plurality"), ("centres", "plurality")),
    ],
)
def test_routing_is_one_function_of_the_input(smoothed: dds.SmoothedClassifier, gate: str, vote: str) -> None:
    """The batch, its order and what was asked before change nothing; claims follow from what the evidence holds."""
    x = dds.load_data("fashion-mnist-sample")[[0, 3, 9]][0]
    small = smoothed.with_block_size(64)
    picks = gates(small, x)[gate]
    together = certify_routed(experts_of(small, vote), x, picks, ids=[0, 1, 2], **OPTIONS)
    answers = predict_routed(experts_of(small, vote), x, picks, ids=[0, 1, 2], **OPTIONS)
    assert {one.wins is None for parts in together.fresh for one in parts if one.slot < 3} == {vote == "plurality"}
    assert together.level == "stateless"
    assert (together.prediction >= 0).any()
    assert (together.samples >= 450).all()
    for i in (2, 0, 1):
        other = experts_of(small.with_block_size(50), vote)
        alone = certify_routed(other, x[i : i + 1], picks, ids=[i], **OPTIONS)
        assert alone.claims[0] == together.claims[i]
        assert alone.seen[0] == together.seen[i]
        assert predict_routed(other, x[i : i + 1], picks, ids=[i], **OPTIONS)[0] == answers[i]
        rule, parts, alpha = read_back(together.evidence(i))
        pilots = [one for one in parts if one.role == "pilot"]
        fresh = rule.looked(pilots, [one for one in parts if one.role == "certify"], alpha)
        assert rule.claim(pilots, fresh, L2, alpha) == together.claims[i]
        assert tuple(one.slot for one in fresh) == rule.commit(pilots).slots


def test_one_expert_is_that_expert(smoothed: dds.SmoothedClassifier) -> None:
    x = dds.load_data("fashion-mnist-sample")[[0, 3, 9]][0]
    alone = Centres(points=np.zeros((1, 784), dtype=np.int64))
    found = certify_routed([(smoothed, 0.6)], x, alone, ids=[0, 1, 2], **OPTIONS)
    plain = smoothed.certify(x, 0.6, ids=[0, 1, 2], **OPTIONS)
    for one, other in zip(found.claims, plain.claims, strict=True):
        assert (one.prediction, one.p_lower) == (other.prediction, other.p_lower)
        assert one.radius == pytest.approx(other.radius, rel=1e-12)
    assert found.samples.tolist() == [450] * 3
    stopped = certify_routed([(smoothed, 0.6)], x, alone, labels=[9, 9, 9], **OPTIONS)
    assert set(stopped.reason) <= {"wrong", "certified", "abstained"}
    assert "wrong" in stopped.reason


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_no_point_inside_a_radius_is_answered_otherwise(norm: str) -> None:
    """Two networks behind centres, all planes: the classifier is known in closed form at every point."""
    planes = [([1.0, 0.0, 0.0], 0.4), ([0.6, 0.8, 0.0], 0.75)]
    models = [dds.SmoothedClassifier(Half(w, t), norm, num_classes=2, any_range=True) for w, t in planes]
    experts = [(models[0], 0.3), (models[1], 0.5)]
    centres = np.array([[40, 60, 128], [200, 190, 128]])
    gate, rng = Centres(points=centres), np.random.default_rng(0)
    x = rng.integers(0, 256, (60, 3)).astype(np.uint8)

    def truth(y: Array) -> NDArray[np.int64]:
        picked = np.square(y[:, None] - centres / 255.0).sum(2).argmin(1)
        sides = np.stack([y @ np.array(w) > t for w, t in planes], 1)
        return sides[np.arange(len(y)), picked].astype(np.int64)

    found = certify_routed(experts, torch.from_numpy(x), gate, n0=50, n=1000, seed=1)
    places = x / 255.0
    held = np.flatnonzero(found.prediction >= 0)
    assert len(held) > 30
    assert (found.prediction[held] == truth(places[held])).all()
    outside = 0
    for i in held:
        steps = rng.standard_normal((4000, 3))
        steps /= np.linalg.norm(steps, 2 if norm == "l2" else 1, axis=1, keepdims=True)
        inside = truth(places[i] + 0.9999 * found.radius[i] * steps)
        assert (inside == found.prediction[i]).all()
        outside += (truth(places[i] + 3.0 * found.radius[i] * steps) != found.prediction[i]).any()
    assert outside > 10  # the radii are no trifles
    answers = predict_routed(experts, torch.from_numpy(x), gate, n0=50, n=500, seed=1)
    assert (answers[answers >= 0] == truth(places)[answers >= 0]).all()


def test_wrong_routes_are_refused(smoothed: dds.SmoothedClassifier) -> None:
    x = dds.load_data("fashion-mnist-sample")[[0]][0]
    centres = Centres(points=np.arange(784 * 2).reshape(2, 784))
    two = [(smoothed, 0.4), (smoothed, 0.8)]
    with pytest.raises(InputError, match="got 2 centres for 1 experts"):
        certify_routed(two[:1], x, centres)
    with pytest.raises(InputError, match="all with the same vote"):
        certify_routed(
            [two[0], (dds.SmoothedClassifier(smoothed.model, L2, num_classes=10, vote="plurality"), 1.0)], x, centres
        )
    with pytest.raises(InputError, match="all with the same vote and one-class bounds"):
        Gated(experts=(rule_for("plurality", "two-class"),), sigmas=(1.0,), classes=2)
    with pytest.raises(InputError, match="experts of 1 classes"):
        Gated(experts=(Pairwise(),), sigmas=(1.0,), classes=1)
    for rule, text in (
        (Gated(experts=(Pairwise(),), sigmas=(1.0,), classes=10).at(Seen(0, (0.0,))), "goes with certify_routed"),
        (Gated(experts=(Pairwise(),), sigmas=(1.0, 2.0), classes=10, groups=(0, 0)), "each of its 10 classes"),
        (Gated(experts=(Pairwise(),), sigmas=(1.0, 1.0), classes=10, groups=(0,) * 10), "different positive numbers"),
    ):
        with pytest.raises(InputError, match=text):
            certify_stateless(smoothed, x, rule)
    with pytest.raises(InputError, match="differ in norm"):
        certify_routed([two[0], (dds.SmoothedClassifier(smoothed.model, "l1", num_classes=10), 1.0)], x, centres)
    with pytest.raises(InputError, match="the gate has 10 outputs, and groups name the experts of 2"):
        certify_routed(two, x, SmoothedGate(smoothed=smoothed, sigma=0.5, groups=(0, 1)))
    with pytest.raises(InputError, match="expected each of 0 to 1"):
        certify_routed(two, x, SmoothedGate(smoothed=smoothed, sigma=0.5, groups=(0,) * 10))
    with pytest.raises(InputError, match="branches are 'both'"):
        certify_routed(two, x, centres, branches="both")
    with pytest.raises(InputError, match="centres are of 100 levels"):
        certify_routed(two, x, replace(centres, levels=100))
    with pytest.raises(InfeasibleError, match="n >= 20"):
        certify_routed(two, x, centres, n=19)
    certify_routed(two, x, centres, n=20, n0=10, seed=0)
    with pytest.raises(InputError, match="has not seen the input"):
        Gated(experts=(Pairwise(),), sigmas=(1.0,), classes=2).commit([])
    with pytest.raises(InputError, match="other classes or of another norm"):
        Gated(experts=(OffsetPairwise(offsets=(0.0, 0.1), norm="l1"),), sigmas=(1.0,), classes=2)


@pytest.mark.parametrize(
    ("experts", "gate", "message"),
    [
        ([3], "gate", "an expert is 3, expected a smoothed classifier and its sigma"),
        ("half", None, "the gate is None, expected SmoothedGate"),
        ("nan", "gate", "sigma is nan, expected a positive finite number"),
        ("text", "gate", "sigma is 'a', expected one number"),
    ],
)
def test_what_is_no_expert_and_no_gate_is_refused_in_one_line(
    experts: Any, gate: Any, message: str, linear: dds.SmoothedClassifier, pixels: torch.Tensor
) -> None:
    sigma: Any = {"half": 0.5, "nan": float("nan"), "text": "a"}.get(experts if isinstance(experts, str) else "half")
    made = [(linear, sigma), (linear, 1.0)] if isinstance(experts, str) else experts
    asked = SmoothedGate(smoothed=linear, sigma=0.7) if gate == "gate" else gate
    with pytest.raises(InputError, match=re.escape(message)):
        certify_routed(made, pixels[:1], asked, n=1000, seed=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"experts": 3}, "the experts are 3, expected a list"),
        ({"gate": SmoothedGate(smoothed=None, sigma=0.5)}, "expected a smoothed classifier and its sigma; a gate too"),  # type: ignore[arg-type]
        ({"gate": "one"}, "groups name the experts of 0"),
        ({"alpha": "a"}, "alpha is 'a'"),
        ({"branches": np.ones(2)}, "branches are"),
    ],
)
def test_arguments_of_another_type_are_said_in_one_line(
    change: dict[str, Any], message: str, linear: dds.SmoothedClassifier, pixels: torch.Tensor
) -> None:
    if change.get("gate") == "one":
        change = {"gate": SmoothedGate(smoothed=linear, sigma=0.7, groups=1)}  # type: ignore[arg-type]
    asked = {"experts": [(linear, 0.5), (linear, 1.0)], "gate": SmoothedGate(smoothed=linear, sigma=0.7)} | change
    with pytest.raises(InputError, match=message):
        certify_routed(asked.pop("experts"), pixels[:1], asked.pop("gate"), n=1000, seed=1, **asked)


class FewerEvents(Pairwise):
    """An expert that leaves out events, which a header would not say."""

    def counts(self, measured: Measurement, top: int) -> tuple[int, ...]:
        return (measured.n,)


@pytest.mark.parametrize("experts", [None, 3, "ab", (1, 2), (FewerEvents(), Pairwise()), {Pairwise(): 1}])
def test_experts_are_rules_that_a_header_can_say(experts: Any) -> None:
    with pytest.raises(InputError, match=r"the experts are .*, expected several of Pairwise, OffsetPairwise, Plur"):
        Gated(experts=experts, sigmas=(0.5, 1.0), classes=2)


@pytest.mark.parametrize(
    "seen", [3, (0, (0.0, 1.0)), Seen(2, (0.0, 1.0)), Seen(-1, (0.0, 1.0)), Seen(0, (0.0,)), Seen(0, (0.0, math.nan))]
)
def test_what_no_gate_says_is_refused(seen: Any) -> None:
    rule = Gated(experts=(Pairwise(), Pairwise()), sigmas=(0.5, 1.0), classes=2)
    with pytest.raises(InputError, match=r"the gate says|a gate without noise and of 2 experts"):
        rule.at(seen)
    smoothed = replace(rule, sigmas=(0.5, 1.0, 0.7), groups=(0, 1))
    with pytest.raises(InputError, match="a gate without noise and of 2 experts"):
        replace(smoothed, seen=Seen(0, (0.0, 1.0)))


def test_a_rule_is_not_what_its_arguments_become() -> None:
    """Claims are made when they are asked for; a rule that changed meanwhile would claim what was never drawn for."""
    offsets, experts, points = np.array([0.0, 0.2]), [Pairwise(), Pairwise()], np.eye(2)
    one, gate = OffsetPairwise(offsets=offsets, norm="l2"), Centres(points=points)  # type: ignore[arg-type]
    rule = Gated(experts=experts, sigmas=(0.5, 1.0), classes=2)  # type: ignore[arg-type]
    offsets[1], points[0, 0] = 9.0, 5.0
    experts[0] = one
    assert (one.offsets, rule.experts, gate.points[0, 0]) == ((0.0, 0.2), (Pairwise(), Pairwise()), 1.0)
    assert {type(beta) for beta in one.offsets} == {float}
    with pytest.raises(ValueError, match="read-only"):
        gate.points[0] = 9.0


@pytest.mark.parametrize("groups", [(0.5, 1.0), ("a", 1), 3, (0, 2)])
def test_groups_are_numbers_of_experts(groups: Any) -> None:
    with pytest.raises(InputError, match=r"groups of a gate|stand for the experts"):
        Gated(experts=(Pairwise(), Pairwise()), sigmas=(0.5, 1.0, 0.7), classes=2, groups=groups)
