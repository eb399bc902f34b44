"""Votes, wins and duels: every count against plain loops over the samples' logits, whoever counts and however cut."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import ddsmoothing as dds
from ddsmoothing.counting import kept, tallies
from ddsmoothing.counting.contract import Request, cut_request, tally_fault, tally_shape
from ddsmoothing.counting.engine import Engine
from ddsmoothing.counting.kept import KeptCounts, Paced, read_counts
from ddsmoothing.counting.ledger import Ledger, Pace
from ddsmoothing.counting.local import ClassCounter
from ddsmoothing.counting.on_ray import RayExecutor
from ddsmoothing.counting.tallies import Tallies
from ddsmoothing.errors import InputError, ModelError, RunError
from ddsmoothing.inputs import Batch, prepare
from ddsmoothing.noise import Gaussian
from ddsmoothing.streams import rows_per_block

D, K = 48 * 48, 5
ROWS = rows_per_block(D)


class Coarse(torch.nn.Module):
    """Five logits that are rounded so coarsely that two of three samples tie somewhere."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x.flatten(1)[:, :K] * 4).round() / 4


def batch() -> Batch:
    x = torch.full((3, 1, 48, 48), 128, dtype=torch.uint8)
    x[1, 0, 0, 0], x[2, 0, 0, :K] = 140, torch.tensor([90, 100, 110, 120, 130], dtype=torch.uint8)
    return prepare(x, [3, 1, 2], None)


REQUESTS = [
    Request(row=0, sigma=0.3, stream=1, n=3 * ROWS + 5, tally="wins", anchor=2),
    Request(row=1, sigma=0.3, stream=1, n=2 * ROWS + 1),
    Request(row=0, sigma=0.3, stream=1, n=3 * ROWS + 5, tally="wins", anchor=4),
    Request(row=2, sigma=0.2, stream=0, n=ROWS + 9, tally="duels"),
    Request(row=2, sigma=0.2, stream=1, n=7, first_block=5, tally="wins", anchor=0),
    Request(row=1, sigma=0.5, stream=0, n=150, tally="duels"),
]


def beats(logits: Sequence[float], a: int, b: int) -> bool:
    return logits[a] > logits[b] or (logits[a] == logits[b] and a < b)


def plainly(logits: Sequence[Sequence[float]], request: Request, classes: int) -> NDArray[np.int64]:
    """The definition, sample by sample."""
    votes, wins = np.zeros(classes, dtype=np.int64), np.zeros((classes, classes), dtype=np.int64)
    for sample in logits:
        (winner,) = [a for a in range(classes) if all(beats(sample, a, b) for b in range(classes) if b != a)]
        votes[winner] += 1
        for a in range(classes):
            for b in range(classes):
                wins[a, b] += a != b and beats(sample, a, b)
    if request.tally == "duels":
        return wins + np.diag(votes)
    if request.tally == "wins":
        row = wins[request.anchor]
        row[request.anchor] = len(logits)
        return np.stack([votes, row])
    return votes


def counted(executor: Any, requests: Sequence[Request] = REQUESTS) -> list[list[Any]]:
    found = dict(executor.run(batch(), requests, 5))
    return [found[i].tolist() for i in range(len(requests))]


def counter(block_size: int = 64) -> ClassCounter:
    return ClassCounter(Engine(Coarse()), Gaussian(), K, block_size)


@pytest.fixture(scope="module")
def expected() -> list[list[Any]]:
    """Every request by the definition, from the logits of its own samples."""
    seen: list[torch.Tensor] = []

    def watched(x: torch.Tensor) -> torch.Tensor:
        seen.append(Coarse()(x))
        return seen[-1].clone()

    found = []
    for request in REQUESTS:
        seen.clear()
        ClassCounter(Engine(watched), Gaussian(), K, 64).count(batch(), [request], 5)
        found.append(plainly(torch.cat(seen)[: request.n].tolist(), request, K).tolist())
    return found


values = st.sampled_from([-1.0, -0.0, 0.0, 0.5, 0.5 + 2**-12, 2.0])


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_every_tally_of_one_pass_is_what_plain_loops_count(data: st.DataObject) -> None:
    """Random mixtures in one forward pass, with ties, zeros of both signs and bf16, where close logits become ties."""
    classes, rows = data.draw(st.integers(2, 6)), data.draw(st.integers(1, 20))
    logits = torch.tensor(
        data.draw(st.lists(st.lists(values, min_size=classes, max_size=classes), min_size=rows, max_size=rows))
    )
    logits = logits.to(data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float64])))
    request = st.one_of(
        st.just(Request(row=0, sigma=0.3, stream=1, n=9)),
        st.just(Request(row=0, sigma=0.3, stream=1, n=9, tally="duels")),
        st.integers(0, classes - 1).map(lambda a: Request(row=0, sigma=0.3, stream=1, n=9, tally="wins", anchor=a)),
    )
    requests = data.draw(st.lists(request, min_size=1, max_size=5))
    owner = torch.tensor(data.draw(st.lists(st.integers(0, len(requests) - 1), min_size=rows, max_size=rows)))
    mine = Tallies(requests, classes, torch.device("cpu"))
    cut = data.draw(st.integers(0, rows))
    mine.add(logits[:cut], owner[:cut])
    mine.add(logits[cut:], owner[cut:])
    for i, (one, counts) in enumerate(zip(requests, mine.found(), strict=True)):
        seen = logits[owner == i]
        assert counts.tolist() == plainly(seen.tolist(), one, classes).tolist()
        assert counts.shape == tally_shape(one.tally, classes)
        if len(seen):
            assert tally_fault(counts, replace(one, n=len(seen)), classes) is None


def test_exactly_one_of_two_classes_wins_each_sample(expected: list[list[Any]]) -> None:
    duels, wins, votes = np.array(expected[3]), np.array(expected[0]), np.array(expected[0][0])
    n = REQUESTS[3].n
    off = ~np.eye(K, dtype=bool)
    assert ((duels + duels.T)[off] == n).all()
    assert duels.diagonal().sum() == n
    assert wins[1, 2] == REQUESTS[0].n
    assert (wins[1] >= votes[2]).all()
    assert (wins[1] + votes <= REQUESTS[0].n)[np.arange(K) != 2].all()
    assert (wins[1] > votes[2]).sum() >= 3  # a pair is won more often than the whole


@pytest.mark.parametrize("block_size", [1, 7, 64, 1000])
def test_block_size_and_mixture_change_no_tally(block_size: int, expected: list[list[Any]]) -> None:
    assert counted(counter(block_size)) == expected
    assert [counter(block_size).count(batch(), [one], 5)[0].tolist() for one in REQUESTS] == expected


def test_several_threads_change_no_tally(expected: list[list[Any]]) -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert counted(counter(16)) == expected
    finally:
        torch.set_num_threads(threads)


def test_the_parts_of_a_cut_request_add_up(expected: list[list[Any]]) -> None:
    for one, counts in zip(REQUESTS, expected, strict=True):
        parts, rest = list[Request](), one
        while rest is not None:
            part, rest = cut_request(D, rest, ROWS)
            parts.append(part)
        assert all((part.tally, part.anchor) == (one.tally, one.anchor) for part in parts)
        assert sum(counter().count(batch(), parts, 5)).tolist() == counts  # type: ignore[union-attr]


def test_duels_of_many_classes_are_compared_in_bounded_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    logits, owner = torch.randn(40, 12).round(decimals=1), torch.arange(40) % 2
    requests = [Request(row=0, sigma=0.3, stream=1, n=20, tally="duels")] * 2
    found = []
    for numbers in (1, 12 * 12 * 7, 2**20):
        monkeypatch.setattr(tallies, "LARGEST_DUELS", numbers)
        mine = Tallies(requests, 12, torch.device("cpu"))
        mine.add(logits, owner)
        found.append([counts.tolist() for counts in mine.found()])
    assert found[0] == found[1] == found[2]
    assert found[0][1] == plainly(logits[1::2].tolist(), requests[1], 12).tolist()


@pytest.mark.parametrize("kind", [{"tally": "votes"}, {"tally": "wins", "anchor": 1}, {"tally": "duels"}])
def test_logits_that_are_not_finite_are_refused_in_every_tally(kind: dict[str, Any]) -> None:
    def sometimes(x: torch.Tensor) -> torch.Tensor:
        logits = x.flatten(1)[:, :K].clone()
        logits[x[:, 0, 0, 7] > 1.3] = torch.nan
        return logits

    with pytest.raises(ModelError, match="NaN or infinite"):
        ClassCounter(Engine(sometimes), Gaussian(), K, 64).count(
            batch(), [Request(row=0, sigma=0.5, stream=1, n=600, **kind)], 0
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tally": "wins"}, "expected one for wins and none for others"),
        ({"tally": "votes", "anchor": 1}, "expected one for wins and none for others"),
        ({"tally": "duels", "anchor": 1}, "expected one for wins and none for others"),
        ({"tally": "win", "anchor": 1}, "Did you mean 'wins'"),
    ],
)
def test_requests_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Request(row=0, sigma=0.3, stream=1, n=9, **options)


@pytest.mark.parametrize("anchor", [-1, K])
def test_an_anchor_that_is_no_class_is_refused(anchor: int) -> None:
    with pytest.raises(InputError, match="expected a class from 0 to 4"):
        counter().count(batch(), [Request(row=0, sigma=0.3, stream=1, n=9, tally="wins", anchor=anchor)], 5)


# executors


def test_paced_kept_and_lent_work_has_the_same_tallies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: list[list[Any]]
) -> None:
    monkeypatch.setattr(kept, "PACE_SECONDS", 0.0)
    assert counted(Paced(counter(), 1)) == expected
    with keep(tmp_path) as first:
        assert counted(first) == expected
        assert first.drawn == sum(one.n for one in REQUESTS)
    with keep(tmp_path) as again:
        assert counted(again) == expected
        assert again.drawn == 0
        again.forget([1])
    with keep(tmp_path) as rest:
        assert counted(rest) == expected
        assert rest.drawn == sum(one.n for one in REQUESTS if one.row == 1)  # the input with id 1
    ledger, pace, complete = Ledger(D, REQUESTS, K, 64), Pace(), {}
    while (task := ledger.lend(pace, 0, 1, 0.0)) is not None:
        complete.update(ledger.settle(task, counter().count(batch(), [part for _, part in task.parts], 5)))
    assert [complete[i].tolist() for i in range(len(REQUESTS))] == expected


def keep(folder: Path) -> KeptCounts:
    return KeptCounts(folder, counter(), num_classes=K, seed=5, block_size=64, finished=[], durable=lambda: None)


def test_a_smoothed_classifier_gives_what_its_executor_counted(expected: list[list[Any]]) -> None:
    smoothed = dds.SmoothedClassifier(Coarse(), dds.L2Certificate(), num_classes=K, block_size=64)
    assert [counts.tolist() for counts in smoothed.count(batch(), REQUESTS, 5)] == expected
    assert smoothed.count(batch(), [], 5) == []


def test_tallies_of_the_executor_of_ray_are_those_of_this_process(expected: list[list[Any]]) -> None:
    class Pool:
        """One worker of this process, in place of Ray's."""

        ready = 1

        def __init__(self) -> None:
            self.hand, self.done = Hand(), list[Any]()

        def ship(self, *parts: Any) -> ClassCounter:
            return ClassCounter(*parts)

        def place(self, placed: Batch) -> Batch:
            return placed

        def idle(self) -> Iterator[Any]:
            yield self.hand

        def send(self, hand: Any, task: Any, there: ClassCounter, placed: Batch, seed: int) -> None:
            counts = there.count(placed, [part for _, part in task.parts], seed)
            self.done.append((hand, task, (counts, 0.1)))

        def wait(self) -> Iterator[Any]:
            done, self.done = self.done, []
            yield from done

    class Hand:
        def __init__(self) -> None:
            self.tasks, self.pace = list[Any](), dict[int, Pace]()

    assert counted(RayExecutor(Pool(), Engine(Coarse()), Gaussian(), K, 64)) == expected  # type: ignore[arg-type]


# kept counts that no samples can have given


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tally": "wins", "anchor": 0, "counts": [[9, 1], [10, 9]]}, "counts of shape"),
        ({"tally": "wins", "anchor": 0, "counts": [9, 1, 0]}, "counts of shape"),
        ({"tally": "wins", "anchor": 0, "counts": [[9, 1, 0], [10, 9]]}, "counts of unequal length"),
        ({"tally": "wins", "counts": [[9, 1, 0], [10, 9, 10]]}, "expected one for wins and none for others"),
        ({"tally": "votes", "anchor": 0, "counts": [9, 1, 0]}, "expected one for wins and none for others"),
        ({"tally": "wins", "anchor": 3, "counts": [[9, 1, 0], [10, 9, 10]]}, "the anchor 3, expected one of 3 classes"),
        ({"tally": "wins", "anchor": 0, "counts": [[9, 1, 0], [9, 9, 10]]}, "do not fit the votes"),
        ({"tally": "wins", "anchor": 0, "counts": [[9, 1, 0], [10, 8, 10]]}, "do not fit the votes"),
        ({"tally": "wins", "anchor": 0, "counts": [[9, 1, 0], [10, 10, 10]]}, "do not fit the votes"),
        ({"tally": "wins", "anchor": 0, "counts": [[9, 2, 0], [10, 9, 10]]}, "votes with the sum 11"),
        ({"tally": "wins", "anchor": 0, "counts": [[9, 1, 0], [10, 9, 11]]}, "counts from 0 to 11"),
        ({"tally": "duels", "counts": [[9, 9, 10], [1, 1, 9], [0, 0, 0]]}, "duels that do not add up"),
        ({"tally": "duels", "counts": [[9, 8, 10], [2, 1, 9], [0, 1, 0]]}, "duels that do not add up"),
        ({"tally": "duels", "counts": [[9, 9, 10], [1, 2, 9], [0, 1, 0]]}, "votes with the sum 11"),
        ({"tally": "duels", "counts": [[9, 8, 10], [2, 1, 9], [0, 1, 0]]}, "duels that do not add up"),
        ({"counts": [2**62, 2**62, 2**62 + 10]}, "expected 0 to 10"),
        ({"n": 2**62, "counts": [2**62, 2**62, 2**62]}, "votes with the sum"),
        ({"tally": "wins", "anchor": 0, "counts": [[9, 1, 0], [10, 9, 2**63 - 1]]}, "expected 0 to 10"),
        ({"tally": "all", "counts": [9, 1, 0]}, "holds no counts: tally"),
    ],
)
def test_kept_tallies_that_hang_together_badly_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    good = {"id": 0, "input": "0" * 16, "stream": 1, "sigma": 0.3, "block": 0, "n": 10}
    fine = [
        good | {"counts": [9, 1, 0]},
        good | {"tally": "wins", "anchor": 0, "counts": [[9, 1, 0], [10, 9, 10]]},
        good | {"tally": "wins", "anchor": 1, "counts": [[9, 1, 0], [1, 10, 9]]},
        good | {"tally": "duels", "counts": [[9, 9, 10], [1, 1, 9], [0, 1, 0]]},
    ]
    (tmp_path / "partial.jsonl").write_text("".join(json.dumps(line) + "\n" for line in fine))
    assert len(read_counts(tmp_path, 3)) == 4  # one block, four questions
    (tmp_path / "partial.jsonl").write_text(json.dumps(good | change) + "\n")
    with pytest.raises(RunError, match=message):
        read_counts(tmp_path, 3)
