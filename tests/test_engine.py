"""Precision, memory format and compilation: copies of the model, recorded, and never the caller's own."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ddsmoothing as dds
from ddsmoothing.counting.contract import Request
from ddsmoothing.counting.engine import Engine
from ddsmoothing.counting.local import LARGEST_WORKERS, ClassCounter
from ddsmoothing.errors import InputError
from ddsmoothing.noise import Gaussian


def certify(model: torch.nn.Module, x: torch.Tensor, **options: object) -> dds.Certification:
    smoothed = dds.SmoothedClassifier(model, dds.L2Certificate(), num_classes=10, **options)
    return smoothed.certify(x, 0.25, n0=50, n=1000, seed=0)


@pytest.mark.parametrize(
    "options", [{"precision": "bf16"}, {"channels_last": True}, {"precision": "bf16", "channels_last": True}]
)
def test_other_forms_give_nearly_the_same_counts(model: torch.nn.Module, data: dds.Dataset, options: dict) -> None:
    x, _ = data[:6]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    plain, other = certify(model, x), certify(model, x, **options)
    assert np.abs(plain.counts - other.counts).max() <= 60
    for key, value in model.state_dict().items():
        assert value.dtype == before[key].dtype
        assert value.stride() == before[key].stride()
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)


def test_bf16_really_runs_in_bf16() -> None:
    seen = []

    class Look(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append((x.dtype, self.scale.dtype))
            return x.flatten(1)[:, :2] * self.scale

    smoothed = dds.SmoothedClassifier(Look(), dds.L2Certificate(), num_classes=2, precision="bf16")
    smoothed.predict(torch.zeros(1, 4), 0.2, n=100, seed=0)
    assert set(seen) == {(torch.bfloat16, torch.bfloat16)}


def test_bare_callables_cannot_be_cast_and_unknown_names_are_named(model: torch.nn.Module) -> None:
    with pytest.raises(InputError, match="bare callable"):
        dds.SmoothedClassifier(lambda x: x, dds.L2Certificate(), num_classes=2, precision="bf16")
    with pytest.raises(InputError, match="bf16"):
        dds.SmoothedClassifier(model, dds.L2Certificate(), num_classes=2, precision="bf61")


def test_workers_side_by_side_give_the_counts_of_one(model: torch.nn.Module, data: dds.Dataset) -> None:
    threads = torch.get_num_threads()
    x, _ = data[:3]
    try:
        torch.set_num_threads(3)
        three = certify(model, x, block_size=32)
        assert torch.get_num_threads() == 3
        torch.set_num_threads(1)
        one = certify(model, x, block_size=32)
    finally:
        torch.set_num_threads(threads)
    np.testing.assert_array_equal(three.counts, one.counts)


INSIDE: set[int] = set()  # threads
MOST: list[int] = []


def lingering(x: torch.Tensor) -> torch.Tensor:
    """Stays long enough for another thread to come in, if it may."""
    INSIDE.add(threading.get_ident())
    MOST.append(len(INSIDE))
    time.sleep(0.005)
    INSIDE.discard(threading.get_ident())
    return x.flatten(1)[:, :10]


class Lingering(torch.nn.Module):
    """The same with private copies, of which several may run at once."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return lingering(x)


@pytest.mark.parametrize(("base", "most"), [(lingering, 1), (Lingering(), 3)], ids=["callable", "module"])
def test_a_bare_callable_is_called_by_one_thread_only(data: dds.Dataset, base: Any, most: int) -> None:
    """Beside a module, which shows that threads would meet inside if they were let."""
    threads = torch.get_num_threads()
    MOST.clear()
    try:
        torch.set_num_threads(3)
        certify(base, data[:2][0], block_size=16, check=False)
    finally:
        torch.set_num_threads(threads)
    assert max(MOST) == most


@pytest.mark.parametrize("fastest", [32, 128, 1024])
def test_the_probe_finds_the_fastest_rows(
    model: torch.nn.Module, data: dds.Dataset, monkeypatch: pytest.MonkeyPatch, fastest: int
) -> None:
    """On a clock on which one size is the fastest, and others the slower the farther they are from it."""
    now = [0.0]

    def count(self: ClassCounter, batch: object, requests: list[Request], seed: int) -> list[Any]:
        rows = requests[0].n // (2 * min(torch.get_num_threads(), LARGEST_WORKERS))
        now[0] += requests[0].n * (1.0 + abs(math.log2(rows / fastest)))
        return []

    monkeypatch.setattr("ddsmoothing.counting.probe.time.perf_counter", lambda: now[0])
    monkeypatch.setattr(ClassCounter, "count", count)
    smoothed = dds.SmoothedClassifier(model, dds.L2Certificate(), num_classes=10)
    size = smoothed.probe_block_size(smoothed.prepare(data[:1][0]))
    assert size == fastest
    assert smoothed.with_block_size(size).block_rows(784) == size
    assert smoothed.block_size is None


def test_the_form_is_part_of_the_header_and_a_run_of_another_is_refused(cli: Callable, tmp_path: Path) -> None:
    base = ("certify", "--model", "fashion-mnist-cnn", "--data", "fashion-mnist-sample", "--sigma", "0.5", "--n0", "10")
    quick = (*base, "--n", "100", "--max", "3", "--out", tmp_path / "run")
    assert cli(*quick, "--precision", "bf16", "--channels-last").code == 0
    header = dds.load_run(tmp_path / "run").header
    assert (header.precision, header.channels_last, header.compiled) == ("bf16", True, False)
    assert "precision was bf16, now fp32" in cli(*quick, "--precision", "fp32").err


def test_vectors_of_twenty_numbers() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(20, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    smoothed = dds.SmoothedClassifier(net, dds.L2Certificate(), num_classes=3)
    result = smoothed.certify(torch.rand(4, 20), 0.1, n0=50, n=2000, seed=0)
    assert result.counts.sum(1).tolist() == [2000] * 4
    assert set(result.noise) == {"float"}


def test_memory_formats_reach_the_model() -> None:
    seen = []

    class Layout(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x.is_contiguous(memory_format=torch.channels_last))
            return x.flatten(1)[:, :2]

    engine = Engine(Layout(), channels_last=True)
    smoothed = dds.SmoothedClassifier(Layout(), dds.L2Certificate(), num_classes=2)
    batch = smoothed.prepare(torch.zeros(1, 3, 4, 4))
    ClassCounter(engine, Gaussian(), 2, 8).count(batch, [Request(row=0, sigma=0.2, stream=1, n=9)], 0)
    assert seen
    assert all(seen)


LARGE = """
import resource, sys, torch, torchvision
import ddsmoothing as dds
torch.manual_seed(0)
model = torchvision.models.resnet18(num_classes=10).eval()
x = torch.randint(0, 256, (1, 3, 224, 224), dtype=torch.uint8)
with torch.inference_mode():
    model(torch.zeros(1, 3, 224, 224))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
smoothed = dds.SmoothedClassifier(model, dds.L2Certificate(), num_classes=10)
result = smoothed.certify(x, 0.25, n0=6, n=20, seed=0)
assert result.counts.sum(1).tolist() == [20]
assert result.noise == ("grid",)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def test_images_of_224_pixels_need_less_than_two_gigabytes() -> None:
    pytest.importorskip("torchvision", reason="torchvision is not installed (extra vision)")
    done = subprocess.run([sys.executable, "-c", LARGE], capture_output=True, text=True, check=False, timeout=250)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 2048


FAULTS = """
import platform, resource, sys, torch
import ddsmoothing as dds
from ddsmoothing import devices
from ddsmoothing.counting import local as sampling
if sys.argv[1] == "without":
    sampling.keep_freed_memory = lambda: False
elif not devices.keep_freed_memory():
    print(-1)
    sys.exit()
x, _ = dds.load_data("fashion-mnist-sample")[:4]
smoothed = dds.SmoothedClassifier(dds.load_model("fashion-mnist-cnn"), dds.L2Certificate(), num_classes=10)
smoothed.certify(x, 0.5, n0=100, n=1000, seed=0)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
smoothed.certify(x, 0.5, n0=100, n=5000, seed=0)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_forward_passes_do_not_fault_their_memory_in_again() -> None:
    def faults(mode: str) -> int:
        command = [sys.executable, "-c", FAULTS, mode]
        return int(subprocess.run(command, capture_output=True, text=True, check=True, timeout=100).stdout)

    kept = faults("with")
    if kept < 0:
        pytest.skip("the allocator is not glibc's")
    assert kept < faults("without") / 3


@pytest.mark.slow  # a minute of compilation
@pytest.mark.filterwarnings("ignore")  # torch.compile warns about itself
def test_a_compiled_copy_gives_nearly_the_same_counts(model: torch.nn.Module, data: dds.Dataset) -> None:
    if shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler on a CPU, and there is no g++")
    x, _ = data[:3]
    plain, compiled = certify(model, x), certify(model, x, compiled=True)
    assert (compiled.counts.sum(1) == 1000).all()
    assert np.abs(plain.counts - compiled.counts).max() <= 5
