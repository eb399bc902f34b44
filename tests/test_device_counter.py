from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from counting_cases import K, Net, Told, check, images, requests
from ddsmoothing.counting import ahead, device, device_probe
from ddsmoothing.counting.ahead import HostSource, Moment, Pace, source_for
from ddsmoothing.counting.contract import Request
from ddsmoothing.counting.device import DeviceCounter, Forward, default_rows
from ddsmoothing.counting.device_probe import fastest_rows, probe_rows
from ddsmoothing.counting.engine import Engine
from ddsmoothing.errors import DdsmoothingWarning, InputError, ModelError
from ddsmoothing.noise import Gaussian, Uniform
from test_kernels import run

CPU = torch.device("cpu")
TESTS = Path(__file__).parent


# the same counts


@pytest.mark.parametrize("model", [Net, Told])
@pytest.mark.parametrize("rows", [1, 13, 64])
def test_counts_are_those_of_the_local_loop(model: type[Net], rows: int) -> None:
    check(images(5, (2, 3, 3), off=(1, 4)), requests(5, 200), rows, model())


@pytest.mark.parametrize("form", [{"precision": "bf16"}, {"channels_last": True, "precision": "fp16"}])
def test_counts_in_other_forms(form: dict) -> None:
    check(images(3, (2, 3, 3)), requests(3, 150), 32, Net(), **form)


def test_counts_with_uniform_noise_and_on_other_grids() -> None:
    check(images(3, (2, 3, 3)), requests(3, 90), 32, Net(), noise="uniform")
    check(images(3, (2, 3, 3), levels=1000), requests(3, 90), 32, Net())


def test_counts_of_inputs_larger_than_a_noise_block() -> None:
    wide = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(150_000, K))
    check(images(2, (150_000,)), [Request(row=i, sigma=0.5, stream=1, n=5 + i) for i in range(2)], 4, wide)


def test_a_bare_callable_is_called() -> None:
    net = Net().eval()
    asked = [Request(row=0, sigma=0.5, stream=1, n=100)]
    batch = images(1, (2, 3, 3))
    found = [
        DeviceCounter(Engine(model), Gaussian(), K, 16).count(batch, asked, 1) for model in (net, lambda x: net(x))
    ]
    np.testing.assert_array_equal(*found)


@given(
    ns=st.lists(st.integers(1, 60), min_size=1, max_size=6),
    rows=st.integers(1, 40),
    block=st.integers(1, 30),
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_however_the_work_is_cut_every_row_is_counted_once(ns: list[int], rows: int, block: int) -> None:
    """With noise blocks of few rows; the sum over classes and requests of rows that say which they are."""
    batch = images(2, (4,))
    asked = [Request(row=i % 2, sigma=0.3, stream=1, n=n, first_block=100 * i) for i, n in enumerate(ns)]

    def small(d: int, first: int, n: int) -> object:
        return ((first + i, min(block, n - i * block)) for i in range(-(-n // block)))

    linear = torch.nn.Linear(4, K)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ahead, "noise_blocks", small)
        patch.setattr("ddsmoothing.counting.local.noise_blocks", small)
        check(batch, asked, rows, linear)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_counts_with_noise_drawn_by_the_kernels() -> None:
    """As on a GPU: in the interpreter, in a process of its own."""
    out = run("-m", "pytest", "-q", "-p", "no:cacheprovider", TESTS / "device_cases.py", TRITON_INTERPRET="1")
    assert "passed" in out
    assert "skipped" not in out


# what goes wrong


def test_logits_that_are_not_finite_are_refused() -> None:
    class Broken(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits = super().forward(x)
            return torch.where(x.amax((1, 2, 3), keepdim=True).flatten(1) > 1.5, torch.inf, logits)

    batch, asked = images(1, (2, 3, 3)), [Request(row=0, sigma=0.5, stream=1, n=300)]
    with pytest.raises(ModelError, match="NaN or infinite logits"):
        DeviceCounter(Engine(Broken()), Gaussian(), K, 32).count(batch, asked, 1)


def test_padding_is_made_of_rows_that_count() -> None:
    """A model that has no answer to an input of nothing is not asked for one."""

    class Angle(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x / x.flatten(1).norm(dim=1)[:, None, None, None])

    check(images(1, (2, 3, 3)), [Request(row=0, sigma=0.5, stream=1, n=33)], 32, Angle())


def test_too_few_classes_are_named() -> None:
    batch, asked = images(1, (2, 3, 3)), [Request(row=0, sigma=0.5, stream=1, n=3)]
    with pytest.raises(ModelError, match=r"\(8, 7\)"):
        DeviceCounter(Engine(Net()), Gaussian(), 7, 8).count(batch, asked, 1)


def test_a_pass_that_does_not_fit_is_named() -> None:
    def full(x: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    batch, asked = images(1, (2, 3, 3)), [Request(row=0, sigma=0.5, stream=1, n=3)]
    with pytest.raises(InputError, match=r"8 inputs of 18 numbers do not fit the memory of cpu .* smaller block size"):
        DeviceCounter(Engine(full), Gaussian(), K, 8).count(batch, asked, 1)


def test_an_exception_of_the_listener_ends_the_count() -> None:
    def stop(samples: int) -> None:
        raise KeyboardInterrupt

    batch, asked = images(1, (2, 3, 3)), [Request(row=0, sigma=0.5, stream=1, n=3)]
    net = Net().train()
    with pytest.raises(KeyboardInterrupt):
        DeviceCounter(Engine(net), Gaussian(), K, 8).count(batch, asked, 1, stop)
    assert net.training


# graphs, by a stand-in for CUDA's


class Graph:
    """Captures by calling: its replay writes into the same tensor. ``wrong``: gives other logits."""

    made = replayed = 0

    def __init__(self, wrong: bool = False, error: Exception | None = None) -> None:
        self.wrong, self.error = wrong, error

    def __call__(self, call: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
        self.made += 1
        if self.error is not None:
            raise self.error
        logits = call().clone()

        def replay() -> None:
            self.replayed += 1
            logits.copy_(call() + (0.5 if self.wrong else 0.0))

        return replay, logits


@pytest.fixture
def graph(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Graph]:
    def use(**options: object) -> Graph:
        made = Graph(**options)
        monkeypatch.setattr(device, "captured", made)
        monkeypatch.setattr(device, "has_graphs", lambda _: True)
        return made

    return use


def many(n: int = 16 * 40) -> list[Request]:
    return [Request(row=i, sigma=0.3 + i, stream=1, n=n) for i in range(2)]


def test_many_passes_are_replayed_as_a_graph(graph: Callable[..., Graph]) -> None:
    made = graph()
    check(images(2, (2, 3, 3)), many(), 16, Told())
    assert made.made == 1
    assert made.replayed == 80  # all but the first, and once to compare


def test_few_passes_are_not(graph: Callable[..., Graph]) -> None:
    made = graph()
    check(images(2, (2, 3, 3)), many(100), 16, Net())
    assert made.made == 0


def test_a_graph_with_other_logits_is_not_used(graph: Callable[..., Graph]) -> None:
    made = graph(wrong=True)
    check(images(2, (2, 3, 3)), many(), 16, Net())
    assert made.made == 1


def test_a_model_that_cannot_be_captured_is_called_and_it_is_said(graph: Callable[..., Graph]) -> None:
    made = graph(error=RuntimeError("operation not permitted when stream is capturing\nmore"))
    with pytest.warns(
        DdsmoothingWarning, match="without a CUDA graph: operation not permitted when stream is capturing$"
    ):
        check(images(2, (2, 3, 3)), many(), 16, Net())
    assert made.made == 1


@pytest.mark.parametrize("fault", [{"error": RuntimeError("not while capturing")}, {"wrong": True}])
def test_what_was_refused_once_is_not_tried_again_and_said_once(
    graph: Callable[..., Graph], fault: dict[str, object], recwarn: pytest.WarningsRecorder
) -> None:
    made, engine = graph(**fault), Engine(Net())
    for _ in range(3):
        DeviceCounter(engine, Gaussian(), K, 16).count(images(2, (2, 3, 3)), many(), 1)
    assert made.made == 1
    assert len([one for one in recwarn if "without a CUDA graph" in str(one.message)]) == ("error" in fault)


def test_a_bare_callable_is_never_captured(graph: Callable[..., Graph]) -> None:
    made, net = graph(), Net().eval()
    DeviceCounter(Engine(lambda x: net(x)), Gaussian(), K, 16).count(images(2, (2, 3, 3)), many(), 1)
    assert made.made == 0


def test_a_graph_is_compared_on_the_inputs_of_the_pass_before() -> None:
    x = torch.zeros(3, 2)
    calls = Forward(lambda: x * 2.0, passes=100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "captured", Graph())
        for i in range(5):
            x.fill_(i)
            assert (calls() == 2.0 * i).all()
    assert not calls.went_wrong()


# progress and where noise comes from


class Queue:
    """A device that has done so many of the passes it was asked for."""

    done = 0

    def __init__(self) -> None:
        self.asked, self.waited = 0, []

    def moment(self, _: torch.device) -> Moment:
        queue = self

        class Each:
            def __init__(self) -> None:
                self.number = queue.asked = queue.asked + 1

            def past(self) -> bool:
                return self.number <= queue.done

            def wait(self) -> None:
                queue.waited.append(self.number)
                queue.done = max(queue.done, self.number)

        return Each()  # type: ignore[return-value]


def test_progress_is_told_when_a_pass_is_done_and_the_loop_does_not_run_far_ahead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    queue, told = Queue(), []
    monkeypatch.setattr(ahead, "Moment", queue.moment)
    pace = Pace(CPU, told.append, ahead=3)
    for _ in range(3):
        pace.passed(10)
    assert (told, queue.waited) == ([], [])
    queue.done = 2
    pace.passed(10)
    assert told == [10, 10]
    pace.passed(10)
    pace.passed(10)
    assert told == [10, 10, 10]  # the fourth pass ahead waited for the oldest
    pace.finish()
    assert told == [10] * 6
    assert queue.waited == [1, 2, 3, 4, 5, 6]


def test_pinned_buffers_take_turns_and_are_not_written_before_they_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Queue()
    monkeypatch.setattr(ahead, "Moment", queue.moment)
    turns, buffers = ahead.Turns(), []
    for size in (8, 8, 8, 6, 8, 9):
        buffer = turns.take(torch.empty(size, 4, dtype=torch.int16))
        assert buffer.shape == (size, 4)
        buffers.append(buffer.untyped_storage().data_ptr())
        turns.copying(buffer, CPU)
    assert buffers[2] == buffers[0]
    assert buffers[3] == buffers[1]
    assert queue.waited == [1, 2, 3, 4]
    assert len(turns) == 2


def test_where_triton_fails_the_cpu_draws_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, asked = images(2, (4,), off=(1,)), [Request(row=i, sigma=0.3, stream=1, n=5) for i in range(2)]
    monkeypatch.setattr(ahead, "supported", lambda _: True)
    monkeypatch.setattr(ahead, "fault", lambda _: "Triton failed: no compiler")
    with pytest.warns(
        DdsmoothingWarning, match="noise is drawn on the CPU and copied to cpu: Triton failed: no compiler"
    ):
        assert isinstance(source_for(batch, Gaussian(), asked[:1]), HostSource)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing to say of noise that is drawn on the CPU anyway
        assert isinstance(source_for(batch, Gaussian(), asked[1:]), HostSource)
        wide = [replace(asked[0], sigma=12.0)]
        assert isinstance(source_for(images(1, (4,), levels=1000), Uniform(), wide), HostSource)


# how many rows


def rates(found: dict[int, float], tried: list[int], memory: int = 2**20) -> Callable[[int], float]:
    def rate(rows: int) -> float:
        tried.append(rows)
        if rows > memory:
            raise torch.OutOfMemoryError
        return found.get(rows, float(rows))

    return rate


@pytest.mark.parametrize(
    ("found", "memory", "largest", "wanted", "tried"),
    [
        ({}, 2**20, 200, 128, [32, 64, 128]),  # each twice as fast, to the largest
        ({128: 65.0}, 2**20, 2**14, 64, [32, 64, 128]),  # less than 3 % gained
        ({128: 66.0, 256: 66.5}, 2**20, 2**14, 128, [32, 64, 128, 256]),
        ({}, 500, 2**14, 256, [32, 64, 128, 256, 512]),  # memory: the half that fitted
        ({}, 9, 2**14, 8, [32, 16, 8]),  # memory short at once
        ({}, 0, 2**14, 1, [32, 16, 8, 4, 2, 1]),  # nothing fits: the count itself says so
        ({}, 2**20, 5, 4, [4]),
        ({}, 2**20, 1, 1, [1]),
    ],
)
def test_rows_are_doubled_while_that_brings_something(
    found: dict[int, float], memory: int, largest: int, wanted: int, tried: list[int]
) -> None:
    seen: list[int] = []
    assert fastest_rows(rates(found, seen, memory), largest) == wanted
    assert seen == tried


def test_the_probe_times_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_probe, "LARGEST_ROWS", 64)
    assert probe_rows(Engine(Net()), Gaussian(), K, images(1, (2, 3, 3))) in (32, 64)
    monkeypatch.setattr(device_probe, "LARGEST_NUMBERS", 18 * 16)
    assert probe_rows(Engine(Net()), Gaussian(), K, images(1, (2, 3, 3))) == 16


def test_rows_where_none_were_looked_for() -> None:
    assert [default_rows(d) for d in (1, 784, 3072, 150_528, 2**30)] == [4096, 4096, 4096, 111, 1]
