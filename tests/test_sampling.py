from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ddsmoothing as dds
from ddsmoothing.counting.contract import Request
from ddsmoothing.counting.engine import Engine
from ddsmoothing.counting.local import ClassCounter, default_block_size
from ddsmoothing.devices import untouched
from ddsmoothing.errors import InputError, ModelError, ShapeError
from ddsmoothing.inputs import prepare
from ddsmoothing.noise import Gaussian
from ddsmoothing.streams import Stream
from reference import Half

GRID = torch.arange(256, dtype=torch.uint8)


def counts_of(model: object, x: torch.Tensor, *, n: int = 300, block_size: int = 64, **options: object) -> np.ndarray:
    classes, sigma = options.pop("num_classes", 2), options.pop("sigma", 0.25)
    certificate = dds.L2Certificate()
    smoothed = dds.SmoothedClassifier(model, certificate, num_classes=classes, block_size=block_size, check=False)  # type: ignore[arg-type]
    return smoothed.certify(x, sigma, n0=10, n=n, alpha=0.05, **({"seed": 1} | options)).counts  # type: ignore[arg-type]


class BatchNormNet(torch.nn.Module):
    """A module with everything that could be disturbed: dropout, running statistics, mixed modes, frozen weights."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(3)
        self.drop = torch.nn.Dropout(0.5)
        self.linear = torch.nn.Linear(3, 2)
        self.linear.bias.requires_grad_(False)
        self.fail = False
        with torch.no_grad():
            self.linear.weight.copy_(torch.tensor([[-1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.fail:
            raise RuntimeError("broken on purpose")
        return self.linear(self.drop(self.norm(x)))


def test_counts_are_the_same_at_any_block_size(model: torch.nn.Module, data: dds.Dataset) -> None:
    x = data[:4][0]
    found = [counts_of(model, x, sigma=1.0, n=500, block_size=size, num_classes=10) for size in (7, 64, 1000)]
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])
    assert (found[0].sum(1) == 500).all()
    assert (found[0] > 0).sum() > 8  # not decided without looking at the noise


def test_counts_do_not_depend_on_batch_or_order(model: torch.nn.Module, data: dds.Dataset) -> None:
    x = data[:6][0]
    together = counts_of(model, x, num_classes=10)
    order = [4, 0, 5, 2, 1, 3]
    np.testing.assert_array_equal(counts_of(model, x[order], num_classes=10), together[order])
    alone = np.concatenate([counts_of(model, x[i : i + 1], num_classes=10) for i in (0, 3)])
    np.testing.assert_array_equal(alone, together[[0, 3]])


@given(rows=st.lists(st.integers(0, 255), min_size=1, max_size=8, unique=True), block_size=st.integers(1, 90))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_counts_are_a_function_of_seed_and_id(rows: list[int], block_size: int) -> None:
    x = torch.zeros(len(rows), 3, dtype=torch.uint8)
    x[:, 0] = torch.tensor(rows)
    half = Half([1.0, 0.0, 0.0], 0.4)
    found = counts_of(half, x, ids=rows, block_size=block_size, n=70)
    for i, row in enumerate(rows):
        np.testing.assert_array_equal(counts_of(half, x[i : i + 1], ids=[row], n=70)[0], found[i])


def test_a_bare_callable_and_a_module_are_counted_alike(half: Half, pixels: torch.Tensor) -> None:
    np.testing.assert_array_equal(counts_of(half, pixels), counts_of(lambda x: half(x), pixels))


def test_requests_of_different_sigma_and_stream_are_kept_apart(half: Half, pixels: torch.Tensor) -> None:
    batch = prepare(pixels[:2], [5, 6], None)
    requests = [
        Request(row=0, sigma=0.25, stream=Stream.PILOT, n=50),
        Request(row=1, sigma=0.5, stream=Stream.CERTIFY, n=130),
        Request(row=0, sigma=0.5, stream=Stream.CERTIFY, n=40, first_block=9),
    ]
    counter = ClassCounter(Engine(half), Gaussian(), 2, 32)
    together = counter.count(batch, requests, 4)
    assert [int(counts.sum()) for counts in together] == [50, 130, 40]
    for i, request in enumerate(requests):
        np.testing.assert_array_equal(counter.count(batch, [request], 4)[0], together[i])


def test_progress_counts_every_sample(half: Half, pixels: torch.Tensor) -> None:
    seen: list[int] = []
    counts_of(half, pixels, progress=seen.append)
    assert sum(seen) == len(pixels) * 310
    assert len(seen) > 10


def test_an_exception_in_progress_stops_the_work(half: Half, pixels: torch.Tensor) -> None:
    class EnoughError(Exception):
        pass

    def stop(_: int) -> None:
        raise EnoughError

    with pytest.raises(EnoughError):
        counts_of(half, pixels, progress=stop)


@pytest.mark.parametrize("fail", [False, True])
def test_the_callers_model_is_untouched(pixels: torch.Tensor, fail: bool) -> None:
    net = BatchNormNet().train()
    net.drop.eval()  # mixed modes come back mixed
    net.fail = fail
    before = {key: value.clone() for key, value in net.state_dict().items()}
    modes = [module.training for module in net.modules()]
    grads = [p.requires_grad for p in net.parameters()]
    threads = torch.get_num_threads()
    if fail:
        with pytest.raises(ModelError, match="RuntimeError: broken on purpose"):
            counts_of(net, pixels)
    else:
        counts_of(net, pixels)
    assert [module.training for module in net.modules()] == modes
    assert [p.requires_grad for p in net.parameters()] == grads
    assert torch.get_num_threads() == threads
    assert torch.is_grad_enabled()
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key]), key
    if not fail:
        net.train()
        net(torch.rand(4, 3)).sum().backward()  # weights can still be trained
        assert net.linear.weight.grad is not None


def test_the_model_runs_in_eval_mode(pixels: torch.Tensor) -> None:
    net = BatchNormNet().train()
    with untouched(net):
        assert not any(module.training for module in net.modules())
    np.testing.assert_array_equal(counts_of(net, pixels), counts_of(net.eval(), pixels))


def test_the_callers_tensors_are_untouched(half: Half) -> None:
    def greedy(x: torch.Tensor) -> torch.Tensor:
        logits = half(x)
        x.zero_()  # a model that writes into its input hurts nobody
        return logits

    x = torch.rand(4, 3, requires_grad=True)
    sigma = torch.full((4,), 0.25, requires_grad=True)
    copy, sigma_copy = x.detach().clone(), sigma.detach().clone()
    smoothed = dds.SmoothedClassifier(greedy, dds.L2Certificate(), num_classes=2)
    first = smoothed.certify(x, sigma, n=100, seed=0)
    plain = dds.SmoothedClassifier(half, dds.L2Certificate(), num_classes=2).certify(copy, 0.25, n=100, seed=0)
    np.testing.assert_array_equal(first.counts, plain.counts)
    assert torch.equal(x, copy)
    assert torch.equal(sigma, sigma_copy)
    assert x.requires_grad
    assert x.grad is None


def test_global_generators_are_untouched(half: Half, pixels: torch.Tensor) -> None:
    torch.manual_seed(3)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    counts_of(half, pixels)
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_logits_are_an_error(half: Half, pixels: torch.Tensor, bad: float) -> None:
    def sometimes(x: torch.Tensor) -> torch.Tensor:
        logits = half(x)
        logits[x[:, 1] > 0.9] = bad  # rare: a few samples in a thousand
        return logits

    with pytest.raises(ModelError, match="NaN or infinite logits"):
        counts_of(sometimes, pixels, n=4000)


@pytest.mark.parametrize(
    "answer",
    [
        lambda x: torch.zeros(len(x), 3),
        lambda x: torch.zeros(len(x)),
        lambda x: torch.zeros(len(x) + 1, 2),
        lambda x: torch.zeros(2),
        lambda x: [0, 1],
    ],
    ids=["three classes", "one number", "too many rows", "no batch", "a list"],
)
def test_answers_of_the_wrong_shape_are_an_error(pixels: torch.Tensor, answer: Callable[..., object]) -> None:
    with pytest.raises(ModelError, match=r"expected logits of shape \(64, 2\)"):
        counts_of(answer, pixels)


@pytest.mark.parametrize("shape", [(3,), (1, 3, 1), (3, 1, 1), (3, 2, 2)])
def test_any_input_shape(shape: tuple[int, ...]) -> None:
    seen: set[tuple[int, ...]] = set()

    def model(x: torch.Tensor) -> torch.Tensor:
        seen.add(tuple(x.shape))
        return torch.stack([x.flatten(1)[:, 0], 0.5 - x.flatten(1)[:, 0]], 1)

    assert (counts_of(model, torch.zeros(2, *shape), block_size=11).sum(1) == 300).all()
    assert seen == {(11, *shape)}  # one block shape, the last one padded


def test_uint8_and_floats_on_the_grid_are_the_same_input(half: Half) -> None:
    x = torch.stack([GRID, GRID.flip(0), GRID], 1)
    batches = [prepare(given, None, None) for given in (x, x.float() / 255, x.double() / 255)]
    for batch in batches:
        assert batch.on_grid.all()
        np.testing.assert_array_equal(batch.grid, x.numpy())
        assert batch.sha256 == batches[0].sha256
        assert batch.ids == batches[0].ids
    assert [batch.dtype for batch in batches] == [torch.float32, torch.float32, torch.float64]
    np.testing.assert_array_equal(counts_of(half, x[:9]), counts_of(half, x[:9].double() / 255))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_grid_value_is_recognised_in_every_dtype(dtype: torch.dtype) -> None:
    on = (GRID.to(torch.float64) / 255).to(dtype)[:, None]
    assert prepare(on, list(range(256)), None).on_grid.all()


def test_neighbours_of_grid_values_are_off_the_grid() -> None:
    on = GRID.float() / 255
    off = torch.nextafter(on, torch.full_like(on, 2.0))
    below = torch.nextafter(on, torch.full_like(on, -1.0))[1:]
    for values in (off, below, torch.tensor([-1 / 255, 256 / 255])):
        assert not prepare(values[:, None], list(range(len(values))), None, any_range=True).on_grid.any()


def test_grid_or_float_is_decided_per_input(half: Half) -> None:
    x = torch.tensor([[0.2, 0.4, 0.6], [0.2, 0.4, 0.61], [51 / 255, 0.0, 1.0]])
    smoothed = dds.SmoothedClassifier(half, dds.L2Certificate(), num_classes=2)
    mixed = smoothed.certify(x, 0.25, n=200, seed=0)
    assert mixed.noise == ("grid", "float", "grid")
    for i in range(3):
        alone = smoothed.certify(x[i : i + 1], 0.25, n=200, seed=0)
        assert alone.noise == mixed.noise[i : i + 1]
        np.testing.assert_array_equal(alone.counts[0], mixed.counts[i])


def test_grid_samples_are_integers_divided_once() -> None:
    seen: list[torch.Tensor] = []

    def model(x: torch.Tensor) -> torch.Tensor:
        seen.append(x.clone())
        return torch.zeros(len(x), 2)

    counts_of(model, torch.tensor([[100, 3]], dtype=torch.uint8), n=2000)
    values = torch.cat(seen)
    assert values.dtype == torch.float32
    integers = (values.double() * 255).round()
    assert torch.equal(values, integers.float() / 255)
    assert integers.min() < 0  # noise leaves [0, 1]; nothing is clipped
    assert integers.max() > 255


def test_off_grid_samples_are_not_on_the_grid() -> None:
    seen: list[torch.Tensor] = []

    def model(x: torch.Tensor) -> torch.Tensor:
        seen.append(x.clone())
        return torch.zeros(len(x), 2)

    counts_of(model, torch.tensor([[0.123, 0.5]]), n=200, block_size=70)
    values = torch.cat(seen)[:, 0] * 255
    assert (values - values.round()).abs().max() > 0.4


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((2, 3), str), "got ndarray"),
        ([[0.0, 1.0]], "got list, expected a tensor or an array"),
        (torch.zeros(3), "add x\\[None\\]"),
        (torch.zeros(0, 3), "at least one input"),
        (torch.zeros(2, 0), "at least one input"),
        (torch.zeros(2, 3, dtype=torch.int64), "int64"),
        (torch.zeros(2, 3, dtype=torch.complex64), "complex64"),
    ],
)
def test_unusable_inputs_are_refused(x: torch.Tensor, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        prepare(x, None, None)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_inputs_are_refused(bad: float) -> None:
    with pytest.raises(InputError, match="NaN or infinity"):
        prepare(torch.tensor([[0.0, bad]]), None, None)


def test_default_ids_are_distinct_hashes() -> None:
    batch = prepare(torch.arange(12, dtype=torch.uint8).reshape(4, 3), None, None)
    assert len(set(batch.ids)) == 4
    assert all(0 <= i < 2**64 for i in batch.ids)
    assert [f"{i:016x}" for i in batch.ids] == [digest[:16] for digest in batch.sha256]


def test_default_block_size_bounds_memory() -> None:
    assert default_block_size(784) == 256
    assert default_block_size(3 * 224 * 224) * 3 * 224 * 224 <= 2**21
    assert default_block_size(10**9) == 1


PEAK = """
import resource, sys, torch
import ddsmoothing as dds
def model(x):
    return torch.stack([x[:, 0], 0.5 - x[:, 0]], 1)
smoothed = dds.SmoothedClassifier(model, dds.L2Certificate(), num_classes=2)
smoothed.certify(torch.zeros(2, 8, dtype=torch.uint8), 0.25, n=2000, seed=0, ids=[0, 1])
smoothed.certify(torch.zeros(2, 8, dtype=torch.uint8), 0.25, n=int(sys.argv[1]), seed=0, ids=[0, 1])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_n() -> None:
    def peak(n: int) -> int:
        command = [sys.executable, "-c", PEAK, str(n)]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert peak(1_000_000) < 1.05 * peak(10_000)
