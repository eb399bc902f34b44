"""Runs of level memory and memories' files, forged so that they nearly hang together: `verify` names them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ddsmoothing as dds
from conftest import Answer
from ddsmoothing.campaigns import CertifyRequest, certify_run
from ddsmoothing.errors import StoreError
from ddsmoothing.memory import Risk
from ddsmoothing.memory.apply import apply_memory, open_store
from ddsmoothing.memory.floor import order_proof_floor
from ddsmoothing.runs import load_run
from ddsmoothing.sigma import SigmaPolicy
from ddsmoothing.verify import memory as beside
from ddsmoothing.verify import verify_run
from memory_helpers import edit
from reference import Half

MakeRun = Callable[..., dds.Run]
Change = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Made:
    """A run applied twice to one memory: ``first`` is kept, ``second`` is answered."""

    root: Path
    data: dds.Dataset

    @property
    def store(self) -> Path:
        return self.root / "memory"

    def found(self, run: Path | None = None, store: Path | None = None) -> list[str]:
        done = verify_run(run or self.root / "first", store=store or self.store, point=lambda i: self.data.x[i].ravel())
        return [str(finding) for finding in done.findings]


def made(root: Path, run: dds.Run, data: dds.Dataset, risk: Risk | None = None, **options: Any) -> Made:
    store = open_store(root / "memory", run, data, risk)
    apply_memory(run, data, store, root / "first", **options)
    if store.sealed is None:
        apply_memory(run, data, store, root / "second")
    store.close()
    return Made(root, data)


@pytest.fixture(scope="module")
def cases(make_run: MakeRun, data: dds.Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Made]:
    root, found = tmp_path_factory.mktemp("memories"), {}
    two = {"vote": "plurality", "bound": "two-class"}
    variants: dict[str, tuple[dict[str, Any], Risk | None]] = {
        "plain": ({"maximum": 6}, None),
        "delta": ({"maximum": 6}, Risk(delta=0.01)),
        "two-class": ({"maximum": 6} | two, Risk(delta=0.01)),
        "l1": ({"maximum": 4, "norm": "l1"} | two, None),
        "coin": ({"maximum": 4, "randomized": True}, None),
        "target": ({"maximum": 4, "n0": None, "n": None, "radii": [0.1, 0.3]}, Risk(delta=0.01)),
        "plan": ({"maximum": 4, "n0": None, "n": None, "n_max": 1000}, None),
    }
    for name, (options, risk) in variants.items():
        run = make_run(root / name / "run", **options)
        found[name] = made(root / name, run, data, risk)
    return found


@pytest.mark.parametrize("name", ["plain", "delta", "two-class", "l1", "coin", "target", "plan"])
def test_what_a_memory_made_is_sound(name: str, cases: dict[str, Made]) -> None:
    for which in ("first", "second"):
        run = cases[name].root / which
        assert [str(one) for one in verify_run(run).findings] == []
        assert cases[name].found(run) == []


def rewritten(made: Made, target: Path, change: Callable[[dict[str, Any]], None], number: int = 1) -> Path:
    """A copy of the memory's file with other evidence of one region."""
    import sqlite3

    shutil.copy(made.store, target)
    with sqlite3.connect(target) as db:
        (text,) = db.execute("SELECT evidence FROM regions WHERE number = ?", (number,)).fetchone()
    value = json.loads(text)
    change(value)
    edit(target, "UPDATE regions SET evidence = ? WHERE number = ?", (json.dumps(value), number))
    return target


def fresh(**values: Any) -> Change:
    return lambda value: value["measurements"][1].update(values)


def early_look(value: dict[str, Any]) -> None:
    """Counts that were never there, in a look before the last one."""
    part = value["measurements"][1]
    ((n, counts, alpha),) = part["looks"]
    part["looks"] = [[9 * n, [9 * n] * len(counts), alpha * 0.999], [n, counts, alpha * 0.001]]


def generous(value: dict[str, Any]) -> None:
    """A share of alpha that is paid back below nothing."""
    part = value["measurements"][1]
    ((n, counts, alpha),) = part["looks"]
    part["looks"] = [[n - 1, [max(0, k - 1) for k in counts], 0.5], [n, counts, alpha - 0.5]]


def wider(value: dict[str, Any]) -> None:
    value["alpha"] = 0.5
    value["measurements"][1]["looks"][0][2] = 0.5


EVIDENCE: list[tuple[str, Change, str]] = [
    ("plain", fresh(tv=0.0), "region 1: tv is 0.0, 784 numbers at sigma 0.25 have"),
    ("l1", fresh(tv=0.0), "region 1: tv is 0.0, 784 numbers"),
    ("plain", early_look, "the looks do not grow as samples do"),
    ("plain", generous, "the looks do not grow|spend more than alpha"),
    ("plain", lambda v: v["rule"].update(bound="none"), "the rule of region 1 is"),
    ("plain", lambda v: v["rule"].update(offsets=[0.0] * 10), "the rule of region 1 is"),
    ("plain", fresh(wins=[0] * 10), "the wins do not fit the votes|the last look is not the counts"),
    ("plain", lambda v: v["measurements"][0].update(votes=[20] + [0] * 9, least=[20] + [0] * 9), "wins are those of"),
    ("plain", lambda v: v["measurements"].pop(0), "not of its vote, or none"),
    ("two-class", lambda v: v["rule"].update(vote="pairwise"), "the rule of region 1 is"),
    ("two-class", wider, "less than the counts give|other counts"),
    ("coin", fresh(coin=1e-9), "other counts than this row's"),
]


@pytest.mark.parametrize(("name", "change", "says"), EVIDENCE, ids=[f"{i}-{e[0]}" for i, e in enumerate(EVIDENCE)])
def test_evidence_of_a_region_that_cannot_be_is_named(
    name: str, change: Change, says: str, cases: dict[str, Made], tmp_path: Path
) -> None:
    made = cases[name]
    found = made.found(store=rewritten(made, tmp_path / "forged", change))
    assert any(text in line for line in found for text in says.split("|")), found


@pytest.mark.parametrize("name", ["two-class", "l1", "delta"])
def test_a_region_beyond_its_counts_is_named_for_every_rule(name: str, cases: dict[str, Made], tmp_path: Path) -> None:
    made = cases[name]
    for factor, says in ((1.001, "more than the counts give"), (0.99, "less than the counts give")):
        shutil.copy(made.store, tmp_path / "forged")
        edit(tmp_path / "forged", "UPDATE regions SET certified = certified * ?, radius = radius * ?", (factor, factor))
        found = made.found(made.root / "second", tmp_path / "forged")
        assert any(says in line for line in found), found
    edit(tmp_path / "forged", "UPDATE regions SET radius = 9.0")
    assert any("has radius 9.0, of" in line for line in made.found(made.root / "second", tmp_path / "forged"))


def changed(
    source: Path, target: Path, change: Callable[[dict[str, Any]], None], line: int | None = 2, file: str = ""
) -> Path:
    """A copy of a run with one line, all lines (None) or the header changed."""
    shutil.copytree(source, target)
    path = target / (file or "results.jsonl")
    rows = [json.loads(text) for text in path.read_text().splitlines()] if not file else [json.loads(path.read_text())]
    for number, row in enumerate(rows, start=1):
        if file or line in (None, number):
            change(row)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return target


def noted(**values: Any) -> Change:
    return lambda row: row["memory"].update(values)


def cheaper(row: dict[str, Any]) -> None:
    """An alpha that the counts bear out too, at a smaller radius."""
    row["memory"].update(alpha=row["memory"]["alpha"] / 2)


def abstain(row: dict[str, Any]) -> None:
    """A certificate, of a wrong class perhaps, that is kept quiet."""
    row.update(prediction=-1, radius=0.0, reason="abstained", correct=False)
    row["memory"].update(kind="abstained", certified=0.0, region=None)


def smaller(row: dict[str, Any]) -> None:
    row["radius"] /= 2


ALONE: list[tuple[str, Change, str]] = [
    ("first", noted(attempt=None), "attempt is None with alpha"),
    ("first", noted(alpha=None), "attempt is 2 with alpha None"),
    ("first", noted(attempt=None, alpha=None), "attempt is None with alpha None"),
    ("first", noted(attempt=0), "attempt is 0"),
    ("first", noted(attempt=True), "attempt is True"),
    ("first", noted(attempt=1), "attempt is 1, after attempt 1 of input 0"),
    ("first", noted(alpha=0.5), "alpha is 0.5 at attempt 2"),
    ("first", lambda row: (cheaper(row), row["memory"].update(certified=0.0))[0], "less than the counts give"),
    ("first", abstain, "certified is 0.0, less than the counts give"),
    ("first", smaller, "that was certified and kept"),
    ("first", noted(region=None), "names no region"),
    ("first", noted(by=1), "a kept row was cut by region 1"),
    ("first", noted(floor=9.0), "the floor has no counts for every sigma"),
    ("first", lambda row: row.update(reason="answered"), "reason is 'answered', the memory's kind 'kept'"),
    ("second", noted(attempt=1), "an answered row made no attempt"),
    ("second", noted(certified=9.0), "certified is 9.0, more than the bounds give"),
]


@pytest.mark.parametrize("name", ["plain", "delta", "two-class"])
@pytest.mark.parametrize(("which", "change", "says"), ALONE, ids=[f"{i}-{a[2][:12]}" for i, a in enumerate(ALONE)])
def test_a_forged_note_is_named_without_the_memory(
    name: str, which: str, change: Change, says: str, cases: dict[str, Made], tmp_path: Path
) -> None:
    line = next(
        number
        for number, row in enumerate(load_run(cases[name].root / which).rows, start=1)
        if number > 1 and row.memory is not None and row.memory.kind == {"first": "kept", "second": "answered"}[which]
    )
    if says.startswith("attempt is 1, after") and line > 2:
        pytest.skip("another attempt lies between")
    found = verify_run(changed(cases[name].root / which, tmp_path / "run", change, line)).findings
    says = says.replace("attempt is 2", f"attempt is {line}").replace("at attempt 2", f"at attempt {line}")
    assert any(says in one.message for one in found), found
    assert {one.line for one in found} == {line}


def test_a_risk_that_is_not_the_memorys_is_named(cases: dict[str, Made], tmp_path: Path) -> None:
    """Every alpha halved, every radius as the counts give it then: only words and file know better."""
    made = cases["plain"]
    run = load_run(made.root / "first")

    def halve(row: dict[str, Any]) -> None:
        mine = next(one for one in run.rows if one.id == row["id"])
        claim = run.header.claim(mine, 0.0005)
        row["memory"].update(alpha=0.0005, certified=claim.radius)
        row["radius"] = min(row["radius"], claim.radius)

    forged = changed(made.root / "first", tmp_path / "run", halve, None)
    assert [str(one) for one in verify_run(forged).findings] == [
        "header: the memory's alpha is 0.001, attempt 1 has alpha 0.0005"
    ]
    assert any("alpha is 0.0005, the memory gives 0.001 to attempt 1" in line for line in made.found(forged))
    said = lambda h: h["config"]["memory"].update(risk="delta=0.001 for the whole memory")  # noqa: E731
    other = changed(made.root / "first", tmp_path / "other", said, file="header.json")
    assert any("at attempt 2, that of input 0 at 1 is" in str(one) for one in verify_run(other).findings)


def test_attempts_are_those_of_the_file(cases: dict[str, Made], tmp_path: Path) -> None:
    made = cases["plain"]

    def later(row: dict[str, Any]) -> None:
        row["memory"]["attempt"] += 10

    forged = changed(made.root / "first", tmp_path / "run", later, None)
    assert verify_run(forged).ok
    assert verify_run(forged).alone
    found = made.found(forged)
    assert any("attempt is 11, the memory has had" in line for line in found)
    assert any("attempt 11 made region None, the row names 1" in line for line in found)
    for name, value in {"label_aware": True, "snap": True, "levels": 100}.items():
        put = lambda h, name=name, value=value: h.update({name: value})  # noqa: E731
        target = changed(made.root / "first", tmp_path / name, put, file="header.json")
        assert any("a memory takes no run that is" in str(one) for one in verify_run(target).findings)


@pytest.mark.parametrize("name", ["num_classes", "transform", "dtype", "precision", "shape"])
def test_a_run_of_another_binding_is_named(name: str, cases: dict[str, Made], tmp_path: Path) -> None:
    import sqlite3

    made = cases["plain"]
    shutil.copy(made.store, tmp_path / "m")
    with sqlite3.connect(made.store) as db:
        value = json.loads(db.execute("SELECT value FROM meta WHERE key='binding'").fetchone()[0])
    value[name] = {"num_classes": 9, "shape": [1, 1, 784]}.get(name, "other")
    edit(tmp_path / "m", "UPDATE meta SET value = ? WHERE key = 'binding'", (json.dumps(value),))
    assert any(f"the memory's {name} is" in line for line in made.found(store=tmp_path / "m"))


def test_a_note_belongs_to_level_memory(make_run: MakeRun, cases: dict[str, Made], tmp_path: Path) -> None:
    put = lambda h: h.update(level="pointwise")  # noqa: E731
    forged = changed(cases["plain"].root / "first", tmp_path / "run", put, file="header.json")
    assert any("a memory's note belongs to level memory" in str(one) for one in verify_run(forged).findings)


def test_an_input_outside_the_region_that_answers_it_is_named(cases: dict[str, Made], tmp_path: Path) -> None:
    made = cases["plain"]
    rows = [row for row in load_run(made.root / "second").rows if row.memory is not None and row.memory.by is not None]
    other = next(row for row in rows if row.prediction != rows[0].prediction)

    def moved(row: dict[str, Any]) -> None:
        row.update(prediction=other.prediction, radius=0.0, correct=False)
        row["memory"]["by"] = other.memory.by if other.memory is not None else None

    line = 1 + [row.id for row in load_run(made.root / "second").rows].index(rows[0].id)
    forged = changed(made.root / "second", tmp_path / "run", moved, line)
    assert any("does not hold this input" in text for text in made.found(forged))
    far = verify_run(forged, store=made.store)
    assert far.ok
    assert far.far_unchecked == len(rows)
    short = changed(made.root / "second", tmp_path / "short", smaller, line)
    assert any("leaves" in text and "less than" in text for text in made.found(short))


def test_what_is_not_checked_is_said(
    cli: Callable[..., Answer], cases: dict[str, Made], tmp_path: Path, data: dds.Dataset
) -> None:
    made = cases["coin"]
    second = verify_run(made.root / "second", store=made.store, point=lambda i: data.x[i].ravel())
    answered = sum(row.reason == "answered" for row in load_run(made.root / "second").rows)
    assert (second.coins_unchecked, second.far_unchecked, second.unchecked) == (answered, 0, 0)
    said = cli("verify", made.root / "second", "--store", made.store)
    assert f"{4 - answered} of 4 rows: every bound" in said.out
    assert "coins of another run" in said.out
    alone = cli("verify", made.root / "first")
    assert "not checked beside the memory's file" in alone.out
    assert json.loads(cli("verify", made.root / "first", "--json").out)["memory_given"] is False


def test_a_card_wants_the_data_set_of_answered_rows(
    cli: Callable[..., Answer], half: Half, tmp_path: Path, npz: Callable[..., Path]
) -> None:
    """Floats on the 8-bit grid, as files of floats hold them: distances are those of the integers."""
    x = np.full((4, 3), 7, dtype=np.uint8)
    x[:, 0] = [0, 1, 2, 250]
    floats, y = (x / 255).astype(np.float32), (x[:, 0] > 100).astype(np.int64)
    data = dds.Dataset(name="pixels", split="test", x=floats, y=y)
    smoothed = dds.SmoothedClassifier(half, dds.L2Certificate(), num_classes=2)
    run = certify_run(smoothed, data, CertifyRequest(0.25, n0=20, n=200, seed=0), tmp_path / "run", model_name="half")
    made(tmp_path, run, data)
    assert Made(tmp_path, data).found() == []
    assert any(row.reason == "answered" and row.radius > 0 for row in load_run(tmp_path / "first").rows)
    answer = cli("card", tmp_path / "first", "--out", tmp_path / "card.json", "--store", tmp_path / "memory")
    assert answer.code == 1
    assert "give the data set with --data" in answer.err


def test_every_region_is_proved_once(
    cases: dict[str, Made], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: dds.Dataset
) -> None:
    proved: list[int] = []
    check = beside.check_region
    monkeypatch.setattr(
        beside, "check_region", lambda region, memory: (proved.append(region["number"]), check(region, memory))[1]
    )
    made = cases["plain"]

    def same(row: dict[str, Any]) -> None:
        row["memory"]["by"] = 1

    forged = changed(made.root / "second", tmp_path / "run", same, None)
    made.found(forged)
    assert proved == [1]


def test_a_file_that_is_no_memory_is_one_line(cases: dict[str, Made], tmp_path: Path) -> None:
    import sqlite3

    shutil.copy(cases["plain"].store, tmp_path / "m")
    with sqlite3.connect(tmp_path / "m") as db:
        for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type='trigger'").fetchall():
            db.execute(f"DROP TRIGGER {name}")
        db.execute("DROP TABLE points")
    with pytest.raises(StoreError, match="is not a readable memory"):
        verify_run(cases["plain"].root / "first", store=tmp_path / "m")


@pytest.fixture(scope="module")
def floored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("floor")
    x = np.full((4, 3), 7, dtype=np.uint8)
    x[:, 0] = [0, 40, 200, 255]
    data = dds.Dataset(name="pixels", split="test", x=x, y=(x[:, 0] > 100).astype(np.int64))
    model = Half([1.0, 0.0, 0.0], 100.5 / 255)
    smoothed = dds.SmoothedClassifier(model, dds.L2Certificate(), num_classes=2, vote="plurality")
    policy = SigmaPolicy.search(0.1, sigma_grid=[0.05, 0.1, 0.2])
    run = certify_run(smoothed, data, CertifyRequest(policy, n0=50, n=2000, seed=0), root / "run", model_name="half")
    floors = order_proof_floor(run, smoothed, data, n=3000, seed=9)
    made(root, run, data, floors=floors)
    return root / "first"


def in_floor(**values: Any) -> Change:
    return lambda row: row["memory"]["floor_measurements"][0].update(values)


def without_class(row: dict[str, Any]) -> None:
    row.update(prediction=-1, radius=0.0, correct=False, reason="abstained")
    row["memory"].update(kind="abstained", certified=0.0)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (in_floor(tv=0.0), "of the floor: tv is 0.0, 3 numbers at sigma 0.05"),
        (in_floor(coin=1e-9), "the counts of the floor contradict themselves"),
        (in_floor(votes=[3001, -1]), "the counts of the floor contradict themselves"),
        (without_class, "without a class that the run's own certificate gives"),
        (lambda row: row["memory"].update(floor=row["memory"]["floor"] * 1.01), "more than the counts at sigma"),
    ],
)
def test_a_floor_that_its_counts_do_not_give_is_named(floored: Path, tmp_path: Path, change: Change, says: str) -> None:
    assert verify_run(floored).ok
    found = verify_run(changed(floored, tmp_path / "run", change, 1)).findings
    assert any(says in one.message for one in found), found


def test_an_id_is_a_whole_number(make_run: MakeRun, tmp_path: Path) -> None:
    """Else one input might stand there twice."""
    make_run(tmp_path / "run", maximum=3)

    def written(row: dict[str, Any]) -> None:
        row["id"] = float(row["id"])

    (finding,) = verify_run(changed(tmp_path / "run", tmp_path / "forged", written)).findings
    assert "id is 50.0" in finding.message
