"""Progress of sampling: what callers may give to be told, and a bar of our own.

The bar is on a terminal or in a notebook; elsewhere it is a plain line every few seconds. Always on standard error.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Protocol

from ddsmoothing.errors import InputError

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

LINE_SECONDS: Final = 5.0
QUIET_SECONDS: Final = 2.0  # shorter work says nothing
Progress = Callable[[int], None]


class Updating(Protocol):
    """A bar of another package, such as ``tqdm``."""

    def update(self, n: int, /) -> Any:
        """So many more are done."""


Told = bool | Progress | Updating | None


@contextmanager
def telling(progress: Told, total: int, what: str) -> Iterator[Progress | None]:
    """What is called with samples done since the last call, made of what was given.

    Args:
        progress: True for a bar of our own; a callable; something with ``update``, such as a tqdm; None or False.
        total: samples, at most.
        what: is being done.
    Raises:
        InputError: It is none of these.
    """
    if progress is True:
        with SampleProgress(max(1, total), what) as bar:
            yield bar
    elif progress is None or progress is False:
        yield None
    elif callable(getattr(progress, "update", None)):
        yield progress.update  # type: ignore[union-attr]
    elif callable(progress):
        yield progress
    else:
        raise InputError(f"progress is {progress!r}, expected True, a callable, or a bar such as tqdm.")


class SampleProgress:
    """Counts samples; call it with the number done since the last call. It moves inside one input too."""

    def __init__(self, total: int, what: str, unit: str = "samples") -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        self._total, self._what, self._unit, self._done = total, what, unit, 0
        self._start = self._last = time.monotonic()
        self._bar: Bar | None = None
        console = Console(stderr=True)
        if console.is_terminal or console.is_jupyter:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                TextColumn(f"{{task.fields[rate]}} {unit}/s"),
                TimeRemainingColumn(),
                console=console,
                transient=True,
            )
            self._task = self._bar.add_task(what, total=total, rate="-")

    def __enter__(self) -> SampleProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, text: str) -> None:
        """A line of its own, above the bar where there is one."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def __call__(self, samples: int) -> None:
        self._done += samples
        now = time.monotonic()
        rate = self._done / max(now - self._start, 1e-9)
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, rate=_short(rate))
        elif now - self._start > QUIET_SECONDS and now - self._last >= LINE_SECONDS:
            self._last = now
            left = max(0.0, (self._total - self._done) / rate)
            share = 100 * self._done / self._total
            print(
                f"{self._what}: {share:.0f} %, {_short(rate)} {self._unit}/s, {left:.0f} s left",
                file=sys.stderr,
                flush=True,
            )


def _short(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2f}"
