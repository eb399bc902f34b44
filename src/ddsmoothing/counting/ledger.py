"""Which work is left, lent and returned: how requests are cut into tasks, and what becomes of lost and late ones.

It knows no processes, no network and no clock; the time is passed in. Whoever carries tasks to workers asks it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ddsmoothing.counting.contract import Request, cut_request, tally_shape
from ddsmoothing.errors import RunError
from ddsmoothing.streams import rows_per_block

TASK_SECONDS: Final = 1.0  # of work in one task, about
IN_HAND: Final = 2  # tasks with one worker: one in work, one waiting
SPREAD: Final = 2  # near the end a task is this part of what each worker still has to do
GROWTH: Final = 4.0  # a task is at most so many times the one before, until a speed has proved itself
FULL: Final = 0.9  # of the rows of a task's forward passes, at least
TRIED: Final = 8  # sizes of a task, for that
MOST_LOSSES: Final = 4  # workers lost with the same task
LATE: Final = 3.0  # times the expected duration, and LATE_SECONDS more, after which others may do a task too
LATE_SECONDS: Final = 2.0


@dataclass(eq=False)
class Task:
    """Pieces of requests that one worker counts at once.

    Attributes:
        parts: each with the number of its request.   expected: when it should be back.
        holders: workers that have it.   lost: workers lost with it.   done: its counts are in.
    """

    parts: list[tuple[int, Request]]
    expected: float = 0.0
    holders: int = 0
    lost: int = 0
    done: bool = False

    @property
    def samples(self) -> int:
        """Samples in it."""
        return sum(request.n for _, request in self.parts)


@dataclass(eq=False)
class Pace:
    """How fast one worker is with one model.

    Attributes:
        rate: samples a second, None before the first task is back.   largest: samples in its largest task.
    """

    rate: float | None = None
    largest: int = 0

    def learn(self, samples: int, seconds: float) -> None:
        """Take note of a task that is back."""
        rate = samples / max(seconds, 1e-6)
        self.rate = rate if self.rate is None or 2 * samples < self.largest else 0.5 * (self.rate + rate)
        self.largest = max(self.largest, samples)


class Ledger:
    """The requests of one call: what is left to lend, what is lent, what is counted.

    Args:
        d: numbers in one input.   requests: what is to be counted.   num_classes: K.
        block_size: rows of one forward pass; tasks fill whole ones, since passes are padded.
    """

    def __init__(self, d: int, requests: Sequence[Request], num_classes: int, block_size: int) -> None:
        self._d, self._block = d, block_size
        self._left = deque((i, request) for i, request in enumerate(requests) if request.n)
        self._again: deque[Task] = deque()
        self._lent: dict[Task, None] = {}
        self._due = [request.n for request in requests]
        self._unlent = sum(self._due)
        self._counts = [np.zeros(tally_shape(r.tally, num_classes), dtype=np.int64) for r in requests]
        self._open = len(self._left)

    @property
    def finished(self) -> bool:
        """True when every request is counted."""
        return self._open == 0

    def lend(self, pace: Pace, in_hand: int, workers: int, now: float) -> Task | None:
        """The next task for a worker with so many samples in hand, or None.

        Lost tasks come first. A task is about TASK_SECONDS of work at the worker's pace, and less near the end, so that
        all workers end together. When nothing is left, a task that is late with another worker is lent once more.
        """
        rate = pace.rate or 0.0
        task = self._again.popleft() if self._again else self._cut(pace, workers)
        if task is None and not in_hand:
            task = next((late for late in self._lent if late.holders == 1 and now > late.expected), None)
        if task is None:
            return None
        task.holders += 1
        seconds = (in_hand + task.samples) / rate if rate else TASK_SECONDS
        task.expected = now + LATE * seconds + LATE_SECONDS
        self._lent[task] = None
        return task

    def _cut(self, pace: Pace, workers: int) -> Task | None:
        if not self._left:
            return None
        wanted = 0.0 if pace.rate is None else min(pace.rate * TASK_SECONDS, GROWTH * pace.largest)
        task, room = Task([]), self._block * self._passes(int(min(wanted, self._unlent / (SPREAD * workers))))
        while self._left:
            i, request = self._left.popleft()
            part, rest = cut_request(self._d, request, room)
            if task.parts and part.n > room:
                self._left.appendleft((i, request))
                break
            task.parts.append((i, part))
            room -= part.n
            self._unlent -= part.n
            if rest is not None:
                self._left.appendleft((i, rest))
        return task

    def _passes(self, samples: int) -> int:
        """The fewest forward passes for so many samples that whole noise blocks fill to FULL; the rest is padding."""
        passes, rows = max(1, -(-samples // self._block)), rows_per_block(self._d)
        full = (p for p in range(passes, passes + TRIED) if p * self._block % rows <= (1 - FULL) * p * self._block)
        return next(full, passes)

    def settle(self, task: Task, counts: Sequence[NDArray[np.int64]]) -> list[tuple[int, NDArray[np.int64]]]:
        """Add what was counted of each part of a task; returns the requests that are complete now.

        A task that is settled already changes nothing, since its counts are the same.
        """
        task.holders -= 1
        if task.done:
            return []
        task.done = True
        self._lent.pop(task, None)
        complete = []
        for (i, part), row in zip(task.parts, counts, strict=True):
            self._counts[i] += row
            self._due[i] -= part.n
            if self._due[i] == 0:
                self._open -= 1
                complete.append((i, self._counts[i]))
        return complete

    def lost(self, task: Task) -> bool:
        """A worker is lost with a task; True if it has to be lent again.

        Raises: RunError when the same task was lost with MOST_LOSSES workers.
        """
        task.holders -= 1
        if task.done:
            return False
        task.lost += 1
        if task.lost >= MOST_LOSSES:
            raise RunError(
                f"{task.lost} workers were lost while they had the same {task.samples} samples; the base classifier "
                "may crash or need more memory than a worker has. Try a smaller --block-size."
            )
        if task.holders:
            return False
        self._lent.pop(task, None)
        self._again.append(task)
        return True
