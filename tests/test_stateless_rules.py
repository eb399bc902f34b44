"""Pair tables, routing among experts and cascades: valid at full alpha, driven through the package's own samplers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import ndtr

import ddsmoothing as dds
from ddsmoothing.certificate import certificate_for
from ddsmoothing.claims import (
    ABSTAIN,
    Cascade,
    Gated,
    Look,
    Measurement,
    PairTable,
    Plurality,
    StatelessRule,
    stateless_rule,
)
from ddsmoothing.claims.several import Commitment
from ddsmoothing.errors import DataError, InfeasibleError, InputError, ModelError
from ddsmoothing.stateless import load_pairs
from ddsmoothing.stateless.certify import Drawn, certify_stateless, predict_stateless, stateless_talk
from ddsmoothing.stateless.counts import OwnPhis
from ddsmoothing.stateless.tables import MOST_GROUPS, confused, table_ascended
from reference import is_valid, violations_allowed
from test_pairwise import Logits, counted, gaussian

ALPHA, R = 0.05, 500
L2 = dds.L2Certificate()


def phi(norm: str, sigma: float, level: float) -> float:
    return float(certificate_for(norm).estimate(np.array(sigma), ndtr(np.array(level))))


def drive(table: PairTable, draws: list[Logits], n0: int = 30, n: int = 400) -> Drawn:
    """One conversation, answered with fresh logits of each sigma's own base classifier."""
    talk = stateless_talk(table, n0, n, ALPHA, None)
    wishes = next(talk)
    while True:
        answers = []
        for wish in wishes:
            assert wish.sigma is not None
            one = counted(draws[wish.slot](wish.n), wish.tally, wish.stream.name.lower(), wish.sigma)
            answers.append(replace(one, slot=wish.slot))
        try:
            wishes = talk.send(answers)
        except StopIteration as end:
            found: Drawn = end.value
            return found


def world(norm: str, k: int, seed: int) -> tuple[PairTable, list[Logits]]:
    """K classes, two sigmas, each with logits of its own; class 0 stands exactly at its threshold against some.

    No class has all its atoms, so that every certificate is false.
    """
    rng, sigmas = np.random.default_rng(seed), (0.5, 1.0)
    slots = np.triu(rng.integers(0, 2, (k, k)), 1)
    slots[0, 1], slots[0, 2] = 0, 1
    slots = slots + slots.T
    at = [1, 2, 3][: max(2, k // 3)]
    means = [[0.0, *(rng.uniform(-0.4, 0.6) if b in at else -4.0 for b in range(1, k))] for _ in sigmas]
    offsets = [0.0] * k
    for b in at:
        slot = int(slots[0, b])
        offsets[b] = phi(norm, sigmas[slot], -means[slot][b] / np.sqrt(2.0))
    table = PairTable(
        sigmas=sigmas,
        slots=tuple(tuple(int(s) for s in row) for row in slots),
        groups=tuple(range(k)),
        offsets=tuple(offsets),
        norm=norm,
    )
    return table, [gaussian(mean, seed=seed + i) for i, mean in enumerate(means)]


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("k", [3, 6, 10])
def test_tables_at_their_thresholds_are_as_wrong_as_alpha_says(k: int, norm: str) -> None:
    table, draws = world(norm, k, seed=k)
    found = [drive(table, draws) for _ in range(R)]
    claims = [table.claim(pilots, fresh, certificate_for(norm), ALPHA) for pilots, fresh in found]
    assert sum(claim.radius > 0.0 for claim in claims) <= violations_allowed(R, ALPHA)
    assert all(sum(one.n for one in fresh) == 400 for _, fresh in found)
    answers = [table.answer(pilots, fresh, ALPHA) for pilots, fresh in found]
    assert sum(answer != ABSTAIN for answer in answers) <= violations_allowed(R, ALPHA)


def single(norm: str = "l2") -> tuple[PairTable, list[Logits]]:
    """One pair of class 0 is exactly at its threshold, at one of two sigmas; the other is far above."""
    sigmas, level = (0.5, 1.0), 0.3
    offsets = (0.0, phi(norm, 0.5, level), 0.0)
    table = PairTable(
        sigmas=sigmas, slots=((0, 0, 1), (0, 0, 1), (1, 1, 1)), groups=(0, 1, 2), offsets=offsets, norm=norm
    )
    mean = [0.0, -level * float(np.sqrt(2.0)), -6.0]
    return table, [gaussian(mean, seed=1), gaussian(mean, seed=2)]


def test_the_test_has_teeth_where_one_pair_binds() -> None:
    table, draws = single()
    false, widest = [], []
    for _ in range(R):
        pilots, fresh = drive(table, draws)
        false.append(table.claim(pilots, fresh, L2, ALPHA).radius > 0.0)
        top = table.commit(pilots).top
        claims = [table.parts[one.slot].claim_of(top, one, L2, ALPHA) for one in fresh]
        widest.append(max(claim.radius for claim in claims) > 0.0)
    assert is_valid(np.array(false), ALPHA)
    assert not is_valid(np.array(widest), ALPHA)  # the largest over sigmas


def test_with_one_sigma_a_table_is_a_pairwise_vote_with_offsets(smoothed: dds.SmoothedClassifier) -> None:
    x = dds.load_data("fashion-mnist-sample")[[0, 3, 9]][0]
    offsets = (0.0, -0.1, 0.05, 0.0, 0.1, 0.0, -0.15, 0.0, 0.02, 0.0)
    table = PairTable(sigmas=(0.6,), slots=((0,) * 10,) * 10, groups=tuple(range(10)), offsets=offsets)
    found = certify_stateless(smoothed, x, table, n0=50, n=400, seed=4, ids=[0, 1, 2])
    plain = smoothed.with_offsets(offsets).certify(x, 0.6, n0=50, n=400, seed=4, ids=[0, 1, 2])
    assert found.claims == plain.claims
    assert found.samples.tolist() == [450] * 3


def test_a_table_is_one_function_of_the_input(smoothed: dds.SmoothedClassifier) -> None:
    """The batch, its order and what was asked before change nothing; claims follow from what the evidence holds."""
    x = dds.load_data("fashion-mnist-sample")[[0, 3, 9]][0]
    slots = np.add.outer(np.arange(10), np.arange(10)) % 2
    table = PairTable(sigmas=(0.4, 0.9), slots=tuple(map(tuple, slots.tolist())), groups=tuple(range(10)))
    small = smoothed.with_block_size(64)
    together = certify_stateless(small, x, table, n0=50, n=400, seed=4, ids=[0, 1, 2])
    answers = predict_stateless(small, x, table, n0=50, n=400, seed=4, ids=[0, 1, 2])
    assert together.level == "stateless"
    for i in (2, 0, 1):
        other = small.with_block_size(50)
        alone = certify_stateless(other, x[i : i + 1], table, n0=50, n=400, seed=4, ids=[i])
        assert alone.claims[0] == together.claims[i]
        assert predict_stateless(other, x[i : i + 1], table, n0=50, n=400, seed=4, ids=[i])[0] == answers[i]
        evidence = json.loads(together.evidence(i))
        rule = evidence["rule"]
        assert rule["vote"] == "pairwise"
        rule = PairTable(
            sigmas=tuple(rule["stateless"]["sigmas"]),
            slots=tuple(map(tuple, rule["stateless"]["slots"])),
            groups=tuple(rule["stateless"]["groups"]),
            norm=rule["norm"],
        )
        tupled = [
            {key: tuple(value) if isinstance(value, list) and key != "looks" else value for key, value in one.items()}
            for one in evidence["measurements"]
        ]
        parts = [Measurement(**{**one, "looks": ()}) for one in tupled]
        pilots = [one for one in parts if one.role == "pilot"]
        fresh = rule.looked(pilots, [one for one in parts if one.role == "certify"], evidence["alpha"])
        assert rule.claim(pilots, fresh, L2, evidence["alpha"]) == together.claims[i]
        assert {one.slot for one in fresh} == set(rule.slots_of(rule.commit(pilots).top))


class Counting(torch.nn.Module):
    """Its answer depends on how often it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.asked = torch.nn.Parameter(torch.zeros(1)), [0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.asked[0] += 1
        return x.flatten(1)[:, :2] * 0.0 + torch.tensor([self.asked[0] % 2, 0.5])


@pytest.mark.parametrize("asked", [certify_stateless, predict_stateless])
def test_certificates_and_answers_want_a_function(asked: Callable[..., object]) -> None:
    table = PairTable(sigmas=(0.5, 1.0), slots=((0, 1), (1, 0)), groups=(0, 1))
    smoothed = dds.SmoothedClassifier(Counting(), L2, num_classes=2)
    with pytest.raises(ModelError, match="no function of its input"):
        asked(smoothed, torch.zeros(1, 4), table, n0=20, n=100)
    asked(dds.SmoothedClassifier(Counting(), L2, num_classes=2, check=False), torch.zeros(1, 4), table, n0=20, n=100)


def test_wrong_tables_are_refused(smoothed: dds.SmoothedClassifier) -> None:
    good = {"sigmas": (0.5, 1.0), "slots": ((0, 1), (1, 0)), "groups": (0, 1)}
    assert PairTable(**good).slots_of(0) == (1,)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="two classes could both win"):
        PairTable(**good | {"slots": ((0, 1), (0, 0))})  # type: ignore[arg-type]
    for sigmas in ((1.0, 0.5), (0.5, 0.5), (0.5, -1.0)):
        with pytest.raises(InputError, match="expected different positive numbers, ascending"):
            PairTable(**good | {"sigmas": sigmas})  # type: ignore[arg-type]
    for name in ("sigmas", "offsets"):
        with pytest.raises(InputError, match=f"{name}.* are .*, expected"):
            PairTable(**good | {name: (0, 10**400)})  # type: ignore[arg-type]
    for rule in (None, 3, Plurality(), PairTable):
        with pytest.raises(InputError, match="expected a stateless one, such as PairTable"):
            certify_stateless(smoothed, torch.zeros(1, 1, 28, 28), rule)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="2 x 2 indices"):
        PairTable(**good | {"slots": ((0, 2), (2, 0))})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="groups"):
        PairTable(**good | {"groups": (0, 5)})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="classes"):
        certify_stateless(smoothed, torch.zeros(1, 1, 28, 28), PairTable(**good))  # type: ignore[arg-type]
    half = PairTable(sigmas=(0.4, 0.9), slots=((0, 0, 1), (0, 0, 1), (1, 1, 1)), groups=(0, 1, 2))
    with pytest.raises(InfeasibleError, match="n >= 20"):
        half.check(19, 0.001)
    half.check(20, 0.001)


def test_groups_of_classes_share_a_sigma() -> None:
    """A thousand classes in three groups: the table stays small, and a pilot holds votes only."""
    rng = np.random.default_rng(0)
    groups = tuple(rng.integers(0, 3, 1000).tolist())
    table = PairTable(sigmas=(0.5, 1.0), slots=((0, 1, 1), (1, 0, 1), (1, 1, 1)), groups=groups)
    votes = rng.multinomial(100, [0.7, *[0.3 / 999] * 999])
    pilots = [
        Measurement(role="pilot", slot=k, sigma=s, n=100, votes=tuple(votes.tolist())) for k, s in enumerate((0.5, 1.0))
    ]
    assert table.commit(pilots).top == 0
    assert sum(table.allocated(pilots, 5000, 0.001).values()) == 5000


def test_the_sigma_that_binds_gets_most() -> None:
    table = PairTable(sigmas=(0.5, 1.0), slots=((0, 0, 1), (0, 0, 1), (1, 1, 1)), groups=(0, 1, 2))
    draws = [gaussian([0.5, 0.0, -9.0], seed=3), gaussian([2.0, -9.0, 0.0], seed=4)]
    pilots, fresh = drive(table, draws, n0=200, n=5000)
    assert table.commit(pilots).top == 0
    sizes = {one.slot: one.n for one in fresh}
    assert sizes[0] > 2 * sizes[1]


# routing: two classes, so that the counts of one event are those of all


def votes(role: str, slot: int, counts: list[int], sigma: float = 1.0) -> Measurement:
    return Measurement(role=role, slot=slot, sigma=sigma, n=sum(counts), votes=tuple(counts))


def drawn(rng: np.random.Generator, p: float, n: int, role: str, slot: int, sigma: float) -> Measurement:
    k = int(rng.binomial(n, p))
    return votes(role, slot, [k, n - k], sigma)


def looked(rule: StatelessRule, made: Commitment, *fresh: Measurement) -> list[Measurement]:
    """With the one look that the rule takes."""
    return [replace(one, looks=(Look(one.n, rule.events(made, one), ALPHA),)) for one in fresh]


def margin(rule: StatelessRule, made: Commitment, fresh: list[Measurement]) -> float:
    """The least of the atoms at these scales."""
    return min(rule.atom(made, one, L2, ALPHA).margin for one in looked(rule, made, *fresh))


@pytest.mark.parametrize("branches", ["reach", "dual"])
def test_a_gate_at_its_threshold_is_as_wrong_as_alpha_says(branches: str) -> None:
    """Gate and second expert are both exactly at one half: nothing protects class 0."""
    rng, sigmas = np.random.default_rng(5), (1.0, 2.0, 3.0)
    experts = (Plurality(),) * 2
    rule = Gated(experts=experts, sigmas=sigmas, classes=2, groups=(0, 1), branches=branches)
    false: list[bool] = []
    uncommitted: list[bool] = []

    def samples(n: int, role: str) -> list[Measurement]:
        return [drawn(rng, p, n, role, slot, sigmas[slot]) for slot, p in enumerate((0.95, 0.5, 0.5))]

    for _ in range(3 * R):
        first, second, gate = samples(50, "pilot")
        gate = replace(gate, votes=(max(gate.votes), min(gate.votes)))  # whichever is picked, call it the first
        pilots = [first, second, gate]
        made = rule.commit(pilots)
        if made.top != 0:
            continue
        fresh = samples(300, "certify")
        asked = [one for one in fresh if one.slot in made.slots]
        false.append(rule.claim(pilots, looked(rule, made, *asked), L2, ALPHA).radius > 0.0)
        uncommitted.append(
            max(margin(rule, made, [fresh[0], fresh[1]]), margin(rule, made, [fresh[0], fresh[2]])) > 0.0
        )
    assert is_valid(np.array(false), ALPHA)
    assert not is_valid(np.array(uncommitted), ALPHA)


@pytest.mark.parametrize("reach", [True, False])
def test_cascades_at_their_threshold_are_as_wrong_as_alpha_says(reach: bool) -> None:
    """The first expert stands exactly at its threshold, above which it would answer class 1; the second one is sure."""
    rng, sigmas = np.random.default_rng(6), (1.0, 2.0)
    rule, p, false, alone = (
        Cascade(sigmas=sigmas, classes=2, taus=(0.4, 0.0), reach=reach),
        1.0 - float(ndtr(0.4)),
        [],
        [],
    )
    for _ in range(R):
        pilots = [drawn(rng, q, 50, "pilot", slot, sigmas[slot]) for slot, q in enumerate((p, 0.95))]
        made = rule.commit(pilots)
        if made.chosen == 0:
            continue
        assert made.top == 0
        fresh = [drawn(rng, q, 300, "certify", slot, sigmas[slot]) for slot, q in enumerate((p, 0.95))]
        false.append(rule.claim(pilots, looked(rule, made, *fresh), L2, ALPHA).radius > 0.0)
        alone.append(margin(rule, made, fresh[1:]) > 0.0)
    assert is_valid(np.array(false), ALPHA)
    assert not is_valid(np.array(alone), ALPHA)  # the expert that answers alone


def test_a_cascade_answers_where_all_its_atoms_hold() -> None:
    """Where the first expert is unsure and the second one sure, the class of the second is certified."""
    rng, sigmas = np.random.default_rng(7), (1.0, 2.0)
    rule = Cascade(sigmas=sigmas, classes=2, taus=(0.4, 0.0))
    pilots = [drawn(rng, q, 50, "pilot", slot, sigmas[slot]) for slot, q in enumerate((0.5, 0.95))]
    made = rule.commit(pilots)
    fresh = looked(rule, made, *(drawn(rng, q, 400, "certify", k, sigmas[k]) for k, q in enumerate((0.5, 0.95))))
    claim = rule.claim(pilots, fresh, L2, ALPHA)
    atoms = [rule.atom(made, one, L2, ALPHA).margin for one in fresh]
    assert (claim.prediction, claim.radius) == (0, min(atoms))
    assert rule.claim(pilots, fresh[1:], L2, ALPHA).radius == 0.0  # one is missing
    assert rule.claim(pilots, fresh, L2, ALPHA, moved=0.1).radius == pytest.approx(claim.radius - 0.1)


@pytest.mark.parametrize("reach", ["no", 0, None, np.False_])
def test_a_cascade_is_with_reach_or_without(reach: Any) -> None:
    """A header would read such a word as False, while the rule would take it for true."""
    with pytest.raises(InputError, match="expected True or False"):
        Cascade(sigmas=(1.0, 2.0), classes=2, taus=(0.1, 0.0), reach=reach)


@pytest.mark.parametrize("wrong", [None, 0.5, "ab", ("a", 0.0), (True, 0.0)])
def test_what_is_no_number_makes_no_rule(wrong: Any) -> None:
    with pytest.raises(InputError, match="thresholds of a cascade"):
        Cascade(sigmas=(1.0, 2.0), classes=2, taus=wrong)
    with pytest.raises(InputError, match="the sigmas of a cascade"):
        Cascade(sigmas=wrong, classes=2, taus=(0.0, 0.0))
    with pytest.raises(InputError, match="the sigmas of a pair table"):
        PairTable(sigmas=wrong, slots=((0,),), groups=(0, 0))
    for name in ("slots", "groups"):
        with pytest.raises(InputError, match=r"of 0 groups|groups of classes"):
            PairTable(**{"sigmas": (1.0,), "slots": ((0,),), "groups": (0, 0)} | {name: None})  # type: ignore[arg-type]


def test_a_table_keeps_no_array_of_its_caller() -> None:
    slots, offsets = np.array([[0, 1], [1, 0]]), [0.0, 0.1]
    table = PairTable(sigmas=np.array([0.5, 1.0], dtype=np.float32), slots=slots, groups=[0, 1], offsets=offsets)  # type: ignore[arg-type]
    same = PairTable(sigmas=(0.5, 1.0), slots=((0, 1), (1, 0)), groups=(0, 1), offsets=(0.0, 0.1))
    slots[:], offsets[1] = 0, 9.0
    assert table == same and hash(table) == hash(same)


def test_routing_refuses_what_makes_no_rule() -> None:
    with pytest.raises(InputError, match="different positive numbers"):
        Cascade(sigmas=(1.0, 1.0), classes=2, taus=(0.1, 0.0))
    with pytest.raises(InputError, match="a cascade has 1,001 sigmas, expected at most 1,000"):
        Cascade(sigmas=np.arange(1.0, 1002.0), classes=2, taus=np.zeros(1001))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="expected each of 0 to 0"):
        Gated(experts=(Plurality(),), sigmas=(1.0, 2.0), classes=2, groups=(0, 1))
    with pytest.raises(InputError, match="the last 0"):
        Cascade(sigmas=(1.0, 2.0), classes=2, taus=(0.1, 0.2))
    with pytest.raises(InputError, match="has 1 thresholds"):
        Cascade(sigmas=(1.0, 2.0), classes=2, taus=(0.0,))
    with pytest.raises(InfeasibleError, match=r"Use n >= \d+"):
        Cascade(sigmas=(1.0, 0.5), classes=2, taus=(1.0, 0.0)).check(20, 0.001)
    with pytest.raises(InputError, match="unknown rule"):
        stateless_rule({"kind": "largest"}, num_classes=2, norm="l2")
    with pytest.raises(InputError, match="belong to a pair table"):
        stateless_rule({"kind": "cascade"}, num_classes=2, norm="l2", offsets=(0.0, 1.0))


def test_tables_are_fitted_beside_fixed_sigmas(cli: Callable[..., object], tmp_path: Path) -> None:
    out = tmp_path / "pairs.json"
    command = ["pairs", "fit", "--model", "fashion-mnist-cnn", "--data", "fashion-mnist-sample", "--block-size", "256"]
    options = ["--sigmas", "0.4,0.8", "--max", "32", "--n", "16", "--samples", "400", "--n0", "50", "--with-offsets"]
    answer = cli(*command, *options, "--favour-accuracy", "1", "--seed", "1", "--out", out)
    assert answer.code == 0, answer.err  # type: ignore[attr-defined]
    file, digest = load_pairs(out)
    assert len(digest) == 64
    assert [one.sigma for one in file.fixed] == [0.4, 0.8] == list(file.table.sigmas)
    assert {one.figures.forwards for one in file.fixed} == {400.0}  # equal in all
    assert file.figures.forwards == 400.0
    assert file.held_out == 8
    assert len(file.inputs) == 24
    changed = json.loads(out.read_text())
    changed["slots"][0][1], changed["slots"][1][0] = 0, 1
    out.write_text(json.dumps(changed))
    with pytest.raises(DataError, match="two classes could both win"):
        load_pairs(out)


def test_ascent_gives_confused_classes_the_sigma_that_tells_them_apart() -> None:
    """Classes 0 and 1 are told apart at the small sigma only, class 2 from both better at the large one."""
    phi = np.full((30, 2, 3), np.inf, dtype=np.float32)
    y = np.arange(30) % 3
    for i, c in enumerate(y):
        for b in range(3):
            if b != c:
                phi[i, :, b] = (0.2, -0.2) if {b, c} == {0, 1} else (0.5, 1.0)
    own = OwnPhis(phi=phi, y=y, sigmas=(0.5, 1.0), n=100, caps=np.array([1.3, 2.6]), sha256=())
    slots = table_ascended(own, np.arange(3), 1, 1.0, 1.0)
    assert slots[0, 1] == slots[1, 0] == 0
    assert slots[0, 2] == slots[2, 0] == slots[1, 2] == 1


def test_many_classes_are_grouped_by_confusion() -> None:
    """Sixty classes in pairs that are confused with each other only."""
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(60), 2)
    phi = np.full((120, 1, 60), 1.0, dtype=np.float32) + 0.01 * rng.random((120, 1, 60), dtype=np.float32)
    for i, c in enumerate(y):
        phi[i, 0, c ^ 1], phi[i, 0, c] = 0.0, np.inf
    groups = confused(OwnPhis(phi=phi, y=y, sigmas=(1.0,), n=100, caps=np.array([2.6]), sha256=()), 60)
    assert groups.max() < MOST_GROUPS
    assert (groups[::2] == groups[1::2]).all()
