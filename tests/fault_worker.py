"""Run by tests/test_faults.py in a process of its own: makes runs in children, kills them, and continues them.

python fault_worker.py kill FOLDER MOMENTS INJECTED SEED   |   full FOLDER   |   readonly FOLDER

Children are forked before any torch work, so each costs milliseconds. Prints one JSON object.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

from ddsmoothing.counting import kept as partial
from ddsmoothing.counting.kept import read_counts
from ddsmoothing.errors import RunError
from ddsmoothing.runs import load_run
from ddsmoothing.runs.status import status_of
from forks import forked
from run_helpers import INPUTS, N, rows_of, small_run

SAMPLES = INPUTS * (N + 20)
MOMENTS = ("half a write", "before a write", "before fsync", "after fsync")


def child(work: Any) -> int:
    """Run ``work`` in a forked process, which ends without any clean-up; its exit code, negative if killed."""
    pid = forked(work)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def certify(out: Path, seconds: float = 0.0, **options: Any) -> Any:
    """The run, or what is left of it, with counts on disk after each forward pass, which takes so long."""
    partial.PACE_SECONDS = 0.0
    return small_run(out, progress=lambda samples: time.sleep(seconds), **options)


def inject(moment: str, at: int) -> None:
    """Die inside the so many-th append, or beside it."""
    write, fsync, calls = os.write, os.fsync, {"write": 0, "fsync": 0}

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def killing_write(descriptor: int, data: Any) -> int:
        calls["write"] += 1
        if calls["write"] == at and moment in MOMENTS[:2]:
            if moment == "half a write":
                write(descriptor, bytes(data)[: max(1, len(data) // 2)])
            die()
        return write(descriptor, data)

    def killing_fsync(descriptor: int) -> None:
        calls["fsync"] += 1
        if calls["fsync"] == at and moment == "before fsync":
            die()
        fsync(descriptor)
        if calls["fsync"] == at and moment == "after fsync":
            die()

    os.write, os.fsync = killing_write, killing_fsync


def durable(out: Path) -> bool:
    return any((out / name).exists() and (out / name).stat().st_size for name in ("partial.jsonl", "results.jsonl"))


def kill_at_some_moment(out: Path, rng: random.Random, early: bool) -> None:
    pid = forked(lambda: certify(out, 0.003))
    while not early and not durable(out):
        time.sleep(0.001)
    time.sleep(rng.uniform(0.0, 0.05 if early else 0.25))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def check_and_continue(out: Path, whole: list[dict[str, Any]]) -> None:
    """Nothing wrong is there after a death; the run goes on from what is there and ends with the same bits."""
    lines, kept = [], 0
    if (out / "results.jsonl").exists():
        data = (out / "results.jsonl").read_bytes()
        lines = data[: data.rfind(b"\n") + 1].splitlines()
    finished = {json.loads(line)["id"] for line in lines}
    if (out / "header.json").exists():
        kept = sum(line.n for line in read_counts(out, 3) if line.id not in finished)
        assert status_of(out).state == "died"
        if lines:
            load_run(out)
    assert [json.loads(line) | {"seconds": 0} for line in lines] == whole[: len(lines)]
    log = out.with_suffix(".drawn")

    def go_on() -> None:
        drawn = [0]
        certify(out, listeners=[lambda event, **details: drawn.append(details.get("samples", 0))])
        log.write_text(str(max(drawn)))

    assert child(go_on) == 0
    assert rows_of(out) == whole
    assert (out / "results.jsonl").read_bytes().splitlines()[: len(lines)] == lines, "a finished row was made again"
    assert int(log.read_text()) == SAMPLES - len(lines) * (N + 20) - kept, "counts that were kept were drawn again"
    assert {path.name for path in out.iterdir()} == {"header.json", "results.jsonl", "events.jsonl"}
    assert status_of(out).state == "finished"
    shutil.rmtree(out)


def kill(folder: Path, moments: int, injected: int, seed: int) -> dict[str, int]:
    rng, found = random.Random(seed), {"deaths": 0, "after_the_first_block": 0, "inside_an_append": 0}
    assert child(lambda: certify(folder / "whole")) == 0
    whole = rows_of(folder / "whole")
    for number in range(moments):
        out = folder / f"run{number}"
        if number < injected:
            moment, at = MOMENTS[number % len(MOMENTS)], 6 + 7 * (number // len(MOMENTS)) + number
            code = child(lambda m=moment, a=at, o=out: (inject(m, a), certify(o)))
            assert code == -signal.SIGKILL, (moment, at, code)
            found["inside_an_append"] += 1
        else:
            kill_at_some_moment(out, rng, early=number % 10 == 9)
        found["deaths"] += 1
        found["after_the_first_block"] += durable(out)
        if not out.exists():
            out.mkdir()
        check_and_continue(out, whole)
    return found


def full(folder: Path) -> dict[str, int]:
    """The disk is full, first by a limit on the size of files, then truly where the folder is a small one."""
    assert child(lambda: certify(folder.parent / "whole")) == 0
    whole, refused = rows_of(folder.parent / "whole"), 0
    for limit in (100, 1000, 2000, 3000, 4500, 6000):
        out = folder / f"run{limit}"

        def limited(out: Path = out, limit: int = limit) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            try:
                certify(out)
            except RunError as error:
                assert "File too large" in str(error), error
                os._exit(3)

        refused += child(limited) == 3
        for name in ("results.jsonl", "partial.jsonl"):
            assert not (out / name).exists() or (out / name).read_bytes()[-1:] in (b"\n", b""), "a line is torn"
        assert child(lambda out=out: certify(out)) == 0
        assert rows_of(out) == whole
        shutil.rmtree(out)
    return {"refused": refused}


def small_disk(folder: Path) -> dict[str, int]:
    """The folder's file system has too little space, then more."""
    assert child(lambda: certify(folder.parent / "whole")) == 0
    out, filler, refused = folder / "run", folder / "filler", 0
    filler.write_bytes(b"x" * (16 * 4096))

    def attempt() -> None:
        try:
            certify(out)
        except RunError as error:
            assert "No space left" in str(error), error
            os._exit(3)

    for left in (16, 14, 13, 12, 10, 8, 0):  # pages of the filler
        os.truncate(filler, left * 4096)
        code = child(attempt)
        refused += code == 3
        if code == 0:
            break
    assert rows_of(out) == rows_of(folder.parent / "whole")
    return {"refused": refused}


def readonly(folder: Path) -> dict[str, int]:
    """Both a new run and a continued one are refused, in the folder that was made read-only."""
    refused = 0
    for out in (folder / "new", folder / "run"):

        def attempt(out: Path = out) -> None:
            try:
                certify(out)
            except RunError as error:
                assert "cannot write the run folder" in str(error), error
                os._exit(3)

        refused += child(attempt) == 3
    return {"refused": refused}


if __name__ == "__main__":
    place, rest = Path(sys.argv[2]), [int(text) for text in sys.argv[3:]]
    work = {"kill": kill, "full": full, "small_disk": small_disk, "readonly": readonly}[sys.argv[1]]
    print(json.dumps(work(place, *rest)))
