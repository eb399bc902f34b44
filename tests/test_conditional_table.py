"""The rows of benchmarks/conditional.py: networks and options, the kept counts, what follows, and the page."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import ddsmoothing as dds
from ddsmoothing.data import Dataset, load_data
from ddsmoothing.models import build_model

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
if not BENCHMARKS.is_dir():
    pytest.skip("the benchmarks are not in a source distribution", allow_module_level=True)
sys.path.insert(0, str(BENCHMARKS))

import conditional  # noqa: E402
import conditional_tables  # noqa: E402
import kept_counts  # noqa: E402
import public_rows  # noqa: E402

FILES = sorted(conditional.COUNTS.glob("*.npz"))
ROWS = {row.name: row for row in conditional.rows()}


def test_some_counts_are_kept_and_each_is_a_row() -> None:
    assert FILES
    assert {path.stem for path in FILES} <= ROWS.keys()
    assert len(ROWS) == len(conditional.rows())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_kept_counts_reproduce_their_radii(path: Path) -> None:
    one, row = kept_counts.load(path), ROWS[path.stem]
    answered = one.prediction >= 0
    np.testing.assert_allclose(one.radius[answered], one.recomputed[answered], atol=1e-6)
    assert one.about["alpha"] == conditional.ALPHA
    assert one.votes.sum(1).max() == conditional_tables.PARTS[row.part].n
    if row.sigma is None:
        assert ((one.sigma >= conditional.LOW) & (one.sigma <= conditional.HIGH)).all()
    else:
        assert set(one.sigma) == {row.sigma}


def test_rows_of_one_part_are_of_the_same_images() -> None:
    for part in conditional_tables.PARTS:
        same = {tuple(kept_counts.load(path).id) for path in FILES if ROWS[path.stem].part == part}
        assert len(same) <= 1


def test_the_page_shows_what_the_kept_counts_give() -> None:
    page = conditional.PAGE.read_text(encoding="utf-8")
    block = page.split(conditional_tables.START)[1].split(public_rows.END)[0]
    assert block == "\n" + conditional_tables.text(conditional.rows(), conditional.COUNTS) + "\n"


def test_networks_are_of_equal_size_and_training_and_the_small_form_is_valid(tmp_path: Path) -> None:
    quick = conditional.Place(out=tmp_path, data="fashion-mnist:data", device="cpu", quick=True)
    whole = conditional.Place(out=tmp_path, data="fashion-mnist:data", device="cpu", quick=False)
    for name in conditional.TRAINED:
        assert quick.config(name).epochs == 1 <= whole.config(name).epochs
    told, plain = (whole.config(name).model_dump() for name in ("conditional", "unconditional"))
    assert {key for key in told if told[key] != plain[key]} == {"condition"}
    network = build_model("medium-cnn", num_classes=10, input_shape=(1, 28, 28), random_weights=True)
    assert sum(each.numel() for each in network.parameters()) <= 60_000


def test_what_is_left_is_listed_parents_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert conditional.main(["--list", "--out", str(tmp_path), "--only", "few-tuned"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["train denoiser", "train clean", "train tuned"]
    assert len(lines) == 3 + 5
    made = tmp_path / "full" / "denoiser" / "model.safetensors"
    made.parent.mkdir(parents=True)
    made.touch()
    assert conditional.main(["--list", "--out", str(tmp_path), "--only", "few-denoised"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "train clean"
    with pytest.raises(SystemExit):
        conditional.main(["--only", "nothing"])


def test_a_small_row_is_certified_kept_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = load_data("fashion-mnist-sample")
    small = Dataset(name="small", split="test", x=sample.x[:8], y=sample.y[:8])
    monkeypatch.setattr(conditional, "load_data", lambda name, split: small)
    place = conditional.Place(out=tmp_path, data="small", device="cpu", quick=True)
    rows = [conditional.Row("test", "shipped", sigma) for sigma in (0.25, 0.5)]
    for row in rows:
        place.certify(row)
    text = conditional_tables.text(rows, tmp_path / "counts")
    assert "the shipped CNN, envelope of 2 fixed" in text
    assert "4 test images, n = 200" in text
    assert [*conditional.left_to_do(place, rows, train_only=False)] == []


def test_the_shipped_network_knows_its_range_and_certifies_several_sigmas() -> None:
    model = dds.load_model("fashion-mnist-conditional")
    assert model.takes_sigma
    assert model.spec.sigma_range == (conditional.LOW, conditional.HIGH)
    assert sum(each.numel() for each in model.parameters()) <= 60_000
    x, y = dds.load_data("fashion-mnist-sample")[:4]
    smoothed = dds.SmoothedClassifier(model, dds.L2Certificate(), num_classes=10)
    result = smoothed.certify(x, [0.12, 0.25, 0.5, 1.0], n0=50, n=300, seed=0)
    assert (result.prediction == y.numpy()).sum() >= 3


def test_the_shipped_denoiser_makes_noisy_images_better() -> None:
    denoiser = dds.load_denoiser("fashion-mnist-denoiser", input_shape=(1, 28, 28))
    x, _ = dds.load_data("fashion-mnist-sample")[:8]
    generator = torch.Generator().manual_seed(0)
    noisy = x + 0.5 * torch.randn(x.shape, generator=generator)
    with torch.inference_mode():
        clean = denoiser(noisy, torch.full((8,), 0.5))
    assert float((clean - x).square().mean()) < 0.1 * float((noisy - x).square().mean())
