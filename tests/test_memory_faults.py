"""Crashes, two processes at once, full and read-only disks, damaged and foreign files: nothing lost, one error."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ddsmoothing.errors import StoreError
from ddsmoothing.memory import CertifiedMemory, Risk, Store, database
from ddsmoothing.memory.verify import verify_store
from memory_helpers import ALPHA, Planted, binding, check_disjoint, edit

TESTS = Path(__file__).parent


def worker(*args: object) -> dict[str, int]:
    path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(TESTS / "memory_worker.py"), *map(str, args)]
    done = subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def some(path: Path, size: int = 12) -> CertifiedMemory:
    """A memory with so many regions along a line, classes in turn."""
    memory = CertifiedMemory(
        Store.create(path, binding(), ALPHA, seed=1), Planted(lambda x: (int(10 * x[0]) % 2, 0.02))
    )
    memory.query(torch.stack([torch.arange(size) / size, torch.zeros(size)], 1).double())
    return memory


def outside(y: float = 0.5) -> torch.Tensor:
    return torch.tensor([[0.5, y]], dtype=torch.float64)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(
    ("rounds", "injected"), [(8, 5), pytest.param(60, 20, marks=pytest.mark.slow)], ids=["short", "all"]
)
def test_kill_loses_nothing_that_was_answered(tmp_path: Path, rounds: int, injected: int) -> None:
    """kill -9 at random moments, and at chosen ones between the INSERT of a region and the end of its commit."""
    found = worker("kill", tmp_path, rounds, injected)
    assert found["deaths"] >= rounds - 2  # a child may finish before its moment


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("rounds", [2, pytest.param(20, marks=pytest.mark.slow)], ids=["short", "all"])
def test_two_processes_with_conflicting_inputs(tmp_path: Path, rounds: int) -> None:
    found = worker("race", tmp_path, rounds)
    assert found["cut"] > 0
    assert found["answered"] > 0


def test_a_full_disk_is_one_error_and_nothing_is_lost(tmp_path: Path) -> None:
    memory = some(tmp_path / "m")
    pages = memory.store.database.one("PRAGMA page_count")
    memory.store.database.execute(f"PRAGMA max_page_count={pages}")
    before = len(memory)
    with pytest.raises(StoreError, match=r"the disk is full; nothing of this write was kept"):
        for i in range(1000):
            memory.query(outside(0.1 + i / 10))
    memory.store.database.execute("PRAGMA max_page_count=1000000")
    now = len(memory)
    assert now >= before
    assert memory.query(outside(2000.0)).reason == ("kept",)
    assert len(memory) == now + 1
    assert verify_store(memory.store).ok


def test_a_write_error_is_one_error_and_nothing_is_lost(tmp_path: Path) -> None:
    """The system refuses to let the file grow, in a process of its own."""
    some(tmp_path / "m").close()
    code = f"""
import resource, signal, sys
from pathlib import Path
sys.path.insert(0, {str(TESTS)!r})
import torch
from ddsmoothing.errors import StoreError
from memory_helpers import Planted
from ddsmoothing.memory import CertifiedMemory, Store
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path = Path({str(tmp_path / "m")!r})
memory = CertifiedMemory(Store.open(path), Planted(lambda x: (0, 0.01)))
resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size, path.stat().st_size))
try:
    for i in range(1000):
        memory.query(torch.tensor([[0.5, 1.0 + i]], dtype=torch.float64))
except StoreError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "nothing of this write was kept" in done.stdout
    store = Store.open(tmp_path / "m")
    assert len(store) >= 12
    assert verify_store(store).ok


def test_a_read_only_memory_answers_inside_and_says_why_it_cannot_store(tmp_path: Path) -> None:
    memory = some(tmp_path / "m")
    memory.store.database.execute("PRAGMA query_only=1")  # as of a read-only file, which root could write all the same
    inside = torch.zeros(1, 2, dtype=torch.float64)
    assert memory.query(inside).reason == ("answered",)
    with pytest.raises(StoreError, match="cannot be written"):
        memory.query(outside())
    assert memory.query(inside).reason == ("answered",)
    if os.geteuid() != 0:
        memory.close()
        (tmp_path / "m").chmod(0o444)
        readonly = CertifiedMemory(Store.open(tmp_path / "m"), Planted(lambda x: (0, 1.0)))
        with pytest.raises(StoreError, match="cannot be written"):
            readonly.query(outside())


def test_a_file_that_another_process_keeps_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.1)
    memory = some(tmp_path / "m")
    other = sqlite3.connect(tmp_path / "m", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="another process has kept it locked"):
        memory.query(outside())
    other.execute("ROLLBACK")
    other.close()
    assert memory.query(outside()).reason == ("kept",)


def test_damaged_pages_are_found(tmp_path: Path) -> None:
    """Any page overwritten: opening or verifying says so; nothing is answered from damaged rows."""
    some(tmp_path / "m", 60).close()
    whole = (tmp_path / "m").read_bytes()
    size = database.PAGE
    assert len(whole) >= 6 * size
    for start in range(0, len(whole), size):
        turned = bytes(255 - b for b in whole[start : start + size])
        (tmp_path / "m").write_bytes(whole[:start] + turned + whole[start + size :])
        try:
            assert not verify_store(Store.open(tmp_path / "m")).ok, start
        except StoreError as error:
            assert any(word in str(error) for word in ("damaged", "not a certified memory", "SQLite failed")), error


def test_a_changed_point_is_found_before_it_decides(tmp_path: Path) -> None:
    memory = some(tmp_path / "m")
    edit(tmp_path / "m", "UPDATE points SET point = zeroblob(16) WHERE number = 3")
    with pytest.raises(StoreError, match="damaged at region 3"):
        memory.query(torch.tensor([[2 / 12, 0.0]], dtype=torch.float64))


def test_rows_cannot_be_changed_or_deleted(tmp_path: Path) -> None:
    memory = some(tmp_path / "m")
    for sql in ("UPDATE regions SET radius = 9", "DELETE FROM regions", "DELETE FROM points", "DELETE FROM meta"):
        with pytest.raises(StoreError, match="append-only"):
            memory.store.database.execute(sql)
    assert len(memory) == 12


def test_regions_that_meet_are_reported(tmp_path: Path) -> None:
    """Only damage, or another program, can make regions of different class meet."""
    store = Store.create(tmp_path / "m", binding(), ALPHA, seed=1)
    with store.writing():
        for label, at in ((0, 0.0), (1, 0.05)):
            point = np.array([at, 0.0])
            store.append(point, label=label, radius=0.1, certified=0.1, sigma=0.5, attempt=store.reserve())
    found = verify_store(store)
    assert found.findings == ("regions 1 and 2 of different classes meet",)
    assert verify_store(store, pairs=False).ok
    memory = CertifiedMemory(store, Planted(lambda x: (0, 1.0)))
    with pytest.raises(StoreError, match="different classes meet in a point"):
        memory.query(torch.tensor([[0.02, 0.0]], dtype=torch.float64))


def test_foreign_and_newer_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no certified memory at"):
        Store.open(tmp_path / "nothing")
    (tmp_path / "text").write_text("not a database at all, but long enough to be one" * 100)
    with pytest.raises(StoreError, match="not a certified memory"):
        Store.open(tmp_path / "text")
    other = sqlite3.connect(tmp_path / "other")
    other.execute("CREATE TABLE t (a)")
    other.commit()
    other.close()
    with pytest.raises(StoreError, match="not a certified memory"):
        Store.open(tmp_path / "other")
    some(tmp_path / "m").close()
    edit(tmp_path / "m", "PRAGMA user_version=3")
    with pytest.raises(StoreError, match="has schema 3, this version reads 2"):
        Store.open(tmp_path / "m")
    with pytest.raises(StoreError, match="exists; give another file"):
        Store.create(tmp_path / "m", binding(), ALPHA)
    with pytest.raises(StoreError, match="cannot be opened"):
        Store.create(tmp_path / "no" / "folder", binding(), ALPHA)


def test_a_memory_whose_binding_is_damaged(tmp_path: Path) -> None:
    some(tmp_path / "m").close()
    edit(tmp_path / "m", "UPDATE meta SET value='{}' WHERE key='binding'")
    with pytest.raises(StoreError, match="damaged at what it belongs to"):
        Store.open(tmp_path / "m")


def test_network_file_systems_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = tmp_path / "mounts"
    line = "36 35 98:0 / {} rw,noatime master:1 - {} host:/share rw\n"
    mounts.write_text(line.format("/", "ext4") + line.format(tmp_path.resolve(), "nfs4"))
    monkeypatch.setattr(database, "MOUNTS", mounts)
    with pytest.raises(StoreError, match=r"network file system \(nfs4\)"):
        Store.create(tmp_path / "m", binding(), ALPHA)
    mounts.write_text(line.format("/", "ext4"))
    some(tmp_path / "m").close()
    monkeypatch.setattr(database, "MOUNTS", tmp_path / "not there")
    Store.open(tmp_path / "m").close()


def test_what_a_crash_of_create_leaves_is_taken_up(tmp_path: Path) -> None:
    (tmp_path / "m").touch()
    with pytest.raises(StoreError, match="not a certified memory"):
        Store.open(tmp_path / "m")
    Store.create(tmp_path / "m", binding(), ALPHA).close()
    assert len(Store.open(tmp_path / "m")) == 0


def test_a_copy_taken_between_queries_is_whole(tmp_path: Path) -> None:
    memory = some(tmp_path / "m")
    shutil.copy(tmp_path / "m", tmp_path / "copy")
    memory.query(outside())
    copy = Store.open(tmp_path / "copy")
    assert len(copy) == 12
    assert verify_store(copy).ok
    check_disjoint(memory.store)


def test_risk_of_an_unknown_kind(tmp_path: Path) -> None:
    some(tmp_path / "m").close()
    edit(tmp_path / "m", """UPDATE meta SET value='{"gamma": 1}' WHERE key='risk'""")
    with pytest.raises(StoreError, match="damaged"):
        Store.open(tmp_path / "m")
    assert Risk(alpha=0.5).alpha == 0.5
