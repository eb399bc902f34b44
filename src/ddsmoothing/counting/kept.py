"""Counts of inputs in progress, kept in a file, so that an interrupted run loses seconds of work.

Counts are a function of input, noise and model. A continued run asks its questions again, in the same order, and those
that the file answers need no forward pass. It knows no samplers and no radii.
"""

from __future__ import annotations

import json
import os
import time
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ddsmoothing.counting.contract import Executor, Progress, Request, cut_request, tally_fault
from ddsmoothing.errors import InputError, RunError, first_error
from ddsmoothing.files import append_durably, drop_torn_line, open_to_append, whole_lines, write_durably
from ddsmoothing.streams import rows_per_block

if TYPE_CHECKING:
    from ddsmoothing.inputs import Batch

PARTIAL: Final = "partial.jsonl"
PACE_SECONDS: Final = 2.0  # about the time between two moments at which counts reach the disk
UNIT_PASSES: Final = 2  # forward passes in one unit of work, at least
_GROWTH = 4

Counts = NDArray[np.int64]
_Key = tuple[int, str, int, float, str, int | None]  # id, input, stream, sigma, tally, anchor
_Count = Annotated[int, Field(ge=0, lt=2**63)]


class CountsLine(BaseModel):
    """One line of ``partial.jsonl``: class counts of some noise blocks of an input that is not finished.

    Attributes:
        input: the first digits of the input's SHA-256.   stream, block: which noise: its first block.
        n: samples.   tally, anchor, counts: what was counted, see ``Request``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    id: Annotated[int, Field(ge=0, lt=2**64)]
    input: Annotated[str, Field(pattern="^[0-9a-f]{16}$")]
    stream: Annotated[int, Field(ge=0, lt=2**64)]
    sigma: Annotated[float, Field(gt=0.0, le=1e6)]
    block: Annotated[int, Field(ge=0, lt=2**64)]
    n: Annotated[int, Field(ge=1, lt=2**63)]
    counts: tuple[_Count, ...] | tuple[tuple[_Count, ...], ...]
    tally: Literal["votes", "wins", "duels"] = "votes"
    anchor: _Count | None = None

    @property
    def key(self) -> _Key:
        """What it is of, but for its noise blocks."""
        return self.id, self.input, self.stream, self.sigma, self.tally, self.anchor


class Paced:
    """This process's executor, given its work in groups of some seconds, so that counts arrive while it goes on."""

    def __init__(self, counter: Executor, first: int) -> None:
        self._counter, self._samples = counter, first

    def run(
        self, batch: Batch, requests: Sequence[Request], seed: int, progress: Progress | None = None
    ) -> Iterator[tuple[int, Counts]]:
        """Counts of group after group; see ``Executor``. The size of groups follows the time they take."""
        start = 0
        while start < len(requests):
            stop, samples = start, 0
            while stop < len(requests) and (samples == 0 or samples + requests[stop].n <= self._samples):
                samples += requests[stop].n
                stop += 1
            began = time.monotonic()
            counts = dict(self._counter.run(batch, requests[start:stop], seed, progress))
            seconds = max(time.monotonic() - began, 1e-6)
            if 2 * samples >= self._samples:  # a small rest says little about the speed
                self._samples = max(1, min(_GROWTH * samples, int(samples * PACE_SECONDS / seconds)))
            yield from ((start + i, counts[i]) for i in range(stop - start))
            start = stop


class KeptCounts:
    """An executor that answers from ``partial.jsonl`` what was counted before, and adds there what is counted now.

    Args:
        folder: of a run, whose lock is held.   inner: runs the forward passes.   num_classes: K.   seed: the run's.
        block_size: rows of one forward pass.   finished: ids whose rows are written; their lines mean nothing.
        durable: called when counts have reached the disk.
    Attributes:
        found: samples in the file at the start.   drawn: samples drawn since.
    Raises: RunError naming the line where the file is damaged; nothing is changed then.
    """

    def __init__(
        self,
        folder: Path,
        inner: Executor,
        *,
        num_classes: int,
        seed: int,
        block_size: int,
        finished: Collection[int],
        durable: Callable[[], None],
    ) -> None:
        self._path, self._inner, self._seed, self._durable = folder / PARTIAL, inner, seed, durable
        self._unit = UNIT_PASSES * block_size
        self._kept: dict[_Key, dict[int, CountsLine]] = {}
        for line in read_counts(folder, num_classes):
            if line.id not in finished:
                self._kept.setdefault(line.key, {})[line.block] = line
        self.found, self.drawn = sum(line.n for kept in self._kept.values() for line in kept.values()), 0
        self._file: int | None = None
        self._waiting: list[str] = []
        self._written = time.monotonic()
        drop_torn_line(self._path)

    def __enter__(self) -> KeptCounts:
        return self

    def __exit__(self, kind: object, error: object, at: object) -> None:
        try:
            self._write()
        finally:
            self._close()

    def run(
        self, batch: Batch, requests: Sequence[Request], seed: int, progress: Progress | None = None
    ) -> Iterator[tuple[int, Counts]]:
        """Counts of every request as soon as its last unit is counted; see ``Executor``."""
        assert seed == self._seed, "counts of another seed are not kept"
        totals: list[Counts | int] = [0] * len(requests)
        missing, asked = [0] * len(requests), list[tuple[int, Request]]()
        for i, request in enumerate(requests):
            for unit, counts in self._units(batch, request):
                if counts is None:
                    asked.append((i, unit))
                    missing[i] += 1
                    continue
                totals[i] = totals[i] + counts
                if progress is not None:
                    progress(unit.n)
            if not missing[i]:
                yield i, np.asarray(totals[i])
        for j, counts in self._inner.run(batch, [unit for _, unit in asked], seed, progress):
            i, unit = asked[j]
            self._keep(batch, unit, counts)
            totals[i] = totals[i] + counts
            missing[i] -= 1
            if not missing[i]:
                yield i, np.asarray(totals[i])

    def _units(self, batch: Batch, request: Request) -> Iterator[tuple[Request, Counts | None]]:
        """Cut a request at noise blocks: what is kept, with its counts, and what lies between, in units of work."""
        rows = rows_per_block(batch.d)
        kept = self._kept.get(_key(batch, request), {})
        starts = sorted(kept)
        rest: Request | None = request
        while rest is not None:
            line, counts, n = kept.get(rest.first_block), None, self._unit
            if line is not None and (line.n == rest.n or (line.n < rest.n and line.n % rows == 0)):
                counts, n = np.array(line.counts, dtype=np.int64), line.n
            elif (following := bisect_right(starts, rest.first_block)) < len(starts):
                n = min(n, rows * (starts[following] - rest.first_block))
            unit, rest = (rest, None) if n == rest.n else cut_request(batch.d, rest, n)
            yield unit, counts

    def _keep(self, batch: Batch, unit: Request, counts: Counts) -> None:
        """Hold a unit's counts until enough time has passed since the last writing."""
        i, digits, stream, sigma, tally, anchor = _key(batch, unit)
        line = {"id": i, "input": digits, "stream": stream, "sigma": sigma, "block": unit.first_block, "n": unit.n}
        line |= {"tally": tally} | ({} if anchor is None else {"anchor": anchor})
        self._waiting.append(json.dumps(line | {"counts": counts.tolist()}, separators=(",", ":")) + "\n")
        self.drawn += unit.n
        if time.monotonic() - self._written >= PACE_SECONDS:
            self._write()

    def _write(self) -> None:
        if self._waiting:
            if self._file is None:
                self._file = open_to_append(self._path)
            append_durably(self._file, self._path, "".join(self._waiting))
            self._durable()
        self._clear()

    def _clear(self) -> None:
        self._waiting, self._written = [], time.monotonic()

    def forget(self, ids: Collection[int]) -> None:
        """Drop the counts of inputs whose rows are on disk now; those of other inputs stay."""
        self._clear()
        self._kept = {key: kept for key, kept in self._kept.items() if key[0] not in ids}
        if not self._path.exists() or not self._path.stat().st_size:
            return
        if self._kept:
            self._close()
            write_durably(
                self._path,
                "".join(line.model_dump_json() + "\n" for kept in self._kept.values() for line in kept.values()),
            )
        else:
            os.truncate(self._path, 0)

    def remove(self) -> None:
        """Take the file away: every input has its row."""
        self._clear()
        self._path.unlink(missing_ok=True)

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _key(batch: Batch, request: Request) -> _Key:
    row, anchor = request.row, None if request.anchor is None else int(request.anchor)
    stream, sigma = int(request.stream), float(request.sigma)
    return batch.ids[row], batch.sha256[row][:16], stream, sigma, request.tally, anchor


def read_counts(folder: Path, num_classes: int) -> list[CountsLine]:
    """The whole lines of ``partial.jsonl``, if it is there; RunError naming the first one that is none."""
    try:
        texts = whole_lines(folder / PARTIAL)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunError(f"cannot read {folder / PARTIAL}: {error.strerror}.") from error
    lines: dict[tuple[_Key, int], CountsLine] = {}
    for number, text in enumerate(texts, start=1):
        try:
            line = CountsLine.model_validate_json(text)
        except ValidationError as error:
            raise RunError(f"{folder / PARTIAL}, line {number} holds no counts: {first_error(error)}.") from None
        if fault := _fault(line, num_classes):
            raise RunError(f"{folder / PARTIAL}, line {number}: {fault}.")
        key = line.key, line.block
        if lines.setdefault(key, line) != line:
            raise RunError(f"{folder / PARTIAL}, line {number} contradicts an earlier line.")
    return list(lines.values())


def _fault(line: CountsLine, num_classes: int) -> str | None:
    """What no samples can have given in a line, None where nothing is."""
    try:
        counts = np.array(line.counts, dtype=np.int64)
    except ValueError:
        return "counts of unequal length"
    try:
        asked = Request(row=0, sigma=line.sigma, stream=line.stream, n=line.n, tally=line.tally, anchor=line.anchor)
    except InputError as error:
        return str(error).rstrip(".")
    return tally_fault(counts, asked, num_classes)
