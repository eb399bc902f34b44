"""The certified memory as a classifier: its promises, its risk, its noise, and what it is bound to."""

from __future__ import annotations

import hashlib
import inspect
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ddsmoothing as dds
from ddsmoothing import streams
from ddsmoothing.bounds import clopper_pearson_lower
from ddsmoothing.errors import InfeasibleError, InputError, ShapeError, StoreError
from ddsmoothing.memory import CertifiedMemory, Risk, Store
from ddsmoothing.memory.verify import verify_store
from ddsmoothing.sigma import SigmaPolicy
from memory_helpers import ALPHA, Planted, binding, brute_look_up, check_disjoint, memory_of, table
from reference import Half, violations_allowed


def at(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float64)


def test_first_come_first_served() -> None:
    points = np.array([[0.0, 0.0], [1.0, 0.0], [0.3, 0.0], [5.0, 0.0]])
    says = table(points, [1, 2, 2, -1], [0.6, 0.7, 0.2, 0.0])
    memory = memory_of(says)
    rows = memory.query(torch.from_numpy(points)).rows
    assert [row.reason for row in rows] == ["kept", "cut", "answered", "abstained"]
    assert [row.prediction for row in rows] == [1, 2, 1, -1]
    assert rows[1].by == 1
    assert rows[0].radius == pytest.approx(0.6)
    assert rows[1].radius == pytest.approx(0.4)
    assert rows[1].certified == 0.7
    assert rows[2].radius == pytest.approx(0.3)
    assert [noise for noise, _ in says.calls] == [memory.store.noise_id(t) for t in (1, 2, 3)]  # inside: nothing asked
    assert memory.store.attempts == 3
    assert len(memory) == 2
    assert memory.query(at(0.3, 0.0)).level == "memory"
    check_disjoint(memory.store)
    assert verify_store(memory.store).ok


def test_nested_touching_and_repeated_inputs() -> None:
    points = np.array([[0.0, 0.0], [0.5, 0.0], [1.0, 0.0], [1.0, 0.0]])
    memory = memory_of(table(points, [0, 1, 1, 1], [0.5, 0.5, 2.0, 2.0]))
    rows = memory.query(torch.from_numpy(points)).rows
    assert [row.reason for row in rows] == ["kept", "cut", "cut", "answered"]
    assert rows[1].region is None  # a class, but no certificate: its ball would have had no radius
    assert rows[1].radius == 0.0
    assert rows[2].radius == pytest.approx(0.5)
    assert rows[3].radius == pytest.approx(0.5)
    assert len(memory) == 2


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=25),
    st.lists(st.floats(1e-4, 0.8), min_size=25, max_size=25),
    st.lists(st.integers(-1, 2), min_size=25, max_size=25),
    st.sampled_from(["l2", "l1"]),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_every_answer_is_kept(
    points: list[tuple[int, int]], radii: list[float], labels: list[int], norm: str, grow: bool
) -> None:
    """Whatever comes, in whatever order: later queries inside an advertised ball get its class."""
    x = np.array(points) / 20
    asked: dict[bytes, tuple[int, float]] = {}
    for row, label, radius in zip(x, labels, radii, strict=False):
        asked.setdefault(row.tobytes(), (label, radius if label >= 0 else 0.0))
    memory = memory_of(Planted(lambda z: asked.get(z.tobytes(), (0, 0.3))), norm=norm)
    rng, said = np.random.default_rng(0), []
    for row in x:
        answer = memory.query(torch.from_numpy(row[None]), grow=grow).rows[0]
        said.append((row, answer))
        assert answer.radius <= max(answer.certified, 1e9 if answer.reason == "answered" else 0.0)
    check_disjoint(memory.store)
    for row, answer in said:
        if answer.radius > 0:
            u = rng.normal(size=(5, 2))
            u /= np.sqrt((u**2).sum(1, keepdims=True)) if norm == "l2" else np.abs(u).sum(1, keepdims=True)
            for probe in [row, *(row + answer.radius * (1 - 1e-9) * u)]:
                assert brute_look_up(memory.store, probe) == {answer.prediction}
                later = memory.query(torch.from_numpy(probe[None])).rows[0]
                assert (later.reason, later.prediction) == ("answered", answer.prediction)


def test_growth_is_an_attempt_and_only_ever_adds() -> None:
    says = Planted(lambda x: (0, 0.2) if x[0] < 0.05 else (0, 0.9) if x[0] < 0.5 else (1, 0.3))
    memory = memory_of(says)
    memory.query(at(0.0, 0.0))
    memory.query(at(1.0, 0.0))
    grown = memory.query(at(0.1, 0.0), grow=True).rows[0]
    assert grown.reason == "cut"
    assert grown.radius == pytest.approx(0.6)
    assert memory.store.attempts == len(memory) == 3
    again = memory.query(at(0.1, 0.0), grow=True).rows[0]
    assert again.reason == "answered"  # nothing larger was found
    assert memory.store.attempts == 4
    assert len(memory) == 3
    check_disjoint(memory.store)


def test_the_second_look_up_finds_what_was_stored_meanwhile(tmp_path: Path) -> None:
    first = memory_of(Planted(lambda x: (0, 0.5)), path=tmp_path / "m")

    def slow(x: np.ndarray) -> tuple[int, float]:
        first.query(at(0.0, 0.0))  # another process is faster
        return 1, 0.7

    second = CertifiedMemory(Store.open(tmp_path / "m"), Planted(slow))
    assert second.query(at(0.1, 0.0)).rows[0].reason == "answered"
    other = CertifiedMemory(Store.open(tmp_path / "m"), Planted(lambda x: (1, 0.7)))
    row = other.query(at(1.0, 0.0)).rows[0]
    assert (row.reason, row.by) == ("cut", 1)
    assert row.radius == pytest.approx(0.5)
    assert len(first) == len(second) == 2
    check_disjoint(first.store)


def test_sealed_memories_answer_without_a_certificate_outside(tmp_path: Path) -> None:
    memory = memory_of(Planted(lambda x: (int(x[0] > 0.5), 0.2)), path=tmp_path / "m")
    other = CertifiedMemory(Store.open(tmp_path / "m"), Planted(lambda x: (0, 0.2)))
    memory.query(at(0.0, 0.0))
    hashed = memory.seal()
    assert memory.seal() == hashed == memory.store.sealed
    assert memory.query(at(0.1, 0.0)).rows[0].reason == "answered"
    for one in (memory, other, CertifiedMemory(Store.open(tmp_path / "m"), Planted(lambda x: (1, 9.0)))):
        row = one.query(at(0.9, 0.0), grow=True).rows[0]
        assert (row.reason, row.radius, row.attempt) == ("uncertified", 0.0, None)
        assert one.store.attempts == 1
        assert verify_store(one.store).ok
    with pytest.raises(StoreError), memory.store.writing():
        memory.store.append(np.zeros(2), label=0, radius=1.0, certified=1.0, sigma=1.0, attempt=2)
    with pytest.raises(StoreError, match="sealed"):
        other.store.reserve()
    with pytest.raises(StoreError, match=r"sealed|written"):
        Store.open(tmp_path / "m").reserve()


def test_sealing_while_another_certifies(tmp_path: Path) -> None:
    first = memory_of(Planted(lambda x: (0, 0.5)), path=tmp_path / "m")
    second = CertifiedMemory(Store.open(tmp_path / "m"), Planted(lambda x: (first.seal(), (1, 0.7))[1]))
    row = second.query(at(0.1, 0.0)).rows[0]
    assert (row.reason, row.prediction, row.radius) == ("uncertified", 1, 0.0)
    assert len(first) == 0


class CountsRegions(Risk):
    """The mistake: alpha_t by the number of regions stored so far, as if attempts that abstained were free."""

    def of(self, attempt: int) -> float:
        return super().of(1)  # the memories below end at their first region


def share_of_false_memories(kind: type[Risk], delta: float, memories: int, attempts: int) -> int:
    """Memories with a false region: every input lies on the boundary, so ANY region is false; counts are real ones."""
    rng, n, false = np.random.default_rng(0), 400, 0
    for _ in range(memories):

        class Boundary(Planted):
            def certify(self, x: torch.Tensor, *, alpha: float, seed: int, noise_id: int):
                sure = clopper_pearson_lower(int(rng.binomial(n, 0.5)), n, alpha) > 0.5
                self.says = lambda _: (0, 0.1) if sure else (-1, 0.0)
                return super().certify(x, alpha=alpha, seed=seed, noise_id=noise_id)

        store = Store.create(None, binding(), Risk(delta=delta), seed=1)
        store.risk = kind(delta=delta)
        memory = CertifiedMemory(store, Boundary(lambda _: (-1, 0.0)))
        for i in range(attempts):
            memory.query(at(float(i), 0.0))
            if len(memory):
                false += 1
                break
        store.close()
    return false


def test_the_risk_of_the_whole_memory_holds() -> None:
    false = share_of_false_memories(Risk, 0.2, 150, 25)
    assert 0 < false <= violations_allowed(150, 0.2)


def test_counting_regions_in_place_of_attempts_is_rejected() -> None:
    """The same verdict on alpha_t with t = stored regions + 1."""
    assert share_of_false_memories(CountsRegions, 0.2, 150, 25) > violations_allowed(150, 0.2)


def test_attempts_that_crash_or_abstain_count(tmp_path: Path) -> None:
    def crash(x: np.ndarray) -> tuple[int, float]:
        raise RuntimeError("out of memory")

    memory = memory_of(Planted(crash), path=tmp_path / "m", risk=Risk(delta=0.01))
    with pytest.raises(RuntimeError):
        memory.query(at(0.0, 0.0))
    says = Planted(lambda x: (-1, 0.0))
    CertifiedMemory(Store.open(tmp_path / "m"), says).query(at(0.0, 0.0))
    CertifiedMemory(Store.open(tmp_path / "m"), says).query(at(0.0, 0.0))
    assert [alpha for _, alpha in says.calls] == [Risk(delta=0.01).of(2), Risk(delta=0.01).of(3)]


def two_sigma_toy() -> tuple[dds.SmoothedClassifier, Callable[[torch.Tensor], list[float]]]:
    """A strip of class 1 in class 0; sigma .05 inside the strip, 1 outside, as a search for large radii chooses."""

    class Strip(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            inside = ((x[:, 0] - 0.5).abs() < 0.1).double()
            return torch.stack([1 - inside, inside], 1)

    def choose(x: torch.Tensor) -> list[float]:
        return [0.05 if abs(float(row[0]) - 0.5) < 0.08 else 1.0 for row in x]

    return dds.SmoothedClassifier(Strip(), dds.L2Certificate(), num_classes=2, any_range=True), choose


class Chosen:
    """A certifier that chooses sigma by a rule of the input."""

    def __init__(self, smoothed: dds.SmoothedClassifier, choose: Callable[[torch.Tensor], list[float]]) -> None:
        self.smoothed, self.choose = smoothed, choose

    def check(self, alpha: float) -> None:
        pass

    def certify(self, x: torch.Tensor, *, alpha: float, seed: int, noise_id: int):
        from ddsmoothing.memory import Found

        sigma = self.choose(x)
        made = self.smoothed.certify(x, sigma, n0=50, n=500, alpha=alpha, seed=seed, ids=[noise_id])
        return Found(prediction=int(made.prediction[0]), radius=float(made.radius[0]), sigma=sigma[0])

    def predict(self, x: torch.Tensor, *, seed: int) -> int:
        return int(self.smoothed.predict(x, self.choose(x), n=200, seed=seed).prediction[0])


def test_naive_certificates_are_violated_and_the_memorys_are_not() -> None:
    """Ball by ball: does the system, asked later at points inside, still give the certified class?"""
    smoothed, choose = two_sigma_toy()
    x = torch.tensor([[0.1], [0.5], [0.9], [0.45], [0.3], [0.7]], dtype=torch.float64)
    naive = smoothed.certify(x, choose(x), n0=50, n=500, seed=1)
    memory = CertifiedMemory(
        Store.create(None, binding((1,)), ALPHA, seed=5),
        Chosen(smoothed, choose),  # type: ignore[arg-type]
    )
    answers = memory.query(x)
    probes = torch.linspace(-1, 2, 121, dtype=torch.float64)[:, None]
    now = smoothed.predict(probes, choose(probes), n=500, seed=2, ids=range(121)).prediction
    later = memory.query(probes).prediction
    broken = {"naive": 0, "memory": 0}
    for i in range(len(x)):
        for name, made, answer in (("naive", naive, now), ("memory", answers, later)):
            held = ((probes - x[i]).abs()[:, 0].numpy() < made.radius[i]) & (answer != dds.ABSTAIN)
            broken[name] += int((answer[held] != made.prediction[i]).sum())
    assert broken["naive"] > 10
    assert broken["memory"] == 0
    assert (answers.radius > 0).sum() >= 3
    assert "cut" in answers.reason or "answered" in answers.reason


def test_an_unbounded_sigma_on_the_class_of_pure_noise_makes_conflicts() -> None:
    """A class that pure noise gets is certified with a huge radius; the memory keeps what was there before."""
    smoothed = dds.SmoothedClassifier(Half([1.0, 0.0], 0.2), dds.L2Certificate(), num_classes=2, any_range=True)
    small, large = at(0.0, 0.5), at(0.6, 0.5)  # far enough that no noise of an attempt makes it abstain
    sigmas = {0.0: 0.05, 0.6: 0.6}
    memory = CertifiedMemory(
        Store.create(None, binding(), ALPHA, seed=2),
        Chosen(smoothed, lambda x: [sigmas[float(row[0])] for row in x]),  # type: ignore[arg-type]
    )
    first = memory.query(small).rows[0]
    assert first.prediction == 0
    second = memory.query(large).rows[0]
    assert second.prediction == 1
    check_disjoint(memory.store)


def make(path: Path | None, smoothed: dds.SmoothedClassifier, **options: object) -> CertifiedMemory:
    options = {"shape": (1, 28, 28), "n0": 20, "n": 200} | options
    return CertifiedMemory.create(path, smoothed, SigmaPolicy.fixed(0.25), **options)  # type: ignore[arg-type]


def test_a_fixed_sigma_changes_nothing(smoothed: dds.SmoothedClassifier, data: dds.Dataset) -> None:
    x = data[::100][0]
    memory = make(None, smoothed, seed=11)
    answers = memory.query(x)
    ids = [memory.store.noise_id(t) for t in range(1, len(x) + 1)]
    alone = smoothed.certify(x, 0.25, n0=20, n=200, seed=11, ids=ids)
    assert (answers.prediction == alone.prediction).all()
    assert np.allclose(answers.radius, alone.radius, rtol=0, atol=1e-11)
    assert (answers.radius <= alone.radius).all()
    assert set(answers.reason) <= {"kept", "abstained"}


def attacked(model: torch.nn.Module, x: torch.Tensor, label: int, size: float) -> torch.Tensor:
    """A point at this L2 distance from x whose class under a little noise is another one, if gradients find it."""
    generator, z = torch.Generator().manual_seed(0), x.clone()
    for _ in range(8):
        z.requires_grad_(True)
        noise = 0.25 * torch.randn((16, *x.shape[1:]), generator=generator)
        loss = torch.nn.functional.cross_entropy(model(z + noise), torch.full((16,), label))
        step = torch.autograd.grad(loss, z)[0]
        moved = z.detach() + 0.5 * size * step / step.norm() - x
        z = x + moved * (size / moved.norm())
    return z.detach()


def test_neighbours_found_by_attack_get_the_class_of_the_region(
    smoothed: dds.SmoothedClassifier, data: dds.Dataset, model: torch.nn.Module
) -> None:
    """Inside a region the class stays; outside, what comes later yields."""
    taking, policy = smoothed.with_any_range(), SigmaPolicy.search(0.25)
    memory = CertifiedMemory.create(None, taking, policy, shape=(1, 28, 28), n0=50, n=500, seed=3)
    changed = cut = 0
    for i in range(0, 400, 50):
        x = data[i : i + 1][0]
        first = memory.query(x).rows[0]
        if first.region is None:
            continue
        for share in (0.6, 0.98, 1.3, 1.8):
            z = attacked(model, x, first.prediction, share * first.radius)
            row = memory.query(z).rows[0]
            if share < 1:
                assert (row.reason, row.prediction) == ("answered", first.prediction)
            changed += share > 1 and row.prediction not in (first.prediction, dds.ABSTAIN)
            cut += row.reason == "cut"
    assert changed > 0
    assert cut > 0
    check_disjoint(memory.store)


def test_8_bit_images_are_kept_as_bytes(tmp_path: Path, smoothed: dds.SmoothedClassifier, data: dds.Dataset) -> None:
    memory = make(tmp_path / "m", smoothed)
    memory.query(torch.from_numpy(data.x[:1]))
    _, radius, point = memory.store.ball(1)
    assert point.dtype == np.uint8
    assert (point == data.x[0].ravel()).all()
    shifted = data[:1][0] + 0.01
    row = memory.query(shifted).rows[0]
    assert row.reason == "answered"
    assert row.radius == pytest.approx(radius - 0.28, abs=1e-5)


def test_no_forward_pass_inside_a_region(tmp_path: Path, data: dds.Dataset, model: torch.nn.Module) -> None:
    passes = []
    hooked = dds.load_model("fashion-mnist-cnn")
    hooked.register_forward_hook(lambda *_: passes.append(1))
    memory = make(tmp_path / "m", dds.SmoothedClassifier(hooked, dds.L2Certificate(), num_classes=10))
    memory.query(data[:2][0])
    asked = len(passes)
    assert asked > 0
    memory.query(data[:2][0] + 0.001)
    assert len(passes) == asked


def test_attempts_never_share_noise(
    tmp_path: Path, smoothed: dds.SmoothedClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither in one memory, nor in two of one seed, nor in a copy of a file, nor in an older one that was put back."""
    seen: set[tuple[int, ...]] = set()
    original = streams.philox

    def watching(*key: int, part: int = 0) -> np.random.Philox:
        assert (*key, part) not in seen
        seen.add((*key, part))
        return original(*key, part=part)

    monkeypatch.setattr("ddsmoothing.noise.philox", watching)
    x = torch.rand(1, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    policy, less = SigmaPolicy.fixed(0.3), {"n0": 10, "n": 100}
    for name in ("a", "b"):
        CertifiedMemory.create(tmp_path / name, smoothed, policy, shape=(1, 28, 28), seed=5, **less).close()
    shutil.copy(tmp_path / "a", tmp_path / "copy")
    for name in ("a", "b", "copy"):
        memory = CertifiedMemory.open(tmp_path / name, smoothed, policy, **less)
        memory.query(torch.cat([x, x]), grow=True)
        assert memory.store.attempts == 2
        memory.close()
    shutil.copy(tmp_path / "copy", tmp_path / "a")
    CertifiedMemory.open(tmp_path / "a", smoothed, policy, **less).query(1.0 - x)
    assert len({key[1] for key in seen}) == 7  # one noise id an attempt
    assert {key[0] for key in seen} == {5}


def test_noise_ids_are_a_function_of_seed_attempt_and_nonce() -> None:
    store = Store.create(None, binding(), ALPHA, seed=2**64 - 1)
    first, second = store.reserve(), store.reserve()
    assert (first, second) == (1, 2)
    nonce = store.rows.attempt(1).nonce
    digest = hashlib.sha256((2**64 - 1).to_bytes(8, "little") + (1).to_bytes(8, "little") + nonce).digest()
    assert store.noise_id(1) == int.from_bytes(digest[:8], "little") == store.noise_id(1)
    assert store.noise_id(2) != store.noise_id(1)
    assert len(nonce) == 16
    with pytest.raises(InputError, match="has no attempt 3"):
        store.noise_id(3)


def test_peek_changes_nothing_and_asks_nothing(tmp_path: Path) -> None:
    memory = memory_of(Planted(lambda x: (int(x[0] > 0.5), 0.2)), path=tmp_path / "m")
    memory.query(at(0.0, 0.0))
    for sealed in (False, True):
        if sealed:
            memory.seal()
        before = (tmp_path / "m").read_bytes()
        closed = CertifiedMemory(Store.open(tmp_path / "m"))
        rows = closed.peek(torch.cat([at(0.1, 0.0), at(0.9, 0.0)])).rows
        assert rows[0] == memory.query(at(0.1, 0.0)).rows[0]
        assert (rows[1].prediction, rows[1].radius, rows[1].reason) == (-1, 0.0, "outside")
        assert memory.peek(at(0.9, 0.0)).reason == ("outside",)
        with pytest.raises(InputError, match="opened without a classifier"):
            closed.query(at(0.1, 0.0))
        assert closed.peek(np.array([[0.1, 0.0]])).reason == closed.peek(at(0.1, 0.0)).reason
        for wrong in (torch.zeros(1, 3, dtype=torch.float64), torch.tensor(0.5), 0.5, None):
            with pytest.raises(ShapeError, match=r"\(B, "):
                closed.peek(wrong)  # type: ignore[arg-type]
        closed.close()
        assert (tmp_path / "m").read_bytes() == before
    assert memory.store.attempts == 1


def test_bound_to_model_norm_classes_shape_and_type(
    tmp_path: Path, smoothed: dds.SmoothedClassifier, data: dds.Dataset
) -> None:
    path, policy = tmp_path / "m", SigmaPolicy.fixed(0.25)
    make(path, smoothed).close()
    other = dds.load_model("fashion-mnist-cnn")
    with torch.no_grad():
        next(other.parameters()).add_(1e-3)
    changed = dds.SmoothedClassifier(other, dds.L2Certificate(), num_classes=10)
    with pytest.raises(StoreError, match=r"belongs to model sha256:\w+ \(got sha256:\w+\)"):
        CertifiedMemory.open(path, changed, policy)
    flat = dds.SmoothedClassifier(smoothed.model, dds.L1Certificate(), num_classes=10)
    with pytest.raises(StoreError, match=r"norm l2 \(got l1\)"):
        CertifiedMemory.open(path, flat, policy)
    half = dds.SmoothedClassifier(smoothed.model, dds.L2Certificate(), num_classes=10, precision="bf16")
    with pytest.raises(StoreError, match=r"precision fp32 \(got bf16\)"):
        CertifiedMemory.open(path, half, policy)
    opened = CertifiedMemory.open(path, smoothed, policy, n0=20, n=200)
    with pytest.raises(ShapeError, match=r"expected \(B, 1, 28, 28\)"):
        opened.query(torch.zeros(1, 1, 27, 28))
    with pytest.raises(InputError, match="got float64 inputs, expected float32"):
        opened.query(data[:1][0].double())
    with pytest.raises(StoreError, match=r"transform x/255 \(got none\)"):
        opened.store.check(binding((1, 28, 28)))


def test_a_bare_callable_needs_a_name(tmp_path: Path) -> None:
    bare = dds.SmoothedClassifier(lambda x: torch.ones(len(x), 2), dds.L2Certificate(), num_classes=2)
    with pytest.raises(InputError, match="model_id"):
        make(None, bare, shape=(3,))
    memory = make(tmp_path / "m", bare, shape=(3,), model_id="mine")
    assert memory.store.binding.model == "id:mine"


def test_impossible_risks_and_samples_are_refused_before_a_file_is_made(
    tmp_path: Path, smoothed: dds.SmoothedClassifier
) -> None:
    with pytest.raises(InfeasibleError):
        make(tmp_path / "m", smoothed, n=5)
    with pytest.raises(InputError, match="exactly one of alpha"):
        make(tmp_path / "m", smoothed, alpha=0.1, delta=0.1)
    assert not (tmp_path / "m").exists()


def test_a_memory_whose_alpha_ran_out_says_so(smoothed: dds.SmoothedClassifier, data: dds.Dataset) -> None:
    """alpha_t falls until n samples cannot certify; that is an error, not a wasted attempt."""
    memory = make(None, smoothed, delta=0.0005, n=12)
    x = data[:20][0]
    with pytest.raises(InfeasibleError, match="Use n >="):
        memory.query(x)
    used = memory.store.attempts
    with pytest.raises(InfeasibleError):
        memory.query(torch.rand_like(x[:1]))
    assert memory.store.attempts == used


def test_stored_radii_never_exceed_certified_ones() -> None:
    store = Store.create(None, binding(), ALPHA, seed=1)
    for radius, certified in ((0.2, 0.1), (0.0, 0.1), (math.nan, 1.0), (math.inf, math.inf)):
        with pytest.raises(InputError, match="0 < radius <= certified"), store.writing():
            store.append(np.zeros(2), label=0, radius=radius, certified=certified, sigma=1.0, attempt=1)
    with pytest.raises(StoreError, match="inside `writing` only"):
        store.append(np.zeros(2), label=0, radius=0.1, certified=0.1, sigma=1.0, attempt=1)


def test_docstrings_say_what_is_claimed() -> None:
    assert "AFTER" in (inspect.getdoc(inspect.getmodule(CertifiedMemory)) or "")


def test_a_sealed_memory_of_a_real_model_predicts_outside(smoothed: dds.SmoothedClassifier, data: dds.Dataset) -> None:
    x = data[:2][0]
    memory = make(None, smoothed)
    first = memory.query(x[:1])
    memory.seal()
    after = memory.query(x)
    assert after.rows[0].prediction == first.rows[0].prediction
    assert after.rows[1].reason == "uncertified"
    assert after.rows[1].prediction in range(-1, 10)
    assert after.radius[1] == 0.0
