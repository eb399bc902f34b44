"""Runs of level ``stateless``: made, continued, merged, recomputed, drawn again, attacked."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch

import ddsmoothing as dds
from ddsmoothing.attacks import Attack
from ddsmoothing.campaigns import CertifyRequest, certify_run
from ddsmoothing.campaigns.attack import attack_run
from ddsmoothing.campaigns.resample import resample_run
from ddsmoothing.certificate import certificate_for
from ddsmoothing.claims import Cascade, Gated, OffsetPairwise, PairTable, Pairwise, Plurality, StatelessRule
from ddsmoothing.errors import InfeasibleError, InputError, RunError
from ddsmoothing.memory.inputs import check_run
from ddsmoothing.plots.accuracy import certified_accuracy_figure, panels
from ddsmoothing.report import card_of, card_schema, write_report
from ddsmoothing.runs import OffsetsNote, load_run, rejudged
from ddsmoothing.runs.merge import merge_runs
from ddsmoothing.sigma import SigmaPolicy
from ddsmoothing.stateless import certify_stateless, predict_stateless
from ddsmoothing.tables import accuracy_tables, paired
from ddsmoothing.tables.summary import ENVELOPE, groups
from ddsmoothing.verify import verify_run
from ddsmoothing.verify.counts import wins
from run_helpers import certified

OFFSETS = (0.0, -0.1, 0.05, 0.0, 0.1, 0.0, -0.15, 0.0, 0.02, 0.0)
SLOTS = tuple(map(tuple, (np.add.outer(np.arange(10), np.arange(10)) % 2).tolist()))
TABLE = PairTable(sigmas=(0.4, 0.9), slots=SLOTS, groups=tuple(range(10)), offsets=OFFSETS)
PLAIN_L1 = PairTable(sigmas=(0.3, 0.6), slots=SLOTS, groups=tuple(range(10)), norm="l1")
RULES: dict[str, StatelessRule] = {"table": TABLE, "l1": PLAIN_L1}
VOTED: dict[str, StatelessRule] = {
    "cascade": Cascade(sigmas=(0.9, 0.4), taus=(0.5, 0.0), classes=10),
    "published": Cascade(sigmas=(0.9, 0.4), taus=(0.5, 0.0), classes=10, reach=False),
    "reach": Gated(experts=(Pairwise(),) * 2, sigmas=(0.4, 0.8, 0.5), groups=(0, 1) * 5, classes=10),
    "reach, offsets": Gated(
        experts=(Pairwise(), OffsetPairwise(offsets=OFFSETS, norm="l2")),
        sigmas=(0.4, 0.8, 0.5),
        groups=(0, 1) * 5,
        classes=10,
    ),
    "reach, plurality": Gated(experts=(Plurality(),) * 2, sigmas=(0.4, 0.8, 0.5), groups=(0, 1) * 5, classes=10),
    "dual": Gated(
        experts=(Pairwise(),) * 2, sigmas=(0.3, 0.6, 0.5), groups=(0, 1) * 5, classes=10, norm="l1", branches="dual"
    ),
    "dual, plurality": Gated(
        experts=(Plurality(),) * 2, sigmas=(0.3, 0.6, 0.5), groups=(0, 1) * 5, classes=10, norm="l1", branches="dual"
    ),
}
N0, N = 50, 600


def make(out: Path, data: dds.Dataset, model: torch.nn.Module, rule: StatelessRule, **options: Any) -> dds.Run:
    smoothed = dds.SmoothedClassifier(model, rule.norm, num_classes=10, block_size=256)
    given = {"n0": N0, "n": N, "skip": 100, "seed": 3, "model_name": "fashion-mnist-cnn"} | options
    return certified(smoothed, data, SigmaPolicy.stateless(rule), out, **given)


@pytest.fixture(scope="module", params=RULES)
def made(
    request: pytest.FixtureRequest, model: torch.nn.Module, data: dds.Dataset, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dds.Run, StatelessRule]:
    rule = RULES[request.param]
    out = tmp_path_factory.mktemp("stateless") / "run"
    return make(out, data, model, rule, label_aware=request.param == "l1"), rule


@pytest.fixture(scope="module", params=VOTED)
def voted(
    request: pytest.FixtureRequest, model: torch.nn.Module, data: dds.Dataset, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dds.Run, StatelessRule]:
    rule = VOTED[request.param]
    return make(tmp_path_factory.mktemp("voted") / "run", data, model, rule), rule


def test_cascades_and_gates_are_rows_too(
    voted: tuple[dds.Run, StatelessRule], model: torch.nn.Module, data: dds.Dataset, tmp_path: Path
) -> None:
    run, rule = voted
    assert load_run(run.path).header.stateless == rule
    assert (run.radius > 0.0).sum() > 4
    assert verify_run(run.path).findings == ()
    smoothed = dds.SmoothedClassifier(model, rule.norm, num_classes=10)
    assert [one.message for one in resample_run(run, smoothed, data, 3)] == [None] * 3
    for row in run.rows:
        assert sum(one.n for one in row.certifying) == N
        assert [one.slot for one in row.certifying] == list(rule.commit(row.pilots).slots)
        if isinstance(rule, Gated):
            duels = {one.slot for one in row.measurements if one.least is not None or one.wins is not None}
            assert duels == (set() if rule.vote == "plurality" else {0, 1})


@pytest.mark.parametrize("change", ["radius", "sigma", "division", "threshold", "alpha", "vote", "offsets", "counts"])
def test_verify_finds_what_votes_do_not_give(change: str, voted: tuple[dds.Run, StatelessRule], tmp_path: Path) -> None:
    run, rule = voted
    header = json.loads((run.path / "header.json").read_text())
    lines = [json.loads(line) for line in (run.path / "results.jsonl").read_text().splitlines()]
    pilots = len(rule.sigmas)
    row = next(line for line in lines if line["radius"] > 0.01 and len(line["measurements"]) > pilots)
    fresh = row["measurements"][pilots:]
    if change == "radius":
        row["radius"] += 1e-6
    elif change == "sigma":
        row["sigma"] = next(s for s in rule.sigmas if s != row["sigma"])
        row["lambda"] = row["lambda"] and 3**0.5 * row["sigma"]
    elif change == "division":
        fresh[0]["n"] += 1
        fresh[0]["votes"][row["prediction"]] += 1
        if "wins" in fresh[0]:
            fresh[0]["wins"] = [k + 1 for k in fresh[0]["wins"]]
        look = fresh[0]["looks"][0]
        fresh[0]["looks"] = [[fresh[0]["n"], [k + 1 for k in look[1]], look[2]]]
        row["samples"] += 1
    elif change == "alpha":
        fresh[0]["looks"][0][2] = 0.002
    elif change == "vote":
        other = {"pairwise": "plurality", "plurality": "pairwise"}[rule.vote]
        header["rule"]["vote"] = other
        for expert in header["rule"]["stateless"].get("experts", ()):
            expert["vote"] = other
            expert.pop("offsets", None)
    elif change == "offsets":
        of = header["rule"]["stateless"]["experts"][-1] if isinstance(rule, Gated) else header["rule"]
        of["offsets"] = [0.3 * (c != row["prediction"]) for c in range(10)]
    elif change == "counts":
        part = next(one for one in fresh if one["sigma"] == row["sigma"])
        part["looks"][0][1] = [k + 1 for k in part["looks"][0][1]]
    elif isinstance(rule, Cascade):
        header["rule"]["stateless"]["taus"][0] = 0.05
    else:
        header["rule"]["stateless"]["groups"] = [1, 0] * 5
    (tmp_path / "header.json").write_text(json.dumps(header))
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert not verify_run(tmp_path).ok


def test_only_what_was_fitted_comes_from_a_file(voted: tuple[dds.Run, StatelessRule], tmp_path: Path) -> None:
    """A cascade and a gate are stated whole, so a header that names a file of theirs says what is not so."""
    header = json.loads((voted[0].path / "header.json").read_text())
    header["offsets"] = {"sha256": "0" * 64, "seen": False}
    (tmp_path / "header.json").write_text(json.dumps(header))
    (tmp_path / "results.jsonl").write_bytes((voted[0].path / "results.jsonl").read_bytes())
    assert "come from, and has none" in verify_run(tmp_path).findings[0].message


def test_of_two_classes_one_wins_each_sample_of_a_pilot(made: tuple[dds.Run, StatelessRule], tmp_path: Path) -> None:
    (tmp_path / "header.json").write_bytes((made[0].path / "header.json").read_bytes())
    row = json.loads((made[0].path / "results.jsonl").read_text().splitlines()[0])
    row["measurements"][0]["least"] = [N0] * 10
    (tmp_path / "results.jsonl").write_text(json.dumps(row) + "\n")
    assert any("do not fit what" in finding.message for finding in verify_run(tmp_path).findings)


def test_a_run_cannot_have_had_fewer_samples_than_its_rows(
    model: torch.nn.Module, data: dds.Dataset, tmp_path: Path
) -> None:
    """Each sigma has the fewest that can certify, however few the header names."""
    run = make(tmp_path / "run", data, model, PLAIN_L1, n=20, skip=500)
    assert {tuple(one.n for one in row.certifying) for row in run.rows} == {(10, 10)}
    assert verify_run(run.path).ok
    header = json.loads((run.path / "header.json").read_text())
    header["sampler_options"]["n"] = 5
    (run.path / "header.json").write_text(json.dumps(header))
    assert "is not how the pilots divide 5" in verify_run(run.path).findings[0].message


def test_a_pilot_names_a_rival_of_each_class(made: tuple[dds.Run, StatelessRule], tmp_path: Path) -> None:
    (tmp_path / "header.json").write_bytes((made[0].path / "header.json").read_bytes())
    row = json.loads((made[0].path / "results.jsonl").read_text().splitlines()[0])
    row["measurements"][0]["rivals"].pop()
    (tmp_path / "results.jsonl").write_text(json.dumps(row) + "\n")
    assert "expected one of each of 10 classes" in verify_run(tmp_path).findings[0].message


def test_without_a_request_the_note_of_the_run_stays(model: torch.nn.Module, data: dds.Dataset, tmp_path: Path) -> None:
    note, smoothed = OffsetsNote(sha256="0" * 64, seen=True), dds.SmoothedClassifier(model, num_classes=10)
    asked = CertifyRequest(SigmaPolicy.stateless(TABLE), n0=20, n=200, skip=250, seed=1)
    whole = certify_run(smoothed, data, asked, tmp_path / "run", model_name="cnn", offsets=note)
    results = tmp_path / "run" / "results.jsonl"
    results.write_text(results.read_text().splitlines(keepends=True)[0])
    again = certify_run(smoothed, data, None, tmp_path / "run", model_name="cnn")
    assert again.header.offsets == note
    assert again.radius.tolist() == whole.radius.tolist()


def test_verify_looks_at_every_event_that_can_bind() -> None:
    """What it leaves out happened at least as often at all looks as another with no smaller threshold."""
    rng = np.random.default_rng(3)
    for size in (1, 3):
        counts = np.sort(rng.integers(0, 40, (200, size)), axis=1)
        looks = [[100 * (i + 1), counts[:, i].tolist(), 0.001] for i in range(size)]
        handicaps = (counts.mean(1) + rng.integers(-5, 6, 200)).astype(int)
        thresholds = {b: Fraction(int(k), 10) for b, k in enumerate(handicaps)}
        kept = {int(atom.name.split()[-1]) for atom in wins({"looks": looks}, {}, thresholds)}
        assert 2 < len(kept) < 150
        for b in set(thresholds) - kept:
            assert any((counts[a] <= counts[b]).all() and thresholds[a] >= thresholds[b] for a in kept)


def test_one_run_is_no_list_of_runs(made: tuple[dds.Run, StatelessRule], tmp_path: Path) -> None:
    """An index takes out inputs, so that each input would stand as a partial run of its own."""
    with pytest.raises(InputError, match=r"such as \[run\]"):
        write_report(made[0], tmp_path / "page.html")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"such as \[run\]"):
        accuracy_tables(made[0])  # type: ignore[arg-type]
    assert not (tmp_path / "page.html").exists()


def test_a_run_holds_the_talk_of_its_rule(
    made: tuple[dds.Run, StatelessRule], model: torch.nn.Module, data: dds.Dataset
) -> None:
    run, rule = made
    assert run.level == run.header.level == "stateless"
    assert run.header.stateless == rule
    assert load_run(run.path).rows == run.rows
    smoothed = dds.SmoothedClassifier(model, rule.norm, num_classes=10, block_size=256)
    ids = run.ids.tolist()
    x, y = data[ids]
    labels = y if run.header.label_aware else None
    again = certify_stateless(smoothed, x, rule, n0=N0, n=N, seed=3, ids=ids, labels=labels)
    assert tuple(row.measurements for row in run.rows) == again.measurements
    assert run.radius.tolist() == again.radius.tolist()
    assert run.prediction.tolist() == again.prediction.tolist()
    for row in run.rows:
        assert run.header.claim(row).radius == row.radius
        assert run.header.claim(row, 0.0001).radius <= row.radius
        assert [one.n for one in row.pilots] == [N0] * len(rule.sigmas)
        assert sum(one.n for one in row.certifying) == (0 if row.reason == "wrong" else N)
    assert len({row.sigma for row in run.rows}) > 1  # that which binds
    at_less = [run.header.claim(row, 0.0001).radius for row in run.rows if row.radius > 0.0]
    assert sum(at_less) < sum(run.radius)


def test_verify_recomputes_and_draws_again(
    made: tuple[dds.Run, StatelessRule], model: torch.nn.Module, data: dds.Dataset
) -> None:
    run, rule = made
    found = verify_run(run.path)
    assert found.findings == ()
    assert found.d == 784
    smoothed = dds.SmoothedClassifier(model, rule.norm, num_classes=10)
    assert [one.message for one in resample_run(run, smoothed, data, 4)] == [None] * 4
    changed = [row.model_copy(update={"measurements": _other(row.measurements)}) for row in run.rows]
    redrawn = resample_run(replace(run, rows=tuple(changed)), smoothed, data, 2)
    assert all(one.moved > 0 for one in redrawn)


def _other(measurements: tuple[Any, ...]) -> tuple[Any, ...]:
    last = measurements[-1]
    votes = list(last.votes)
    a, b = np.argsort(votes)[[-1, 0]]
    votes[a], votes[b] = votes[a] - 1, votes[b] + 1
    return (*measurements[:-1], replace(last, votes=tuple(votes)))


Change = Callable[[dict[str, Any], dict[str, Any]], None]


def _radius(header: dict[str, Any], row: dict[str, Any]) -> None:
    row["radius"] += 1e-6


def _smaller(header: dict[str, Any], row: dict[str, Any]) -> None:
    row["radius"] -= 1e-6


def _offsets(header: dict[str, Any], row: dict[str, Any]) -> None:
    offsets = header["rule"].setdefault("offsets", [0.0] * 10)
    offsets[row["prediction"]] += 0.05


def _binding(row: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """What was drawn at the sigma that binds, and the class that the certified one beat least often there."""
    part = next(one for one in row["measurements"][2:] if one["sigma"] == row["sigma"])
    return part, int(np.argmin(part["wins"]))


def _slots(header: dict[str, Any], row: dict[str, Any]) -> None:
    a, slots = row["prediction"], header["rule"]["stateless"]["slots"]
    b = _binding(row)[1]
    slots[a][b] = slots[b][a] = 1 - slots[a][b]


def _asymmetric(header: dict[str, Any], row: dict[str, Any]) -> None:
    header["rule"]["stateless"]["slots"][0][1] = 0


def _sigma(header: dict[str, Any], row: dict[str, Any]) -> None:
    sigmas = header["rule"]["stateless"]["sigmas"]
    row["sigma"] = sigmas[1 - sigmas.index(row["sigma"])]
    row["lambda"] = row["lambda"] and 3**0.5 * row["sigma"]


def _widest(header: dict[str, Any], row: dict[str, Any]) -> None:
    """The larger of two radii: with it all that belongs to the other sigma."""
    rule = RULES["table" if header["norm"] == "l2" else "l1"]
    found = load_run_row(header, row)
    made = rule.commit(found.pilots)
    atoms = [(rule.atom(made, one, certificate_for(rule.norm), 0.001), one.sigma) for one in found.certifying]
    best, sigma = max(atoms)
    row |= {"radius": best.margin, "p_lower": best.p_lower, "p_upper": best.p_upper, "sigma": sigma}
    row["lambda"] = row["lambda"] and 3**0.5 * sigma


def load_run_row(header: dict[str, Any], row: dict[str, Any]) -> Any:
    from ddsmoothing.runs import ResultRow

    return ResultRow.model_validate(row)


def _sizes(header: dict[str, Any], row: dict[str, Any]) -> None:
    header["sampler_options"]["n"] += 1


def _division(header: dict[str, Any], row: dict[str, Any]) -> None:
    """As many samples, divided in another way."""
    for part, more in zip(row["measurements"][2:], (1, -1), strict=True):
        part["n"] += more
        part["votes"][part["anchor"]] += more
        part["wins"] = [k + more for k in part["wins"]]
        part["looks"] = [[part["n"], part["wins"], part["looks"][0][2]]]


def _missing(header: dict[str, Any], row: dict[str, Any]) -> None:
    at = next(i for i, one in enumerate(row["measurements"]) if i >= 2 and one["sigma"] != row["sigma"])
    row["samples"] -= row["measurements"].pop(at)["n"]


def _wins(header: dict[str, Any], row: dict[str, Any]) -> None:
    part, b = _binding(row)
    part["wins"][b] += 1 if part["wins"][b] + part["votes"][b] < part["n"] else -1
    part["looks"][0][1] = part["wins"]


def _alpha(header: dict[str, Any], row: dict[str, Any]) -> None:
    row["measurements"][2]["looks"][0][2] = 0.002


def _pilot(header: dict[str, Any], row: dict[str, Any]) -> None:
    top = row["prediction"]
    for one in row["measurements"][:2]:
        one["least"][top] = one["votes"][top]
        one["votes"] = [0] * 9 + [one["n"]] if top != 9 else [one["n"]] + [0] * 9
        one["least"] = [max(a, b) for a, b in zip(one["least"], one["votes"], strict=True)]
        one["least"][top] = 0


def _rivals(header: dict[str, Any], row: dict[str, Any]) -> None:
    one = row["measurements"][0]
    one["rivals"][0] = 1 if header["rule"]["stateless"]["slots"][0][1] == 1 else 2


def _level(header: dict[str, Any], row: dict[str, Any]) -> None:
    header["level"] = "pointwise"


def _tv(header: dict[str, Any], row: dict[str, Any]) -> None:
    row["measurements"][2]["tv"] /= 2


CHANGES = (
    *(_radius, _smaller, _offsets, _slots, _asymmetric, _sigma, _widest, _sizes, _division, _missing, _wins),
    *(_alpha, _pilot, _rivals, _level, _tv),
)


@pytest.mark.parametrize("change", CHANGES)
def test_verify_finds_what_the_counts_do_not_give(
    change: Change, made: tuple[dds.Run, StatelessRule], tmp_path: Path
) -> None:
    run, _ = made
    header = json.loads((run.path / "header.json").read_text())
    lines = [json.loads(line) for line in (run.path / "results.jsonl").read_text().splitlines()]
    row = next(line for line in lines if line["radius"] > 0.01 and len(line["measurements"]) == 4)
    change(header, row)
    (tmp_path / "header.json").write_text(json.dumps(header))
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert not verify_run(tmp_path).ok


@pytest.mark.parametrize("change", [_asymmetric, _missing, _level, _sigma])
def test_reading_refuses_what_is_no_such_run(
    change: Change, made: tuple[dds.Run, StatelessRule], tmp_path: Path
) -> None:
    """What a header excludes is said in one line when the run is read; a sigma that binds is for verify to show."""
    run, _ = made
    header = json.loads((run.path / "header.json").read_text())
    lines = [json.loads(line) for line in (run.path / "results.jsonl").read_text().splitlines()]
    change(header, next(line for line in lines if line["radius"] > 0.01 and len(line["measurements"]) == 4))
    (tmp_path / "header.json").write_text(json.dumps(header))
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if change is _sigma:
        load_run(tmp_path)
        return
    with pytest.raises(RunError):
        load_run(tmp_path)


def bare(run: dds.Run) -> list[dict[str, Any]]:
    return [{**json.loads(row.line()), "seconds": 0.0} for row in run.rows]


def test_shards_and_interruptions_change_nothing(
    model: torch.nn.Module, data: dds.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make(tmp_path / "whole", data, model, TABLE, skip=150)
    parts = [make(tmp_path / f"shard-{i}", data, model, TABLE, skip=150, shard=(i, 2)) for i in (1, 2)]
    assert bare(merge_runs([part.path for part in parts], tmp_path / "merged")) == bare(whole)
    asked = 0

    def stop(samples: int) -> None:
        nonlocal asked
        asked += 1
        if asked == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "again", data, model, TABLE, skip=150, progress=stop)
    assert bare(make(tmp_path / "again", data, model, TABLE, skip=150)) == bare(whole)
    with pytest.raises(RunError, match="holds another run"):
        make(tmp_path / "again", data, model, replace(TABLE, offsets=None), skip=150)


def test_too_few_samples_are_refused_with_the_number_that_works(
    model: torch.nn.Module, data: dds.Dataset, tmp_path: Path
) -> None:
    with pytest.raises(InfeasibleError, match=r"Use n >= (\d+)") as error:
        make(tmp_path / "run", data, model, TABLE, n=12, skip=500)
    assert not (tmp_path / "run").exists()
    works = int(str(error.value).rsplit(">= ", 1)[1].strip("."))
    with pytest.raises(InfeasibleError):
        make(tmp_path / "run", data, model, TABLE, n=works - 1, skip=500)
    assert len(make(tmp_path / "run", data, model, TABLE, n=works, skip=500)) == 2


def test_what_does_not_go_together_is_refused(
    model: torch.nn.Module, data: dds.Dataset, tmp_path: Path, made: tuple[dds.Run, StatelessRule]
) -> None:
    for options, text in (
        ({"n_max": 1000, "n": None, "n0": None}, "no n_max and radii"),
        ({"radii": [0.5], "n": None, "n0": None}, "no n_max and radii"),
        ({"randomized": True}, "one-class bounds"),
    ):
        with pytest.raises(InputError, match=text):
            make(tmp_path / "run", data, model, TABLE, **options)
    other = dds.SmoothedClassifier(model, "l1", num_classes=10)
    with pytest.raises(InputError, match="the rule is of l2"):
        certify_run(other, data, CertifyRequest(SigmaPolicy.stateless(TABLE), n=N), tmp_path / "run", model_name="m")
    with pytest.raises(RunError, match="needs no memory"):
        check_run(made[0])
    with pytest.raises(RunError, match="several sigmas"):
        rejudged(made[0], Plurality())


# a deployed classifier that is known: three classes on the plane, class 1 near, class 2 far


class Plane(torch.nn.Module):
    """Class 1 where the first number exceeds 0.7, class 2 where the second exceeds 3."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.eye(2), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        far = x @ self.weight - torch.tensor([0.7, 3.0])
        return torch.cat([torch.zeros(len(x), 1), far], dim=1)


NEAR = PairTable(sigmas=(0.1, 0.5), slots=((0, 0, 1), (0, 0, 1), (1, 1, 0)), groups=(0, 1, 2))


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> tuple[dds.Run, dds.SmoothedClassifier, dds.Dataset]:
    x = torch.from_numpy(np.random.default_rng(0).integers(110, 150, (24, 2)).astype(np.uint8))
    data = dds.Dataset(name="plane", split="test", x=x.numpy(), y=np.zeros(24, dtype=np.int64))
    smoothed = dds.SmoothedClassifier(Plane(), "l2", num_classes=3, block_size=256)
    out = tmp_path_factory.mktemp("plane") / "run"
    policy = SigmaPolicy.stateless(NEAR)
    return (
        certify_run(smoothed, data, CertifyRequest(policy, n0=50, n=1000, seed=1), out, model_name="plane"),
        smoothed,
        data,
    )


ATTACK = Attack(steps=4, samples=16, restarts=1)


def attacked(run: dds.Run, plane: tuple[dds.Run, dds.SmoothedClassifier, dds.Dataset]) -> Any:
    return attack_run(run, plane[1], plane[2], factors=[0.5, 0.95], attack=ATTACK, n=500, seed=2)


def test_no_attack_on_the_whole_classifier_succeeds_inside_a_radius(
    plane: tuple[dds.Run, dds.SmoothedClassifier, dds.Dataset],
) -> None:
    assert verify_run(plane[0].path).ok
    report = attacked(plane[0], plane)
    assert (report.level, report.covered, report.inputs) == ("stateless", True, 24)
    assert report.inside == ()
    with pytest.raises(InputError, match="no sigma to keep"):
        attack_run(plane[0], plane[1], plane[2], level="pointwise")


def test_the_largest_radius_over_sigmas_is_caught(
    plane: tuple[dds.Run, dds.SmoothedClassifier, dds.Dataset],
) -> None:
    run, rows = plane[0], []
    for row in run.rows:
        made = NEAR.commit(row.pilots)
        margins = [NEAR.atom(made, one, dds.L2Certificate(), 0.001).margin for one in row.certifying]
        assert max(margins) > 2.0 * row.radius
        rows.append(row.model_copy(update={"radius": max(margins)}))
    assert attacked(replace(run, rows=tuple(rows)), plane).contradicted


def test_another_rule_than_the_certified_one_is_caught(
    plane: tuple[dds.Run, dds.SmoothedClassifier, dds.Dataset], tmp_path: Path
) -> None:
    """Certified with offsets that favour class 0, deployed without."""
    _, smoothed, data = plane
    favoured = replace(NEAR, offsets=(0.1, -0.1, 0.0))
    policy = SigmaPolicy.stateless(favoured)
    run = certify_run(
        smoothed, data, CertifyRequest(policy, n0=50, n=1000, seed=1), tmp_path / "run", model_name="plane"
    )
    assert attacked(run, plane).inside == ()
    rule = run.header.rule.model_copy(update={"offsets": None})
    deployed = replace(run, header=run.header.model_copy(update={"rule": rule}))
    assert attacked(deployed, plane).contradicted


def test_the_command_line_predicts_as_a_rule_does(
    cli: Callable[..., Any], model: torch.nn.Module, data: dds.Dataset
) -> None:
    common = ["predict", "--model", "fashion-mnist-cnn", "--data", "fashion-mnist-sample", "--seed", "4", "--json"]
    asked = ["--rule", "cascade", "--rule-sigmas", "1,0.5", "--taus", "0.3,0", "--skip", "300", "--n", "400"]
    lines = [json.loads(line) for line in cli(*common, *asked).out.splitlines()]
    ids = [0, 300, 600, 900]
    rule = Cascade(sigmas=(1.0, 0.5), taus=(0.3, 0.0), classes=10)
    smoothed = dds.SmoothedClassifier(model)
    wanted = predict_stateless(smoothed, data[ids][0], rule, n=400, seed=4, ids=ids)
    assert [line["prediction"] for line in lines] == wanted.tolist()
    both = cli(*common, *asked, "--sigma", "0.5")
    assert (both.code, "has sigmas of its own and no --sigma" in both.err) == (2, True)


def test_the_command_line_certifies_with_a_table(cli: Callable[..., Any], tmp_path: Path) -> None:
    common = ["--model", "fashion-mnist-cnn", "--data", "fashion-mnist-sample", "--block-size", "256"]
    table = tmp_path / "pairs.json"
    fit = ["--sigmas", "0.5,1", "--max", "24", "--n", "16", "--samples", "300", "--n0", "50", "--seed", "1"]
    assert cli("pairs", "fit", *common, *fit, "--out", table).code == 0
    certify = ["certify", *common, "--pair-sigmas", table, "--n0", "50", "--n", "400", "--seed", "2"]
    seen = cli(*certify, "--max", "4", "--out", tmp_path / "seen")
    assert "was fitted on 3 of the 4 inputs" in seen.err
    both = cli(*certify, "--sigma", "0.5", "--out", tmp_path / "seen")
    assert (both.code, "has sigmas of its own and no --sigma" in both.err) == (2, True)
    voted = cli(*certify, "--vote", "plurality", "--out", tmp_path / "seen")
    assert (voted.code, "a pair table has a pairwise vote, got --vote plurality" in voted.err) == (2, True)
    assert cli(*certify, "--max", "4", "--allow-seen", "--out", tmp_path / "seen").code == 0
    note = load_run(tmp_path / "seen").header.offsets
    assert note is not None
    assert note.seen
    out = tmp_path / "run"
    unseen = ["--skip", "300", "--shard", "2/2"]  # inputs 300 and 900
    assert "2 inputs: 1,000 samples" in cli(*certify, *unseen, "--forecast").out
    assert cli(*certify, *unseen, "--out", out).code == 0
    again = cli("certify", "--out", out)
    assert (again.code, "give it again with --pair-sigmas" in again.err) == (2, True)
    assert cli("certify", "--pair-sigmas", table, "--out", out).code == 0
    assert cli("verify", out, "--resample", "2").code == 0
    assert cli("attack", out, "--factors", "0.9", "--steps", "2", "--samples", "8", "--n", "300").code == 0
    refused = cli(
        "memory",
        "apply",
        out,
        "--data",
        "fashion-mnist-sample",
        "--store",
        tmp_path / "m",
        "--out",
        tmp_path / "memory",
    )
    assert "needs no memory" in refused.err


# beside other runs


@pytest.fixture(scope="module")
def beside(model: torch.nn.Module, data: dds.Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dds.Run]:
    """A fixed sigma, a sigma for each input, and two stateless rules on the same inputs."""
    smoothed = dds.SmoothedClassifier(model, "l2", num_classes=10, block_size=256)
    one = PairTable(sigmas=(0.5,), slots=((0,) * 10,) * 10, groups=tuple(range(10)), offsets=OFFSETS)
    policies = {
        "fixed": SigmaPolicy.fixed(0.5),
        "smaller": SigmaPolicy.fixed(0.25),
        "own": SigmaPolicy.search(0.5),
        "table": SigmaPolicy.stateless(TABLE),
        "offsets": SigmaPolicy.stateless(one),
    }
    out = tmp_path_factory.mktemp("beside")
    options: dict[str, Any] = {"model_name": "fashion-mnist-cnn", "n0": 50, "n": 300, "skip": 100, "seed": 1}
    return {name: certified(smoothed, data, policy, out / name, **options) for name, policy in policies.items()}


def test_stateless_rows_stand_beside_fixed_sigmas_and_apart_from_chosen_ones(beside: dict[str, dds.Run]) -> None:
    runs = list(beside.values())
    tables = {table.title.partition("level ")[2].partition(",")[0]: table for table in accuracy_tables(runs)}
    rows = {level: [row[0] for row in table.rows] for level, table in tables.items()}
    assert rows == {
        "pointwise": ["fixed sigma 0.5", "fixed sigma 0.25", "data-dependent sigma (pointwise)", ENVELOPE],
        "stateless": [
            *("fixed sigma 0.5", "fixed sigma 0.25", "pair table of sigma 0.4, 0.9, offsets (stateless)"),
            *("sigma 0.5, offsets (stateless)", ENVELOPE),
        ],
    }
    without = [beside[name] for name in ("fixed", "smaller", "table")]
    assert [level for _, level, _ in groups(without)] == ["stateless"]
    assert [level for _, level, _ in groups([beside["fixed"], beside["own"]])] == ["pointwise"]
    assert len(paired(beside["table"], beside["fixed"]).ids) == 10
    with pytest.raises(RunError, match="not comparable"):
        paired(beside["table"], beside["own"])
    assert {title: [run.name for run in some] for title, some in panels(runs).items()} == {
        "level stateless": ["fixed", "smaller", "table", "offsets"],
        "level pointwise": ["fixed", "smaller", "own"],
    }
    assert list(panels(without)) == [""]
    figure = certified_accuracy_figure(runs)
    assert len(figure.axes) == 2
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(named) == len(set(named)) == 6


def test_report_and_card_say_what_stateless_means(beside: dict[str, dds.Run], tmp_path: Path) -> None:
    page = write_report(list(beside.values()), tmp_path / "report.html").read_text()
    assert "applies its whole rule anew at every query" in page
    for name in ("table", "offsets"):
        card = card_of(beside[name])
        assert card.claim.level == "stateless"
        assert "one function of the input" in card.claim.statement
        assert card.method.offsets == OFFSETS
        assert card.method.stateless is not None
        assert any("same sigmas" in text for text in card.limits)
        jsonschema.validate(json.loads(card.model_dump_json()), card_schema())


def test_with_one_sigma_a_rule_says_what_the_fixed_sigma_says(
    beside: dict[str, dds.Run], model: torch.nn.Module, data: dds.Dataset, tmp_path: Path
) -> None:
    """Levels coincide for one sigma: the same counts, claims and bits."""
    smoothed = dds.SmoothedClassifier(model, "l2", num_classes=10, block_size=256, offsets=OFFSETS)
    options: dict[str, Any] = {"model_name": "fashion-mnist-cnn", "n0": 50, "n": 300, "skip": 100, "seed": 1}
    fixed = certified(smoothed, data, 0.5, tmp_path / "run", **options)
    assert bare(fixed) == bare(beside["offsets"])
    assert card_of(fixed).method.offsets == OFFSETS


@pytest.mark.parametrize(
    ("rule", "vote"), [("cascade", "plurality"), ("dual", "pairwise"), ("dual", "plurality"), ("reach", "pairwise")]
)
def test_the_command_line_routes_among_sigmas(rule: str, vote: str, cli: Callable[..., Any], tmp_path: Path) -> None:
    common = ["--model", "fashion-mnist-cnn", "--data", "fashion-mnist-sample", "--block-size", "256", "--skip", "400"]
    numbers = ["--n0", "50", "--n", "300", "--seed", "2", "--rule", rule, "--rule-sigmas", "0.9,0.4"]
    gate = ["--gate-sigma", "0.5", "--gate-groups", "0,1,0,1,0,1,0,1,0,1"]
    own = {"cascade": ["--taus", "0.4,0"], "dual": gate, "reach": gate}
    other = own["dual" if rule == "cascade" else "cascade"]
    if rule != "cascade" and vote != "pairwise":  # the default
        numbers += ["--vote", vote]
    lacking = cli("certify", *common, *numbers, "--out", tmp_path / "run")
    assert (lacking.code, f"--rule {rule} needs --" in lacking.err) == (2, True)
    mixed = cli("certify", *common, *numbers, *own[rule], *other, "--out", tmp_path / "run")
    assert (mixed.code, f"--rule {rule} has no --" in mixed.err) == (2, True)
    alone = cli("certify", *common, *own["cascade"], "--sigma", "0.5", "--out", tmp_path / "run")
    assert (alone.code, "--taus belongs to a rule, expected --rule with it" in alone.err) == (2, True)
    if rule != "cascade":
        few = cli("certify", *common, *numbers, *gate[:3], "0,1", "--forecast")
        assert (few.code, "needs the expert of each of its 10 classes, got 2" in few.err) == (2, True)
        for groups in ("0,inf", "nan,0", "0.5,1"):
            odd = cli("certify", *common, *numbers, *gate[:3], groups, "--out", tmp_path / "run")
            assert (odd.code, "expected whole numbers such as 0,0,1,1" in odd.err) == (2, True)
    else:
        said = cli("certify", *common, *numbers, *own[rule], "--vote", "pairwise", "--out", tmp_path / "run")
        assert (said.code, "--rule cascade has a plurality vote, got --vote pairwise" in said.err) == (2, True)
    for option in ("--sigma", "--sigma0", "--sigma-max", "--taus" if rule != "cascade" else "--gate-sigma"):
        refused = cli("certify", *common, *numbers, *own[rule], option, "0", "--out", tmp_path / "run")
        assert (refused.code, f"no {option}" in refused.err) == (2, True)
    assert not (tmp_path / "run").exists()
    made = cli("certify", *common, *numbers, *own[rule], "--out", tmp_path / "run")
    assert made.code == 0, made.err
    assert cli("certify", "--out", tmp_path / "run").code == 0  # everything is in the header
    assert cli("verify", tmp_path / "run", "--resample", "1").code == 0
    header = load_run(tmp_path / "run").header
    found = header.stateless
    assert found is not None
    assert found.kind == ("cascade" if rule == "cascade" else "gated")
    assert found.vote == header.vote == vote
    if rule != "cascade":
        assert found.config()["branches"] == rule


def test_a_rule_from_python_is_continued_there(
    model: torch.nn.Module, data: dds.Dataset, cli: Callable[..., Any], tmp_path: Path
) -> None:
    make(tmp_path / "run", data, model, VOTED["cascade"], skip=500)
    refused = cli("certify", "--out", tmp_path / "run")
    assert (refused.code, "the cascade of" in refused.err, "continue it there, by certify_run" in refused.err) == (
        *(2, True, True),
    )


def test_gates_that_one_model_cannot_ask_make_no_run(
    model: torch.nn.Module, data: dds.Dataset, voted: tuple[dds.Run, StatelessRule], tmp_path: Path
) -> None:
    """Centres and several models go with ``certify_routed`` alone; nothing is written, and no header holds them."""
    experts = (Pairwise(),) * 2
    for rule, text in (
        (Gated(experts=experts, sigmas=(0.4, 0.8), classes=10), "goes with certify_routed"),
        (Gated(experts=experts, sigmas=(0.4, 0.8, 0.5), groups=(0, 1), classes=10), "each of its 10 classes"),
        (Gated(experts=experts, sigmas=(0.4, 0.8, 0.8), groups=(0, 1) * 5, classes=10), "different positive numbers"),
    ):
        with pytest.raises(InputError, match=text):
            make(tmp_path / "run", data, model, rule)
        assert not (tmp_path / "run").exists()
    run, good = voted
    if not isinstance(good, Gated):
        return
    for change in ({"groups": [0, 1]}, {"groups": None}, {"sigmas": [0.4, 0.8, 0.8]}, {"experts": []}):
        header = json.loads((run.path / "header.json").read_text())
        header["rule"]["stateless"] |= change
        (tmp_path / "header.json").write_text(json.dumps(header))
        (tmp_path / "results.jsonl").write_bytes((run.path / "results.jsonl").read_bytes())
        with pytest.raises(RunError):
            load_run(tmp_path)
        assert not verify_run(tmp_path).ok
