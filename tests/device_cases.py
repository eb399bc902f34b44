"""The loop for a device with noise drawn by the kernels in Triton's interpreter; run by test_device_counter.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from counting_cases import Net, Told, check, images, requests
from ddsmoothing.counting import ahead
from ddsmoothing.counting.ahead import DeviceSource
from ddsmoothing.counting.device import DeviceCounter
from ddsmoothing.counting.local import ClassCounter
from ddsmoothing.inputs import prepare
from ddsmoothing.kernels import device_noise


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Wide programs, and a count of the rows that the kernels drew."""
    drawn: list[int] = []
    draw = DeviceSource.draw
    monkeypatch.setattr(device_noise, "COUNTERS", 2048)
    monkeypatch.setattr(device_noise, "LANES", 4096)
    monkeypatch.setattr(
        DeviceSource, "draw", lambda self, out, blocks: (drawn.append(len(out)), draw(self, out, blocks))
    )
    ahead.drawer.cache_clear()
    return drawn


@pytest.mark.parametrize("model", [Net, Told])
@pytest.mark.parametrize("form", [{}, {"precision": "bf16", "channels_last": True}])
def test_counts_are_those_of_the_local_loop(wide: list[int], model: type[Net], form: dict) -> None:
    asked = requests(5, 200)
    check(images(5, (2, 3, 3), off=(1, 4)), asked, 24, model(), **form)
    assert sum(wide) == sum(request.n for request in asked if request.row not in (1, 4))


def test_counts_with_uniform_noise(wide: list[int]) -> None:
    check(images(3, (2, 3, 3)), requests(3, 90), 32, Net(), noise="uniform")
    assert wide


def test_inputs_of_another_type_are_divided_by_torch(wide: list[int]) -> None:
    batch = images(2, (2, 3, 3))
    assert batch.dtype == torch.float32
    double = prepare(batch.values.double().reshape(2, 2, 3, 3).mul(255).round() / 255, [1, 2], None)
    assert double.dtype == torch.float64
    check(double, requests(2, 90), 32, Net().double())
    assert wide


@pytest.mark.parametrize("kind", ["votes", "wins", "duels"])
def test_the_loop_never_waits_for_the_device(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted by the benchmark: a pass copies nothing that waits and reads no number; the loop of a CPU does."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import launches

    for name, value in {"D": 100, "ROWS": 16, "PASSES": 6}.items():
        monkeypatch.setattr(launches, name, value)
    ours, others = (launches.a_pass(loop, kind) for loop in (DeviceCounter, ClassCounter))
    assert (ours["waits"], ours["copies that wait"]) == (0, 0)
    assert ours["launches"] < others["launches"]
    assert others["copies that wait"] >= 2
