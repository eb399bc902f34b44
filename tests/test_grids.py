"""Grids other than that of 8-bit images: 16-bit pixels, and columns in steps of a stated size."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import ddsmoothing as dds
from conftest import Answer
from ddsmoothing.errors import InputError, ShapeError
from ddsmoothing.inputs import check_levels, prepare
from ddsmoothing.memory.smoothing import binding_of
from ddsmoothing.noise import grid_table
from ddsmoothing.verify import verify_run
from ddsmoothing.verify.arithmetic import grid_distance
from reference import Half, is_valid

CPU = torch.device("cpu")
SIGMA, ALPHA, R = 0.25, 0.05, 2000


@pytest.mark.parametrize("levels", [1, 20, 100, 65535, 2**20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_multiples_of_the_step_are_recognised(levels: int, dtype: torch.dtype) -> None:
    integers = torch.randint(-3 * levels, 3 * levels + 1, (5, 40), generator=torch.Generator().manual_seed(0))
    batch = prepare(integers.to(dtype) / levels, None, CPU, levels=levels)
    assert batch.on_grid.all()
    assert batch.grid.dtype == np.int32
    np.testing.assert_array_equal(batch.grid, integers.numpy())


def test_numbers_between_the_steps_are_not() -> None:
    x = torch.tensor([[0.10, -3.25, 7.0], [0.10, -3.255, 7.0]])
    assert prepare(x, None, CPU, levels=100).on_grid.tolist() == [True, False]
    assert not prepare(torch.full((1, 2), 2.0**24), None, CPU, levels=100).on_grid.any()  # its integers do not fit


def test_sixteen_bit_pixels_are_taken_as_they_are_stored() -> None:
    stored = torch.tensor([[0, 1, 40_000, 65_535]]).to(torch.uint16)
    batch = prepare(stored, None, CPU, levels=65535)
    assert batch.grid.tolist() == [[0, 1, 40_000, 65_535]]
    same = prepare(torch.tensor([[0, 1, 40_000, 65_535]]) / 65535, None, CPU, levels=65535)
    assert batch.sha256 == same.sha256


@pytest.mark.parametrize(("dtype", "levels"), [(torch.uint8, 65535), (torch.uint16, 255)])
def test_stored_pixels_of_another_grid_are_refused(dtype: torch.dtype, levels: int) -> None:
    with pytest.raises(ShapeError, match=f"say levels={'65535' if dtype == torch.uint16 else '255'}"):
        prepare(torch.ones(1, 3).to(dtype), None, CPU, levels=levels)


@pytest.mark.parametrize("levels", [0, -1, 2**20 + 1, 25.5, True, "100"])
def test_unusable_levels_are_refused(levels: object) -> None:
    with pytest.raises(InputError, match="expected a whole number, 1 to"):
        check_levels(levels)  # type: ignore[arg-type]


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_snapping_moves_to_the_nearest_step_and_says_how_far(norm: str) -> None:
    x = torch.tensor([[0.104, -2.0], [0.1, -2.0]], dtype=torch.float64)
    batch = prepare(x, None, CPU, snap=norm, levels=100)
    assert batch.on_grid.all()
    assert batch.grid.tolist() == [[10, -200], [10, -200]]
    assert 0.004 < batch.moved[0] < 0.004 + 1e-12
    assert batch.moved[1] == 0.0
    with pytest.raises(InputError, match=r"only inputs in \[-83886.1, 83886.1\]"):
        prepare(torch.full((1, 2), 1e6), None, CPU, snap=norm, levels=100)


class Multiples(torch.nn.Module):
    """Answers 1 for columns above the threshold, and remembers whether it was ever shown more than the grid."""

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.levels, self.left = levels, False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        near = (x.double() * self.levels).round() / self.levels
        self.left |= not torch.equal(near.to(x.dtype), x)
        return torch.stack([-x[:, 0], x[:, 0]], 1)


@pytest.mark.parametrize(("levels", "dtype"), [(20, torch.float32), (65535, torch.float32), (100, torch.float64)])
def test_the_model_sees_multiples_of_the_step_only(levels: int, dtype: torch.dtype) -> None:
    model, x = Multiples(levels), torch.tensor([[3.0, -1.0], [0.0, 7.0]], dtype=dtype)
    smoothed = dds.SmoothedClassifier(model, dds.L2Certificate(), num_classes=2, levels=levels)
    result = smoothed.certify(x, SIGMA, n=500, seed=0)
    assert result.noise == ("grid", "grid")
    assert not model.left
    np.testing.assert_allclose(result.tv, 2 * grid_table("gaussian", SIGMA, levels).tau, rtol=1e-12)
    smoothed.certify(x + 1e-3 / levels, SIGMA, n=100, seed=0)
    assert model.left  # off the grid, float noise: the same model does see more


@pytest.mark.parametrize(("certificate", "levels"), [(dds.L2Certificate(), 20), (dds.L1Certificate(), 65535)])
def test_certificates_on_a_grid_are_true(certificate: dds.Certificate, levels: int) -> None:
    """A plane between two grid points, so that rounding does not move it: pA and the true distance are known."""
    threshold = (levels // 2 + 0.5) / levels
    half = Half([1.0, 0.0, 0.0], threshold)
    offsets = torch.tensor([-0.35, -0.2, -0.1, 0.1, 0.2, 0.35])[torch.arange(R) % 6]
    x = torch.full((R, 3), 0.2)
    x[:, 0] = threshold + offsets
    x = (x.double() * levels).round().float() / levels
    smoothed = dds.SmoothedClassifier(half, certificate, num_classes=2, block_size=4096, levels=levels)
    result = smoothed.certify(x, SIGMA, n0=25, n=200, alpha=ALPHA, seed=5, ids=range(R))
    assert set(result.noise) == {"grid"}
    margin = x[:, 0].double().numpy() - threshold
    wrong = (result.radius > 0) & ((result.prediction == 1) != (margin > 0))
    false = wrong | (result.radius > np.abs(margin) + 1e-6)
    assert is_valid(false, ALPHA)
    best_guess = np.array([certificate.radius(SIGMA, k / 200, 1 - k / 200) for k in result.counts.max(1)])
    assert not is_valid(best_guess > np.abs(margin) + 1e-6, ALPHA)  # no bound at all: rejected


@pytest.mark.parametrize(("levels", "sigma"), [(65535, 0.0625), (4000, 1.0), (20, 0.25)])
def test_verification_finds_the_same_distance_of_the_law(levels: int, sigma: float) -> None:
    exact = float(grid_distance("gaussian", sigma, levels))
    assert exact == pytest.approx(grid_table("gaussian", sigma, levels).tau, rel=1e-6)


def columns() -> Half:
    """A model for the command line, named as a user names his own."""
    return Half([1.0, 0.0, 0.0], 0.525)


def tabular(folder: Path) -> str:
    """A data set of columns in steps of 0.05 in [0, 1]."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 21, (12, 3)).astype(np.float32) / 20
    np.savez(folder / "columns.npz", x=x, y=(x[:, 0] > 0.5).astype(np.int64))
    return str(folder / "columns.npz")


def test_a_run_keeps_its_levels_and_is_verified_with_them(cli: Callable[..., Answer], tmp_path: Path) -> None:
    data, out = tabular(tmp_path), tmp_path / "run"
    command = ["certify", "--model", "test_grids:columns", "--data", data, "--sigma", "0.25", "--n", "200"]
    answer = cli(*command, "--levels", "20", "--no-preflight", "--out", out)
    assert answer.code == 0, answer.err
    run = dds.load_run(out)
    assert run.header.levels == 20
    assert {row.noise for row in run.rows} == {"grid"}
    assert not verify_run(out).findings
    header = json.loads((out / "header.json").read_text())
    (out / "header.json").write_text(json.dumps(header | {"levels": 255}))
    assert any("tv is" in finding.message for finding in verify_run(out).findings)


@pytest.mark.parametrize("options", [["--levels", "20"], ["--snap"], ["--levels", "7", "--snap"]])
def test_samples_of_such_a_run_are_drawn_again_as_they_were(
    cli: Callable[..., Answer], tmp_path: Path, options: list[str]
) -> None:
    named = ["--model", "test_grids:columns", "--data", tabular(tmp_path)]
    out = tmp_path / "run"
    answer = cli("certify", *named, "--sigma", "0.25", "--n", "200", *options, "--no-preflight", "--out", out)
    assert answer.code == 0, answer.err
    assert {row.noise for row in dds.load_run(out).rows} == {"grid"}
    again = cli("verify", out, "--resample", "3", *named)
    assert again.code == 0, again.out + again.err
    assert "3 of 3 inputs drawn again have the same counts" in again.out


def test_a_memory_takes_the_grid_of_eight_bit_images_only(half: Half) -> None:
    smoothed = dds.SmoothedClassifier(half, dds.L2Certificate(), num_classes=2, levels=20)
    with pytest.raises(InputError, match="no other levels"):
        binding_of(smoothed, (3,), transform="none", dtype="float32", model_id=None)
