"""The Triton kernels in Triton's interpreter, against the CPU path; run by test_kernels.py in a process of its own.

The interpreter takes about the same time for a small program as for a large one, so most cases widen the programs.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from ddsmoothing.kernels import device_noise
from ddsmoothing.kernels.device_noise import DeviceNoise, Part, fault, supported, to_device
from ddsmoothing.kernels.rounding import on_grid_values
from ddsmoothing.noise import GridBlock, GridTable, grid_table, table_of
from ddsmoothing.streams import philox, rows_per_block

CPU = torch.device("cpu")
END = 2**64 - 1
SIGMAS = (0.12, 0.5, 4.0, 12.0)
WORDS = ((END, 2**63 + 5, 1, 0), (2**63, END - 8, 2**63 + 1, END), (7, 2**63, 4, END - 1), (0, 0, 0, 2**63))


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_noise, "COUNTERS", 2048)
    monkeypatch.setattr(device_noise, "LANES", 4096)


@pytest.fixture
def noise() -> Iterator[DeviceNoise]:
    yield DeviceNoise(CPU)


def parts_of(tables: list[GridTable], rows: list[int], centres: int) -> list[Part]:
    firsts = np.cumsum([0, *rows]).tolist()
    return [
        Part(words=WORDS[i % len(WORDS)], table=table, centre=i % centres, row=firsts[i], rows=n)
        for i, (table, n) in enumerate(zip(tables, rows, strict=True))
    ]


def by_cpu(parts: list[Part], centres: np.ndarray, rows: int) -> np.ndarray:
    found = np.empty((rows, centres.shape[1]), dtype=np.int16)
    for part in parts:
        place = found[part.row : part.row + part.rows]
        GridBlock(part.table, part.words, centres.shape[1]).fill(place)
        place += centres[part.centre]
    return found


def check(noise: DeviceNoise, parts: list[Part], d: int) -> np.ndarray:
    """Draw, compare with the CPU path, and return the integers."""
    centres = np.random.default_rng(d).integers(0, 256, (3, d)).astype(np.int16)
    rows = max(part.row + part.rows for part in parts)
    out = torch.full((rows + 1, d), 77, dtype=torch.int16)
    noise.draw(out[:rows], to_device(centres, CPU), parts)
    np.testing.assert_array_equal(out[:rows].numpy(), by_cpu(parts, centres, rows))
    assert (out[rows] == 77).all()
    return out[:rows].numpy()


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize(("d", "largest"), [(1, 4000), (5, 4000), (17, 1000), (784, 167), (3072, 42)])
def test_parts_of_several_inputs_and_sigmas_are_those_of_the_cpu(noise: DeviceNoise, d: int, largest: int) -> None:
    """Whole blocks from 784 numbers on; the last part is shorter, so some of its programs have nothing to do."""
    whole = min(largest, rows_per_block(d))
    tables = [grid_table("gaussian", sigma) for sigma in SIGMAS]
    check(noise, parts_of(tables, [whole, whole, whole, whole // 3], 3), d)


def test_programs_as_they_are_run_on_a_device(noise: DeviceNoise) -> None:
    tables = [grid_table("gaussian", 12.0), grid_table("uniform", 0.8)]
    check(noise, parts_of(tables, [260, 130], 3), 17)


@pytest.mark.usefixtures("wide")
def test_one_row_of_a_large_input(noise: DeviceNoise) -> None:
    check(noise, parts_of([grid_table("gaussian", 0.25)] * 2, [1, 1], 3), 150528)


@pytest.mark.usefixtures("wide")
def test_thresholds_that_are_drawn_exactly_and_several_in_a_cell(noise: DeviceNoise) -> None:
    """Every coordinate is undecided, and its 63 bits are a threshold, one more or one less; some stand twice."""
    d, rows, words = 8, 40, WORDS[0]
    first, more = (philox(*words, part=part).random_raw(rows * d) for part in (0, 1))
    cells = first[: rows * d // 4].view(np.uint16).astype(np.uint64)
    drawn = (cells << np.uint64(47)) | (more >> np.uint64(17))
    shifted = drawn + np.resize(np.array([0, 1, -1], dtype=np.int64), drawn.size).view(np.uint64)
    table = table_of(np.sort(np.concatenate([shifted, drawn[::5]])), -100, 0.0, True)
    part = Part(words=words, table=table, centre=0, row=0, rows=rows)
    found = check(noise, [part], d)
    assert np.unique(found).size > rows * d / 2
    for late, moved in ((1, "one later"), (-1, "one earlier")):
        thresholds = table.thresholds + np.array([late], dtype=np.int64).view(np.uint64)
        other = Part(words=words, table=table_of(thresholds, -100, 0.0, True), centre=0, row=0, rows=rows)
        assert not np.array_equal(found, check(noise, [other], d)), moved


@pytest.mark.usefixtures("wide")
def test_tables_are_added_and_forgotten_and_launches_cut(noise: DeviceNoise, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_noise, "LARGEST_TABLES", 3)
    monkeypatch.setattr(device_noise, "LARGEST_LAUNCH", 3 * 16 * 2048)
    put = []
    keep = device_noise.Tables.put
    monkeypatch.setattr(device_noise.Tables, "put", lambda self, table: (put.append(table), keep(self, table))[1])
    tables = [grid_table("gaussian", sigma) for sigma in (0.1, 0.2, 0.3, 0.4, 0.1, 4.0, 0.2, 0.3)]
    launches = device_noise.launches_of(parts_of(tables, [30, 30, 31, 5, 20, 9, 7, 5000], 3), 5)
    assert [len(launch) for launch in launches] == [3, 3, 1, 1]  # three scales or programs; the last part has two
    check(noise, parts_of(tables, [30, 30, 31, 5, 20, 9, 7, 8], 3), 5)
    assert put == [tables[i] for i in (0, 1, 2, 3, 4, 5, 6, 7)]  # three launches, and no room for more scales
    check(noise, parts_of(tables[-1:] * 2, [20, 20], 1), 5)
    assert len(put) == 8  # the last launch's are still there


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_sums_are_divided_and_rounded_as_by_the_cpu(
    noise: DeviceNoise, dtype: torch.dtype, layout: torch.memory_format
) -> None:
    """All integers of 16 bits, in four images of three channels and a remainder."""
    sums = torch.arange(-(2**15), 2**15).to(torch.int16)[torch.randperm(2**16, generator=torch.Generator())]
    sums = sums[: 4 * 3 * 73 * 73 + 1][1:].reshape(4, -1)
    out = torch.empty((4, 3, 73, 73), dtype=dtype, memory_format=layout)
    noise.divide(out, sums.contiguous(), 255)
    wanted = on_grid_values(sums, 255, torch.float32).reshape(4, 3, 73, 73).to(dtype=dtype, memory_format=layout)
    bits = torch.int32 if dtype == torch.float32 else torch.int16
    assert out.stride() == wanted.stride()
    assert torch.equal(out.view(bits), wanted.view(bits))


def test_a_device_is_tried_before_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    assert supported(CPU)
    fault.cache_clear()
    assert fault(CPU) is None

    class Other(GridBlock):
        def fill(self, out: np.ndarray) -> None:
            super().fill(out)
            out[-1, -1] += 1

    fault.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(device_noise, "GridBlock", Other)
        assert fault(CPU) == "its integers are not those of the CPU"
    fault.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(device_noise, "on_grid_values", lambda x, *_: x.to(torch.float32) * torch.tensor(1 / 255))
        assert fault(CPU) == "it divides otherwise than the CPU"
    fault.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(DeviceNoise, "draw", lambda *_: 1 / 0)
        assert fault(CPU) == "Triton failed: ZeroDivisionError: division by zero"
    fault.cache_clear()
