"""Class offsets: one function of the input, valid at full alpha, fitted elsewhere, recomputed by verify.

Validity is judged on simulated logits that the package's own counting, samplers and rules are driven with; pairs stand
exactly at their thresholds, so that every certificate is false.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtr

import ddsmoothing as dds
from ddsmoothing.attacks import Attack
from ddsmoothing.campaigns import CertifyRequest, certify_run
from ddsmoothing.campaigns.attack import attack_run
from ddsmoothing.campaigns.resample import resample_run
from ddsmoothing.certificate import certificate_for
from ddsmoothing.claims import ABSTAIN, Measurement, OffsetPairwise, Pairwise, Plurality, Tally, rule_for
from ddsmoothing.errors import InfeasibleError, InputError, RunError
from ddsmoothing.plan import Exact, Plan, Sampler, Target
from ddsmoothing.runs import load_run
from ddsmoothing.sigma import SigmaPolicy
from ddsmoothing.stateless.offsets import ascended
from ddsmoothing.verify import verify_run
from reference import is_valid, normal_cdf, violations_allowed
from test_pairwise import counted, drive, gap, gaussian

ALPHA, R = 0.05, 1000
L2, L1 = dds.L2Certificate(), dds.L1Certificate()


def at_threshold(mean: list[float], at: list[int], norm: str, mix: float = 0.0) -> tuple[float, ...]:
    """Offsets at which class 0 stands exactly at its threshold against these classes, and far above the others'.

    Logit 0 minus logit b is Gaussian, so that phi of "0 beats b" is known.
    """
    offsets = [0.0]
    for b in range(1, len(mean)):
        spread = math.sqrt(2.0 + mix**2)
        level = (mean[0] - mean[b]) / spread
        offsets.append(0.0 if b not in at else level if norm == "l2" else gap("l1", float(ndtr(level))))
    return tuple(offsets)


# mean logits, the classes exactly at their threshold, common noise of all but class 0
WORLDS = {
    "K=3, one pair": ([0.6, 0.0, -4.0], [1], 0.0),
    "K=3, negative threshold": ([-0.8, 0.0, -4.0], [1], 0.0),
    "K=5, two pairs": ([0.5, 0.0, -0.4, -3.0, -5.0], [1, 2], 1.0),
    "K=10, four pairs": ([0.3, 0.0, -0.2, 0.4, -0.6, *[-4.0] * 5], [1, 2, 3, 4], 0.5),
}
SAMPLERS = [Exact(n0=30, n=300), Plan(pilot=60, n_max=600), Target(radii=(0.05,), pilot=30)]


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: sampler.name)
def test_certificates_at_the_threshold_are_as_rare_as_alpha_says(name: str, sampler: Sampler, norm: str) -> None:
    mean, at, mix = WORLDS[name]
    draw, rule = gaussian(mean, mix, seed=11), OffsetPairwise(offsets=at_threshold(mean, at, norm, mix), norm=norm)
    repetitions = R // 10 if sampler.name == "target" else R
    found = [drive(sampler, rule, draw, len(mean), norm) for _ in range(repetitions)]
    false = np.array([rule.claim(one.pilot, one.fresh, certificate_for(norm), ALPHA).radius > 0.0 for one in found])
    assert false.sum() <= violations_allowed(repetitions, ALPHA)


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_the_test_has_teeth(norm: str) -> None:
    """Where one pair binds failures happen at about alpha; with other offsets than the classifier's they are common."""
    mean = [0.6, 0.0, -6.0]
    draw, rule = gaussian(mean, seed=1), OffsetPairwise(offsets=at_threshold(mean, [1], norm), norm=norm)
    other = replace(rule, offsets=(0.0, rule.offsets[1] - 0.2, 0.0))
    false, wrong = [], []
    for _ in range(R):
        one = drive(Exact(n0=30, n=300), rule, draw, 3, norm)
        assert one.fresh is not None
        assert one.fresh.anchor is not None
        for judge, kept in ((rule, false), (other, wrong)):
            kept.append(judge.claim_of(one.fresh.anchor, one.fresh, certificate_for(norm), ALPHA).radius > 0.0)
    assert is_valid(np.array(false), ALPHA)
    assert not is_valid(np.array(wrong), ALPHA)


def test_a_class_chosen_on_the_certified_samples_is_rejected() -> None:
    mean = [0.6, 0.0, -6.0]
    draw, rule = gaussian(mean, seed=2), OffsetPairwise(offsets=at_threshold(mean, [1], "l2"), norm="l2")
    false = []
    for _ in range(2 * R):
        logits = draw(300)
        top = rule.choose(counted(logits, rule.pilot_tally(3)))
        fresh = counted(logits, rule.tally(top))
        fresh = replace(fresh, looks=(rule.look(fresh, top, ALPHA),))
        false.append(rule.claim_of(top, fresh, L2, ALPHA).radius > 0.0)
    assert not is_valid(np.array(false), ALPHA)


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_predictions_at_the_threshold_are_as_rare_as_alpha_says(norm: str) -> None:
    mean = [0.6, 0.0, -6.0]
    draw, rule = gaussian(mean, seed=5), OffsetPairwise(offsets=at_threshold(mean, [1], norm), norm=norm)
    answers = []
    for _ in range(R):
        pilot = counted(draw(30), rule.pilot_tally(3), "pilot")
        answers.append(rule.answer(pilot, counted(draw(200), rule.tally(rule.choose(pilot))), ALPHA))
    assert is_valid(np.array(answers) != ABSTAIN, ALPHA)


@given(
    logits=st.lists(st.lists(st.integers(0, 3), min_size=4, max_size=4), min_size=2, max_size=40),
    alpha=st.sampled_from([0.001, 0.05]),
    norm=st.sampled_from(["l2", "l1"]),
    shift=st.sampled_from([0.0, 0.75]),
)
@settings(max_examples=200, deadline=None)
def test_equal_offsets_are_none(logits: list[list[int]], alpha: float, norm: str, shift: float) -> None:
    samples, certificate = torch.tensor(logits, dtype=torch.float32), certificate_for(norm)
    plain, zero = Pairwise(), OffsetPairwise(offsets=(shift,) * 4, norm=norm)
    pilots = [counted(samples, rule.pilot_tally(4)) for rule in (plain, zero)]
    assert pilots[0].least == pilots[1].least
    top = plain.choose(pilots[0])
    assert zero.choose(pilots[1]) == top
    fresh = counted(samples, plain.tally(top))
    fresh = replace(fresh, looks=(plain.look(fresh, top, alpha),))
    one, other = (rule.claim_of(top, fresh, certificate, alpha) for rule in (plain, zero))
    assert (one.prediction, one.p_lower) == (other.prediction, other.p_lower)
    assert other.radius == pytest.approx(one.radius, abs=1e-12)
    assert plain.answer(pilots[0], fresh, alpha) == zero.answer(pilots[1], fresh, alpha)


@given(
    counts=st.lists(st.integers(0, 50), min_size=4, max_size=4),
    offsets=st.lists(st.floats(-1.0, 1.0), min_size=4, max_size=4),
    norm=st.sampled_from(["l2", "l1"]),
    tv=st.sampled_from([0.0, 1e-4]),
)
@settings(max_examples=200, deadline=None)
def test_the_radius_is_the_least_of_every_pair(counts: list[int], offsets: list[float], norm: str, tv: float) -> None:
    """Pairs are left out only where another one is no larger; at most one class is certified."""
    rule, wins = OffsetPairwise(offsets=tuple(offsets), norm=norm), (50, *counts[1:])
    fresh = Measurement(role="certify", sigma=0.7, n=50, votes=(50, 0, 0, 0), anchor=0, wins=wins, tv=tv)
    fresh = replace(fresh, looks=(rule.look(fresh, 0, ALPHA),))
    claim = rule.claim_of(0, fresh, certificate_for(norm), ALPHA)
    alone = []
    for b in range(1, 4):
        single = replace(
            fresh, looks=(fresh.looks[0]._replace(counts=tuple(50 if c != b else wins[b] for c in range(4))),)
        )
        far = tuple(offsets[c] if c in (0, b) else -1000.0 for c in range(4))
        alone.append(replace(rule, offsets=far).claim_of(0, single, certificate_for(norm), ALPHA).radius)
    assert claim.radius == pytest.approx(min(alone), abs=1e-12)
    assert (claim.prediction == 0) == (min(alone) > 0.0)


@given(p=st.floats(0.0, 1.0), sigma=st.floats(0.01, 5.0))
@settings(max_examples=300, deadline=None)
def test_phi_errs_low(p: float, sigma: float) -> None:
    phi = L2.phi(sigma, p)
    if p > 1e-30 and abs(phi) < 14 * sigma:
        assert normal_cdf(Decimal(phi) / Decimal(sigma)) <= Decimal(p)
        assert normal_cdf(Decimal(phi) / Decimal(sigma) + Decimal("1e-9")) >= Decimal(p) or p > 1 - 1e-14
    half_width = Decimal(L1.noise.scale(sigma))
    exact = 2 * half_width * (Decimal(p) - Decimal("0.5"))
    assert Decimal(L1.phi(sigma, p)) <= exact
    assert Decimal(L1.phi(sigma, p)) >= exact - Decimal("1e-12")


def test_thresholds_are_exactly_antisymmetric() -> None:
    rng = np.random.default_rng(0)
    rule = OffsetPairwise(offsets=tuple(rng.standard_normal(8)), norm="l2")
    table = np.stack([rule.thresholds(top) for top in range(8)])
    assert (table == -table.T).all()


OFFSETS = (0.0, -0.1, 0.05, 0.0, 0.1, 0.0, -0.15, 0.0, 0.02, 0.0)


@pytest.fixture(scope="module", params=["plan", "exact", "target", "l1"])
def run(
    request: pytest.FixtureRequest, model: torch.nn.Module, data: dds.Dataset, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dds.Run, dds.SmoothedClassifier, dds.Dataset]:
    """A run with offsets on the shipped data and model."""
    certificate = L1 if request.param == "l1" else L2
    smoothed = dds.SmoothedClassifier(model, certificate, num_classes=10, offsets=OFFSETS)
    options: dict[str, dict[str, Any]] = {
        "plan": {"n_max": 1500},
        "exact": {"n0": 40, "n": 300, "randomized": True},
        "target": {"radii": [0.1, 0.3]},
        "l1": {"n0": 40, "n": 300, "label_aware": True},
    }
    made = certify_run(
        smoothed,
        data,
        CertifyRequest(
            SigmaPolicy.search(0.5) if request.param == "exact" else 0.6, skip=70, seed=3, **options[request.param]
        ),
        tmp_path_factory.mktemp("offsets") / "run",
        model_name="fashion-mnist-cnn",
    )
    return made, smoothed, data


def test_verify_recomputes_a_run_with_offsets(run: tuple[dds.Run, dds.SmoothedClassifier, dds.Dataset]) -> None:
    made, smoothed, data = run
    assert verify_run(made.path).findings == ()
    assert load_run(made.path).header.rule.offsets == OFFSETS
    assert [one.message for one in resample_run(made, smoothed, data, 3)] == [None] * 3
    with pytest.raises(InputError, match="other class offsets"):
        resample_run(made, smoothed.with_offsets(None), data, 1)


Change = Callable[[dict[str, object], dict[str, object]], None]


def _offsets(header: dict, row: dict) -> None:
    header["rule"]["offsets"][row["prediction"]] += 0.05


def _radius(header: dict, row: dict) -> None:
    row["radius"] += 1e-6


def _rivals(header: dict, row: dict) -> None:
    row["measurements"][0]["rivals"][0] = 0


def _choice(header: dict, row: dict) -> None:
    row["measurements"][0]["least"] = [0] * 10
    row["measurements"][0]["votes"] = [0] * 9 + [row["measurements"][0]["n"]]


def _wins(header: dict, row: dict) -> None:
    fresh = row["measurements"][1]
    b = (fresh["anchor"] + 1) % 10
    fresh["wins"][b] = fresh["looks"][-1][1][b] = fresh["votes"][fresh["anchor"]]


@pytest.mark.parametrize("change", [_offsets, _radius, _rivals, _choice])
def test_verify_finds_other_offsets_and_larger_radii(
    change: Change, run: tuple[dds.Run, dds.SmoothedClassifier, dds.Dataset], tmp_path: Path
) -> None:
    header = json.loads((run[0].path / "header.json").read_text())
    lines = [json.loads(line) for line in (run[0].path / "results.jsonl").read_text().splitlines()]
    row = next(line for line in lines if line["radius"] > 0)
    change(header, row)
    (tmp_path / "header.json").write_text(json.dumps(header))
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert not verify_run(tmp_path).ok


def test_nothing_else_in_a_batch_changes_a_result(model: torch.nn.Module, data: dds.Dataset) -> None:
    smoothed = dds.SmoothedClassifier(model, L2, num_classes=10, offsets=OFFSETS, block_size=64)
    x, _ = data[[0, 1, 5]]
    together = smoothed.certify(x, 0.6, n0=50, n=300, seed=2, ids=[0, 1, 2])
    answers = smoothed.predict(x, 0.6, n=200, seed=2, ids=[0, 1, 2])
    for i in (2, 0, 1):
        alone = smoothed.with_block_size(50).certify(x[i : i + 1], 0.6, n0=50, n=300, seed=2, ids=[i])
        assert alone.claims[0] == together.claims[i]
        one = smoothed.with_block_size(50).predict(x[i : i + 1], 0.6, n=200, seed=2, ids=[i])
        assert one.prediction[0] == answers.prediction[i]


def test_what_does_not_go_together_is_refused(model: torch.nn.Module, data: dds.Dataset) -> None:
    voting = dds.SmoothedClassifier(model, L2, num_classes=10, vote="plurality")
    with pytest.raises(InputError, match="without offsets, got a plurality vote"):
        dds.fit_offsets(voting, data[:8][0], data[:8][1], sigma=1.0)
    with pytest.raises(InputError, match="got 2 offsets for 10 classes"):
        dds.SmoothedClassifier(model, L2, num_classes=10, offsets=[0.0, 1.0])
    with pytest.raises(InputError, match="belong to a pairwise vote"):
        dds.SmoothedClassifier(model, L2, num_classes=10, vote="plurality", offsets=OFFSETS)
    with pytest.raises(InputError, match="finite"):
        rule_for("pairwise", offsets=[0.0, math.nan])
    smoothed = dds.SmoothedClassifier(model, L2, num_classes=10, offsets=[0.0] * 9 + [1.0])
    x, _ = data[[0]]
    with pytest.raises(InfeasibleError, match=r"Use n >= 301\b"):
        smoothed.predict(x, 0.5, n=300)
    with pytest.raises(InfeasibleError, match="no number can"):
        smoothed.certify(x, 0.1, n=300)
    result = smoothed.with_offsets(OFFSETS).certify(x, 0.5, n0=50, n=300, seed=0)
    assert result.under(Plurality()).vote == "plurality"
    with pytest.raises(InputError, match="other wins"):
        result.under(Pairwise())


def test_no_attack_inside_a_radius_succeeds(run: tuple[dds.Run, dds.SmoothedClassifier, dds.Dataset]) -> None:
    """The attacked classifier has the offsets too."""
    made, smoothed, data = run
    weak = Attack(steps=3, samples=8, restarts=1)
    report = attack_run(made, smoothed, data, factors=[0.95], attack=weak, n=300, maximum=3, seed=1)
    assert not report.contradicted


def test_a_run_with_offsets_enters_no_memory(
    run: tuple[dds.Run, dds.SmoothedClassifier, dds.Dataset], tmp_path: Path
) -> None:
    from ddsmoothing.memory.inputs import check_run

    with pytest.raises(RunError, match="class offsets"):
        check_run(run[0])


def test_votes_stand_for_wins_where_classes_are_many() -> None:
    """With more classes than duels are counted for, the pilot's votes are held against the hardest rival."""
    rule = OffsetPairwise(offsets=(*[0.0] * 129, 0.5), norm="l2")
    assert rule.pilot_tally(130) == Tally("votes")
    pilot = Measurement(role="pilot", sigma=1.0, n=100, votes=(*[0] * 128, 52, 48))
    assert rule.choose(pilot) == 129
    assert rule.needed(pilot, 0) == pytest.approx(float(ndtr(0.5)))
    assert rule.needed(pilot, 129) == pytest.approx(float(ndtr(-0.5)))


def test_ascent_finds_the_best_offsets_of_a_known_world() -> None:
    """phi is accuracy-neutral for class 1, so that it can give away what class 0 lacks."""
    phi = np.array([[np.inf, -0.1]] * 5 + [[1.0, np.inf]] * 5, dtype=np.float32)
    y = np.array([0] * 5 + [1] * 5)
    beta = ascended(phi, y, cap=2.0, scale=1.0, favour_accuracy=1.0, num_classes=2)
    margins = np.array([-0.1 + beta[0] - beta[1], 1.0 + beta[1] - beta[0]])
    assert (margins > 0.0).all()
    assert sum(beta) == pytest.approx(0.0, abs=1e-5)


def test_offsets_are_fitted_shown_and_used(
    cli: Callable[..., object], tmp_path: Path, smoothed: dds.SmoothedClassifier, data: dds.Dataset
) -> None:
    out = tmp_path / "offsets.json"
    common = ["--model", "fashion-mnist-cnn", "--data", "fashion-mnist-sample", "--sigma", "0.8", "--block-size", "256"]
    fit = ["offsets", "fit", *common, "--max", "40", "--n", "32", "--samples", "60", "--seed", "1", "--out", out]
    answer = cli(*fit)
    assert answer.code == 0, answer.err  # type: ignore[attr-defined]
    found = json.loads(out.read_text())
    shown = next(line for line in answer.out.splitlines() if line.startswith("without"))  # type: ignore[attr-defined]
    assert found["without"]["acr"] - 0.001 < float(shown.split("\t")[1]) <= found["without"]["acr"]
    x, y = data[list(range(40))]
    again = dds.fit_offsets(smoothed.with_block_size(256), x, y, sigma=0.8, n=32, samples=60, seed=1)
    assert list(again.offsets) == found["offsets"]
    assert again.figures.model_dump(mode="json") == found["figures"]
    certify = ["certify", *common, "--n0", "20", "--n", "300", "--seed", "2", "--offsets", out, "--out"]
    refused = cli(*certify, tmp_path / "seen", "--max", "10")
    assert refused.code == 1 or refused.code == 2  # type: ignore[attr-defined]
    assert "was fitted on 8 of the 10 inputs" in refused.err  # type: ignore[attr-defined]
    assert cli(*certify, tmp_path / "seen", "--max", "10", "--allow-seen").code == 0  # type: ignore[attr-defined]
    header = load_run(tmp_path / "seen").header
    assert header.offsets is not None
    assert header.offsets.seen
    assert header.rule.offsets == tuple(found["offsets"])
    assert cli("verify", tmp_path / "seen", "--resample", "2").code == 0  # type: ignore[attr-defined]
    other = cli(*certify, tmp_path / "new", "--skip", "97", "--max", "4", "--norm", "l1")
    assert "fitted for the norm l2" in other.err  # type: ignore[attr-defined]
