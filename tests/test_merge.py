"""Shards put together are one uninterrupted run; what does not fit is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ddsmoothing as dds
from ddsmoothing.campaigns.subset import subset_ids
from ddsmoothing.errors import InputError, RunError
from ddsmoothing.runs.merge import merge_runs
from ddsmoothing.sigma import SigmaPolicy
from ddsmoothing.verify import verify_run
from run_helpers import INPUTS, certified, rows_of, small_data, small_run, small_smoothed

QUICK = {"n": 100, "n0": 10}
Shards = Callable[..., list[Path]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run(tmp_path_factory.mktemp("whole") / "run", **QUICK).path


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """Copies of the shards of that run, made once."""
    made: dict[int, list[Path]] = {}

    def make(parts: int, folder: Path) -> list[Path]:
        if parts not in made:
            place = tmp_path_factory.mktemp("shards")
            made[parts] = [small_run(place / f"{i}", shard=(i, parts), **QUICK).path for i in range(1, parts + 1)]
        return [Path(shutil.copytree(path, folder / f"{path.name}-of-{parts}")) for path in made[parts]]

    return make


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 5), st.one_of(st.none(), st.integers(1, 10)), st.integers(1, 8))
def test_shards_are_a_partition(skip: int, maximum: int | None, parts: int) -> None:
    data = small_data()
    ids = subset_ids(data, skip, maximum)
    if parts > len(ids):
        with pytest.raises(InputError, match=f"n <= {len(ids)}"):
            subset_ids(data, skip, maximum, (1, parts))
        return
    split = [subset_ids(data, skip, maximum, (i, parts)) for i in range(1, parts + 1)]
    assert sorted(i for shard in split for i in shard) == ids
    assert max(map(len, split)) - min(map(len, split)) <= 1


@pytest.mark.parametrize("shard", [(0, 2), (3, 2), (1, INPUTS + 1), (-1, 2)])
def test_a_shard_that_is_none(tmp_path: Path, shard: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="shard"):
        small_run(tmp_path / "run", shard=shard)
    assert not (tmp_path / "run").exists()


def test_a_shard_needs_a_seed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a seed"):
        small_run(tmp_path / "run", shard=(1, 2), seed=None)


@settings(max_examples=4, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(parts=st.integers(1, 4), order=st.randoms())
def test_merged_shards_are_one_run(
    whole: Path, shards: Shards, tmp_path_factory: pytest.TempPathFactory, parts: int, order: Any
) -> None:
    folder = tmp_path_factory.mktemp("merge")
    paths = shards(parts, folder)
    order.shuffle(paths)
    for path in paths:
        assert verify_run(path).ok, verify_run(path).findings
        assert not dds.load_run(path).partial
    run = merge_runs(paths, folder / "out")
    assert rows_of(run.path) == rows_of(whole)
    assert not run.partial
    assert verify_run(run.path).ok
    old, new = (json.loads((path / "header.json").read_text()) for path in (whole, run.path))
    assert {key for key in old if old[key] != new[key]} <= {"created"}


def test_a_wrong_shard_size_is_found(shards: Shards, tmp_path: Path) -> None:
    path = shards(3, tmp_path)[0]
    header = json.loads((path / "header.json").read_text())
    for shard in ([3, 3], [4, 3]):
        header["subset"]["shard"] = shard
        (path / "header.json").write_text(json.dumps(header))
        assert any(finding.line is None for finding in verify_run(path).findings)


def test_a_missing_shard_is_named_or_allowed_and_certified_later(whole: Path, shards: Shards, tmp_path: Path) -> None:
    paths = shards(3, tmp_path)
    with pytest.raises(RunError, match=r"3 of 8 inputs are missing \(1, 4, 7\): shards 2/3 were not given"):
        merge_runs([paths[0], paths[2]], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert merge_runs([paths[0], paths[2]], tmp_path / "out", partial=True).partial
    assert not small_run(tmp_path / "out", **QUICK).partial
    assert rows_of(tmp_path / "out") == rows_of(whole)


def test_an_unfinished_shard_is_named(shards: Shards, tmp_path: Path) -> None:
    paths = shards(2, tmp_path)
    file = paths[1] / "results.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:3]))
    with pytest.raises(RunError, match=r"1 of 8 inputs are missing \(7\): .*2-of-2 has 3 of 4. Finish"):
        merge_runs(paths, tmp_path / "out")


def test_an_input_that_is_there_twice_is_named(shards: Shards, tmp_path: Path) -> None:
    two, three = shards(2, tmp_path), shards(3, tmp_path)
    with pytest.raises(RunError, match=r"input 0 is in .*1-of-2 and in .*1-of-3"):
        merge_runs([*two, three[0]], tmp_path / "out")
    with pytest.raises(RunError, match="input 0 is in"):
        merge_runs([two[0], two[0]], tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "name"),
    [({"seed": 6}, "seed"), ({"alpha": 0.01}, "alpha"), ({"maximum": 6}, "subset"), ({"policy": "search"}, "policy")],
)
def test_headers_that_disagree_are_named(shards: Shards, tmp_path: Path, options: dict[str, Any], name: str) -> None:
    first = shards(2, tmp_path)[0]
    other = small_run(tmp_path / "other", **(QUICK | {"shard": (2, 2)} | options)).path
    with pytest.raises(RunError, match=f"{name} is "):
        merge_runs([first, other], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_devices_and_versions_may_differ_and_are_kept(shards: Shards, tmp_path: Path) -> None:
    paths = shards(2, tmp_path)
    header = json.loads((paths[1] / "header.json").read_text())
    header |= {"device": "cuda:1", "created": "2000-01-01T00:00:00+00:00"}
    header["versions"]["torch"] = "0.0"
    (paths[1] / "header.json").write_text(json.dumps(header))
    merged = merge_runs(paths, tmp_path / "out").header
    assert merged.device == "cpu, cuda:1"
    assert "0.0" in merged.versions["torch"].split(", ")
    assert merged.created == "2000-01-01T00:00:00+00:00"


def test_a_foreign_input_is_named(shards: Shards, tmp_path: Path) -> None:
    paths = shards(2, tmp_path)
    file = paths[0] / "results.jsonl"
    file.write_text(file.read_text().replace('{"id":0,', '{"id":99,'))
    with pytest.raises(RunError, match="holds input 99, which is not of this run"):
        merge_runs(paths, tmp_path / "out")


def test_a_folder_that_is_not_empty_is_left_alone(shards: Shards, whole: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="exists and is not empty"):
        merge_runs(shards(2, tmp_path), whole)
    with pytest.raises(InputError, match="no runs"):
        merge_runs([], tmp_path / "out")


def test_sigma_files_are_known_by_their_content(tmp_path: Path) -> None:
    policy = dds_policy(np.linspace(0.2, 0.5, INPUTS), "a" * 64)
    for i in (1, 2):
        certify(tmp_path / f"{i}", policy[i - 1 :: 2], shard=(i, 2))
    assert not merge_runs([tmp_path / "1", tmp_path / "2"], tmp_path / "out").partial
    certify(tmp_path / "3", dds_policy(np.linspace(0.2, 0.5, INPUTS), "b" * 64)[1::2], shard=(2, 2))
    with pytest.raises(RunError, match="policy is"):
        merge_runs([tmp_path / "1", tmp_path / "3"], tmp_path / "none")


class dds_policy:  # noqa: N801
    """Sigmas of a file, which a shard takes a part of."""

    def __init__(self, sigma: np.ndarray, sha256: str) -> None:
        self.sigma, self.sha256 = sigma, sha256

    def __getitem__(self, part: slice) -> Any:
        return SigmaPolicy.given(self.sigma[part], self.sha256)


def certify(out: Path, policy: Any, **options: Any) -> dds.Run:
    settings = {"seed": 5, "model_name": "half"} | QUICK | options
    return certified(small_smoothed(), small_data(), policy, out, **settings)


BASE = ("certify", "--model", "fashion-mnist-cnn", "--data", "fashion-mnist-sample", "--sigma", "0.5", "--max", "5")


def test_the_command_line_makes_and_merges_shards(cli: Callable, tmp_path: Path) -> None:
    quick = ("--n0", "10", "--n", "100", "--seed", "3", "--no-preflight")
    for i in (1, 2):
        answer = cli(*BASE, *quick, "--shard", f"{i}/2", "--out", tmp_path / f"{i}")
        assert answer.code == 0, answer.err
    assert cli("certify", "--out", tmp_path / "1").code == 0  # the shard is in the header
    answer = cli("merge", tmp_path / "1", tmp_path / "2", "--out", tmp_path / "out")
    assert (answer.code, "5 results of 2 runs" in answer.out) == (0, True), answer.err
    assert cli(*BASE, *quick, "--block-size", "256", "--out", tmp_path / "whole").code == 0
    assert rows_of(tmp_path / "out") == rows_of(tmp_path / "whole")
    assert cli("certify", "--out", tmp_path / "out").code == 0
    partial = cli("merge", tmp_path / "1", "--out", tmp_path / "part", "--partial")
    assert "partial: 2 inputs left" in partial.out
    for text in ("3/2", "0/2", "1", "a/b", "1/2/3", "-1/2"):
        answer = cli(*BASE, *quick, "--shard", text, "--out", tmp_path / "none")
        assert (answer.code, "shard" in answer.err) == (2, True), text
