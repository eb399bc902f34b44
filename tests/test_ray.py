"""Workers on a real Ray of this machine, and the ledger of their work without one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import ddsmoothing as dds
from ddsmoothing.campaigns import CertifyRequest, certify_run
from ddsmoothing.claims import PairTable
from ddsmoothing.counting import cluster, on_ray
from ddsmoothing.counting.contract import Request, cut_request
from ddsmoothing.counting.ledger import IN_HAND, MOST_LOSSES, TASK_SECONDS, Ledger, Pace, Task
from ddsmoothing.counting.workers import workers_of
from ddsmoothing.errors import InputError, ModelError, RunError, extra
from ddsmoothing.sigma import SigmaPolicy
from ddsmoothing.streams import rows_per_block

DEMO = ("--model", "fashion-mnist-cnn", "--data", "fashion-mnist-sample")
CLI = "import sys; from ddsmoothing.cli import main; sys.exit(main(sys.argv[1:]))"
FEW = ("--data-dependent", "--skip", "100", "--max", "5", "--n0", "50", "--n", "1500", "--seed", "4")
D = 784
ROWS = rows_per_block(D)


def rows(run: Path) -> list[dict[str, object]]:
    """The rows of a run by id, without times."""
    lines = [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]
    return sorted(({k: v for k, v in line.items() if k != "seconds"} for line in lines), key=lambda row: row["id"])


# the ledger


def counts_of(task: Task) -> NDArray[np.int64]:
    """Counts that say which blocks they are of: a block's number and its samples, summed."""
    counts = []
    for _, part in task.parts:
        blocks = range(part.first_block, part.first_block - (-part.n // ROWS))
        counts.append([part.n, sum(blocks), sum(b * b for b in blocks)])
    return np.array(counts, dtype=np.int64)


def requests_of(sizes: list[int]) -> list[Request]:
    return [Request(row=0, sigma=0.5, stream=1, n=n, first_block=10 * i) for i, n in enumerate(sizes)]


@given(st.integers(1, 5000), st.integers(1, 6000))
def test_a_request_is_cut_at_noise_blocks(n: int, samples: int) -> None:
    whole = Request(row=3, sigma=0.5, stream=1, n=n, first_block=7)
    head, rest = cut_request(D, whole, samples)
    assert (head.row, head.sigma, head.stream, head.first_block) == (3, 0.5, 1, 7)
    assert head.n <= max(samples, ROWS)
    if rest is None:
        assert head == whole
    else:
        assert head.n % ROWS == 0
        assert rest.first_block == 7 + head.n // ROWS
        assert head.n + rest.n == n


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 5000), min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_every_block_is_counted_once_whatever_is_lost_late_or_done_twice(sizes: list[int], random: object) -> None:
    requests, now = requests_of(sizes), 0.0
    ledger, out, complete = Ledger(D, requests, 3, 64), list[tuple[Pace, Task]](), {}
    paces = [Pace() for _ in range(3)]
    while not ledger.finished:
        now += random.random() * 4  # type: ignore[attr-defined]
        pace = random.choice(paces)  # type: ignore[attr-defined]
        mine = [task for owner, task in out if owner is pace]
        if len(mine) < IN_HAND:
            task = ledger.lend(pace, sum(t.samples for t in mine), len(paces), now)
            if task is not None:
                assert task not in mine
                out.append((pace, task))
        if out and random.random() < 0.6:  # type: ignore[attr-defined]
            pace, task = out.pop(random.randrange(len(out)))  # type: ignore[attr-defined]
            if random.random() < 0.2 and task.lost < MOST_LOSSES - 1:  # type: ignore[attr-defined]
                ledger.lost(task)
                continue
            pace.learn(task.samples, 0.1 + random.random())  # type: ignore[attr-defined]
            for i, counts in ledger.settle(task, counts_of(task)):
                assert i not in complete
                complete[i] = counts.tolist()
    whole = {i: counts_of(Task([(i, request)]))[0].tolist() for i, request in enumerate(requests) if request.n}
    assert complete == whole


def test_tasks_last_about_a_second_and_less_near_the_end() -> None:
    ledger, pace = Ledger(D, requests_of([400 * ROWS]), 3, 64), Pace()
    pace.learn(100 * ROWS, 1.0)
    sizes = []
    while (task := ledger.lend(pace, 0, 2, 0.0)) is not None:
        sizes.append(task.samples)
        ledger.settle(task, counts_of(task))
    assert 99 * ROWS * TASK_SECONDS <= sizes[0] <= 100 * ROWS * TASK_SECONDS + 8 * 64
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] <= 8 * 64
    assert sum(sizes) == 400 * ROWS


@pytest.mark.parametrize(("d", "block", "least"), [(3072, 64, 0.9), (784, 256, 0.9), (150528, 13, 1.0), (16, 64, 0.0)])
def test_tasks_fill_their_forward_passes_with_whole_noise_blocks(d: int, block: int, least: float) -> None:
    request = Request(row=0, sigma=0.5, stream=1, n=100 * rows_per_block(d))
    task = Ledger(d, [request], 3, block).lend(Pace(), 0, 1, 0.0)
    assert task is not None
    assert task.samples % rows_per_block(d) == 0
    assert least <= task.samples / (-(-task.samples // block) * block)


def test_many_small_requests_share_a_task() -> None:
    small = [Request(row=i, sigma=0.5, stream=1, n=12) for i in range(40)]
    task = Ledger(3072, small, 3, 64).lend(Pace(), 0, 1, 0.0)
    assert task is not None
    assert len(task.parts) == 10  # 120 of the 128 rows of two passes


def test_the_first_task_is_small_and_its_speed_is_not_trusted_at_once() -> None:
    ledger, pace = Ledger(D, requests_of([4000 * ROWS]), 3, ROWS), Pace()
    sizes = []
    for _ in range(4):
        task = ledger.lend(pace, 0, 1, 0.0)
        assert task is not None
        sizes.append(task.samples // ROWS)
        pace.learn(task.samples, 1e-3 * task.samples / ROWS)
    assert sizes == [1, 4, 16, 64]


def test_a_late_task_is_lent_to_an_idle_worker_and_counts_once() -> None:
    ledger, slow, fast = Ledger(D, requests_of([ROWS]), 3, ROWS), Pace(rate=ROWS), Pace(rate=ROWS)
    task = ledger.lend(slow, 0, 2, now=0.0)
    assert task is not None
    assert ledger.lend(fast, 0, 2, now=task.expected - 0.1) is None
    assert ledger.lend(fast, 5, 2, now=task.expected + 0.1) is None  # it has work of its own
    assert ledger.lend(fast, 0, 2, now=task.expected + 0.1) is task
    assert not ledger.lost(task)  # the other one still has it
    assert len(ledger.settle(task, counts_of(task))) == 1
    assert ledger.finished
    assert ledger.settle(task, counts_of(task)) == []


def test_a_task_that_is_lost_again_and_again_ends_the_run() -> None:
    ledger = Ledger(D, requests_of([ROWS]), 3, ROWS)
    with pytest.raises(RunError, match="4 workers were lost while they had the same 167 samples"):
        for _ in range(MOST_LOSSES):
            task = ledger.lend(Pace(), 0, 1, 0.0)
            assert task is not None
            ledger.lost(task)


# without Ray, or without a cluster


def test_options_of_ray_and_unknown_executors_are_refused() -> None:
    with pytest.raises(InputError, match="belong to the executor ray"), workers_of("local", workers=2):
        pass
    with pytest.raises(InputError, match="Did you mean 'ray'"):
        workers_of("rya")
    with workers_of("local") as workers:
        assert workers is None


def test_a_missing_ray_is_one_line(monkeypatch: pytest.MonkeyPatch, cli: Callable, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    answer = cli("certify", *DEMO, *FEW, "--executor", "ray", "--out", tmp_path / "run")
    assert answer.code == 2
    assert extra("ray") in answer.err
    assert len(answer.err.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


ray = pytest.importorskip("ray", reason="Ray is not installed (extra ray)")


@pytest.mark.parametrize("address", ["nonsense", "ray://127.0.0.1:10001", "host:port"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(InputError, match="expected HOST:PORT"), workers_of("ray", address=address):
        pass


def test_a_cluster_that_does_not_answer_is_one_line(
    monkeypatch: pytest.MonkeyPatch, cli: Callable, tmp_path: Path
) -> None:
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 3.0)
    answer = cli("certify", *DEMO, *FEW, "--executor", "ray", "--address", "127.0.0.1:9", "--out", tmp_path / "run")
    assert answer.code == 1
    assert "no Ray cluster answers at 127.0.0.1:9" in answer.err
    assert len(answer.err.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


# a real Ray

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def pool() -> Iterator[object]:
    handler = signal.getsignal(signal.SIGTERM)
    with workers_of("ray", address="local", workers=2) as workers:
        assert signal.getsignal(signal.SIGTERM) is handler
        assert "RAY_USAGE_STATS_ENABLED" not in os.environ
        yield workers
    assert not ray.is_initialized()
    assert signal.getsignal(signal.SIGTERM) is handler


class Fragile(torch.nn.Module):
    """Ends its process, a worker, the first time it runs after ``marker`` is gone, or always."""

    def __init__(self, marker: Path, always: bool = False) -> None:
        super().__init__()
        self.marker, self.always, self.home = marker, always, os.getpid()  # home: where its inputs are checked

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(0.02)
        if os.getpid() != self.home and (self.always or not self.marker.exists()):
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return x.flatten(1)[:, :10]


class Broken(torch.nn.Module):
    """Raises, or gives NaN."""

    def __init__(self, error: bool) -> None:
        super().__init__()
        self.error = error

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.error:
            raise ZeroDivisionError("by the model")
        return x.flatten(1)[:, :10] * torch.nan


class Locked(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, :10]


def classifier(model: torch.nn.Module, **options: object) -> dds.SmoothedClassifier:
    return dds.SmoothedClassifier(model, dds.L2Certificate(), num_classes=10, **options)  # type: ignore[arg-type]


# Each of these starts its own Ray. They stand before the tests that share one: its workers hold all its CPUs.


class Deadly:
    """A worker that ends its process as it starts."""

    def __init__(self, *args: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def versions(self) -> None:
        raise AssertionError("it had started")


def test_workers_that_cannot_start_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_ray, "CountingWorker", Deadly)
    told: list[str] = []
    with workers_of("ray", address="local", workers=1) as workers:
        workers.listener = lambda event, **details: told.append(event)
        with pytest.raises(RunError, match="3 workers in a row could not start"):
            for _ in range(1000):
                assert list(workers.wait()) == []
        assert workers.ready == 0
    assert told == ["worker lost"] * 2  # each was replaced, until the third


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 4])
def test_the_number_of_workers_changes_no_row(workers: int, cli: Callable, tmp_path: Path) -> None:
    assert cli("certify", *DEMO, *FEW, "--out", tmp_path / "local").code == 0
    there = ("--executor", "ray", "--workers", workers, "--address", "local", "--out", tmp_path / "ray")
    assert cli("certify", *DEMO, *FEW, *there).code == 0
    assert rows(tmp_path / "ray") == rows(tmp_path / "local")


@pytest.mark.slow
def test_sigmas_and_attacks_are_the_same_on_workers(cli: Callable, tmp_path: Path) -> None:
    there = ("--executor", "ray", "--workers", 2, "--address", "local")
    few = ("--skip", 100, "--max", 3, "--seed", 2)
    assert cli("optimize", *DEMO, *few, "--out", tmp_path / "local.json").code == 0
    assert cli("optimize", *DEMO, *few, *there, "--out", tmp_path / "ray.json").code == 0
    assert (tmp_path / "ray.json").read_text() == (tmp_path / "local.json").read_text()
    assert cli("certify", *DEMO, *FEW, "--out", tmp_path / "run").code == 0
    attack = ("attack", tmp_path / "run", "--max", 2, "--steps", 3, "--seed", 2, "--as", "stateless", "--json")
    assert cli(*attack, *there).out == cli(*attack).out


@pytest.mark.slow
def test_a_model_that_always_dies_ends_in_one_line(data: dds.Dataset, tmp_path: Path) -> None:
    deadly = classifier(Fragile(tmp_path / "marker", always=True))
    with workers_of("ray", address="local", workers=2) as workers, pytest.raises(RunError, match="workers were lost"):
        deadly.with_workers(workers).predict(data[:1][0], 0.5, n=100, seed=0)


@pytest.mark.slow
def test_a_node_that_dies_changes_no_count(data: dds.Dataset, tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    marker = tmp_path / "marker"
    marker.touch()
    steady, (x, _) = classifier(Fragile(marker), block_size=64), data[:2]
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        second = nodes.add_node(num_cpus=1)
        with workers_of("ray", address=nodes.address) as workers:
            assert workers.size == 2
            while workers.ready < 2:
                list(workers.wait())
            killed = []

            def kill(samples: int) -> None:
                if not killed:
                    killed.append(samples)
                    nodes.remove_node(second, allow_graceful=False)

            there = steady.with_workers(workers).certify(x, 0.5, n0=50, n=6000, seed=0, progress=kill)
            assert killed
            assert workers.lost >= 1
    finally:
        nodes.shutdown()
    here = steady.certify(x, 0.5, n0=50, n=6000, seed=0)
    np.testing.assert_array_equal(there.counts, here.counts)


@pytest.mark.slow
def test_a_killed_driver_is_resumed_with_the_same_rows(cli: Callable, tmp_path: Path) -> None:
    long = ("--sigma", "0.5", "--skip", "100", "--max", "4", "--n0", "50", "--n", "30000", "--seed", "4")
    there = ("--executor", "ray", "--workers", "2", "--address", "local", "--out", str(tmp_path / "ray"))
    command = [sys.executable, "-c", CLI, "certify", *DEMO, *long, *there]
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    partial = tmp_path / "ray" / "partial.jsonl"
    try:
        while not (partial.exists() and partial.stat().st_size):
            assert driver.poll() is None, "the run was over before its counts were durable"
            time.sleep(0.02)
    finally:
        driver.kill()
        driver.wait()
    assert cli("certify", *there).code == 0
    events = [json.loads(line) for line in (tmp_path / "ray" / "events.jsonl").read_text().splitlines()]
    assert [event["kept"] > 0 for event in events if event["event"] == "start"] == [False, True]
    assert cli("certify", *DEMO, *long, "--out", tmp_path / "local").code == 0
    assert rows(tmp_path / "ray") == rows(tmp_path / "local")


def test_a_run_on_two_workers_has_the_rows_of_a_local_one(
    pool: object, smoothed: dds.SmoothedClassifier, data: dds.Dataset, tmp_path: Path
) -> None:
    done = []
    asked = CertifyRequest(SigmaPolicy.search(0.25), maximum=6, skip=90, seed=5, radii=[0.25, 0.5])
    for name, workers in (("local", None), ("ray", pool)):
        certify_run(
            smoothed.with_workers(workers),
            data,
            asked,
            tmp_path / name,
            model_name="m",
            progress=done.append if workers else None,
        )
    assert rows(tmp_path / "ray") == rows(tmp_path / "local")
    drawn = sum(row["samples"] + row["choice"]["samples"] for row in rows(tmp_path / "ray"))
    assert sum(done) == drawn
    assert pool.lost == 0


def test_a_stateless_rule_has_the_rows_of_a_local_run(
    pool: object, smoothed: dds.SmoothedClassifier, data: dds.Dataset, tmp_path: Path
) -> None:
    slots = tuple(tuple((a + b) % 2 for a in range(10)) for b in range(10))
    policy = SigmaPolicy.stateless(PairTable(sigmas=(0.4, 0.9), slots=slots, groups=tuple(range(10))))
    asked = CertifyRequest(policy, maximum=4, skip=90, seed=5, n0=50, n=300)
    for name, workers in (("local", None), ("ray", pool)):
        certify_run(smoothed.with_workers(workers), data, asked, tmp_path / name, model_name="m")
    assert rows(tmp_path / "ray") == rows(tmp_path / "local")


def test_workers_count_wins_and_duels_as_this_process_does(
    pool: object, smoothed: dds.SmoothedClassifier, data: dds.Dataset
) -> None:
    batch = smoothed.prepare(data[:2][0])
    requests = [
        Request(row=0, sigma=0.5, stream=1, n=700, tally="wins", anchor=3),
        Request(row=1, sigma=1.0, stream=0, n=400, tally="duels"),
        Request(row=1, sigma=1.0, stream=1, n=300),
        Request(row=0, sigma=0.5, stream=1, n=0, tally="duels"),
    ]
    there = smoothed.with_workers(pool).count(batch, requests, 3)
    assert [one.shape for one in there] == [(2, 10), (10, 10), (10,), (10, 10)]
    for one, other in zip(there, smoothed.count(batch, requests, 3), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_worker_that_dies_is_replaced_and_its_work_is_sent_again(
    pool: object, data: dds.Dataset, tmp_path: Path
) -> None:
    marker, events, (x, _) = tmp_path / "marker", [], data[:3]
    fragile = classifier(Fragile(marker), block_size=64)
    pool.listener = lambda event, **details: events.append((event, details))
    lost = pool.lost
    there = fragile.with_workers(pool).certify(x, 0.5, n0=50, n=1500, seed=0, ids=[4, 5, 6])
    pool.listener = None
    assert marker.exists()
    here = fragile.certify(x, 0.5, n0=50, n=1500, seed=0, ids=[4, 5, 6])
    np.testing.assert_array_equal(there.counts, here.counts)
    np.testing.assert_array_equal(there.n0_counts, here.n0_counts)
    assert pool.lost == lost + 1
    assert [event for event, _ in events].count("worker lost") == 1
    retried = [details for event, details in events if event == "retry"]
    assert retried
    assert all(set(details["inputs"]) <= {4, 5, 6} and details["samples"] for details in retried)


def test_what_a_model_does_wrong_is_said_at_once(pool: object, data: dds.Dataset) -> None:
    x, _ = data[:1]
    before = pool.retries
    with pytest.raises(ModelError, match="NaN or infinite"):
        classifier(Broken(error=False)).with_workers(pool).predict(x, 0.5, n=100, seed=0)
    with pytest.raises(ModelError, match="ZeroDivisionError: by the model"):
        classifier(Broken(error=True)).with_workers(pool).predict(x, 0.5, n=100, seed=0)
    with pytest.raises(ModelError, match=r"cannot be sent to workers.*lock"):
        classifier(Locked()).with_workers(pool).predict(x, 0.5, n=100, seed=0)
    assert pool.retries == before


def test_a_model_that_failed_leaves_the_workers_to_the_next_call(
    pool: object, data: dds.Dataset, smoothed: dds.SmoothedClassifier
) -> None:
    x, _ = data[:4]
    for _ in range(3):
        with pytest.raises(ModelError, match="ZeroDivisionError"):
            classifier(Broken(error=True), block_size=64).with_workers(pool).predict(x, 0.5, n=1000, seed=0)
    there = smoothed.with_workers(pool).predict(x, 0.5, n=2000, seed=0)
    np.testing.assert_array_equal(there.counts, smoothed.predict(x, 0.5, n=2000, seed=0).counts)


def test_bare_callables_work_and_a_broken_off_call_leaves_the_workers_usable(
    pool: object, data: dds.Dataset, model: torch.nn.Module
) -> None:
    x, _ = data[:2]
    scale = 3.0
    bare = dds.SmoothedClassifier(lambda x: scale * x.flatten(1)[:, :10], dds.L2Certificate(), num_classes=10)

    def stop(samples: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bare.with_workers(pool).predict(x, 0.5, n=5000, seed=0, progress=stop)
    there = bare.with_workers(pool).predict(x, 0.5, n=5000, seed=0)
    np.testing.assert_array_equal(there.counts, bare.predict(x, 0.5, n=5000, seed=0).counts)


def test_a_worker_uses_one_thread_and_keeps_what_it_used_last(
    pool: object, smoothed: dds.SmoothedClassifier, data: dds.Dataset
) -> None:
    requests = [Request(row=0, sigma=0.5, stream=1, n=300)]
    threads, path = torch.get_num_threads(), list(sys.path)
    try:
        worker = on_ray.CountingWorker(["/not/there"])
        assert torch.get_num_threads() == 1
        assert sys.path == [*path, "/not/there"]
        smoothed.with_workers(pool).count(smoothed.prepare(data[:1][0]), requests, 0)
        model = pool.ship(smoothed.engine, smoothed.certificate.noise, smoothed.num_classes, 64)
        for i in range(6):
            batch = smoothed.prepare(data[i : i + 1][0])
            counts, seconds = worker.count([model], [pool.place(batch)], requests, 0)
            np.testing.assert_array_equal(counts, smoothed.count(batch, requests, 0))
            assert seconds > 0
        assert len(worker.kept) == on_ray.KEPT_OBJECTS
        assert model.hex() in worker.kept
    finally:
        torch.set_num_threads(threads)
        sys.path[:] = path
    cluster.check_versions(worker.versions())
    with pytest.raises(RunError, match=r"a worker has torch 0\.1"):
        cluster.check_versions(worker.versions() | {"torch": "0.1"})
