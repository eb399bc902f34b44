"""Run by tests/test_memory_faults.py in a process of its own: queries a memory in children and kills them.

python memory_worker.py kill FOLDER ROUNDS INJECTED   |   python memory_worker.py race FOLDER ROUNDS

Children are forked before any torch work, so each costs milliseconds. Prints one JSON object.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch

from ddsmoothing.memory import CertifiedMemory, Risk, Store
from ddsmoothing.memory.database import Database
from ddsmoothing.memory.verify import verify_store
from forks import forked
from memory_helpers import Planted, binding, check_disjoint

INPUTS = 60
RISK = Risk(delta=0.1)


def planted(seconds: float) -> Planted:
    """Two classes by a checkerboard, balls large enough to meet, and some abstentions; certifying takes a while."""

    def says(x: np.ndarray) -> tuple[int, float]:
        time.sleep(seconds)
        label = int(4 * x[0]) + int(4 * x[1])
        return (-1, 0.0) if int(1000 * x[0]) % 7 == 0 else (label % 2, 0.05 + 0.3 * x[1])

    return Planted(says)


def inputs(seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random((INPUTS, 2)))


def ask(path: Path, log: Path, seed: int, seconds: float, die_at: int | None) -> None:
    """Query everything, writing each answer to the log as soon as it is given."""
    if die_at is not None:
        inject(die_at)
    memory = CertifiedMemory(Store.open(path), planted(seconds))
    x = inputs(seed)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for i in range(INPUTS):
        row = memory.query(x[i : i + 1]).rows[0]
        os.write(out, (json.dumps([i, row.prediction, row.radius, row.reason, row.region]) + "\n").encode())


def inject(step: int) -> None:
    """Die inside an append: at the so many-th moment between the first INSERT of a region and the end of its commit."""
    execute, seen = Database.execute, {"regions": 0}
    moments = ("before", "inside", "after", "commit", "committed")

    def killing(self, sql, values=()):
        insert, commit = sql.startswith("INSERT INTO regions"), sql == "COMMIT"
        seen["regions"] += insert
        now = moments[step % len(moments)]
        armed = seen["regions"] > step // len(moments)
        if armed and insert and now in ("before", "inside"):
            if now == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            self.connection.set_progress_handler(lambda: os.kill(os.getpid(), signal.SIGKILL), 3)
        if armed and commit and now == "commit":
            self.connection.set_progress_handler(lambda: os.kill(os.getpid(), signal.SIGKILL), 1)
        result = execute(self, sql, values)
        if armed and ((insert and now == "after") or (commit and now == "committed")):
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    Database.execute = killing


def check(path: Path, log: Path, seed: int) -> int:
    """Nothing that was answered is lost, nothing half-written is there; returns regions."""
    store = Store.open(path)
    found = verify_store(store)
    assert found.ok, found.findings
    check_disjoint(store)
    memory = CertifiedMemory(store, planted(0.0))
    x = inputs(seed)
    for line in log.read_text().splitlines() if log.exists() else []:
        i, label, radius, reason, region = json.loads(line)
        if radius > 0.0:
            held = memory.query(x[i : i + 1]).rows[0]
            assert held.reason == "answered", (line, held)
            assert held.prediction == label, (line, held)
            assert held.radius >= radius - 1e-12, (line, held)
        assert region is None or region <= len(store), (line, reason)
    return len(store)


def wait_for(log: Path, answers: int) -> None:
    """Wait until so many answers were given: a moment that no machine's speed decides."""
    end = time.monotonic() + 60.0
    while (log.read_bytes().count(b"\n") if log.exists() else 0) < answers:
        assert time.monotonic() < end, f"{log}: no {answers} answers in a minute"
        time.sleep(0.0005)


def kill(folder: Path, rounds: int, injected: int) -> dict[str, int]:
    rng, deaths, regions, attempts = random.Random(0), 0, 0, 0
    path = folder / "kill.memory"
    Store.create(path, binding(), RISK, seed=3).close()
    for number in range(rounds):
        log = folder / f"{number}.log"
        if number % 10 == 9:  # a new file now and then, so that appends stay frequent
            path = folder / f"kill{number}.memory"
            Store.create(path, binding(), RISK, seed=number).close()
            regions = attempts = 0
        die_at = number if number < injected else None
        pid = forked(lambda p=path, log=log, n=number, d=die_at: ask(p, log, n, 0.002, d))
        if die_at is None:
            wait_for(log, rng.randrange(INPUTS - 10))
            time.sleep(rng.uniform(0.0, 0.004))
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        deaths += os.WIFSIGNALED(status)
        if die_at is not None:
            assert os.WIFSIGNALED(status), f"round {number}: was not killed, status {status}"
        now = check(path, log, number)
        store = Store.open(path)
        assert now >= regions
        assert store.attempts >= max(attempts, now)
        regions, attempts = now, store.attempts
        store.close()
    return {"deaths": deaths}


def race(folder: Path, rounds: int) -> dict[str, int]:
    """Two processes ask at once: the same points, with certificates of different class round each of them."""
    cut = answered = 0
    for number in range(rounds):
        path = folder / f"race{number}.memory"
        Store.create(path, binding(), RISK, seed=number).close()
        x = inputs(number)
        gate = folder / f"gate{number}"

        def run(who: int, path=path, x=x, gate=gate, number=number) -> None:
            says = Planted(lambda _: (time.sleep(0.001), (who, 0.2))[1])
            memory = CertifiedMemory(Store.open(path), says)
            while not gate.exists():
                time.sleep(0.001)
            rows = []
            for i in range(20):
                rows.append(memory.query(x[i : i + 1] + 0.01 * who).rows[0])
            kinds = [row.reason for row in rows]
            (folder / f"{number}-{who}.json").write_text(
                json.dumps(
                    {"kinds": kinds, "attempts": [r.attempt for r in rows], "labels": [r.prediction for r in rows]}
                )
            )

        pids = [forked(lambda who=who, run=run: run(who)) for who in (0, 1)]
        time.sleep(0.05)
        gate.touch()
        for pid in pids:
            _, status = os.waitpid(pid, 0)
            assert status == 0
        store = Store.open(path)
        found = verify_store(store)
        assert found.ok, found.findings
        check_disjoint(store)
        told = [json.loads((folder / f"{number}-{who}.json").read_text()) for who in (0, 1)]
        used = [t for one in told for t in one["attempts"] if t is not None]
        assert len(used) == len(set(used)), "an attempt number was given twice"
        cut += sum(kind == "cut" for one in told for kind in one["kinds"])
        answered += sum(kind == "answered" for one in told for kind in one["kinds"])
        memory = CertifiedMemory(store, planted(0.0))
        for who, one in enumerate(told):
            for i, (label, kind) in enumerate(zip(one["labels"], one["kinds"], strict=True)):
                if kind in ("kept", "answered"):
                    assert memory.query(x[i : i + 1] + 0.01 * who).rows[0].prediction == label
        store.close()
    return {"cut": cut, "answered": answered}


if __name__ == "__main__":
    place = Path(sys.argv[2])
    if sys.argv[1] == "kill":
        print(json.dumps(kill(place, int(sys.argv[3]), int(sys.argv[4]))))
    else:
        print(json.dumps(race(place, int(sys.argv[3]))))
