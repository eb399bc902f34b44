"""Runs that stop and go on: budget, interruption, torn lines, locks; the result is that of an uninterrupted run."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import ddsmoothing as dds
from ddsmoothing.errors import RunError
from ddsmoothing.runs import SigmaPolicy, certify_run

QUICK = ("--n0", "20", "--n", "300", "--max", "12", "--seed", "3", "--block-size", "64")
BASE = ("certify", "--model", "fashion-mnist-cnn", "--data", "fashion-mnist-sample")


def rows(path: Path) -> list[dict]:
    """Rows in order of their id, without the time they took."""
    found = [json.loads(line) for line in (path / "results.jsonl").read_text().splitlines()]
    return [{**row, "seconds": 0} for row in sorted(found, key=lambda row: row["id"])]


class StopError(Exception):
    pass


@pytest.fixture
def certify(smoothed: dds.SmoothedClassifier, data: dds.Dataset) -> Callable[..., dds.Run]:
    def run(out: Path, **options: object) -> dds.Run:
        settings = {"n0": 20, "n": 300, "maximum": 20, "seed": 3, "model_name": "m", **options}
        return certify_run(smoothed.with_block_size(64), data, SigmaPolicy.search(0.3), out, **settings)

    return run


@pytest.mark.parametrize("after", [1, 20_000])
def test_an_interrupted_run_continues_to_the_same_bits(
    certify: Callable[..., dds.Run], tmp_path: Path, after: int
) -> None:
    seen = 0

    def stop(samples: int) -> None:
        nonlocal seen
        seen += samples
        if seen > after:
            raise StopError

    with pytest.raises(StopError):
        certify(tmp_path / "cut", progress=stop)
    assert certify(tmp_path / "cut").header.seed == 3
    certify(tmp_path / "whole")
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")
    assert not (tmp_path / "cut" / "lock").exists()


def test_a_torn_last_line_is_dropped_and_made_again(certify: Callable[..., dds.Run], tmp_path: Path) -> None:
    certify(tmp_path / "run")
    whole = rows(tmp_path / "run")
    file = tmp_path / "run" / "results.jsonl"
    file.write_bytes(file.read_bytes()[:-200])
    certify(tmp_path / "run", seed=None)
    assert rows(tmp_path / "run") == whole


def test_other_options_are_refused_and_named(certify: Callable[..., dds.Run], tmp_path: Path) -> None:
    certify(tmp_path / "run", maximum=4)
    before = (tmp_path / "run" / "results.jsonl").read_bytes()
    for options, name in (({"alpha": 0.01}, "alpha"), ({"seed": 4}, "seed"), ({"n": 400}, "sampler_options")):
        with pytest.raises(RunError, match=f"{name} was"):
            certify(tmp_path / "run", maximum=4, **options)
    assert (tmp_path / "run" / "results.jsonl").read_bytes() == before


def test_a_corrupt_line_in_the_middle_is_named_and_nothing_changes(
    certify: Callable[..., dds.Run], tmp_path: Path
) -> None:
    certify(tmp_path / "run", maximum=6)
    file = tmp_path / "run" / "results.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(lines[0] + b"{broken}\n" + b"".join(lines[2:4]))
    before = file.read_bytes()
    with pytest.raises(RunError, match="line 2"):
        certify(tmp_path / "run", maximum=6)
    assert file.read_bytes() == before


def test_two_writers_are_kept_apart(certify: Callable[..., dds.Run], tmp_path: Path) -> None:
    def second(samples: int) -> None:
        with pytest.raises(RunError, match="another process"):
            certify(tmp_path / "run", maximum=4)
        raise StopError

    with pytest.raises(StopError):
        certify(tmp_path / "run", maximum=4, progress=second)


def test_a_budget_ends_in_order_and_the_command_line_goes_on(cli: Callable, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert cli(*BASE, "--sigma", "0.5", *QUICK, "--out", tmp_path / "whole").code == 0
    answer = cli(*BASE, "--sigma", "0.5", *QUICK, "--budget", "0.000001s", "--out", out)
    assert (answer.code, "budget" in answer.err) == (1, True)
    assert not out.exists()
    assert cli(*BASE, "--sigma", "0.5", *QUICK, "--out", out).code == 0
    file = out / "results.jsonl"
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:5]))
    assert dds.load_run(out).partial
    assert "partial" in cli("analyze", out).out
    again = cli("certify", "--out", out)  # everything else is in the header
    assert again.code == 0, again.err
    assert rows(out) == rows(tmp_path / "whole")
    refused = cli("certify", "--out", out, "--alpha", "0.01")
    assert (refused.code, "alpha was 0.001" in refused.err) == (1, True)


@pytest.mark.parametrize("text", ["soon", "-3m", "0", "infs", "m"])
def test_a_bad_budget_is_named(cli: Callable, tmp_path: Path, text: str) -> None:
    answer = cli(*BASE, "--sigma", "0.5", *QUICK, "--budget", text, "--out", tmp_path / "run")
    assert (answer.code, "--budget" in answer.err) == (2, True)


def test_a_killed_process_loses_nothing_that_was_written(tmp_path: Path) -> None:
    """Killed while its second group is under way; the rows of the first are there and the rest is made again."""
    script = f"""
import os, signal, sys, ddsmoothing as dds
from ddsmoothing.runs import certify_run, SigmaPolicy
import ddsmoothing.runs.store as store
append = store.RunWriter.append
def kill_after(self, rows):
    append(self, rows)
    if len(sys.argv) > 1: os.kill(os.getpid(), signal.SIGKILL)
store.RunWriter.append = kill_after
model = dds.load_model("fashion-mnist-cnn")
smoothed = dds.SmoothedClassifier(model, dds.L2Certificate(), num_classes=10, block_size=64)
certify_run(smoothed, dds.load_data("fashion-mnist-sample"), SigmaPolicy.fixed(0.5), {str(tmp_path / "run")!r},
            model_name="m", n0=20, n=300, maximum=12, seed=3)
"""
    killed = subprocess.run([sys.executable, "-c", script, "kill"], capture_output=True, check=False)
    assert killed.returncode < 0
    assert 0 < len(dds.load_run(tmp_path / "run")) < 12
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    assert len(dds.load_run(tmp_path / "run")) == 12


def test_a_forecast_writes_nothing(cli: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ddsmoothing.runs.forecast.PROBE_SECONDS", 0.1)
    for options in (("--n", "1000"), (), ("--radius", "0.5")):
        answer = cli(*BASE, "--sigma", "0.5", "--forecast", *options)
        assert answer.code == 0, answer.err
        assert "1000 inputs" in answer.out
        assert "samples" in answer.out
    assert "1,100,000 samples" in cli(*BASE, "--sigma", "0.5", "--forecast", "--n", "1000").out
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_stops_at_a_radius_has_no_average(cli: Callable, tmp_path: Path) -> None:
    out = tmp_path / "run"
    answer = cli(
        *BASE, "--sigma", "0.5", "--radii", "0.25,0.5", "--label-aware", "--max", "6", "--seed", "1", "--out", out
    )
    assert answer.code == 0, answer.err
    run = dds.load_run(out)
    assert run.header.sampler == "target"
    assert json.loads(cli("analyze", out, "--json").out)["acr"] is None
    with pytest.raises(dds.DdsmoothingError, match="average"):
        dds.acr(run)
    assert max(row.samples for row in run.rows) < 100_100
