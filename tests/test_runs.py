from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, norm

import ddsmoothing as dds
from ddsmoothing.campaigns import CertifyRequest, certify_run
from ddsmoothing.errors import DataError, DdsmoothingError, InputError, ModelError, RunError
from ddsmoothing.inputs import prepare
from ddsmoothing.models import model_hash
from ddsmoothing.runs import ResultRow, export_run
from ddsmoothing.sigma import SigmaPolicy
from ddsmoothing.sigma.files import load_sigmas

MakeRun = Callable[..., dds.Run]
ROW_FIELDS = {
    *("id", "input_sha256", "label", "prediction", "correct", "reason", "radius", "p_lower", "sigma", "noise"),
    *("measurements", "samples", "seconds", "lambda"),
}
HEADER_FIELDS = {
    *("schema_version", "versions", "model", "data", "subset", "seed", "alpha", "sampler", "rule", "sigma_policy"),
    *("units", "behaviour"),
    *("dtype", "device", "block_size", "level", "config", "norm", "sampler_options"),
}


def raw_rows(run: dds.Run) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run.path / "results.jsonl").read_text().splitlines()]


def claims(row: dict[str, Any], header: dict[str, Any]) -> tuple[float, float, int]:
    """``(p_lower, radius, prediction)`` from one row's evidence, by SciPy alone."""
    pilot, fresh = row["measurements"]
    counts, alpha, n, tv = np.array(fresh["votes"]), header["alpha"], fresh["n"], fresh["tv"]
    one = header["rule"]["bound"] == "one-class"
    if header["rule"]["vote"] == "pairwise":
        top, k = fresh["anchor"], min(fresh["wins"])
        assert pilot["least"][top] == max(pilot["least"])
    else:
        top, k = np.argmax(pilot["votes"]), counts[np.argmax(pilot["votes"])]
    others = np.delete(counts, top).max()
    p = beta.ppf(alpha if one else 0.9 * alpha, k, n - k + 1) - tv if k else 0.0
    q = 1 - p if one else min(1 - p, beta.ppf(1 - 0.1 * alpha, others + 1, n - others) + tv)
    if p <= q:
        return max(p, 0.0), 0.0, -1
    if header["norm"] == "l1":
        assert row["lambda"] == pytest.approx(math.sqrt(3) * row["sigma"], rel=1e-15)
        return p, row["lambda"] * (p - q), int(top)
    assert row["lambda"] is None
    return p, row["sigma"] / 2 * (norm.ppf(p) - norm.ppf(q)), int(top)


@pytest.mark.parametrize("which", ["run_l2", "run_l1"])
def test_every_claim_is_recomputed_from_its_row(which: str, request: pytest.FixtureRequest) -> None:
    run = request.getfixturevalue(which)
    rows = raw_rows(run)
    assert len(rows) == 12
    for row in rows:
        assert row.keys() >= ROW_FIELDS
        p_lower, radius, prediction = claims(row, json.loads((run.path / "header.json").read_text()))
        assert row["prediction"] == prediction
        assert row["p_lower"] == pytest.approx(p_lower, abs=1e-9)
        assert row["radius"] == pytest.approx(radius, abs=1e-9)
        assert row["p_lower"] <= p_lower + 1e-14
        assert row["radius"] <= radius + 1e-13
        assert row["samples"] == sum(sum(one["votes"]) for one in row["measurements"]) == 220
        assert row["correct"] == (row["prediction"] == row["label"])
        assert row["reason"] == ("abstained" if prediction == -1 else "certified")
        assert row["noise"] == "grid"
        assert row["measurements"][1]["tv"] > 0
    assert {row["reason"] for row in rows} >= {"certified"}


def test_a_row_is_the_input_it_says(run_l2: dds.Run, data: dds.Dataset) -> None:
    assert run_l2.ids.tolist() == list(range(0, 600, 50))
    batch = prepare(data[run_l2.ids][0], None, None)
    assert [row.input_sha256 for row in run_l2.rows] == list(batch.sha256)
    np.testing.assert_array_equal(run_l2.label, data.y[run_l2.ids])  # type: ignore[index]


def test_header(run_l2: dds.Run, data: dds.Dataset, model: torch.nn.Module) -> None:
    raw = json.loads((run_l2.path / "header.json").read_text())
    assert raw.keys() >= HEADER_FIELDS
    header = run_l2.header
    assert raw["model"] == {"name": "fashion-mnist-cnn", "sha256": model_hash(model), "model_id": None}
    assert raw["data"] == data.fingerprint()
    assert raw["subset"] == {"skip": 50, "max": 12, "size": 12, "shard": None}
    assert (header.sampler_options, header.alpha, header.seed) == ({"n0": 20, "n": 200}, 0.001, 3)
    assert (header.sigma_policy, header.sigma, header.level, header.norm) == ("fixed", 0.25, "pointwise", "l2")
    assert (header.dtype, header.device, header.precision) == ("float32", "cpu", "fp32")
    assert header.block_size >= 32  # found by the probe
    assert raw["versions"].keys() >= {"python", "ddsmoothing", "torch", "numpy"}
    assert datetime.fromisoformat(header.created).utcoffset() == timedelta(0)


def test_a_run_is_reproducible_and_a_subset_agrees(make_run: MakeRun, run_l2: dds.Run, tmp_path: Path) -> None:
    part = make_run(tmp_path / "part", skip=100, maximum=6)
    drop = {"seconds"}
    by_id = {row.id: row.model_dump(exclude=drop) for row in run_l2.rows}
    assert [row.model_dump(exclude=drop) for row in part.rows] == [by_id[row.id] for row in part.rows]
    assert part.ids.tolist() == [0, 100, 200, 300, 400, 500]


def test_a_run_equals_the_api(smoothed: dds.SmoothedClassifier, run_l2: dds.Run, data: dds.Dataset) -> None:
    ids = run_l2.ids.tolist()
    result = smoothed.certify(data[ids][0], 0.25, n0=20, n=200, seed=3, ids=ids)
    np.testing.assert_array_equal(result.radius, run_l2.radius)
    np.testing.assert_array_equal(result.prediction, run_l2.prediction)


@given(radius=st.floats(0, 100), p=st.floats(0, 1), sigma=st.floats(1e-9, 12))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_floats_survive_a_row_bit_for_bit(run_l1: dds.Run, radius: float, p: float, sigma: float) -> None:
    change = {"id": 2**64 - 1, "radius": radius, "p_lower": p, "sigma": sigma, "lambda_": sigma}
    drawn = [replace(one, tv=p, sigma=sigma, coin=max(p, 2**-53)) for one in run_l1.rows[0].measurements]
    row = ResultRow.model_validate(run_l1.rows[0].model_dump() | change | {"measurements": drawn})
    assert row.radius == radius
    assert row.tv == p
    assert ResultRow.model_validate_json(row.line()) == row


def test_a_loaded_run_is_the_run(run_l1: dds.Run) -> None:
    again = dds.load_run(run_l1.path)
    assert again.rows == run_l1.rows
    assert again.header == run_l1.header
    assert len(again) == 12
    assert not again.partial
    assert again.name == "l1"
    for name in ("ids", "prediction", "radius", "sigma", "p_lower", "label", "correct"):
        assert getattr(again, name).shape == (12,)


def copy_of(run: dds.Run, folder: Path) -> Path:
    folder.mkdir()
    for name in ("header.json", "results.jsonl"):
        (folder / name).write_bytes((run.path / name).read_bytes())
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: [*lines[:2], "{", *lines[2:]], "results.jsonl, line 3 is not a result"),
        (lambda lines: [*lines[:4], lines[4][:-20]], "results.jsonl, line 5 is not a result"),
        (lambda lines: [*lines, lines[0]], "line 13: input 0 is there twice"),
        (lambda lines: [lines[0].replace('"sigma":0.25', '"sigma":-0.25')], "line 1 is not a result: sigma"),
        (lambda lines: [lines[0].replace('"radius":', '"radius":NaN,"x":')], "line 1 is not a result"),
        (lambda lines: [lines[0].replace('"sigma":0.25', '"sigma":0.5')], r"line 1: sigma is 0\.5, the run's is 0\.25"),
        (lambda lines: [lines[0].replace('"lambda":null', '"lambda":0.5')], "line 1: lambda belongs to the norm l1"),
        (lambda lines: [lines[0].replace('"label":9', '"label":10')], "line 1: label 10 names no class of 10"),
        (lambda lines: [lines[0].replace('"n":200', '"n":201')], "line 1: 10 votes with the sum 200"),
        (lambda lines: [lines[0].replace('"wins"', '"least"')], "line 1: wins of an anchor belong to a pairwise vote"),
        (lambda lines: [lines[0].replace("0.001]]", "0.01]]")], "line 1: the looks spend more than the run's alpha"),
        (lambda lines: [lines[0].replace('"samples":220', '"samples":221')], "line 1: samples is 221"),
        (lambda _: [], "no results yet"),
    ],
)
def test_damaged_results_are_named(
    run_l2: dds.Run, tmp_path: Path, change: Callable[[list[str]], list[str]], message: str
) -> None:
    folder = copy_of(run_l2, tmp_path / "copy")
    lines = (folder / "results.jsonl").read_text().splitlines()
    (folder / "results.jsonl").write_text("".join(line + "\n" for line in change(lines)))
    with pytest.raises(RunError, match=message):
        dds.load_run(folder)


@pytest.mark.parametrize(
    ("old", "new"), [('"schema_version": 2', '"schema_version": 99'), ("{", ""), ('"alpha"', '"alfa"')]
)
def test_a_damaged_header_is_named(run_l2: dds.Run, tmp_path: Path, old: str, new: str) -> None:
    folder = copy_of(run_l2, tmp_path / "copy")
    text = (folder / "header.json").read_text()
    assert old in text
    (folder / "header.json").write_text(text.replace(old, new, 1))
    with pytest.raises(RunError, match=r"header\.json is not a header this version reads"):
        dds.load_run(folder)


@pytest.mark.parametrize("missing", ["header.json", "results.jsonl"])
def test_a_missing_file_is_named(run_l2: dds.Run, tmp_path: Path, missing: str) -> None:
    folder = copy_of(run_l2, tmp_path / "copy")
    (folder / missing).unlink()
    with pytest.raises(RunError, match=missing):
        dds.load_run(folder)


def test_a_partial_run_says_so(run_l2: dds.Run, tmp_path: Path) -> None:
    folder = copy_of(run_l2, tmp_path / "copy")
    lines = (folder / "results.jsonl").read_text().splitlines()
    (folder / "results.jsonl").write_text("\n".join(lines[:5]) + "\n")
    assert dds.load_run(folder).partial


def test_a_full_folder_is_refused(make_run: MakeRun, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="not a run folder; give another --out"):
        make_run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_unwritable_folder_is_refused_before_sampling(make_run: MakeRun, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write the run folder"):
        make_run(tmp_path / "file" / "run")
    with pytest.raises(RunError, match="cannot write the run folder"):
        make_run(tmp_path / "file")


@pytest.mark.parametrize(
    ("policy", "options"),
    [
        (None, {"n": 0}),
        (None, {"n": 5}),
        (None, {"n0": 0}),
        (None, {"alpha": 2.0}),
        (None, {"bound": "none"}),
        (None, {"skip": 0}),
        (None, {"maximum": 0}),
        (None, {"seed": -1}),
        (SigmaPolicy.given(np.full(5, 0.25)), {}),
    ],
)
def test_bad_options_leave_no_folder(make_run: MakeRun, tmp_path: Path, policy: SigmaPolicy, options: dict) -> None:
    with pytest.raises(InputError):
        make_run(tmp_path / "run", policy, **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("sigmas", [(0.25, 0.5, 0.1), (0.25, -1.0, None), (math.nan, None, None), (0.25, 0.5, 1.0)])
def test_a_bad_search_range_leaves_no_folder(make_run: MakeRun, tmp_path: Path, sigmas: tuple) -> None:
    with pytest.raises(InputError):
        make_run(tmp_path / "run", SigmaPolicy.search(*sigmas))
    assert not (tmp_path / "run").exists()


def test_labels_out_of_range(smoothed: dds.SmoothedClassifier, npz: Callable[..., Path], tmp_path: Path) -> None:
    data = dds.load_data(str(npz(x=np.zeros((2, 1, 28, 28), np.uint8), y=np.array([3, 10]))))
    with pytest.raises(InputError, match=r"label 10 is out of range for a model with 10 classes \(0..9\)"):
        certify_run(smoothed, data, CertifyRequest(0.25, n=100), tmp_path / "run", model_name="m")


def test_a_run_without_labels(smoothed: dds.SmoothedClassifier, npz: Callable[..., Path], tmp_path: Path) -> None:
    data = dds.load_data(str(npz(x=np.zeros((2, 1, 28, 28), np.uint8))), labels=False)
    run = certify_run(smoothed, data, CertifyRequest(0.25, n=100), tmp_path / "run", model_name="m")
    assert [(row.label, row.correct) for row in run.rows] == [(None, None)] * 2
    for use in (lambda: run.label, lambda: run.correct, lambda: export_run(run, "dds", tmp_path / "x.tsv")):
        with pytest.raises(RunError, match="without labels"):
            use()


def test_a_searched_run(make_run: MakeRun, tmp_path: Path, smoothed: dds.SmoothedClassifier, data: dds.Dataset) -> None:
    run = make_run(tmp_path / "run", SigmaPolicy.search(0.25, 0.1, 0.8), maximum=4)
    ids = run.ids.tolist()
    options = {"sigma0": 0.25, "sigma_min": 0.1, "sigma_max": 0.8, "n": 200, "seed": 3, "ids": ids}
    found = dds.search_sigma(smoothed, data[ids][0], **options)
    np.testing.assert_array_equal(run.sigma, found.sigma)
    assert (run.header.sigma_policy, run.header.sigma) == ("search", None)
    policy = run.header.policy
    assert (policy.sigma0, policy.sigma_min, policy.sigma_max) == (0.25, 0.1, 0.8)


def test_given_sigmas_go_to_their_inputs(make_run: MakeRun, tmp_path: Path) -> None:
    sigma = np.linspace(0.1, 0.6, 12)
    run = make_run(tmp_path / "run", SigmaPolicy.given(sigma))
    np.testing.assert_array_equal(run.sigma, sigma)
    assert run.header.sigma_policy == "file"


def test_exports(run_l2: dds.Run, tmp_path: Path) -> None:
    for name, columns in (
        ("locuslab", ["idx", "label", "predict", "radius", "correct", "time"]),
        ("dds", ["idx", "label", "predict", "radius", "correct", "sigma", "time"]),
    ):
        export_run(run_l2, name, tmp_path / name)
        header, *lines = [line.split("\t") for line in (tmp_path / name).read_text().splitlines()]
        assert header == columns
        assert len(lines) == 12
        for line, row in zip(lines, run_l2.rows, strict=True):
            cell = dict(zip(columns, line, strict=True))
            assert (int(cell["idx"]), int(cell["label"]), int(cell["predict"])) == (row.id, row.label, row.prediction)
            assert Decimal(cell["radius"]) <= Decimal(row.radius) < Decimal(cell["radius"]) + Decimal("1e-6")
            assert cell["correct"] == str(int(bool(row.correct)))
            assert cell.get("sigma", "0.25") == "0.25"


def test_a_path_may_be_text(run_l2: dds.Run, tmp_path: Path) -> None:
    export_run(run_l2, "dds", str(tmp_path / "x.tsv"))
    assert len((tmp_path / "x.tsv").read_text().splitlines()) == 13


def test_bad_exports(run_l2: dds.Run, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Did you mean 'locuslab'"):
        export_run(run_l2, "locuslap", tmp_path / "x.tsv")
    with pytest.raises(RunError, match="cannot write"):
        export_run(run_l2, "dds", tmp_path / "none" / "x.tsv")


def test_nan_logits_end_a_run_with_an_error(data: dds.Dataset, tmp_path: Path) -> None:
    broken = dds.SmoothedClassifier(lambda x: torch.full((len(x), 10), torch.nan), dds.L2Certificate(), num_classes=10)
    with pytest.raises(ModelError, match="NaN"):
        certify_run(broken, data, CertifyRequest(0.25, n=100, maximum=2), tmp_path / "run", model_name="m")
    with pytest.raises(DdsmoothingError):
        dds.load_run(tmp_path / "run")


@pytest.mark.parametrize("content", [None, "", "{}", '{"kind": "other"}', "[0.25, 0.5]"])
def test_a_bad_sigma_file(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "sigmas.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=r"sigma file|sigmas\.json"):
        load_sigmas(path)
