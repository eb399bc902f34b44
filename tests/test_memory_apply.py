"""A memory over finished runs, the order-free rule, the order study, the floor, and the command line."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ddsmoothing as dds
from ddsmoothing.bounds import clopper_pearson_lower, top_two_bounds
from ddsmoothing.campaigns import CertifyRequest, certify_run
from ddsmoothing.claims import Look
from ddsmoothing.errors import InputError, RunError, StoreError
from ddsmoothing.memory import Risk, Store
from ddsmoothing.memory.apply import Applied, apply_memory, open_store
from ddsmoothing.memory.floor import NO_FLOOR, order_proof_floor
from ddsmoothing.memory.inputs import found_at, inputs_of
from ddsmoothing.memory.study import order_study
from ddsmoothing.memory.verify import verify_store
from ddsmoothing.runs import ResultRow, Run, load_run
from ddsmoothing.sigma import SigmaPolicy
from ddsmoothing.verify import verify_run
from memory_helpers import balls, check_disjoint
from reference import Half

DATA = ("--data", "fashion-mnist-sample")


class Grid(torch.nn.Module):
    """Vectors of two 8-bit numbers; the class never changes, so that planted classes and radii replace its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(torch.zeros(len(x), dtype=torch.int64), 3).float()


def planted(
    folder: Path, x: np.ndarray, predictions: list[int], radii: list[float], labels: list[int] | None = None
) -> tuple[Run, dds.Dataset]:
    """A run whose classes and radii are given: each row's counts and sigma are such that they follow."""
    data = dds.Dataset(name="planted", split="test", x=x.astype(np.uint8), y=np.array(labels or predictions).clip(0))
    smoothed = dds.SmoothedClassifier(Grid(), dds.L2Certificate(), num_classes=3)
    made = certify_run(smoothed, data, CertifyRequest(0.25, n0=10, n=100, seed=0), folder, model_name="grid")
    rows = tuple(with_radius(row, p, r) for row, p, r in zip(made.rows, predictions, radii, strict=True))
    header = made.header.model_copy(update={"sigma": None, "sigma_policy": "file"})
    return Run(path=made.path, header=header, rows=rows), data


Z = dds.L2Certificate().radius(
    1.0, *top_two_bounds(clopper_pearson_lower(100, 100, 0.001), 0, 100, 0.001, "one-class", 0.0)
)


def with_radius(row: ResultRow, prediction: int, radius: float) -> ResultRow:
    """The row with counts of 100 wins out of 100 for a class, at the sigma that gives this radius; or of none."""
    top, n = max(prediction, 0), 100 if prediction >= 0 else 0
    votes = tuple(10 * (c == top) for c in range(3))
    wins = tuple(100 if c == top else n for c in range(3))
    sigma = radius / Z if prediction >= 0 else 0.25
    pilot = replace(row.pilot, votes=votes, least=votes, sigma=sigma, tv=0.0)
    look = Look(100, wins, 0.001)
    fresh = replace(row.fresh, anchor=top, wins=wins, looks=(look,), sigma=sigma, tv=0.0)
    changed = {"prediction": prediction, "radius": radius, "sigma": sigma, "correct": prediction == row.label}
    return row.model_copy(update=changed | {"measurements": (pilot, fresh)})


def conflict(folder: Path, size: int = 60, seed: int = 0) -> tuple[Run, dds.Dataset]:
    """Points in the square with overlapping certificates of three classes, near-duplicates and abstentions."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, (size, 2))
    x[1::6] = np.clip(x[::6] + 1, 0, 255)
    predictions = rng.integers(-1, 3, size)
    radii = np.where(predictions < 0, 0.0, rng.uniform(0.02, 0.3, size))
    labels = rng.integers(0, 3, size).tolist()
    return planted(folder, x, predictions.tolist(), radii.tolist(), labels)


def applied(run: Run, data: dds.Dataset, folder: Path, risk: Risk | None = None, **options: object) -> Applied:
    store = open_store(folder / "memory", run, data, risk)
    return apply_memory(run, data, store, folder / "out", **options)  # type: ignore[arg-type]


def test_a_fixed_sigma_changes_nothing(tmp_path: Path, run_l2: Run, data: dds.Dataset) -> None:
    """A real run: no class changes and no radius shrinks, beyond the guard band of floating point."""
    for free in (False, True):
        (tmp_path / str(free)).mkdir()
        done = applied(run_l2, data, tmp_path / str(free), order_free=free)
        assert done.run.level == "memory"
        assert (done.run.prediction == run_l2.prediction).all()
        assert (done.run.correct == run_l2.correct).all()
        assert np.allclose(done.run.radius, run_l2.radius, rtol=0, atol=1e-11)
        assert (done.run.radius <= run_l2.radius).all()
        assert done.kept + done.abstained == len(run_l2)
        assert dds.acr(done.run) == pytest.approx(dds.acr(run_l2), abs=1e-11)


def test_l1_runs(tmp_path: Path, run_l1: Run, data: dds.Dataset) -> None:
    done = applied(run_l1, data, tmp_path)
    assert np.allclose(done.run.radius, run_l1.radius, rtol=0, atol=1e-10)
    assert done.run.header.norm == "l1"


def test_every_reason(tmp_path: Path) -> None:
    x = np.array([[0, 0], [51, 0], [10, 0], [200, 200], [12, 0], [0, 51]])
    run, data = planted(tmp_path / "run", x, [1, 2, 2, -1, -1, 0], [0.15, 0.1, 0.3, 0.0, 0.0, 0.04], [1, 2, 1, 0, 1, 0])
    done = applied(run, data, tmp_path)
    rows = done.run.rows
    assert [row.reason for row in rows] == [
        *("kept", "cut", "answered", "abstained", "answered", "kept"),
    ]
    assert [row.prediction for row in rows] == [1, 2, 1, -1, 1, 0]
    assert [row.correct for row in rows] == [True, True, True, False, True, True]
    assert rows[1].radius == pytest.approx(0.2 - 0.15)
    assert rows[2].radius == pytest.approx(0.15 - 10 / 255)
    assert rows[1].memory is not None
    assert rows[1].memory.certified == pytest.approx(0.1)
    assert rows[2].memory is not None
    assert rows[2].memory.prediction == 2  # what the run had said
    counts = (done.kept, done.cut, done.answered, done.abstained, done.flipped, done.gained, done.emptied)
    assert counts == (2, 1, 2, 1, 1, 1, 0)
    store = Store.open(tmp_path / "memory")
    assert store.attempts == 4  # rows answered from memory cost nothing
    assert verify_store(store).ok
    note = load_run(tmp_path / "out").header.config["memory"]
    assert note["rule"] == "online"
    assert (note["rows"]["cut"], note["rows"]["flipped"], note["rows"]["answered"]) == (1, 1, 2)


def test_a_row_cut_to_nothing_is_no_certificate(tmp_path: Path) -> None:
    run, data = planted(tmp_path / "run", np.array([[0, 0], [51, 0]]), [1, 2], [0.2, 0.1])
    done = applied(run, data, tmp_path)
    row = done.run.rows[1]
    assert (row.prediction, row.radius, row.correct, row.reason) == (2, 0.0, False, "cut")
    assert done.emptied == 1
    assert dds.certified_accuracy(done.run, [0.0]).tolist() == [0.5]


@pytest.mark.parametrize("free", [False, True])
def test_conflicts_are_settled(tmp_path: Path, free: bool) -> None:
    run, data = conflict(tmp_path / "run")
    done = applied(run, data, tmp_path, order_free=free)
    store = Store.open(tmp_path / "memory")
    check_disjoint(store)
    assert verify_store(store).ok
    assert done.cut > 5
    assert len(done.run) == len(run) == done.kept + done.cut + done.answered + done.abstained
    for before, after in zip(run.rows, done.run.rows, strict=True):
        if after.memory is not None and after.memory.kind != "answered":
            assert after.radius <= before.radius
        if free and before.prediction >= 0:
            assert after.prediction == before.prediction
    if free:
        assert done.flipped == 0
    else:
        assert done.answered > 5


def test_order_free_does_not_depend_on_the_order(tmp_path: Path) -> None:
    run, data = conflict(tmp_path / "run")
    first = {row.id: row.radius for row in applied(run, data, tmp_path, order_free=True).run.rows}
    shuffled = Run(path=run.path, header=run.header, rows=run.rows[::-1])
    (tmp_path / "back").mkdir()
    back = applied(shuffled, data, tmp_path / "back", order_free=True)
    assert first == {row.id: row.radius for row in back.run.rows}


def test_a_run_applied_twice_is_answered_from_memory(tmp_path: Path) -> None:
    run, data = conflict(tmp_path / "run")
    done = applied(run, data, tmp_path)
    store = Store.open(tmp_path / "memory")
    again = apply_memory(run, data, store, tmp_path / "again")
    assert again.kept == 0
    for one, other in zip(done.run.rows, again.run.rows, strict=True):
        if one.radius > 0:
            assert other.prediction == one.prediction
            assert other.radius >= one.radius - 1e-12
    with pytest.raises(StoreError, match="needs an empty memory"):
        apply_memory(run, data, store, tmp_path / "free", order_free=True)
    assert not (tmp_path / "free").exists()


def test_delta_recomputes_radii_from_the_counts(tmp_path: Path, run_l2: Run, data: dds.Dataset) -> None:
    done = applied(run_l2, data, tmp_path, Risk(delta=0.01))
    for row, before in zip(done.run.rows, run_l2.rows, strict=True):
        note = row.memory
        assert note is not None
        if note.attempt is not None and before.prediction >= 0 and note.attempt > 2:
            assert note.alpha == Risk(delta=0.01).of(note.attempt) < run_l2.header.alpha
            assert row.radius < before.radius
            fresh = found_at(run_l2.header, before, note.alpha)
            assert note.certified == fresh.radius
            again = dds.L2Certificate().radius(before.sigma, *_bounds(min(before.fresh.wins), note.alpha))
            assert fresh.radius == pytest.approx(again, rel=1e-6)
    with pytest.raises(StoreError, match=r"was started with delta=0.01"):
        open_store(tmp_path / "memory", run_l2, data, Risk(alpha=0.1))


def _bounds(k: int, alpha: float, n: int = 200) -> tuple[float, float]:
    from scipy.stats import beta

    p = float(beta.ppf(alpha, k, n - k + 1))
    return p, 1 - p


def test_runs_that_a_memory_cannot_take(
    tmp_path: Path, run_l2: Run, data: dds.Dataset, make_run: Callable[..., Run]
) -> None:
    def changed(**fields: object) -> Run:
        return Run(path=run_l2.path, header=run_l2.header.model_copy(update=fields), rows=run_l2.rows)

    with pytest.raises(RunError, match="label-aware"):
        inputs_of(changed(label_aware=True), data)
    with pytest.raises(RunError, match="--snap"):
        inputs_of(changed(snap=True), data)
    with pytest.raises(RunError, match="of level memory"):
        inputs_of(changed(level="memory"), data)
    with pytest.raises(RunError, match="partial"):
        inputs_of(Run(path=run_l2.path, header=run_l2.header, rows=run_l2.rows[:-1]), data)
    with pytest.raises(InputError, match="not the data set of"):
        inputs_of(run_l2, dds.Dataset(name="other", split="test", x=data.x, y=data.y))
    moved = data.x.copy()
    moved[50:600:50] ^= 1  # between the inputs that the fingerprint covers
    with pytest.raises(InputError, match="is not the one that"):
        inputs_of(run_l2, dds.Dataset(name=data.name, split=data.split, x=moved, y=data.y))
    nameless = run_l2.header.model.model_copy(update={"sha256": None})
    with pytest.raises(RunError, match="no hash and no id"):
        inputs_of(changed(model=nameless), data)
    store = open_store(tmp_path / "memory", run_l2, data, None)
    other = run_l2.header.model.model_copy(update={"sha256": "0" * 64})
    with pytest.raises(StoreError, match="belongs to model"):
        apply_memory(changed(model=other), data, store, tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    with pytest.raises(RunError, match="not empty"):
        apply_memory(run_l2, data, store, tmp_path / "full")
    assert len(store) == store.attempts == 0
    store.seal()
    with pytest.raises(StoreError, match="sealed"):
        apply_memory(run_l2, data, store, tmp_path / "out")


def test_target_runs_are_marked(tmp_path: Path, data: dds.Dataset, make_run: Callable[..., Run]) -> None:
    run = make_run(tmp_path / "run", n0=None, n=None, radii=[0.1], maximum=4)
    done = applied(run, data, tmp_path)
    assert done.run.header.config["memory"]["radii_stopped_at_a_target"] is True
    assert all(row.radius <= before.radius for row, before in zip(done.run.rows, run.rows, strict=True))


def test_the_order_study_agrees_with_applying(tmp_path: Path) -> None:
    run, data = conflict(tmp_path / "run")
    found = order_study(run, inputs_of(run, data), permutations=6)
    done = applied(run, data, tmp_path)
    assert found.acr[0] == pytest.approx(dds.acr(done.run), abs=1e-12)
    assert found.accuracy[0] == dds.certified_accuracy(done.run, [0.0])[0]
    assert (found.cut[0], found.answered[0], found.flipped[0]) == (done.cut, done.answered, done.flipped)
    (tmp_path / "free").mkdir()
    free = applied(run, data, tmp_path / "free", order_free=True)
    assert found.free_accuracy <= dds.certified_accuracy(free.run, [0.0])[0]  # abstained rows may be answered
    assert found.pairs > 0
    assert len(set(found.acr.tolist())) > 1
    with pytest.raises(InputError, match="permutations is 0"):
        order_study(run, inputs_of(run, data), permutations=0)


def digits() -> tuple[np.ndarray, np.ndarray]:
    """8x8 images of ten shapes with pixel noise, some of them almost another class's: real conflicts in small."""
    rng = np.random.default_rng(0)
    shapes = rng.integers(0, 2, (10, 64)) * 160 + 40
    y = rng.integers(0, 10, 60)
    x = shapes[y] + rng.normal(0, 12, (60, 64))
    x[::4] = 0.55 * x[::4] + 0.45 * shapes[(y[::4] + 1) % 10]
    return np.clip(x, 0, 255).astype(np.uint8).reshape(60, 1, 8, 8), y


class Nearest(torch.nn.Module):
    """The class of the nearest shape."""

    def __init__(self, shapes: np.ndarray) -> None:
        super().__init__()
        self.register_buffer("shapes", torch.from_numpy(shapes).float())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -torch.cdist(x.flatten(1).float(), self.shapes)


def test_data_dependent_certificates_of_small_images(tmp_path: Path) -> None:
    """A real search on 8x8 images, and near-duplicates whose sigma was chosen by another search."""
    x, y = digits()
    shapes = np.stack([x[y == c].reshape(-1, 64).mean(0) for c in range(10)]) / 255
    data = dds.Dataset(name="digits", split="test", x=x, y=y)
    smoothed = dds.SmoothedClassifier(Nearest(shapes), dds.L2Certificate(), num_classes=10)
    policy = SigmaPolicy.search(0.25, sigma_grid=[0.12, 0.25, 0.5, 1.0])
    run = certify_run(
        smoothed, data, CertifyRequest(policy, n0=20, n=200, seed=0), tmp_path / "run", model_name="nearest"
    )
    done = applied(run, data, tmp_path)
    check_disjoint(Store.open(tmp_path / "memory"))
    assert done.kept > 10
    assert done.answered > 20  # near-duplicates
    floors = order_proof_floor(run, smoothed, data, n=200, seed=1)
    radii = np.array([floor.radius for floor in floors])
    assert ((radii >= 0) & (radii <= np.maximum(run.radius, 3.0))).all()
    assert {len(floor.measurements) for floor in floors} <= {0, 4}


def linear_run(folder: Path) -> tuple[Run, dds.Dataset, dds.SmoothedClassifier]:
    x = np.full((12, 3), 7, dtype=np.uint8)
    x[:, 0] = [0, 20, 40, 60, 80, 95, 106, 120, 140, 160, 200, 255]
    data = dds.Dataset(name="pixels", split="test", x=x, y=(x[:, 0] > 100).astype(np.int64))
    smoothed = dds.SmoothedClassifier(Half([1.0, 0.0, 0.0], 100.5 / 255), dds.L2Certificate(), num_classes=2)
    policy = SigmaPolicy.search(0.1, sigma_grid=[0.05, 0.1, 0.2])
    return (
        certify_run(
            smoothed, data, CertifyRequest(policy, n0=50, n=2000, seed=0), folder, model_name="half", model_id="half"
        ),
        data,
        smoothed,
    )


def test_the_floor_holds_for_every_sigma(tmp_path: Path) -> None:
    """A linear model has the same true radius at every sigma: the distance to its boundary."""
    run, data, smoothed = linear_run(tmp_path / "run")
    floors = order_proof_floor(run, smoothed, data, n=3000, seed=9)
    margin = np.abs(data.x[:, 0] / 255 - 100.5 / 255)
    radii = np.array([floor.radius for floor in floors])
    assert (radii <= margin).all()
    assert (radii[margin > 0.1] > 0.08).all()
    assert (radii[run.prediction == -1] == 0).all()
    done = applied(run, data, tmp_path, floors=floors)
    notes = [row.memory for row in done.run.rows if row.memory is not None]
    assert [note.floor for note in notes] == radii.tolist()
    assert [note.floor_measurements for note in notes] == [floor.measurements for floor in floors]
    assert verify_run(done.run.path).ok
    with pytest.raises(InputError, match="the run's own"):
        order_proof_floor(run, smoothed, data, seed=0)
    other = dds.SmoothedClassifier(Half([0.0, 1.0, 0.0], 0.5), dds.L2Certificate(), num_classes=2)
    with pytest.raises(InputError, match="not the model"):
        order_proof_floor(run, other, data)


def test_the_floor_needs_a_finite_set_of_sigmas(tmp_path: Path, run_l2: Run, data: dds.Dataset) -> None:
    smoothed = dds.SmoothedClassifier(dds.load_model("fashion-mnist-cnn"), dds.L2Certificate(), num_classes=10)
    with pytest.raises(InputError, match="--sigma-grid"):
        order_proof_floor(run_l2, smoothed, data)
    run, pixels, _ = linear_run(tmp_path / "run")
    store = open_store(tmp_path / "memory", run, pixels, None)
    with store.writing():
        point = np.zeros(3, dtype=np.uint8)
        store.append(point, label=0, radius=0.001, certified=0.1, sigma=0.7, attempt=store.reserve())
    with pytest.raises(StoreError, match=r"has sigma 0\.7"):
        apply_memory(run, pixels, store, tmp_path / "out", floors=[NO_FLOOR] * 12)


def test_command_line(tmp_path: Path, cli: Callable[..., object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = ("--model", "fashion-mnist-cnn")
    quick = ("--n0", 10, "--n", 100, "--max", 3, "--seed", 1, "--data-dependent", "--sigma-grid", "0.25,0.5")
    assert cli("certify", *model, *DATA, *quick, "--out", "run").code == 0
    done = cli("memory", "apply", "run", "--store", "m", *DATA, "--out", "out", "--delta", 0.1)
    assert done.code == 0, done.err
    assert "kept 3, cut 0" in done.out
    assert "AFTER" in done.out
    floor = ("--floor", *model, "--floor-n", 100, "--order-free")
    done = cli("memory", "apply", "run", "--store", "f", *DATA, "--out", "floor", *floor)
    assert "floor in any order" in done.out
    assert cli("memory", "apply", "run", "--store", "g", *DATA, "--out", "g-out", "--floor").code == 2
    assert load_run("out").level == "memory"
    assert cli("analyze", "run", "out").code == 0
    info = json.loads(cli("memory", "info", "m", "--json").out)
    assert (info["regions"], info["attempts"], info["risk"]) == (3, 3, "delta=0.1 for the whole memory")
    assert "regions: 3" in (said := cli("memory", "info", "m").out)
    assert "sealed: no" in said and "None" not in said
    assert "3 regions of 3 attempts hold" in cli("memory", "verify", "m").out
    assert "pairs left out" in cli("memory", "verify", "m", "--quick").out
    study = json.loads(cli("memory", "order-study", "run", *DATA, "--permutations", 3, "--json").out)
    assert len(study["acr"]) == 3
    assert "order-free" in cli("memory", "order-study", "run", *DATA, "--permutations", 3).out
    np.savez("new.npz", x=dds.load_data("fashion-mnist-sample").x[:2])
    Image.fromarray(dds.load_data("fashion-mnist-sample").x[7, 0]).save("new.png")
    (tmp_path / "bad.png").write_text("no image")
    ask = ("memory", "query", "--store", "m", *model, "--n0", 10, "--n", 200)
    rows = [json.loads(line) for line in cli(*ask, "--input", "new.npz", "--json").out.splitlines()]
    assert [row["reason"] for row in rows] == ["answered", "answered"]
    assert rows[0]["level"] == "memory"
    one = cli(*ask, "--input", "new.png", "--sigma", 0.25)
    assert one.out.splitlines()[1].split("\t")[-1] in ("kept", "abstained")
    assert cli(*ask, "--input", "bad.png").code == 1
    assert cli(*ask, "--input", "new.txt").code == 1
    assert cli(*ask, "--input", "new.npz", "--sigma", 0.25, "--sigma0", 0.5).code == 2
    assert "was started with delta=0.1" in cli(*ask, "--input", "new.npz", "--alpha", 0.5).err
    new = cli("memory", "query", "--store", "n", *model, "--n", 200, "--input", "new.npz", "--grow")
    assert new.code == 0
    assert len(cli("memory", "seal", "m").out.split()[0]) == 64
    assert "sealed" in cli("memory", "apply", "run", "--store", "m", *DATA, "--out", "o").err
    sealed = cli(*ask, "--input", "new.png", "--json")
    assert json.loads(sealed.out)["level"] in (None, "memory")
    assert cli("memory", "info", "nothing").code == 1
    data = bytearray((tmp_path / "f").read_bytes())
    start = data.index(hashlib.sha256(dds.load_data("fashion-mnist-sample").x[0].tobytes()).digest())
    data[start] ^= 1
    (tmp_path / "f").write_bytes(data)
    assert "damaged" in cli("memory", "verify", "f").err


def test_a_thousand_rows_are_one_transaction(tmp_path: Path) -> None:
    """Smaller kin of benchmarks/memory.py: a commit waits for the disk, so a commit a row would take minutes."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (1000, 2))
    run, data = planted(tmp_path / "run", x, rng.integers(0, 3, 1000).tolist(), rng.uniform(0, 0.01, 1000).tolist())
    statements: list[str] = []
    store = open_store(tmp_path / "memory", run, data, None)
    store.database.connection.set_trace_callback(statements.append)
    apply_memory(run, data, store, tmp_path / "out")
    assert sum(one.startswith("INSERT") for one in statements) > 1000
    assert sum(one == "COMMIT" for one in statements) == 1
    assert sum(one.startswith("BEGIN") for one in statements) == 1
    store = Store.open(tmp_path / "memory")
    assert all(math.isfinite(radius) for _, radius, _ in balls(store))
