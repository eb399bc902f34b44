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
from ddsmoothing.campaigns.resample import resample_run
from ddsmoothing.errors import DdsmoothingWarning, InputError, ShapeError
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
    with pytest.warns(DdsmoothingWarning, match="stated grid of 100 steps"):
        assert prepare(x, None, CPU, levels=100).on_grid.tolist() == [True, False]
    with pytest.warns(DdsmoothingWarning, match="snap"):  # its integers do not fit
        assert not prepare(torch.full((1, 2), 2.0**24), None, CPU, levels=100).on_grid.any()


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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_coarse_types_count_as_on_the_grid_only_where_they_tell_its_points_apart(dtype: torch.dtype) -> None:
    pixels = torch.arange(256)[None]
    batch = prepare(pixels.to(dtype) / 255, None, CPU)
    assert batch.on_grid.all()
    np.testing.assert_array_equal(batch.grid, pixels.numpy())
    x = torch.rand(1, 4000, generator=torch.Generator().manual_seed(0)).to(dtype)
    for levels in (3000, 65535, 2**20):  # many points are one number of this type, the nearest of them is not the input
        with pytest.warns(DdsmoothingWarning, match="stated grid"):
            assert not prepare(x, None, CPU, levels=levels).on_grid.any()
        with pytest.raises(InputError, match="give the inputs as float32"):
            prepare(x, None, CPU, snap="l1", levels=levels)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("levels", [100, 1000])
def test_an_input_is_never_farther_from_its_grid_point_than_is_said(dtype: torch.dtype, levels: int) -> None:
    x = torch.rand(1, 1000, generator=torch.Generator().manual_seed(0)).to(dtype)
    try:
        batch = prepare(x, None, CPU, snap="l1", levels=levels)
    except InputError:
        assert dtype == torch.bfloat16
        return
    far = np.abs(x.double().numpy() - batch.grid / levels).sum()
    assert batch.on_grid.all()
    assert far <= batch.moved[0] <= far + 1e-9


LEFT: dict[int, bool] = {}  # not in the module: threads call private copies of that


class Multiples(torch.nn.Module):
    """Answers 1 for columns above the threshold, and remembers whether it was ever shown more than the grid."""

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        near = (x.double() * self.levels).round() / self.levels
        LEFT[self.levels] |= not torch.equal(near.to(x.dtype), x)
        return torch.stack([-x[:, 0], x[:, 0]], 1)


@pytest.mark.parametrize(("levels", "dtype"), [(20, torch.float32), (65535, torch.float32), (100, torch.float64)])
def test_the_model_sees_multiples_of_the_step_only(levels: int, dtype: torch.dtype) -> None:
    model, x = Multiples(levels), torch.tensor([[3.0, -1.0], [0.0, 7.0]], dtype=dtype)
    LEFT[levels] = False
    smoothed = dds.SmoothedClassifier(model, dds.L2Certificate(), num_classes=2, levels=levels, check=False)
    result = smoothed.certify(x, SIGMA, n=500, seed=0)
    assert result.noise == ("grid", "grid")
    assert not LEFT[levels]
    np.testing.assert_allclose(result.tv, 2 * grid_table("gaussian", SIGMA, levels).tau, rtol=1e-12)
    with pytest.warns(DdsmoothingWarning, match="stated grid"):
        smoothed.certify(x + 1e-3 / levels, SIGMA, n=100, seed=0)
    assert LEFT[levels]  # off the grid, float noise: the same model does see more


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


def test_a_sigma_too_wide_for_the_grid_is_refused_before_anything_is_written(
    cli: Callable[..., Answer], tmp_path: Path
) -> None:
    command = ["certify", "--model", "test_grids:columns", "--data", tabular(tmp_path), "--n", "200", "--no-preflight"]
    answer = cli(*command, "--levels", "100000", "--data-dependent", "--sigma0", "0.25", "--out", tmp_path / "run")
    assert answer.code == 2
    assert "noise of scale 1 spans 100,000 grid steps" in answer.err
    assert not (tmp_path / "run").exists()


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


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [("moved", 0.0, "was moved by"), ("noise", "float", "its noise is grid"), ("tv", None, "for 3 numbers")],
)
def test_what_a_row_keeps_back_of_its_input_is_found_when_it_is_drawn_again(
    cli: Callable[..., Answer], tmp_path: Path, field: str, value: object, said: str
) -> None:
    """A forger who hides how far an input was moved, or the size of the input, with all that follows from it."""
    named = ["--model", "test_grids:columns", "--data", tabular(tmp_path)]
    out = tmp_path / "run"
    cli("certify", *named, "--sigma", "0.25", "--n", "200", "--levels", "7", "--snap", "--no-preflight", "--out", out)
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    for row in rows:
        tv = row["measurements"][0]["tv"]
        row |= {} if field == "tv" else {field: value}
        for one in row["measurements"]:
            one["tv"] = tv / 3 if field == "tv" else 0.0 if value == "float" else tv
    (out / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run, smoothed = (
        dds.load_run(out),
        dds.SmoothedClassifier(columns(), dds.L2Certificate(), num_classes=2, block_size=1024, levels=7, snap=True),
    )
    messages = [one.message for one in resample_run(run, smoothed, dds.load_data(named[3]), 12)]
    assert all(message is None or said in message for message in messages)
    assert any(messages)


def test_columns_outside_the_unit_interval_want_levels(cli: Callable[..., Answer], tmp_path: Path) -> None:
    x = (np.random.default_rng(0).integers(-60, 60, (8, 3)) / 20).astype(np.float32)
    np.savez(tmp_path / "z.npz", x=x, y=(x[:, 0] > 0.525).astype(np.int64))
    command = ["certify", "--model", "test_grids:columns", "--data", str(tmp_path / "z.npz"), "--sigma", "0.5"]
    command += ["--n", "200", "--no-preflight", "--out", str(tmp_path / "run")]
    refused = cli(*command)
    assert (refused.code, "give --levels" in refused.err) == (1, True)
    assert not (tmp_path / "run").exists()
    answer = cli(*command, "--levels", "20")
    assert answer.code == 0, answer.err
    run = dds.load_run(tmp_path / "run")
    assert {row.noise for row in run.rows} == {"grid"}
    assert not verify_run(tmp_path / "run").findings


def test_sixteen_bit_files_are_read_and_certified_exactly(cli: Callable[..., Answer], tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 65536, (4, 3)).astype(np.uint16)
    np.savez(tmp_path / "deep.npz", x=x, y=(x[:, 0] > 34406).astype(np.int64))
    named = ["--model", "test_grids:columns", "--data", str(tmp_path / "deep.npz")]
    data = dds.load_data(str(tmp_path / "deep.npz"))
    assert data.transform == "x/65535"
    assert prepare(data[:][0], None, CPU, levels=65535).grid.tolist() == x.astype(int).tolist()
    answer = cli("certify", *named, "--sigma", "0.01", "--n", "100", "--levels", "65535", "--out", tmp_path / "run")
    assert answer.code == 0, answer.err
    assert {row.noise for row in dds.load_run(tmp_path / "run").rows} == {"grid"}


def test_a_memory_takes_the_grid_of_eight_bit_images_only(half: Half) -> None:
    smoothed = dds.SmoothedClassifier(half, dds.L2Certificate(), num_classes=2, levels=20)
    with pytest.raises(InputError, match="no other levels"):
        binding_of(smoothed, (3,), transform="none", dtype="float32", model_id=None)
