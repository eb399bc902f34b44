"""Runs that stop and go on: budget, interruption, torn lines, locks; the result is that of an uninterrupted run."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

import ddsmoothing as dds
from ddsmoothing.campaigns import CertifyRequest, certify_run
from ddsmoothing.errors import RunError
from ddsmoothing.runs.store import RunWriter
from ddsmoothing.sigma import SigmaPolicy
from run_helpers import certified, small_run

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
        return certified(smoothed.with_block_size(64), data, SigmaPolicy.search(0.3), out, **settings)

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


def test_a_run_folder_of_a_newer_schema_is_refused_and_left_alone(
    certify: Callable[..., dds.Run], tmp_path: Path
) -> None:
    certify(tmp_path / "run", maximum=2)
    header = tmp_path / "run" / "header.json"
    header.write_text(header.read_text().replace('"schema_version": 2', '"schema_version": 3'))
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(RunError, match=r"not a header this version reads \(schema 2\): schema_version"):
        certify(tmp_path / "run", maximum=2)
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}


def test_nothing_is_cut_off_where_a_line_is_corrupt(certify: Callable[..., dds.Run], tmp_path: Path) -> None:
    certify(tmp_path / "run", maximum=6)
    file = tmp_path / "run" / "results.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(lines[0] + b"{broken}\n" + lines[2][:-30])
    before = file.read_bytes()
    with pytest.raises(RunError, match="line 2"):
        certify(tmp_path / "run", maximum=6)
    assert file.read_bytes() == before


def test_a_header_that_was_being_written_is_no_obstacle(certify: Callable[..., dds.Run], tmp_path: Path) -> None:
    """Killed before the header had its name, and after it: both folders are taken."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "header.json.tmp").write_text('{"half')
    (tmp_path / "run" / "lock").write_text("")
    certify(tmp_path / "run", maximum=2)
    (tmp_path / "run" / "results.jsonl").unlink()
    (tmp_path / "run" / "lock").write_text("")
    assert not certify(tmp_path / "run", maximum=2).partial


def test_rows_are_in_order_at_the_end(certify: Callable[..., dds.Run], tmp_path: Path) -> None:
    certify(tmp_path / "run", maximum=6)
    file = tmp_path / "run" / "results.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(reversed(lines[1:])))
    certify(tmp_path / "run", maximum=6)
    again = file.read_bytes().splitlines(keepends=True)
    assert again[1:] == lines[1:]
    assert json.loads(again[0])["id"] == 0


def test_weights_that_moved_are_the_same_model(
    certify: Callable[..., dds.Run], tmp_path: Path, smoothed: dds.SmoothedClassifier, data: dds.Dataset
) -> None:
    certify(tmp_path / "run", maximum=2)
    assert certify(tmp_path / "run", maximum=2, model_name="elsewhere/m").header.model.name == "m"
    bare = dds.SmoothedClassifier(lambda x: smoothed.model(x), dds.L2Certificate(), num_classes=10, block_size=64)
    asked = CertifyRequest(0.3, n0=20, n=300, maximum=2, seed=3)
    certify_run(bare, data, asked, tmp_path / "bare", model_name="a:b", model_id="v1")
    for names in ({"model_name": "c:d", "model_id": "v1"}, {"model_name": "a:b", "model_id": "v2"}):
        with pytest.raises(RunError, match="model was"):
            certify_run(bare, data, asked, tmp_path / "bare", **names)


def test_two_runs_that_start_at_once_in_one_folder(certify: Callable[..., dds.Run], tmp_path: Path) -> None:
    """The other process wrote its header after this one had looked for it."""
    run = certify(tmp_path / "run", maximum=2)
    with pytest.raises(RunError, match="another process has just started another run"):
        RunWriter(run.path, run.header.model_copy(update={"seed": 4}))
    assert dds.load_run(run.path).header.seed == 3


def test_sigma_files_are_known_again(cli: Callable, tmp_path: Path) -> None:
    for seed in (1, 2):
        answer = cli("optimize", *BASE[1:], "--max", "3", "--seed", seed, "--out", tmp_path / f"{seed}.json")
        assert answer.code == 0, answer.err
    out = tmp_path / "run"
    quick = ("--n0", "20", "--n", "300", "--max", "3", "--seed", "3", "--block-size", "64")
    assert cli(*BASE, "--sigmas", tmp_path / "1.json", *quick, "--out", out).code == 0
    file = out / "results.jsonl"
    whole = rows(out)
    file.write_bytes(file.read_bytes().splitlines(keepends=True)[0])
    answer = cli("certify", "--out", out)
    assert (answer.code, "give it again with --sigmas" in answer.err) == (2, True)
    answer = cli("certify", "--out", out, "--sigmas", tmp_path / "2.json")
    assert (answer.code, "policy was" in answer.err) == (1, True), answer.err
    assert cli("certify", "--out", out, "--sigmas", tmp_path / "1.json").code == 0
    assert rows(out) == whole


def test_a_budget_keeps_the_counts_of_the_first_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ddsmoothing.counting.kept.PACE_SECONDS", 0.0)
    now = [0.0]
    monkeypatch.setattr("ddsmoothing.campaigns.certify.time.monotonic", lambda: now[0])

    def tick(samples: int) -> None:
        now[0] += 1.0

    with pytest.raises(RunError, match="its counts are kept, the same command continues"):
        small_run(tmp_path / "run", budget=5.5, progress=tick)
    assert (tmp_path / "run" / "partial.jsonl").stat().st_size
    small_run(tmp_path / "run")
    small_run(tmp_path / "whole")
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")


@pytest.mark.parametrize("command", ["certify", "optimize", "attack"])
def test_an_interruption_says_how_to_go_on(
    cli: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """A signal while the work is under way; the handlers that were there before are there again."""
    quick = ("--n0", "20", "--n", "300", "--max", "3", "--seed", "3", "--no-preflight")
    assert cli(*BASE, "--sigma", "0.5", *quick, "--out", tmp_path / "run").code == 0
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]

    def interrupted(self: object, samples: int) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("ddsmoothing.cli.progress.SampleProgress.__call__", interrupted)
    commands = {
        "certify": (*BASE, "--sigma", "0.5", *quick, "--out", tmp_path / "new"),
        "optimize": ("optimize", *BASE[1:], "--max", "3", "--out", tmp_path / "s.json"),
        "attack": ("attack", tmp_path / "run", "--max", "1", "--steps", "1"),
    }
    answer = cli(*commands[command])
    assert answer.code == 75, answer.err
    assert "interrupted: " in answer.err
    assert "command" in answer.err
    assert "Traceback" not in answer.err
    assert handlers == [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    assert {path.name for path in tmp_path.iterdir()} <= {"run", "new"}


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


def test_a_forecast_writes_nothing(cli: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ddsmoothing.campaigns.forecast.PROBE_SECONDS", 0.1)
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
