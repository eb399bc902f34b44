"""Runs whose processes are killed, whose disk is full or read-only, in processes of their own: nothing is lost.

By hand, with any seed: ``python tests/fault_worker.py kill FOLDER 50 10 SEED``.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from run_helpers import rows_of, small_run

WORKER = Path(__file__).with_name("fault_worker.py")


def worker(*args: object, before: str = "") -> dict[str, int]:
    command = [sys.executable, str(WORKER), *map(str, args)]
    if before:  # in a mount namespace of its own, so that nothing stays mounted
        command = ["unshare", "-m", "sh", "-c", before + ' && exec "$@"', "sh", *command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def can_mount(folder: Path) -> bool:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return False
    mount = ["unshare", "-m", "mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)]
    return subprocess.run(mount, capture_output=True, check=False).returncode == 0


def test_killed_processes_lose_nothing(tmp_path: Path) -> None:
    found = worker("kill", tmp_path, 4, 2, 0)
    assert found["deaths"] == 4
    assert found["inside_an_append"] == 2


@pytest.mark.slow
def test_fifty_killed_processes_lose_nothing(tmp_path: Path) -> None:
    found = worker("kill", tmp_path, 50, 10, 1)
    assert found["deaths"] == 50
    assert found["after_the_first_block"] >= 40
    assert found["inside_an_append"] == 10


def test_files_that_may_not_grow(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    assert worker("full", tmp_path / "disk")["refused"] >= 4


def test_a_full_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if not can_mount(disk):
        pytest.skip("needs root and mount namespaces")
    found = worker("small_disk", disk, before=f"mount -t tmpfs -o size=80k none '{disk}'")
    assert found["refused"] >= 1


def test_a_read_only_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if not can_mount(disk):
        pytest.skip("needs root and mount namespaces")
    small_run(disk / "run")
    before = (disk / "run" / "results.jsonl").read_bytes()
    bind = f"mount --bind '{disk}' '{disk}' && mount -o remount,ro,bind '{disk}'"
    assert worker("readonly", disk, before=bind)["refused"] == 2
    assert (disk / "run" / "results.jsonl").read_bytes() == before
    assert not (disk / "new").exists()


COMMAND = (
    *("certify", "--model", "fashion-mnist-cnn", "--data", "fashion-mnist-sample", "--sigma", "0.5", "--max", "10"),
    *("--n0", "20", "--n", "2500", "--seed", "3", "--block-size", "64", "--no-preflight"),
)


def launch(*args: object) -> subprocess.Popen[str]:
    code = "import sys; from ddsmoothing.cli import main; from ddsmoothing.counting import kept; "
    code += "kept.PACE_SECONDS = 0.05; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def wait_for(path: Path) -> None:
    end = time.monotonic() + 100
    while not (path.exists() and path.stat().st_size):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_signals_end_a_run_in_order_and_the_command_continues_it(tmp_path: Path) -> None:
    """SIGTERM, then SIGINT, then to the end, beside an uninterrupted run."""
    out = tmp_path / "run"
    for number in (signal.SIGTERM, signal.SIGINT):
        process = launch(*COMMAND, "--out", out)
        wait_for(out / ("partial.jsonl" if number == signal.SIGTERM else "results.jsonl"))
        process.send_signal(number)
        _, err = process.communicate(timeout=100)
        assert process.returncode == 75, err
        assert "interrupted: " in err
        assert f"in {out}; continue with:" in err
        assert "Traceback" not in err
        assert not (out / "lock").exists()
        assert json.loads((out / "events.jsonl").read_text().splitlines()[-1])["why"] == "interrupted"
    processes = [launch(*COMMAND, "--out", path) for path in (out, tmp_path / "whole")]
    assert [process.wait(timeout=200) for process in processes] == [0, 0]
    for process in processes:
        assert process.stderr is not None
        process.stderr.close()
    assert rows_of(out) == rows_of(tmp_path / "whole")


def test_the_template_for_job_arrays_goes_back_into_the_queue(tmp_path: Path) -> None:
    """The scheduler's warning reaches the script, which ends the run in order and asks to be started again."""
    (tmp_path / "scontrol").write_text('#!/bin/sh\necho "$@" > asked\n')
    (tmp_path / "scontrol").chmod(0o755)
    task = {"SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_JOB_ID": "7"}
    path = os.pathsep.join([str(tmp_path), str(Path(sys.executable).parent), os.environ["PATH"]])
    script = Path(__file__).parents[1] / "examples" / "slurm-array.sh"
    process = subprocess.Popen(
        ["sh", str(script)], cwd=tmp_path, env={**os.environ, **task, "PATH": path, "N": "1000"}, stderr=subprocess.PIPE
    )
    wait_for(tmp_path / "runs" / "shard-2" / "results.jsonl")
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    assert (tmp_path / "asked").read_text() == "requeue 7_2\n"
    header = json.loads((tmp_path / "runs" / "shard-2" / "header.json").read_text())
    assert header["subset"] == {"skip": 1, "max": None, "size": 250, "shard": [2, 4]}


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    """Work that does not stop for the first signal ends with the second, with the same exit code."""
    code = """
import os, signal, sys, time
import click
from ddsmoothing.cli import app, main
@app.command()
def stubborn():
    for _ in range(2):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        except KeyboardInterrupt:
            print("first", flush=True)
sys.exit(main(["stubborn"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (75, "first\n")
