"""Kept counts: a run stopped anywhere and continued is an uninterrupted one, and a damaged file is named."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ddsmoothing.cli import main
from ddsmoothing.counting import kept as partial
from ddsmoothing.counting.contract import Request
from ddsmoothing.counting.kept import KeptCounts, Paced, read_counts
from ddsmoothing.errors import DdsmoothingError, RunError
from ddsmoothing.inputs import Batch
from ddsmoothing.streams import rows_per_block
from fuzzing import cases, damaged
from run_helpers import INPUTS, POLICIES, N, rows_of, small_data, small_run, small_smoothed
from test_fuzz import damaged_json, snapshot

ROWS = 56


class StopError(Exception):
    pass


class Counting:
    """Runs requests in this process, one at a time, and remembers them; stops after so many."""

    def __init__(self, stop: int | None = None) -> None:
        self.inner, self.asked, self.stop = small_smoothed().counter(48 * 48), list[Request](), stop

    def run(self, batch: Batch, requests: Sequence[Request], seed: int, progress: Any = None) -> Iterator[Any]:
        for i, request in enumerate(requests):
            if len(self.asked) == self.stop:
                raise StopError
            self.asked.append(request)
            yield i, self.inner.count(batch, [request], seed, progress)[0]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """Rows of uninterrupted runs, by sigma policy; made without kept counts."""
    folder = tmp_path_factory.mktemp("whole")
    for policy in POLICIES:
        small_run(folder / policy, policy)
        assert not (folder / policy / "partial.jsonl").exists()
    return {policy: rows_of(folder / policy) for policy in POLICIES}


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts reach the disk unit by unit."""
    monkeypatch.setattr(partial, "PACE_SECONDS", 0.0)


VOTES = {"tally": "votes", "anchor": None}


def keep(folder: Path, inner: Any, finished: Sequence[int] = (), **options: Any) -> KeptCounts:
    settings = {"num_classes": 3, "seed": 5, "block_size": 64, "durable": lambda: None} | options
    return KeptCounts(folder, inner, finished=finished, **settings)


def batch() -> Batch:
    return small_smoothed().prepare(small_data()[:3][0], [0, 1, 2])


REQUESTS = [Request(row=row, sigma=0.3, stream=1, n=n, first_block=3) for row, n in ((0, 500), (1, 56), (2, 7))]


def counted(executor: Any, requests: Sequence[Request] = REQUESTS) -> list[list[int]]:
    found = dict(executor.run(batch(), requests, 5))
    return [found[i].tolist() for i in range(len(requests))]


def uninterrupted() -> list[list[int]]:
    return [counts.tolist() for counts in small_smoothed().count(batch(), REQUESTS, 5)]


def test_sizes() -> None:
    assert rows_per_block(48 * 48) == ROWS


@pytest.mark.parametrize("stop", [0, 1, 2, 3, 5, 6])
def test_what_was_counted_is_not_counted_again(tmp_path: Path, eager: None, stop: int) -> None:
    expected = uninterrupted()
    first = Counting(stop)
    with pytest.raises(StopError), keep(tmp_path, first) as kept:
        counted(kept)
    second = Counting()
    with keep(tmp_path, second) as kept:
        assert kept.found == sum(request.n for request in first.asked)
        assert counted(kept) == expected
        assert kept.drawn == sum(request.n for request in second.asked)
    assert sum(request.n for request in first.asked + second.asked) == 563
    assert len({(request.row, request.first_block) for request in first.asked + second.asked}) == 7
    third = Counting(0)
    assert counted(keep(tmp_path, third)) == expected


def test_units_lie_between_what_is_kept(tmp_path: Path, eager: None) -> None:
    """Blocks that came back out of order leave gaps; each gap is filled and no more."""
    expected = uninterrupted()
    with keep(tmp_path, Counting()) as kept:
        counted(kept)
    lines = (tmp_path / "partial.jsonl").read_text().splitlines(keepends=True)
    for dropped in ([0], [1, 2], [0, 2], [3, 4, 5]):
        (tmp_path / "partial.jsonl").write_text("".join(line for i, line in enumerate(lines) if i not in dropped))
        again = Counting()
        with keep(tmp_path, again) as kept:
            assert counted(kept) == expected
        assert sum(request.n for request in again.asked) == sum(json.loads(lines[i])["n"] for i in dropped)


def test_counts_of_another_input_sigma_or_stream_are_not_used(tmp_path: Path, eager: None) -> None:
    with keep(tmp_path, Counting()) as kept:
        counted(kept)
    line = json.loads((tmp_path / "partial.jsonl").read_text().splitlines()[0])
    for change in ({"id": 7}, {"input": "0" * 16}, {"sigma": 0.31}, {"stream": 0}, {"block": 99}):
        (tmp_path / "partial.jsonl").write_text(json.dumps(line | change) + "\n")
        again = Counting()
        with keep(tmp_path, again) as kept:
            counted(kept)
        assert sum(request.n for request in again.asked) == 563


def test_a_line_that_does_not_end_with_a_block_is_used_at_the_end_alone(tmp_path: Path, eager: None) -> None:
    line = {"id": 0, "stream": 1, "sigma": 0.3, "block": 3, "n": 50, "counts": [50, 0, 0]}
    (tmp_path / "partial.jsonl").write_text(json.dumps(line | {"input": batch().sha256[0][:16]}) + "\n")
    again = Counting()
    assert counted(keep(tmp_path, again)) == uninterrupted()


def test_forgetting_keeps_the_counts_of_others(tmp_path: Path, eager: None) -> None:
    with keep(tmp_path, Counting()) as kept:
        counted(kept)
        kept.forget([0, 1, 2])
        assert (tmp_path / "partial.jsonl").read_bytes() == b""
        counted(kept)
    before = (tmp_path / "partial.jsonl").read_text().splitlines()
    with keep(tmp_path, Counting()) as kept:
        kept.forget([0, 2])
        assert [json.loads(line)["id"] for line in (tmp_path / "partial.jsonl").read_text().splitlines()] == [1]
        counted(kept, REQUESTS[2:])
    assert {line.id for line in read_counts(tmp_path, 3)} == {1, 2}
    (tmp_path / "partial.jsonl").write_text("\n".join(before) + "\n")
    kept = keep(tmp_path, Counting(), finished=[0, 1])
    assert kept.found == 7
    kept.remove()
    assert list(tmp_path.iterdir()) == []


def test_paced_work_is_the_same_work(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = uninterrupted()
    for pace in (0.0, 1e-3, 10.0):
        monkeypatch.setattr(partial, "PACE_SECONDS", pace)
        paced = Paced(small_smoothed().counter(48 * 48), 1)
        for _ in range(3):
            assert counted(paced) == expected


@settings(max_examples=10, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_run_stopped_anywhere_and_continued_is_an_uninterrupted_one(
    whole: dict[str, list[dict[str, Any]]], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Stopped after the k-th forward pass, several times, with counts that reach the disk at once, late or never."""
    policy = data.draw(st.sampled_from(["fixed", "file", "fixed", "search"]))
    stops = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=3))
    out = tmp_path_factory.mktemp("cut") / "run"
    with pytest.MonkeyPatch.context() as patch:
        for stop in stops:
            patch.setattr(partial, "PACE_SECONDS", data.draw(st.sampled_from([0.0, 0.001, 60.0])))
            with contextlib.suppress(StopError):  # a last session may come to its end
                small_run(out, policy, progress=stopping(stop))
            if not (out / "results.jsonl").exists() or data.draw(st.booleans()):
                continue
            torn = data.draw(st.sampled_from(["results.jsonl", "partial.jsonl", "events.jsonl"]))
            if (out / torn).exists():
                (out / torn).write_bytes((out / torn).read_bytes()[: -data.draw(st.integers(1, 60))])
        small_run(out, policy)
    assert rows_of(out) == whole[policy]
    assert {path.name for path in out.iterdir()} == {"header.json", "results.jsonl", "events.jsonl"}


def stopping(after: int) -> Any:
    calls = 0

    def progress(samples: int) -> None:
        nonlocal calls
        calls += 1
        if calls > after:
            raise StopError

    return progress


def stopped_run(out: Path) -> Path:
    """A run with finished inputs and one in progress."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(StopError):
        patch.setattr(partial, "PACE_SECONDS", 0.0)
        small_run(out, progress=stopping(50))
    assert (out / "partial.jsonl").stat().st_size
    assert (out / "results.jsonl").stat().st_size
    return out


def test_a_continued_run_draws_only_what_is_missing(
    tmp_path: Path, eager: None, whole: dict[str, list[dict[str, Any]]]
) -> None:
    out = stopped_run(tmp_path / "run")
    finished, kept = len(rows_of(out)), sum(line.n for line in read_counts(out, 3))
    drawn = []
    small_run(out, listeners=[lambda event, **details: drawn.append(details.get("samples"))])
    assert [n for n in drawn if n is not None][-1] == (INPUTS - finished) * (N + 20) - kept
    assert rows_of(out) == whole["fixed"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda line: line | VOTES | {"counts": [1, 2, 3]}, "votes with the sum 6, expected"),
        (lambda line: line | VOTES | {"counts": [line["n"], 0]}, r"counts of shape \(2,\), expected \(3,\)"),
        (lambda line: line | {"counts": [line["n"], 0, 0]}, r"counts of shape \(3,\), expected \(3, 3\)"),
        (lambda line: line | {"counts": [[line["n"], 0, 0]] * 3}, "duels that do not add up|votes with the sum"),
        (lambda line: line | {"counts": [[line["n"], 0, 0], [0], [1]]}, "counts of unequal length"),
        (lambda line: line | {"anchor": 1}, "expected one for wins and none for others"),
        (lambda line: line | VOTES | {"counts": [line["n"] + 1, -1, 0]}, "holds no counts: counts"),
        (lambda line: line | {"n": 0, "counts": [0, 0, 0]}, "holds no counts: n"),
        (lambda line: line | {"extra": 1}, "holds no counts: extra"),
        (lambda line: line | {"sigma": -0.3}, "holds no counts: sigma"),
        (lambda line: 3, "holds no counts"),
    ],
)
def test_a_corrupt_line_is_named_and_nothing_changes(tmp_path: Path, change: Any, message: str) -> None:
    out = stopped_run(tmp_path / "run")
    lines = (out / "partial.jsonl").read_text().splitlines()
    lines[1] = json.dumps(change(json.loads(lines[1])))
    (out / "partial.jsonl").write_text("\n".join(lines) + "\n")
    before = {name: (out / name).read_bytes() for name in ("header.json", "results.jsonl", "partial.jsonl")}
    with pytest.raises(RunError, match=rf"partial\.jsonl, line 2.*{message}"):
        small_run(out)
    assert before == {name: (out / name).read_bytes() for name in before}


def test_lines_that_contradict_each_other_are_named(tmp_path: Path) -> None:
    out = stopped_run(tmp_path / "run")
    lines = (out / "partial.jsonl").read_text().splitlines()
    other = json.loads(lines[0])
    other["counts"] = np.array(other["counts"])[::-1, ::-1].tolist()  # duels of the classes in another order
    (out / "partial.jsonl").write_text("\n".join([*lines, lines[0]]) + "\n")
    assert len(read_counts(out, 3)) == len(lines)  # the same line twice says the same
    (out / "partial.jsonl").write_text("\n".join([*lines, json.dumps(other)]) + "\n")
    with pytest.raises(RunError, match=f"line {len(lines) + 1} contradicts"):
        small_run(out)


def test_any_damage_is_an_error_in_one_line_or_none(tmp_path: Path) -> None:
    """The command line reads a damaged file of counts: only its own errors, and no file changes while it refuses."""
    out = stopped_run(tmp_path / "run")
    whole = (out / "partial.jsonl").read_bytes()
    first, *rest = whole.splitlines(keepends=True)

    @cases(200)
    @given(st.one_of(damaged(whole), damaged_json(json.loads(first)).map(lambda line: line + b"\n" + b"".join(rest))))
    def check(data: bytes) -> None:
        (out / "partial.jsonl").write_bytes(data)
        before = snapshot(out)
        assert main(["status", str(out)]) in (0, 1)
        assert snapshot(out) == before
        try:
            kept = keep(out, Counting(0))
        except DdsmoothingError:
            assert snapshot(out) == before
            return
        for line in read_counts(out, 3):
            votes = {"votes": np.array, "wins": lambda counts: counts[0], "duels": np.diag}[line.tally](line.counts)
            assert sum(votes) == line.n > 0
        assert kept.found <= sum(line.n for line in read_counts(out, 3))

    check()


def test_a_full_folder_of_counts_of_long_inputs_stays_small(tmp_path: Path, eager: None) -> None:
    """The file grows with the samples of inputs in progress alone, some hundred bytes a unit."""
    out = stopped_run(tmp_path / "run")
    for line in (out / "partial.jsonl").read_text().splitlines():
        assert len(line) < 160
    copy = shutil.copytree(out, tmp_path / "copy")
    small_run(copy)
    assert not (copy / "partial.jsonl").exists()


def test_counts_are_whole_numbers_of_64_bits(tmp_path: Path, eager: None) -> None:
    with keep(tmp_path, Counting()) as kept:
        for _, counts in kept.run(batch(), REQUESTS, 5):
            assert counts.dtype == np.int64
