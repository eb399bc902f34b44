"""The rows of benchmarks/stateless.py: the kept counts, certificates against the package's own, and the page."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from ddsmoothing import L2Certificate
from ddsmoothing.bounds import clopper_pearson_lower
from ddsmoothing.claims import (
    Cascade,
    Look,
    Measurement,
    PairTable,
    Pairwise,
    Plurality,
    Rule,
    Tally,
    measured,
    rule_for,
)
from ddsmoothing.claims.measurement import DUELS
from ddsmoothing.data import Dataset, load_data
from ddsmoothing.errors import RunError

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
if not BENCHMARKS.is_dir():
    pytest.skip("the benchmarks are not in a source distribution", allow_module_level=True)
sys.path.insert(0, str(BENCHMARKS))

import stateless  # noqa: E402
import stateless_counts as kept  # noqa: E402
import stateless_designs as made  # noqa: E402
import stateless_rules as rules  # noqa: E402
import stateless_tables as tables  # noqa: E402

L2, ALPHA, TOTAL = L2Certificate(), rules.ALPHA, 2100
FILES = sorted(path for path in kept.FOLDER.glob("*.npz") if path.stem != "geometry")
BETA = np.array([0.1, -0.2, 0.0, 0.05, -0.1, 0.2, 0.15, -0.05, 0.0, -0.15])


def some(sigmas: tuple[float, ...]) -> rules.Draws:
    draws = kept.draws("shipped", "test", sigmas, "few")
    return draws.of(np.arange(len(draws.id)) % 20 == 3)


def fresh_of(draws: rules.Draws, row: int, k: int, n: int, top: int, votes: bool = False) -> Measurement:
    """What the package would have measured on some of the parts."""
    total = draws.drawn(k, np.full(len(draws.id), n // rules.UNIT))[row]
    if votes:
        one = measured("certify", draws.sigmas[k], Tally("votes"), total.diagonal().copy(), slot=k)
        return replace(one, looks=(Look(n, (one.votes[top],), ALPHA),))
    wins = total[top].copy()
    wins[top] = n
    one = measured("certify", draws.sigmas[k], Tally("wins", top), np.stack([total.diagonal(), wins]), slot=k)
    return replace(one, looks=(Look(n, one.wins or (), ALPHA),))


def agree(found: rules.Certificates, row: int, prediction: int, radius: float) -> None:
    """The package's radius is proved, the other one is SciPy's: never below, and near."""
    assert found.prediction[row] == prediction
    assert radius <= found.radius[row] + 1e-12
    assert found.radius[row] <= radius + 1e-6


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_kept_counts_add_up_and_are_of_a_job(path: Path) -> None:
    one, [job] = kept.load(path), [job for job in stateless.jobs() if job.name == path.stem]
    assert set(one.id.tolist()) <= set(job.ids)
    votes = np.diagonal(one.counts, axis1=2, axis2=3)
    assert (votes.sum(2) == kept.SIZES[job.part]).all()


def test_counts_that_do_not_add_up_are_refused(tmp_path: Path) -> None:
    duels = np.full((1, 1, 3, 3), 5)
    duels[0, 0, range(3), range(3)] = (6, 3, 1)
    with pytest.raises(RunError, match="do not add up"):
        kept.add(tmp_path / "a.npz", [1], np.array([0]), duels)
        kept.load(tmp_path / "a.npz")


@pytest.mark.parametrize("sigma", [0.5, 1.2])
@pytest.mark.parametrize("vote", ["one-class", "two-class", "pairwise", "pairwise + offsets"])
def test_fixed_rows_are_the_packages_own(vote: str, sigma: float) -> None:
    draws = some((sigma,))
    n = (TOTAL - rules.N0) // rules.UNIT * rules.UNIT
    package: dict[str, tuple[Rule, Callable[[], rules.Certificates]]] = {
        "one-class": (Plurality(), lambda: rules.certified(draws, rules.one_class(draws), TOTAL)),
        "two-class": (Plurality(bound="two-class"), lambda: rules.two_class(draws, TOTAL)),
        "pairwise": (Pairwise(), lambda: rules.certified(draws, pairs_of(draws, np.zeros(10)), TOTAL)),
        "pairwise + offsets": (
            rule_for("pairwise", offsets=tuple(BETA)),
            lambda: rules.certified(draws, pairs_of(draws, BETA), TOTAL),
        ),
    }
    rule, make = package[vote]
    found = make()
    for row in range(len(draws.id)):
        tally = Tally(DUELS) if "class" in vote else rule.pilot_tally(10)
        top = rule.choose(measured("pilot", sigma, tally, draws.pilots[row, 0]))
        one = fresh_of(draws, row, 0, n, top, votes="class" in vote)
        one = replace(one, looks=tuple(look._replace(alpha=rule.share(ALPHA)) for look in one.looks))
        claim = rule.claim_of(top, one, L2, ALPHA)
        agree(found, row, claim.prediction, claim.radius)


def pairs_of(draws: rules.Draws, beta: NDArray[np.float64]) -> rules.Plan:
    return rules.pairs(draws, [rules.Option(0, 0)], np.zeros((10, 10), dtype=np.int64), beta)


def test_tables_are_the_packages_own_and_take_no_more_samples_than_they_may() -> None:
    sigmas, draws = (0.5, 1.2), some((0.5, 1.2))
    slots = np.random.default_rng(0).integers(0, 2, (10, 10))
    slots = np.triu(slots) + np.triu(slots, 1).T
    rows = tuple(map(tuple, slots.tolist()))
    table = PairTable(sigmas=sigmas, slots=rows, groups=tuple(range(10)), offsets=tuple(BETA))
    plan = rules.pairs(draws, [rules.Option(0, 0), rules.Option(1, 1)], slots, BETA)
    found, taken = rules.certified(draws, plan, TOTAL), rules.shares(draws, plan, TOTAL)
    assert (found.samples == 2 * rules.N0 + 1750).all()
    assert ((taken > 0).sum(1) == 2).any()
    for row in range(len(draws.id)):
        top, used = int(plan.top[row]), np.flatnonzero(taken[row]).tolist()
        duels = [draws.pilots[row, k] for k in range(2)]
        pilots = [measured("pilot", sigmas[k], table.pilot_tally(k), duels[k], slot=k) for k in range(2)]
        fresh = [fresh_of(draws, row, k, int(taken[row, k]) * rules.UNIT, top) for k in used]
        claim = table.claim(pilots, fresh, L2, ALPHA)
        agree(found, row, claim.prediction, claim.radius)


@pytest.mark.parametrize("reach", [False, True])
def test_cascades_are_the_packages_own(reach: bool) -> None:
    sigmas, draws = (1.0, 0.5), some((1.0, 0.5))
    cascade = Cascade(sigmas=sigmas, taus=(0.2, 0.0), classes=10, reach=reach)
    plan = rules.cascade(draws, cascade.taus, reach)
    found, taken = rules.certified(draws, plan, TOTAL), rules.shares(draws, plan, TOTAL)
    assert ((taken > 0).sum(1) == 2).any()
    for row in range(len(draws.id)):
        votes = [draws.pilots[row, k].diagonal() for k in range(2)]
        pilots = [measured("pilot", sigmas[k], Tally("votes"), votes[k], slot=k) for k in range(2)]
        agreed = cascade.commit(pilots)
        fresh = [fresh_of(draws, row, k, int(taken[row, k]) * 250, agreed.top, votes=True) for k in agreed.slots]
        claim = cascade.claim(pilots, cascade.looked(pilots, fresh, ALPHA), L2, ALPHA)
        agree(found, row, claim.prediction, claim.radius)


@pytest.mark.parametrize("slot", [1, 2], ids=["the gate is an expert's samples", "the gate has samples of its own"])
@pytest.mark.parametrize("dual", [False, True])
def test_a_routed_answer_reaches_as_far_as_gate_and_experts_say(dual: bool, slot: int) -> None:
    sigmas, groups, betas = (0.5, 1.2, 0.7)[: slot + 1], np.array(kept.GROUPS), (np.zeros(10), BETA)
    draws = some(sigmas)
    plan = rules.routed(draws, betas, groups, slot, dual)
    found, taken = rules.certified(draws, plan, TOTAL), rules.shares(draws, plan, TOTAL)
    assert (found.samples <= TOTAL).all()
    for row in range(len(draws.id)):
        top, pilot = int(plan.top[row]), draws.pilots[row]
        chosen = int(np.argmax([pilot[slot].diagonal()[groups == e].sum() for e in range(2)]))
        experts = [Pairwise(), rule_for("pairwise", offsets=tuple(BETA))]
        tally = experts[chosen].pilot_tally(10)
        assert top == experts[chosen].choose(measured("pilot", sigmas[chosen], tally, pilot[chosen]))
        radii = []
        for k, expert in enumerate(experts):
            if k == chosen or plan.active[row, k, :10].any():
                claim = expert.claim_of(top, fresh_of(draws, row, k, int(taken[row, k]) * 250, top), L2, ALPHA)
                radii.append(claim.radius)
        if len(radii) == 1:  # the gate is to keep the other expert away
            votes = draws.drawn(slot, taken[:, slot])[row].diagonal()
            lower = clopper_pearson_lower(int(votes[groups == chosen].sum()), int(taken[row, slot]) * 250, ALPHA)
            radii.append(max(0.0, L2.phi(sigmas[slot], lower)))
        assert not (dual and plan.active[row, 1 - chosen, :10].any())
        agree(found, row, top if min(radii) > 0.0 else -1, min(radii))


def test_the_median_of_two_phi_is_lipschitz_and_antisymmetric_and_the_largest_is_not() -> None:
    rng = np.random.default_rng(1)
    phi, moved = rng.normal(size=(5000, 2, 1)), rng.uniform(-0.5, 0.5, size=(5000, 2, 1))
    for c in (0.0, 0.1, 0.5):
        option = rules.Option(1, 0, c)
        np.testing.assert_allclose(option.of(-phi), -option.of(phi))
        assert (np.abs(option.of(phi + moved) - option.of(phi)) <= np.abs(moved).max(1) + 1e-12).all()
    assert ((phi.max(1) > 0.0) & ((-phi).max(1) > 0.0)).any()  # of which two classes could both win


def test_a_certified_median_is_never_above_that_of_its_bounds() -> None:
    sigmas, draws, c = (0.5, 1.2), some((0.5, 1.2)), 0.2
    plan = rules.pairs(draws, [rules.Option(1, 0, c)], np.zeros((10, 10), dtype=np.int64), BETA)
    found, taken = rules.certified(draws, plan, TOTAL), rules.shares(draws, plan, TOTAL)
    assert (found.prediction >= 0).any()
    for row in np.flatnonzero(found.prediction >= 0):
        top = int(plan.top[row])
        small, large = (
            s * rules.lower(draws.drawn(k, taken[:, k])[row, top].astype(float), np.full(10, taken[row, k] * 250.0))
            for k, s in enumerate(sigmas)
        )
        median = np.maximum(large - c, np.minimum(small, large + c)) - (BETA - BETA[top])
        assert found.radius[row] <= np.delete(median, top).min() + 1e-12


def test_a_gate_without_noise_keeps_its_choice_as_far_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = load_data("fashion-mnist-sample")
    monkeypatch.setattr(stateless, "load_data", lambda name, split: sample)
    monkeypatch.setattr(stateless, "TRAINING", range(60))
    monkeypatch.setattr(stateless, "jobs", lambda: [Job(split) for split in ("train", "test")])
    found, centres = stateless.geometry("any"), stateless.centres_of("any")
    x = sample.x[[5, 15, 25]].reshape(3, -1).astype(np.float64)
    for image, picked, away in zip(x, found["test_chosen"], found["test_away"].max(1), strict=True):
        towards = centres[1 - picked] - centres[picked]
        for share, stays in ((0.999, True), (1.001, False)):
            moved = image + share * 255.0 * away * towards / np.linalg.norm(towards)
            assert (np.square(moved - centres).sum(1).argmin() == picked) == stays
    assert (found["near"][:, 2] < (255 * stateless.NEAR) ** 2).all()


@dataclass(frozen=True)
class Job:
    """Which images."""

    split: str
    ids = (5, 15, 25)


def test_each_fold_is_held_out_of_the_fits_that_are_chosen_on_it() -> None:
    draws = kept.draws("shipped", "train", (0.5, 1.2), "fit")
    folds, whole = [made.Fit(draws=draws, fold=fold) for fold in range(made.FOLDS)], made.Fit(draws=draws)
    assert sorted(i for fit in folds for i in fit.held.id.tolist()) == draws.id.tolist()
    for fit in folds:
        seen = np.setdiff1d(draws.id, fit.held.id)
        np.testing.assert_array_equal(fit.own[1], draws.label[np.isin(draws.id, seen)])
    assert len(whole.own[1]) == len(draws.id)
    assert len(whole.held.id) == 0
    [(design, promise)] = made.promised(draws, lambda fit: made.fixed_designs(fit, (1.2,))[1:2], TOTAL)
    shown = [design.on(fit.held, TOTAL) for fit in folds]  # without offsets nothing is fitted
    right = [(one.prediction == fit.held.label) & (one.radius > 0.0) for one, fit in zip(shown, folds, strict=True)]
    assert promise.accuracy == pytest.approx(np.concatenate(right).mean())


def test_no_rule_over_two_sigmas_turns_an_answer_for_nothing() -> None:
    """An odd function that moves no faster than phi at both sigmas: what it gives where phi of the larger sigma is -u
    and what it gives far away add up to at most ``r - u`` there; docs/stateless.md draws the conclusion."""
    rng = np.random.default_rng(2)
    r, s, u, w = rng.uniform(0.0, 3.0, (4, 20_000))
    apart = s + w <= r - u
    for c in (0.0, 0.1, 0.5, 1.0):
        value = rules.Option(1, 0, c).of
        far, turned = value(np.stack([s, r], 1)), value(np.stack([w, -u], 1))
        assert (far + turned <= r - u + 1e-12)[apart].all()
    free = np.where(np.abs(r) > 1.0, r, s) + np.where(u > 1.0, -u, w)  # the smaller sigma near the boundary alone
    assert (free > r - u + 1e-12)[apart].any()


def test_a_memory_never_lets_two_regions_of_different_classes_meet() -> None:
    near = kept.geometry()["near"]
    i, j, square = near[near[:, 2].argmin()]
    ids = np.array([i, j, 99_999])
    one = rules.Certificates(prediction=np.array([3, 4, 5]), radius=np.array([1.0, 6.0, 6.0]), samples=np.full(3, 10))
    found = made.remembered(one, ids)
    assert found.radius[0] == 1.0
    assert found.radius[:2].sum() <= np.sqrt(square) / 255.0 + 1e-12
    assert found.radius[2] == 6.0
    same = made.remembered(replace(one, prediction=np.array([3, 3, 5]), radius=np.array([6.0, 1.0, 6.0])), ids)
    assert same.radius[1] > 1.0  # inside the first region, which answers without a sample
    assert same.samples.tolist() == [10, 0, 10]


def test_counting_goes_on_where_it_was_and_uses_no_noise_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = load_data("fashion-mnist-sample")
    small = Dataset(name="small", split="test", x=sample.x[:40], y=sample.y[:40])
    monkeypatch.setattr(stateless, "load_data", lambda name, split: small)
    monkeypatch.setattr(stateless, "GROUP", 2)
    monkeypatch.setattr(stateless.Job, "ids", property(lambda job: [5, 15, 25][: job.images]))
    monkeypatch.setitem(kept.SIZES, "few", (100, 250, 250))
    place = stateless.Place("small", tmp_path, tmp_path)
    job = stateless.Job(network="shipped", split="test", sigma=0.5, images=2, part="few")
    place.count(job)
    place.count(replace(job, images=3))
    assert place.left(replace(job, images=3)) == []
    at_once = replace(place, counts=tmp_path / "again")
    at_once.count(replace(job, images=3))
    one, other = (kept.load(where.counts / f"{job.name}.npz") for where in (place, at_once))
    np.testing.assert_array_equal(one.counts, other.counts)
    asked = [each for p in ("few", "many", "most") for each in stateless.requests_of(replace(job, part=p), 784, 0)]
    taken = [(each.stream, each.first_block + b) for each in asked for b in range(-(-each.n // 167))]
    assert len(taken) == len(set(taken))


@pytest.mark.slow
def test_the_page_shows_what_the_kept_counts_give() -> None:
    page = stateless.PAGE.read_text(encoding="utf-8")
    block = page.split(tables.START)[1].split(tables.END)[0]
    assert block == "\n" + tables.text(tables.made()) + "\n"
