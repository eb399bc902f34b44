"""The rows of benchmarks/public_table.py: networks and options, the kept counts, what follows, and the page."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

import ddsmoothing as dds
from ddsmoothing.campaigns import CertifyRequest, certify_run
from ddsmoothing.claims import rule_for
from ddsmoothing.data import load_data
from ddsmoothing.errors import RunError
from ddsmoothing.models import build_model

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
if not BENCHMARKS.is_dir():
    pytest.skip("the benchmarks are not in a source distribution", allow_module_level=True)
sys.path.insert(0, str(BENCHMARKS))

import kept_counts  # noqa: E402
import public_rows  # noqa: E402
import public_table  # noqa: E402

FILES = sorted(public_table.COUNTS.glob("*.npz"))
ROWS = {row.name: row for network in public_table.networks().values() for row in network.rows}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dds.Run:
    """Twelve images, pairwise, sigma 1: some wrong, some abstained."""
    smoothed = dds.SmoothedClassifier(dds.load_model("fashion-mnist-cnn"), dds.L2Certificate(), num_classes=10)
    out = tmp_path_factory.mktemp("public") / "run"
    asked = CertifyRequest(1.0, n0=50, n=300, maximum=12, seed=3)
    return certify_run(smoothed, load_data("fashion-mnist-sample"), asked, out, model_name="fashion-mnist-cnn")


def test_counts_give_the_run_s_radii_again_and_those_of_a_plurality_vote(run: dds.Run, tmp_path: Path) -> None:
    kept_counts.save(run, tmp_path / "row.npz", 40)
    kept = kept_counts.load(tmp_path / "row.npz")
    np.testing.assert_array_equal(kept.radius, run.radius)
    np.testing.assert_allclose(kept.recomputed, kept.radius, atol=1e-9)
    assert kept.samples.tolist() == [row.samples + 40 for row in run.rows]
    result = dds.SmoothedClassifier(
        dds.load_model("fashion-mnist-cnn"), dds.L2Certificate(), num_classes=10, block_size=run.header.block_size
    ).certify(load_data("fashion-mnist-sample")[:12][0], 1.0, n0=50, n=300, seed=3, ids=range(12))
    wanted = result.under(rule_for("plurality", "one-class"))
    np.testing.assert_allclose(kept.one_class().radius, wanted.radius, atol=1e-9)
    np.testing.assert_array_equal(kept.one_class().prediction, wanted.prediction)
    assert (kept.one_class().radius <= kept.radius + 1e-9).all()


def test_a_radius_that_counts_do_not_give_is_refused(run: dds.Run, tmp_path: Path) -> None:
    path = tmp_path / "row.npz"
    kept_counts.save(run, path, 0)
    with np.load(path) as file:
        columns = dict(file)
    columns["radius"] = columns["radius"] + 1e-9 * (columns["radius"] > 0.0)
    np.savez_compressed(path, **columns)
    with pytest.raises(RunError, match="the radius of input 0 is not what its counts give"):
        kept_counts.load(path)


def test_an_unfinished_run_is_not_kept(run: dds.Run, tmp_path: Path) -> None:
    part = type(run)(path=run.path, header=run.header, rows=run.rows[:-1])
    with pytest.raises(RunError, match="not finished"):
        kept_counts.save(part, tmp_path / "row.npz", 0)


def test_rows_are_held_against_the_strongest_public_one_at_each_radius(run: dds.Run, tmp_path: Path) -> None:
    kept_counts.save(run, tmp_path / "row.npz", 0)
    mine = kept_counts.load(tmp_path / "row.npz")
    near, far = np.where(mine.radius > 0, 0.3, 0.0), np.where(np.arange(12) < 2, 3.0, 0.0)
    for name, radii in (("near_0.25", near), ("far_1.0", far)):
        lines = ["idx\tlabel\tpredict\tradius\tcorrect"]
        lines += [f"{i}\t{mine.label[i]}\t{mine.label[i]}\t{radii[i]:.3g}\t1" for i in range(12)]
        (tmp_path / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    others = public_rows.public(tmp_path, mine.id)
    assert public_rows.strongest(others) == ("far_1.0" if far.mean() > near.mean() else "near_0.25")
    table = public_rows.gain_table({"mine": mine}, others)
    at_two = float(table.rows[0][-1].split("\n")[0])
    held = 100 * float(np.mean(mine.correct & (mine.radius >= 2.0)))
    assert at_two <= held - 100 * 2 / 12 <= at_two + 0.1  # only far_1.0 reaches there; rounded down
    assert "2 public rows" in table.title
    assert public_rows.figure({"mine": mine}, others, {"mine": "ours"}).axes[0].get_xlabel().startswith("L2 radius")
    with pytest.raises(RunError, match="public logs"):
        public_rows.public(tmp_path / "none", mine.id)


def test_a_capped_radius_swells_no_mean(run: dds.Run, tmp_path: Path) -> None:
    kept_counts.save(run, tmp_path / "row.npz", 0)
    mine = kept_counts.load(tmp_path / "row.npz")
    swollen = kept_counts.replace(mine, radius=mine.radius * 100)
    assert swollen.capped().radius.max() == kept_counts.CAP


def test_networks_are_small_and_their_options_valid(tmp_path: Path) -> None:
    for network in public_table.networks().values():
        config = network.config("fashion-mnist:data", tmp_path)
        model = build_model(config.model, num_classes=10, input_shape=(1, 28, 28), random_weights=True)
        assert sum(each.numel() for each in model.parameters()) <= 450_000
        assert network.parent is None or network.parent in public_table.networks()
        assert config.data == "fashion-mnist:data"
    assert len(ROWS) == sum(len(network.rows) for network in public_table.networks().values())


def test_what_is_left_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert public_table.main(["--list", "--out", str(tmp_path), "--only", "catrs-1"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "train catrs-1",
        "certify catrs-1-at-1",
        "certify catrs-1-at-1-second",
    ]
    (tmp_path / "full" / "catrs-1").mkdir(parents=True)
    (tmp_path / "full" / "catrs-1" / "model.safetensors").touch()
    assert public_table.main(["--list", "--out", str(tmp_path), "--only", "catrs-1"]) == 0
    assert capsys.readouterr().out.splitlines() == ["certify catrs-1-at-1", "certify catrs-1-at-1-second"]
    with pytest.raises(SystemExit):
        public_table.main(["--only", "nothing"])


@pytest.mark.skipif(not FILES, reason="no counts are kept beside the script")
def test_kept_counts_are_rows_of_the_table_and_the_page_shows_them() -> None:
    text = public_table.PAGE.read_text(encoding="utf-8")
    block = text.split(public_rows.START)[1].split(public_rows.END)[0]
    images = {"": range(0, 10_000, 20), "-second": range(10, 10_000, 20)}
    images |= {f"-{i + 1}of10": range(i, 10_000, 10) for i in range(10)}
    whose = {row.name + part: part for row in ROWS.values() for part in row.parts}
    for path in FILES:
        assert kept_counts.load(path).id.tolist() == list(images[whose[path.stem]])
    for name, one in public_table.kept_rows(public_table.networks()).items():
        assert len(one) in ((10_000,) if ROWS[name].every else (500, 1000))
        assert re.search(rf"^\| {re.escape(name)} .* {public_rows.acr_text(one.capped())} ", block, re.MULTILINE)
        assert json.loads(json.dumps(one.about))["alpha"] == public_table.ALPHA


def test_seconds_of_training_are_kept_and_include_those_of_the_network_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(public_table, "COUNTS", tmp_path)
    known = public_table.networks()
    place = public_table.Place(tmp_path / "out", "fashion-mnist:data", torch.device("cpu"), False)
    for name, seconds in {"gaussian-1": (10.0, 20.04), "catrs-1": (1.5,)}.items():
        folder = place.out / name
        folder.mkdir(parents=True)
        (folder / "model.safetensors").touch()
        (folder / "metrics.jsonl").write_text("".join(json.dumps({"seconds": each}) + "\n" for each in seconds))
    wanted = (("gaussian-1", "-", "17", "30"), ("catrs-1", "gaussian-1", "3", "32"))
    assert public_table.keep_seconds(place, known).rows == wanted
    assert public_table.keep_seconds(replace(place, out=tmp_path / "none"), known).rows == wanted  # from what was kept


def part_of(whole: kept_counts.Counts, rows: np.ndarray) -> kept_counts.Counts:
    columns = [each.name for each in fields(kept_counts.Counts) if each.name != "about"]
    return replace(whole, **{name: getattr(whole, name)[rows] for name in columns})


def test_halves_are_joined_in_the_order_of_the_images(run: dds.Run, tmp_path: Path) -> None:
    kept_counts.save(run, tmp_path / "row.npz", 0)
    whole = kept_counts.load(tmp_path / "row.npz")
    parts = [part_of(whole, np.arange(12) % 2 == rest) for rest in (1, 0)]
    again = kept_counts.joined(parts)
    for name in ("id", "radius", "wins", "prediction"):
        np.testing.assert_array_equal(getattr(again, name), getattr(whole, name))
    assert list(kept_counts.by_images({"a": parts[0], "b": whole, "c": parts[0]}).values()) == [
        {"b": whole}, {"a": parts[0], "c": parts[0]}
    ]  # fmt: skip
