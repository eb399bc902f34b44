"""How far a run is, while it is written, after its writer died, and at its end; what listeners are told."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import ddsmoothing as dds
from ddsmoothing.counting import kept as partial
from ddsmoothing.errors import InputError, RunError
from ddsmoothing.runs import lock
from ddsmoothing.runs.events import EventLog, Scalars
from ddsmoothing.runs.lock import Lock, Owner, owner_of
from ddsmoothing.runs.status import status_of
from run_helpers import INPUTS, N, rows_of, small_run

QUICK = {"n": 200, "n0": 10}


class StopError(Exception):
    pass


def events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def test_a_run_is_watched_while_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partial, "PACE_SECONDS", 0.0)
    out, seen = tmp_path / "run", []

    def watch(samples: int) -> None:
        before = {path.name: path.read_bytes() for path in out.iterdir()}
        if (out / "results.jsonl").exists():
            with (out / "events.jsonl").open("a") as file:
                file.write('{"torn')  # another process is in the middle of a line
        seen.append(status_of(out))
        if "events.jsonl" in before:
            (out / "events.jsonl").write_bytes(before["events.jsonl"])
        assert before == {path.name: path.read_bytes() for path in out.iterdir()}

    small_run(out, progress=watch)
    assert {one.state for one in seen} == {"running"}
    assert f"process {os.getpid()} on {socket.gethostname()}" in str(seen[0].owner)
    assert [one.done for one in seen] == sorted(one.done for one in seen)
    assert 0 < max(one.done for one in seen) < INPUTS
    assert max(one.kept for one in seen) > N
    first = next(one for one in seen if one.samples_per_second)
    assert first.at_most
    assert first.done == 0
    last = seen[-1]
    assert not last.at_most
    assert last.samples_per_second is not None
    assert last.ends is not None
    assert abs(datetime.fromisoformat(last.ends) - datetime.now(UTC)) < timedelta(seconds=30)
    end = status_of(out)
    assert (end.state, end.done, end.inputs, end.kept, end.owner, end.ends) == ("finished", 8, 8, 0, None, None)


def test_the_expected_end_follows_from_the_events(tmp_path: Path) -> None:
    """100 samples a second, 200 an input: 6 inputs of 8 are left, less 50 samples that are kept."""
    out = tmp_path / "run"
    small_run(out, **QUICK)
    lines = (out / "results.jsonl").read_text().splitlines(keepends=True)
    (out / "results.jsonl").write_text("".join(lines[:2]) + lines[2][:50])
    kept = {"id": 2, "input": "0" * 16, "stream": 1, "sigma": 0.3, "block": 0, "n": 50, "counts": [50, 0, 0]}
    (out / "partial.jsonl").write_text(json.dumps(kept) + "\n")
    start = datetime.now(UTC) + timedelta(hours=1)
    times = [(start + timedelta(seconds=s)).isoformat() for s in (-100, 0, 2, 4)]
    rows = {"event": "rows", "inputs": 2, "done": 2, "samples": 400, "mean_radius": 0.1}
    told = [{"event": "failed", "error": "x"}, {"event": "start"}, {"event": "retry", "unit": 3}, rows]
    text = "".join(json.dumps({"time": t} | event) + "\n" for t, event in zip(times, told, strict=True))
    (out / "events.jsonl").write_text(text + '{"broken\n[]\n{"event": "rows"}\n' + '{"time": "torn')
    held = Lock(out)
    status = status_of(out)
    held.release()
    assert (status.state, status.done, status.kept, status.samples_per_second) == ("running", 2, 50, 100.0)
    assert status.ends == (start + timedelta(seconds=4 + (6 * 200 - 50) / 100)).isoformat(timespec="seconds")
    assert [event["event"] for event in status.failures] == ["retry"]  # the failure was of an earlier session
    assert status_of(out).state == "stopped"


def test_the_command_line_shows_it(cli: Callable, tmp_path: Path) -> None:
    out = tmp_path / "run"
    small_run(out, **QUICK)
    answer = cli("status", out)
    assert answer.code == 0
    assert answer.out.startswith(f"{out}: finished, 8 of 8 inputs (100 %)")
    (out / "results.jsonl").write_text("".join((out / "results.jsonl").read_text().splitlines(keepends=True)[:3]))
    EventLog(out)("worker lost", node="a\x1b[31mb")
    (out / "lock").write_text(json.dumps(vars(owner(pid=2**22 + 1))) + "\n")
    answer = cli("status", out)
    assert "died, 3 of 8 inputs (37 %)" in answer.out
    assert "its writer ended without a word: 'ddsmoothing certify', process 4194305 on here" in answer.out
    assert "continue with: the same call of certify_run" in answer.out
    assert "worker lost" in answer.out
    assert "\x1b" not in answer.out
    value = json.loads(cli("status", out, "--json").out)
    assert (value["state"], value["done"], value["inputs"], len(value["failures"])) == ("died", 3, 8, 1)
    assert len(json.loads(cli("status", out, out, "--json").out)) == 2
    answer = cli("status", tmp_path)
    assert (answer.code, f"{tmp_path} is no run but holds 1 run: {out}" in answer.err) == (1, True)


def test_events_tell_how_a_run_went(tmp_path: Path) -> None:
    out, calls = tmp_path / "run", 0

    def stop(samples: int) -> None:
        nonlocal calls
        calls += 1
        if calls > 30:
            raise StopError

    with pytest.raises(StopError):
        small_run(out, progress=stop)
    told: list[str] = []
    small_run(out, listeners=[lambda event, **details: told.append(event)])
    found = events(out)
    names = [event["event"] for event in found]
    assert [name for name in names if name not in ("counts", "rows")] == ["start", "failed", "start", "done"]
    assert "StopError" in found[names.index("failed")]["error"]
    assert found[0] | {"time": ""} == {"time": "", "event": "start", "inputs": 8, "done": 0, "kept": 0, "seed": 5}
    again = found[names.index("failed") + 1]
    assert again["done"] == [event for event in found[: names.index("failed")] if event["event"] == "rows"][-1]["done"]
    last = [event for event in found if event["event"] == "rows"][-1]
    assert last["done"] == 8
    assert last["mean_radius"] == pytest.approx(
        sum(row["radius"] for row in rows_of(out)[-last["inputs"] :]) / last["inputs"]
    )
    for event in found:
        assert datetime.fromisoformat(event["time"]).utcoffset() == timedelta(0)
    assert told == names[names.index("failed") + 1 :]
    small_run(out)  # nothing is left to do, and nothing is told
    assert events(out) == found


def test_events_that_cannot_be_written_stop_nothing(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    EventLog(tmp_path / "none")("start")
    (tmp_path / "run" / "events.jsonl").write_text('{"torn')
    EventLog(tmp_path / "run")("start", odd={1, 2})
    torn, line = (tmp_path / "run" / "events.jsonl").read_text().splitlines()
    assert (torn, json.loads(line)["event"]) == ('{"torn', "start")


def test_workers_are_listened_to(tmp_path: Path) -> None:
    from ddsmoothing.campaigns.listening import heard

    class Workers:
        listener = None

    workers, told = Workers(), []
    with heard(workers, lambda event, **details: told.append(event)):  # type: ignore[arg-type]
        workers.listener("retry", task=1)
    assert (told, workers.listener) == (["retry"], None)
    with heard(None, EventLog(tmp_path)):
        pass


def test_tensorboard_curves(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    scalars = Scalars(tmp_path / "curves")
    small_run(tmp_path / "run", listeners=[scalars], **QUICK)
    scalars.close()
    read = accumulator.EventAccumulator(str(tmp_path / "curves"))
    read.Reload()
    assert set(read.Tags()["tensors"]) == {"samples_per_second", "inputs_done", "mean_radius"}
    last = {tag: float(read.Tensors(tag)[-1].tensor_proto.float_val[0]) for tag in read.Tags()["tensors"]}
    assert last["inputs_done"] == read.Tensors("inputs_done")[-1].step == 8
    assert last["mean_radius"] == pytest.approx(sum(row["radius"] for row in rows_of(tmp_path / "run")) / 8, rel=1e-5)
    assert last["samples_per_second"] > 0


def test_tensorboard_is_asked_for_where_it_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard.summary", None)
    with pytest.raises(InputError, match=r"ddsmoothing\[tensorboard\]"):
        Scalars(tmp_path)


# the lock

WITHOUT = """
import sys
sys.modules["fcntl"] = None
from ddsmoothing.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_without_the_locks_of_posix_runs_are_read_and_not_written(run_l2: dds.Run, tmp_path: Path) -> None:
    """As on Windows: what needs them says so in a line, and nothing else fails."""

    def done(*args: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-W", "error", "-c", WITHOUT, *map(str, args)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    read = done("status", run_l2.path)
    assert (read.returncode, read.stderr) == (0, "")
    quick = ("--sigma", 0.25, "--n0", 5, "--n", 50, "--max", 2, "--seed", 1, "--block-size", 16, "--no-preflight")
    refused = done(
        "certify", "--model", "fashion-mnist-cnn", "--data", "fashion-mnist-sample", *quick, "--out", tmp_path
    )
    assert refused.returncode == 1
    assert re.fullmatch(r"error: .* need the locks of POSIX, which this system lacks\. .*\n", refused.stderr)
    assert list(tmp_path.iterdir()) == []


def owner(**changes: Any) -> Owner:
    return replace(Owner.here(), **{"host": "here", "since": "now", "command": "ddsmoothing certify", **changes})


def locked(folder: Path, who: Owner | None, age: float) -> None:
    (folder / "lock").write_text("" if who is None else json.dumps(vars(who)))
    then = time.time() - age
    os.utime(folder / "lock", (then, then))


def test_an_owner_that_writes_is_named(tmp_path: Path) -> None:
    code = """
import fcntl, json, os, sys, time
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
print(json.dumps(json.loads(sys.argv[2]) | {"pid": os.getpid()}), file=file, flush=True)
print("held", flush=True)
time.sleep(60)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "lock"), json.dumps(vars(Owner.here()))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(RunError, match=f"process {process.pid} on {socket.gethostname()} since .* is writing"):
            Lock(tmp_path)
        process.kill()
    Lock(tmp_path).release()  # its owner is dead, so the lock is stale
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("who", "age", "free"),
    [
        (None, 0, True),  # killed before it wrote its name
        (owner(pid=2**22 + 1), 0, True),
        (owner(), 0, True),  # the kernel says that it is not held
        (owner(pids="pid:[1]"), 0, True),  # a container on this machine: its lock is seen
        (owner(boot="another"), 10, False),
        (owner(boot="another"), -3600, False),  # its clock is ahead
        (owner(boot="another"), lock.SILENT_SECONDS + 10, True),
    ],
)
def test_a_stale_lock_is_taken_over(tmp_path: Path, who: Owner | None, age: float, free: bool) -> None:
    locked(tmp_path, who, age)
    if free:
        Lock(tmp_path).release()
        return
    with pytest.raises(RunError, match=r"wrote to .* s ago, and this machine cannot see.*Delete .*lock"):
        Lock(tmp_path)
    assert owner_of(tmp_path) is not None


@pytest.mark.parametrize(
    ("who", "age", "alive"),
    [
        (owner(), 100, True),
        (owner(), lock.SILENT_SECONDS + 10, False),
        (owner(pid=2**22 + 1), 0, False),
        (owner(pid=1), 0, True),
        (owner(pid=10**30), 0, False),
        (owner(boot="another"), 100, True),
        (owner(pids="pid:[1]", pid=2**22 + 1), 100, True),
    ],
)
def test_signs_of_life(who: Owner, age: float, alive: bool) -> None:
    assert who.alive(age) is alive


def test_a_lock_gives_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Lock(tmp_path)
    locked_at = time.time() - 1000
    os.utime(tmp_path / "lock", (locked_at, locked_at))
    held.stamp()
    assert owner_of(tmp_path)[1] > 900  # type: ignore[index]
    monkeypatch.setattr(lock, "STAMP_SECONDS", -1.0)
    held.stamp()
    assert owner_of(tmp_path)[1] < 100  # type: ignore[index]
    held.release()
    assert owner_of(tmp_path) is None


def test_a_lock_that_was_taken_away_meanwhile_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flock = lock.fcntl.flock

    def slow(file: Any, how: int) -> None:
        (tmp_path / "lock").unlink()  # its last owner ends between opening and locking
        flock(file, how)

    monkeypatch.setattr(lock.fcntl, "flock", slow)
    with pytest.raises(RunError, match="has just left"):
        Lock(tmp_path)


def test_other_systems_have_other_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_BOOT", tmp_path / "none")
    monkeypatch.setattr(lock, "_PIDS", tmp_path / "none")
    held = Lock(tmp_path)
    owner, _ = owner_of(tmp_path)  # type: ignore[misc]
    held.release()
    assert owner is not None
    assert owner.boot == socket.gethostname()
    assert owner.alive(0.0)
