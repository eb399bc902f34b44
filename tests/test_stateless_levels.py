"""Levels of cascades and tables at their thresholds, what chooses on the counts that bound it, and bits of answers.

Simulated at alpha = .05: certificates that are false happen as often as alpha says, and wrong variants more often.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import ddsmoothing as dds
from ddsmoothing.certificate import certificate_for
from ddsmoothing.claims import ABSTAIN, Cascade, Look, Measurement, PairTable
from ddsmoothing.claims.several import probability_at
from ddsmoothing.stateless import Centres, certify_routed, certify_stateless, predict_stateless
from reference import is_valid, violations_allowed
from test_pairwise import Logits, counted, gaussian
from test_stateless import at_threshold

ALPHA = 0.05
SIGMAS, TAUS = (0.5, 1.0, 0.7), (0.3, 0.2, 0.0)


# cascades


def share(norm: str, sigma: float, phi: float) -> float:
    """The probability of an event with this phi."""
    return float(probability_at(norm, phi, sigma))


def votes(rng: np.random.Generator, shares: list[list[float]], n: int, role: str) -> list[Measurement]:
    """What n samples at each scale are counted as, of base classifiers that give each class with its share."""
    return [
        Measurement(role=role, slot=j, sigma=SIGMAS[j], n=n, votes=tuple(rng.multinomial(n, row).tolist()))
        for j, row in enumerate(shares)
    ]


def spread(first: float, k: int) -> list[float]:
    """Class 0 has this share, the others the rest."""
    return [first, *[(1.0 - first) / (k - 1)] * (k - 1)]


def at_thresholds(norm: str, k: int) -> list[list[float]]:
    """Class 1 is exactly about to be sure at the first scale, and class 0 at the second, so that no radius holds."""
    sure = share(norm, SIGMAS[0], TAUS[0])
    first = [1.0 - sure, sure, *[0.0] * (k - 2)]
    return [first, spread(share(norm, SIGMAS[1], TAUS[1]), k), spread(0.95, k)]


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("reach", [True, False])
@pytest.mark.parametrize("k", [3, 6, 10])
def test_cascades_with_several_at_their_thresholds_are_as_wrong_as_alpha_says(k: int, reach: bool, norm: str) -> None:
    rng, shares, certificate = np.random.default_rng(k), at_thresholds(norm, k), certificate_for(norm)
    rule, false, answers = Cascade(sigmas=SIGMAS, taus=TAUS, classes=k, reach=reach, norm=norm), 0, 0
    for _ in range(600):
        pilots = votes(rng, shares, 50, "pilot")
        raw = votes(rng, shares, 300, "certify")
        fresh = rule.looked(pilots, [raw[slot] for slot in rule.commit(pilots).slots], ALPHA)
        false += rule.claim(pilots, fresh, certificate, ALPHA).radius > 0.0
        answers += rule.answer(pilots, fresh, ALPHA) != ABSTAIN
    assert false <= violations_allowed(600, ALPHA)
    assert answers <= violations_allowed(600, ALPHA)


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_a_cascade_that_chooses_its_branch_afterwards_fails_too_often(norm: str) -> None:
    """At the second scale class 0 is about to be sure, at the last about to win: each branch fails at about alpha."""
    rng, certificate = np.random.default_rng(1), certificate_for(norm)
    rule = Cascade(sigmas=SIGMAS, taus=TAUS, classes=3, norm=norm)
    shares = [spread(0.5, 3), spread(share(norm, SIGMAS[1], TAUS[1]), 3), spread(0.5, 3)]
    committed, afterwards = [], []
    for _ in range(3000):
        pilots, raw = votes(rng, shares, 50, "pilot"), votes(rng, shares, 300, "certify")
        made, margins = rule.commit(pilots), []
        for last in range(3):
            branch = made._replace(slots=tuple(range(last + 1)), chosen=last)
            looked = [replace(raw[j], looks=(Look(300, rule.events(branch, raw[j]), ALPHA),)) for j in branch.slots]
            margins.append(min(rule.atom(branch, one, certificate, ALPHA).margin for one in looked))
        committed.append(margins[made.chosen] > 0.0)
        afterwards.append(max(margins) > 0.0)
    assert is_valid(np.array(committed), ALPHA)
    assert not is_valid(np.array(afterwards), ALPHA)


# tables: what is chosen on the counts that bound it


def binding(norm: str, margin: float = 9.0) -> tuple[PairTable, list[Logits]]:
    """Class 0 is at its threshold against 1 (not 0) at the smaller sigma, and this far above it against 2 at the other.

    Classes 1 and 2 are below theirs against 0, or at it, so that every certificate is false.
    """
    mean = [0.6, 0.0, -6.0]
    level = at_threshold(mean, [1], norm)[1] * 0.5  # phi grows with sigma
    table = PairTable(
        sigmas=(0.5, 1.0),
        slots=((0, 0, 1), (0, 0, 1), (1, 1, 1)),
        groups=(0, 1, 2),
        offsets=(0.0, level, 0.0),
        norm=norm,
    )
    return table, [gaussian(mean, seed=1), gaussian([margin, 0.0, 0.0], seed=2)]


def tables_of(table: PairTable, draws: list[Logits], n0: int, n: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Logits of a pilot and of fresh samples at every sigma."""
    return [draw(n0) for draw in draws], [draw(n) for draw in draws]


def pilots_of(table: PairTable, logits: list[torch.Tensor]) -> list[Measurement]:
    return [
        replace(counted(one, table.pilot_tally(slot), "pilot", table.sigmas[slot]), slot=slot)
        for slot, one in enumerate(logits)
    ]


def claimed(table: PairTable, pilots: list[Measurement], logits: list[torch.Tensor]) -> bool:
    """Whether the class of the pilots is certified on these samples."""
    made = table.commit(pilots)
    raw = [
        replace(counted(logits[slot], table.tally(made.top, slot), "certify", table.sigmas[slot]), slot=slot)
        for slot in made.slots
    ]
    fresh = table.looked(pilots, raw, ALPHA)
    return table.claim(pilots, fresh, certificate_for(table.norm), ALPHA).radius > 0.0


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_a_class_chosen_on_the_samples_that_bound_it_is_rejected(norm: str) -> None:
    """Alone, and pooled with fresh ones: both sides of the pair at its threshold have their chance."""
    table, draws = binding(norm)
    right, same, pooled = [], [], []
    for _ in range(2000):
        old, new = tables_of(table, draws, 400, 200)
        pilots = pilots_of(table, old)
        right.append(claimed(table, pilots, new))
        same.append(claimed(table, pilots, old))
        pooled.append(claimed(table, pilots, [torch.cat(parts) for parts in zip(old, new, strict=True)]))
    assert is_valid(np.array(right), ALPHA)
    assert not is_valid(np.array(same), ALPHA)
    assert not is_valid(np.array(pooled), ALPHA)


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_the_pilots_worst_rival_tested_alone_is_rejected(norm: str) -> None:
    """Class 2 is a little above its threshold, so that the pilot often takes it for the one that binds."""
    table, draws = binding(norm, margin=0.5)
    right, alone = [], []
    for _ in range(600):
        old, new = tables_of(table, draws, 30, 400)
        pilots = pilots_of(table, old)
        made = table.commit(pilots)
        right.append(claimed(table, pilots, new))
        worst = min(made.slots, key=lambda slot: table.expected(made, pilots[slot], 400, ALPHA))
        one = replace(counted(new[worst], table.tally(made.top, worst), "certify", table.sigmas[worst]), slot=worst)
        (one,) = table.looked(pilots, [one], ALPHA)
        alone.append(table.atom(made, one, certificate_for(norm), ALPHA).margin > 0.0)
    assert is_valid(np.array(right), ALPHA)
    assert not is_valid(np.array(alone), ALPHA)


# bits


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("kind", ["offsets", "table", "routed"])
def test_neither_order_nor_batch_nor_earlier_queries_change_a_bit(
    model: torch.nn.Module, data: dds.Dataset, kind: str, norm: str
) -> None:
    """The evidence, counts and all, is the same text whatever stands beside an input and whatever was asked before."""
    beta = (0.0, -0.1, 0.05, 0.0, 0.1, 0.0, -0.15, 0.0, 0.02, 0.0)
    smoothed = dds.SmoothedClassifier(model, norm, num_classes=10, block_size=64)
    x, _ = data[[0, 3, 9, 20]]
    slots = np.add.outer(np.arange(10), np.arange(10)) % 2
    table = PairTable(
        sigmas=(0.4, 0.9), slots=tuple(map(tuple, slots.tolist())), groups=tuple(range(10)), offsets=beta, norm=norm
    )
    gate = Centres(points=(x[:2] * 255).round().long().flatten(1).numpy() + 1)

    def evidence(places: list[int]) -> list[str]:
        options = {"n0": 30, "n": 200, "seed": 7, "ids": places}
        if kind == "offsets":
            found = smoothed.with_offsets(beta).certify(x[places], 0.6, **options)  # type: ignore[arg-type]
        elif kind == "table":
            found = certify_stateless(smoothed, x[places], table, **options)  # type: ignore[arg-type]
        else:
            experts = [(smoothed, 0.4), (smoothed.with_offsets(beta), 0.9)]
            found = certify_routed(experts, x[places], gate, **options)  # type: ignore[arg-type]
        return [found.evidence(i) for i in range(len(places))]

    alone = {i: evidence([i])[0] for i in (3, 1)}
    predict_stateless(smoothed, x, table, n0=30, n=200, seed=7, ids=[0, 1, 2, 3])  # asked in between
    together = evidence([0, 1, 2, 3])
    turned = evidence([3, 2, 1, 0])
    assert turned == together[::-1]
    assert {i: together[i] for i in alone} == alone
    assert evidence([1]) == [alone[1]]
    assert len(set(together)) == 4
