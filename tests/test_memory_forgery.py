"""Edited memory files: what `memory verify` finds by itself, and what only a head kept elsewhere tells."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ddsmoothing.errors import InputError, StoreError
from ddsmoothing.memory import CertifiedMemory, Store
from ddsmoothing.memory.database import Database
from ddsmoothing.memory.records import Attempt, Head
from ddsmoothing.memory.rows import Rows
from ddsmoothing.memory.store import chain_start
from ddsmoothing.memory.verify import verify_store
from memory_helpers import ALPHA, Found, Planted, binding, edit

KEYS = {"meta": "key", "attempts": "number", "regions": "number", "points": "number", "sqlite_sequence": "name"}
JSON_FIELDS = {"binding": "model", "risk": "alpha"}


class WithEvidence(Planted):
    """Certificates that carry the counts behind them."""

    def certify(self, x: torch.Tensor, *, alpha: float, seed: int, noise_id: int) -> Found:
        return replace(super().certify(x, alpha=alpha, seed=seed, noise_id=noise_id), evidence='{"n": [98, 2]}')


def made(path: Path, size: int = 6) -> Path:
    """A memory of regions, abstentions and two classes; points off the grid and on it."""
    says = WithEvidence(lambda x: (-1, 0.0) if x[1] > 0.5 else (int(10 * x[0]) % 2, 0.02))
    memory = CertifiedMemory(Store.create(path, binding(), ALPHA, seed=1), says)
    x = torch.stack([torch.arange(size) / size, torch.arange(size) % 3 / 2], 1).double()
    x[3] = torch.tensor([51.0, 0.0]).double() / 255
    memory.query(x)
    assert 2 < len(memory) < size
    memory.close()
    return path


def verdict(path: Path, head: str | None = None) -> str:
    """What opening or verifying a file finds, empty where that is nothing."""
    try:
        store = Store.open(path)
    except StoreError as error:
        return str(error)
    found = verify_store(store, head=head)
    store.close()
    return "; ".join(found.findings)


def others(value: Any, column: list[Any]) -> Iterator[Any]:
    """Plausible other values of a field: near ones, and those of other rows."""
    if isinstance(value, int):
        yield from (value + 1, value - 1, 2 * value + 40)
    elif isinstance(value, float):
        yield from (1.5 * value, value * (1 - 1e-12), -value)
    elif isinstance(value, bytes):
        yield from (value[:-1] + bytes([value[-1] ^ 1]), bytes([value[0] ^ 128]) + value[1:], value[:-1])
    else:
        yield from (value[:-1] + chr(ord(value[-1]) ^ 1), value + " ", "")
    yield from {other for other in column if other != value}


def fields(path: Path) -> Iterator[tuple[str, str, Any, list[Any]]]:
    """Table, column, row and other values of every field of a file."""
    with closing(sqlite3.connect(path)) as file:
        for table, key in KEYS.items():
            cursor = file.execute(f"SELECT * FROM {table}")
            names, rows = [column[0] for column in cursor.description], cursor.fetchall()
            for row in rows:
                for at, name in enumerate(names):
                    values = list(others(row[at], [other[at] for other in rows]))
                    if table == "meta" and (inner := JSON_FIELDS.get(row[0])) and name == "value":
                        values.append(json.dumps(json.loads(row[1]) | {inner: 1e-9 if inner == "alpha" else "id:b"}))
                    yield table, name, row[names.index(key)], values


def named(table: str, column: str, row: Any) -> str:
    """What the verdict on a field must say."""
    if table == "meta":
        return "seal" if row == "sealed" and column == "value" else "damaged at "
    if table == "sqlite_sequence" or (table, column) == ("attempts", "number"):
        return "damaged at "
    if column in ("after", "number") and table == "regions":
        return "damaged at "  # the neighbour may be the one that does not follow
    return f"{'attempt' if table == 'attempts' else 'region'} {row}"


@pytest.mark.parametrize("sealed", [False, True], ids=["open", "sealed"])
@pytest.mark.parametrize("size", [6, pytest.param(24, marks=pytest.mark.slow)])
def test_one_changed_field_is_named(tmp_path: Path, size: int, sealed: bool) -> None:
    whole = made(tmp_path / "whole", size)
    if sealed:
        Store.open(whole).seal()
        whole.chmod(0o644)
    assert verdict(whole) == ""
    tried = 0
    for table, column, row, values in fields(whole):
        for value in values:
            path = Path(shutil.copy(whole, tmp_path / "edited"))
            try:
                edit(path, f"UPDATE {table} SET {column} = ? WHERE {KEYS[table]} = ?", (value, row))
            except sqlite3.IntegrityError:  # SQLite itself refuses it: no such file can be made
                continue
            assert named(table, column, row) in verdict(path), (table, column, row, value)
            tried += 1
    assert tried > 60 * size


@pytest.mark.parametrize(
    ("sql", "says"),
    [
        ("DELETE FROM regions WHERE number = (SELECT max(number) FROM regions)", "damaged at its end"),
        ("DELETE FROM attempts WHERE number = (SELECT max(number) FROM attempts)", "damaged at its end"),
        ("DELETE FROM regions WHERE number = 2", "what came between"),
        ("DELETE FROM attempts WHERE number = 2", "what came between"),
        ("DELETE FROM points WHERE number = 2", "region 2"),
        ("INSERT INTO points VALUES (9, x'00')", "point 9: there is no such region"),
        ("DELETE FROM sqlite_sequence", "damaged at its end"),
        ("DELETE FROM meta WHERE key = 'risk'", "damaged at what it belongs to"),
        ("INSERT INTO meta VALUES ('note', '1')", "damaged at what it belongs to"),
        ("INSERT INTO meta VALUES ('sealed', '1 2')", "no_insert_points is missing"),
        ("CREATE TRIGGER quiet AFTER INSERT ON regions BEGIN SELECT 1; END", "quiet is not its own"),
        ("CREATE TABLE more (a)", "more is not its own"),
        ("PRAGMA user_version = 1", "has schema 1, this version reads 2"),
        ("PRAGMA application_id = 7", "is not a certified memory"),
    ],
)
def test_removed_and_added_rows_and_tables_are_named(tmp_path: Path, sql: str, says: str) -> None:
    path = made(tmp_path / "m")
    edit(path, sql)
    assert says in verdict(path)


def test_dropped_and_changed_guards_are_named(tmp_path: Path) -> None:
    whole = made(tmp_path / "whole")
    for table in ("meta", "attempts", "regions", "points"):
        for event in ("update", "delete"):
            path = Path(shutil.copy(whole, tmp_path / "edited"))
            with closing(sqlite3.connect(path)) as other:
                other.execute(f"DROP TRIGGER no_{event}_{table}")
            assert f"no_{event}_{table} is missing" in verdict(path)
            with closing(sqlite3.connect(path)) as other:
                other.execute(f"CREATE TRIGGER no_{event}_{table} BEFORE {event} ON {table} BEGIN SELECT 1; END")
            assert f"no_{event}_{table} is changed" in verdict(path)


def test_a_file_edited_while_it_is_open_is_found_too(tmp_path: Path) -> None:
    path = made(tmp_path / "m")
    store = Store.open(path)
    edit(path, "UPDATE regions SET radius = 0.019 WHERE number = 2")
    edit(path, "UPDATE points SET point = zeroblob(16) WHERE number = 1")
    found = verify_store(store).findings
    assert any(one.startswith("region 2: it does not follow from attempt") for one in found)
    assert any("region 1: its point is not the one that was stored" in one for one in found)


def rechained(path: Path) -> None:
    """What a forger does who knows all of this: every hash is made right again."""
    database = Database(path)
    meta = dict(database.execute("SELECT key, value FROM meta"))
    last = Head(attempts=0, regions=0, hash=chain_start(meta), name="")
    rows = Rows(database, 3, 2)
    changes = [("UPDATE meta SET value = ? WHERE key = ?", (last.hash.hex(), "start"))]
    for record in rows.records(last, rows.counts()):
        right = replace(record, hash=record.hash_after(last.hash))
        table = "attempts" if isinstance(record, Attempt) else "regions"
        changes.append((f"UPDATE {table} SET hash = ? WHERE number = ?", (right.hash, right.number)))  # type: ignore[list-item]
        last = last.past(right)
    database.close()
    for sql, values in changes:
        edit(path, sql, values)


def test_a_forger_who_makes_every_hash_right_is_found_by_the_head_alone(tmp_path: Path) -> None:
    """The limit of a file that proves itself, and what publishing its head is for."""
    path = made(tmp_path / "m")
    head = Store.open(path).head
    assert verdict(path, head) == ""
    edit(path, "UPDATE meta SET value = ? WHERE key = 'risk'", ('{"alpha": 1e-9, "delta": null}',))
    edit(path, "UPDATE regions SET certified = 0.03, radius = 0.03 WHERE number = 1")
    assert verdict(path) != ""
    rechained(path)
    assert verdict(path) == ""
    assert Store.open(path).risk.alpha == 1e-9
    assert f"head {head} is not in its chain" in verdict(path, head)


def test_what_right_hashes_do_not_hide(tmp_path: Path) -> None:
    for sql, says in {
        "UPDATE regions SET class = 77 WHERE number = 1": "region 1: attempt 1 or class 77 does not exist",
        "UPDATE regions SET sketch = zeroblob(12) WHERE number = 2": "region 2: its sketch is not that of its point",
        "UPDATE regions SET radius = 0.5 WHERE number = 2": "region 2: radius 0.5 of 0.02 certified",
        "UPDATE regions SET radius = 0.5, certified = 0.5": "regions 1 and 2 of different classes meet",
        "UPDATE regions SET attempt = 0 WHERE number = 1": "region 1: attempt 0 or class",
        "UPDATE regions SET sigma = -1 WHERE number = 1": "region 1: radius 0.02 of 0.02 certified at sigma -1",
    }.items():
        path = made(tmp_path / "m")
        edit(path, sql)
        rechained(path)
        assert says in verdict(path), sql
        path.unlink()


def test_every_head_that_was_published_is_in_the_chain(tmp_path: Path) -> None:
    path = tmp_path / "m"
    memory = CertifiedMemory(Store.create(path, binding(), ALPHA, seed=1), Planted(lambda x: (0, 0.01)))
    heads = [memory.store.head]
    for i in range(5):
        memory.query(torch.tensor([[0.1 * i, 0.5]]).double())
        heads.append(memory.store.head)
    heads.append(memory.seal())
    assert memory.store.head == heads[-1] == memory.store.sealed
    assert len(set(heads)) == 7
    for head in heads:
        assert verify_store(memory.store, head=head).ok
    assert verify_store(memory.store).head == heads[-1]
    assert not verify_store(memory.store, head="0" * 64).ok
    with pytest.raises(InputError, match="expected 64 hexadecimal digits"):
        verify_store(memory.store, head="12ab")


def test_an_older_copy_that_was_put_back_is_told_by_a_later_head(tmp_path: Path) -> None:
    path, says = made(tmp_path / "m"), Planted(lambda x: (0, 0.01))
    earlier = Store.open(path).head
    shutil.copy(path, tmp_path / "old")
    memory = CertifiedMemory(Store.open(path), says)
    memory.query(torch.tensor([[0.5, 0.9]]).double())
    later = memory.store.head
    memory.close()
    shutil.copy(tmp_path / "old", path)
    assert verdict(path) == verdict(path, earlier) == ""
    assert "an older copy" in verdict(path, later)
    CertifiedMemory(Store.open(path), says).query(torch.tensor([[0.5, 0.9]]).double())
    assert "an older copy" in verdict(path, later)  # the same query again is another attempt


def test_a_long_list_of_findings_is_cut_short_and_says_nothing_of_the_head(tmp_path: Path) -> None:
    path = tmp_path / "m"
    store = Store.create(path, binding(num_classes=40), ALPHA, seed=1)
    with store.writing():
        for i in range(30):
            point = np.array([i, 0.5])
            store.append(point, label=i, radius=0.1, certified=0.1, sigma=0.5, attempt=store.reserve())
    edit(path, "UPDATE regions SET sigma = 0.25 WHERE number > 5")
    done: list[int] = []
    found = verify_store(store, pairs=False, head="0" * 64, progress=done.append).findings
    assert found[-1] == "and perhaps more"
    assert len(found) == 21
    assert sum(done) == 25


def test_command_line(tmp_path: Path, cli: Callable[..., Any]) -> None:
    path = made(tmp_path / "m")
    head, name, *rest = cli("memory", "head", path).out.split()
    assert (len(head), name, rest) == (64, str(path), ["(4", "regions,", "6", "attempts)"])
    assert json.loads(cli("memory", "info", path, "--json").out)["head"] == head
    assert f"head {head}, and the one given is in its chain" in cli("memory", "verify", path, "--head", head).out
    wrong = cli("memory", "verify", path, "--head", head[::-1])
    assert wrong.code == 1
    assert "is not in its chain" in wrong.out
    assert cli("memory", "verify", path, "--head", "12").code == 2
    edit(path, "UPDATE regions SET evidence = '{}' WHERE number = 2")
    assert "damaged at region 2" in cli("memory", "verify", path).err


def test_a_file_that_brings_code_along_is_not_opened(tmp_path: Path) -> None:
    """A trigger runs with the next write; it must not come to that."""
    path = made(tmp_path / "m")
    edit(path, "CREATE TRIGGER forget AFTER INSERT ON points BEGIN INSERT INTO attempts VALUES (99, 1, 1, 1); END")
    with pytest.raises(StoreError, match="damaged at its tables: forget is not its own"):
        Store.open(path)
