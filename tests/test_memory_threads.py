"""Threads of one process on one memory: each attempt number once, every promise kept, no false alarm."""

from __future__ import annotations

import math
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from ddsmoothing.errors import DdsmoothingError, StoreError
from ddsmoothing.memory import CertifiedMemory, Risk, Store
from ddsmoothing.memory.regions import Answer
from ddsmoothing.memory.verify import verify_store
from forks import forked
from memory_helpers import ALPHA, Planted, binding, check_disjoint

THREADS = 8


def asked(memory: CertifiedMemory, queries: int) -> tuple[list[tuple[torch.Tensor, Answer]], list[str]]:
    """Answers and errors of THREADS threads that ask at once, each its own points."""
    answers, errors = list[tuple[torch.Tensor, Answer]](), list[str]()

    def ask(seed: int) -> None:
        x = torch.from_numpy(np.random.default_rng(seed).random((queries, 2)))
        for i in range(queries):
            try:
                answers.append((x[i : i + 1], memory.query(x[i : i + 1], grow=i % 2 == 0).rows[0]))
            except DdsmoothingError as error:
                errors.append(str(error))

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers, errors


@pytest.mark.parametrize(
    ("queries", "in_file"), [(200, False), (20, True), pytest.param(200, True, marks=pytest.mark.slow)], ids=str
)
def test_threads_with_conflicting_queries(tmp_path: Path, queries: int, in_file: bool) -> None:
    """Two classes in a fine checkerboard and large balls; every ninth certificate cannot be stored: a rollback."""

    def certificate(x: np.ndarray) -> tuple[int, float]:
        impossible = int(1e6 * x[1]) % 9 == 0
        return int(8 * x[0] + 8 * x[1]) % 2, math.inf if impossible else 0.05 + 0.2 * x[0]

    says = Planted(certificate)
    store = Store.create(tmp_path / "m" if in_file else None, binding(), Risk(delta=0.1), seed=1)
    memory = CertifiedMemory(store, says)
    answers, errors = asked(memory, queries)
    assert errors
    assert all("expected 0 < radius <= certified" in error for error in errors)
    assert len(answers) + len(errors) == THREADS * queries

    alphas = [alpha for _, alpha in says.calls]
    assert len(says.calls) == store.attempts > queries
    assert sorted(alphas) == sorted(Risk(delta=0.1).of(t) for t in range(1, store.attempts + 1))
    assert {noise for noise, _ in says.calls} == {store.noise_id(t) for t in range(1, store.attempts + 1)}
    numbers = [answer.attempt for _, answer in answers if answer.attempt is not None]
    assert len(numbers) == len(set(numbers))

    assert {answer.reason for _, answer in answers} >= {"kept", "cut", "answered"}
    assert verify_store(store).ok
    check_disjoint(store)
    for x, answer in answers:
        if answer.radius > 0.0:
            held = memory.peek(x).rows[0]
            assert held.prediction == answer.prediction
            assert held.radius >= answer.radius - 1e-12


def test_no_thread_answers_from_what_is_rolled_back() -> None:
    """A region that is not yet durable answers nobody else."""
    store = Store.create(None, binding(), ALPHA, seed=1)
    memory, written, found = CertifiedMemory(store), threading.Event(), list[str]()
    point = torch.tensor([[0.5, 0.5]], dtype=torch.float64)

    def look() -> None:
        written.wait()
        found.extend(memory.peek(point).reason)

    thread = threading.Thread(target=look)
    thread.start()
    with pytest.raises(KeyError), store.writing():
        attempt = store.reserve()
        store.append(point[0].numpy(), label=0, radius=0.1, certified=0.1, sigma=0.5, attempt=attempt)
        assert memory.peek(point).reason == ("answered",)  # the writer itself sees it
        written.set()
        thread.join(0.2)  # it waits for the end of the transaction
        raise KeyError
    thread.join()
    assert found == ["outside"]
    assert (len(store), store.attempts) == (0, 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_memory_that_was_open_before_a_fork_is_refused_after_it(tmp_path: Path) -> None:
    memory = CertifiedMemory(Store.create(tmp_path / "m", binding(), ALPHA, seed=1), Planted(lambda x: (0, 0.1)))
    x = torch.tensor([[0.5, 0.5]], dtype=torch.float64)

    def child() -> None:
        with pytest.raises(StoreError, match="was opened before this process was forked"):
            memory.query(x)

    _, status = os.waitpid(forked(child), 0)
    assert status == 0
    assert memory.query(x).reason == ("kept",)
